// Owns the Python module turnpack._core: allocates, releases the GIL, calls kernels.h.
// Computes nothing. Its callers (kernels.py) have checked types and layouts; what a wrong one would
// break is refused here again by pybind11, which converts no array.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "errors.h"
#include "kernels.h"
#include "machine.h"
#include "shared_planner.h"

namespace py = pybind11;

namespace turnpack::binding {
namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;
using Offsets = Array<int64_t>;
using Weights = std::optional<Array<float>>;
using Mask = std::optional<Array<uint8_t>>;

// Runs a core function without the GIL.
template <class Work>
auto unlocked(const Work& work) {
    py::gil_scoped_release release;
    return work();
}

const float* data_or_null(const Weights& weights) { return weights ? weights->data() : nullptr; }

void check_size(const char* name, int64_t size, int64_t wanted) {
    if (size != wanted) fail(name, " has ", size, " entries, not ", wanted);
}

void check_threads(int64_t threads) {
    if (threads < 1) fail("threads is ", threads, ", less than 1");
}

// A copy of what the core checks and then goes by, which no other thread can write to in between.
Offsets held(const Offsets& given) { return Offsets(given.size(), given.data()); }

// Offsets with no entry, which are refused later, count as no rows.
int64_t rows_of(const Offsets& offsets) { return std::max<int64_t>(offsets.size() - 1, 0); }

// New memory that begins with a line of 64 bytes, where streaming stores are at their best. Large
// memory, for which NumPy asks for huge pages, begins with one of these: NumPy's own begins
// anywhere, and up to its first huge page each small one is a fault of its own.
template <class T>
Array<T> aligned(const std::vector<py::ssize_t>& shape) {
    constexpr int64_t line = 64, huge = int64_t{1} << 21;
    constexpr int64_t most = std::numeric_limits<int64_t>::max() - huge;
    int64_t size = sizeof(T);
    for (const py::ssize_t entries : shape) size *= entries;
    const int64_t step = size < 2 * huge ? line : huge;
    Array<char> memory(std::min(size, most) + step);
    char* const begin = memory.mutable_data();
    const int64_t shift = step - static_cast<int64_t>(reinterpret_cast<uintptr_t>(begin) % step);
    return Array<T>(shape, reinterpret_cast<T*>(begin + shift), memory);
}

// The first entries of the named array of `out`, or a new one of this size.
template <class T>
Array<T> first_of(const py::object& out, const char* name, int64_t size) {
    if (out.is_none()) return aligned<T>({size});
    const auto array = py::cast<Array<T>>(out.attr(name));
    if (array.size() < size) {
        fail("out.", name, " has room for ", array.size(), " tokens, not ", size);
    }
    return py::cast<Array<T>>(array[py::slice(0, size, 1)]);
}

py::tuple concat(const Array<int32_t>& turn_ids, const Offsets& given_turn_offsets,
                 const Offsets& given_roles, const Offsets& given_row_offsets,
                 const Array<int32_t>& affixes, const Offsets& affix_offsets,
                 const Array<uint8_t>& targets, const Array<uint8_t>& suffix_targets,
                 const Array<int32_t>& bos, const Array<int32_t>& eos, const py::object& out,
                 int64_t threads) {
    const Offsets turn_offsets = held(given_turn_offsets), roles = held(given_roles),
                  row_offsets = held(given_row_offsets);
    check_threads(threads);
    check_offsets("affix_offsets", affix_offsets.data(), affix_offsets.size(), affixes.size());
    check_size("affix_offsets", affix_offsets.size(), 2 * targets.size() + 1);
    check_size("suffix_targets", suffix_targets.size(), targets.size());
    const ConcatIn in{turn_ids.data(),      turn_ids.size(),    turn_offsets.data(),
                      turn_offsets.size(),  roles.data(),       roles.size(),
                      row_offsets.data(),   row_offsets.size(), affixes.data(),
                      affix_offsets.data(), targets.data(),     suffix_targets.data(),
                      targets.size(),       bos.data(),         bos.size(),
                      eos.data(),           eos.size()};
    Offsets offsets(rows_of(row_offsets) + 1);
    int64_t* starts = offsets.mutable_data();
    const int64_t tokens = unlocked([&] { return concat_offsets(in, starts); });
    auto input_ids = first_of<int32_t>(out, "input_ids", tokens);
    auto loss_mask = first_of<uint8_t>(out, "loss_mask", tokens);
    const ConcatOut made{starts, input_ids.mutable_data(), loss_mask.mutable_data()};
    unlocked([&] { turnpack::concat(in, made, threads); });
    return py::make_tuple(input_ids, loss_mask, offsets);
}

// The mask that is to be written, or a new one.
Array<uint8_t> mask_of(const Mask& out, int64_t tokens) {
    if (!out) return aligned<uint8_t>({tokens});
    check_size("out", out->size(), tokens);
    return *out;
}

Array<uint8_t> mask_spans(const Offsets& extents, const Offsets& given_offsets,
                          const Offsets& spans, const Offsets& given_span_offsets, const Mask& out,
                          int64_t threads) {
    const Offsets offsets = held(given_offsets), span_offsets = held(given_span_offsets);
    check_threads(threads);
    const int64_t tokens = extents.size() / 2;
    auto loss_mask = mask_of(out, tokens);
    uint8_t* mask = loss_mask.mutable_data();
    unlocked([&] {
        turnpack::mask_spans(extents.data(), tokens, offsets.data(), offsets.size(), spans.data(),
                             spans.size() / 2, span_offsets.data(), span_offsets.size(), threads,
                             mask);
    });
    return loss_mask;
}

Array<uint8_t> mask_markers(const Array<int32_t>& input_ids, const Offsets& given_offsets,
                            const Array<int32_t>& starts, const Offsets& start_offsets,
                            const Array<int32_t>& ends, const Offsets& end_offsets,
                            bool include_end, const Mask& out, int64_t threads) {
    const Offsets offsets = held(given_offsets);
    check_threads(threads);
    check_offsets("start_offsets", start_offsets.data(), start_offsets.size(), starts.size());
    check_offsets("end_offsets", end_offsets.data(), end_offsets.size(), ends.size());
    const Patterns opening{starts.data(), start_offsets.data(), start_offsets.size() - 1};
    const Patterns closing{ends.data(), end_offsets.data(), end_offsets.size() - 1};
    auto loss_mask = mask_of(out, input_ids.size());
    uint8_t* mask = loss_mask.mutable_data();
    unlocked([&] {
        turnpack::mask_markers(input_ids.data(), input_ids.size(), offsets.data(), offsets.size(),
                               opening, closing, include_end, threads, mask);
    });
    return loss_mask;
}

py::tuple plan(const Offsets& lengths, int64_t capacity, const std::string& strategy, int64_t align,
               int64_t max_rows, int64_t threads, bool wide) {
    const Strategy rule = strategy == "in_order"    ? Strategy::in_order
                          : strategy == "first_fit" ? Strategy::first_fit
                                                    : Strategy::best_fit;
    auto rows = aligned<int64_t>({lengths.size()});
    Offsets offsets(lengths.size() + 1), fill(lengths.size());
    int64_t *rows_to = rows.mutable_data(), *offsets_to = offsets.mutable_data(),
            *fill_to = fill.mutable_data();
    const int64_t bins = unlocked([&] {
        return turnpack::plan(lengths.data(), lengths.size(), capacity, rule, align, max_rows,
                              threads, wide, rows_to, offsets_to, fill_to);
    });
    // In place: what was not written to was never made part of memory.
    offsets.resize({bins + 1}, false);
    fill.resize({bins}, false);
    return py::make_tuple(rows, offsets, fill);
}

Offsets array_of(const std::vector<int64_t>& values) {
    return Offsets(static_cast<py::ssize_t>(values.size()), values.data());
}

py::tuple bins_of(const Closed& closed) {
    return py::make_tuple(array_of(closed.rows), array_of(closed.offsets), array_of(closed.fill));
}

// Without the GIL, so that the thread that is inside needs not wait for it.
py::tuple planner_add(SharedPlanner& planner, const Offsets& given_lengths) {
    const Offsets lengths = held(given_lengths);
    const int64_t* from = lengths.data();
    return bins_of(unlocked([&] { return planner.add(from, lengths.size()); }));
}

py::tuple planner_flush(SharedPlanner& planner) {
    return bins_of(unlocked([&] { return planner.flush(); }));
}

py::tuple planner_state(SharedPlanner& planner) {
    const Planner::State state = unlocked([&] { return planner.state(); });
    return py::make_tuple(state.rows, array_of(state.ids), array_of(state.lengths));
}

void planner_load(SharedPlanner& planner, int64_t rows, const Offsets& ids,
                  const Offsets& lengths) {
    check_size("lengths", lengths.size(), ids.size());
    Planner::State state{rows,
                         {ids.data(), ids.data() + ids.size()},
                         {lengths.data(), lengths.data() + lengths.size()}};
    unlocked([&] { planner.load(std::move(state)); });
}

// The named array of `out`, or a new one of this shape.
template <class T>
Array<T> cells_of(const py::object& out, const char* name, const std::vector<py::ssize_t>& shape) {
    if (out.is_none()) return aligned<T>(shape);
    auto array = py::cast<Array<T>>(out.attr(name));
    const py::tuple found = array.attr("shape"), wanted = py::tuple(py::cast(shape));
    if (!found.equal(wanted)) {
        fail("out.", name, " has shape ", std::string(py::str(found)), ", not ",
             std::string(py::str(wanted)));
    }
    return array;
}

template <class Int>
py::tuple pack_cells_as(const PackIn& in, int64_t bins, const PackShape& shape,
                        const std::vector<py::ssize_t>& dimensions, const py::object& out,
                        int64_t threads, int64_t lanes) {
    auto input_ids = cells_of<Int>(out, "input_ids", dimensions);
    auto labels = cells_of<Int>(out, "labels", dimensions);
    auto position_ids = cells_of<Int>(out, "position_ids", dimensions);
    auto segment_ids = cells_of<Int>(out, "segment_ids", dimensions);
    PackOut<Int> cells{input_ids.mutable_data(), labels.mutable_data(), position_ids.mutable_data(),
                       segment_ids.mutable_data(), nullptr};
    py::object loss_weights = py::none();
    if (in.loss_weights) {
        auto weights = cells_of<float>(out, "loss_weights", dimensions);
        cells.loss_weights = weights.mutable_data();
        loss_weights = weights;
    }
    Offsets cu_seqlens(shape.segments + 1);
    int64_t* boundaries = cu_seqlens.mutable_data();
    unlocked([&] {
        pack_cu_seqlens(in, bins, boundaries);
        turnpack::pack(in, cells, bins, threads, lanes);
    });
    return py::make_tuple(input_ids, labels, position_ids, segment_ids, cu_seqlens,
                          shape.max_seqlen, loss_weights);
}

py::tuple pack(const Array<int32_t>& input_ids, const Array<uint8_t>& loss_mask,
               const Offsets& given_offsets, const Weights& loss_weights, const Offsets& given_rows,
               const Offsets& given_bin_offsets, const Offsets& fill, int64_t capacity,
               int32_t pad_id, bool flat, bool wide, const py::object& out, int64_t threads,
               int64_t lanes) {
    const Offsets offsets = held(given_offsets), rows = held(given_rows),
                  bin_offsets = held(given_bin_offsets);
    check_threads(threads);
    check_size("loss_mask", loss_mask.size(), input_ids.size());
    if (loss_weights) check_size("loss_weights", loss_weights->size(), input_ids.size());
    check_size("plan.fill", fill.size(), bin_offsets.size() - 1);
    const int64_t bins = rows_of(bin_offsets);
    Offsets cell_offsets(bins + 1);
    int64_t* cells = cell_offsets.mutable_data();
    const PackShape shape = unlocked([&] {
        return pack_cells(offsets.data(), offsets.size(), input_ids.size(), rows.data(),
                          rows.size(), bin_offsets.data(), bin_offsets.size(), fill.data(),
                          capacity, flat, wide, cells);
    });
    const PackIn in{input_ids.data(),
                    loss_mask.data(),
                    data_or_null(loss_weights),
                    offsets.data(),
                    rows.data(),
                    bin_offsets.data(),
                    cells,
                    pad_id};
    std::vector<py::ssize_t> dimensions{shape.cells};
    if (!flat) dimensions = {bins, capacity};
    return wide ? pack_cells_as<int64_t>(in, bins, shape, dimensions, out, threads, lanes)
                : pack_cells_as<int32_t>(in, bins, shape, dimensions, out, threads, lanes);
}

template <class Int>
py::tuple unpack(const Array<Int>& input_ids, const Array<Int>& labels, const Offsets& given_rows,
                 const Offsets& given_bin_offsets, const Offsets& given_cu_seqlens,
                 const Weights& loss_weights, int64_t capacity, int64_t threads) {
    const Offsets rows = held(given_rows), bin_offsets = held(given_bin_offsets),
                  cu_seqlens = held(given_cu_seqlens);
    check_threads(threads);
    check_size("labels", labels.size(), input_ids.size());
    if (loss_weights) check_size("loss_weights", loss_weights->size(), input_ids.size());
    Offsets order(rows.size()), starts(rows.size()), offsets(rows.size() + 1);
    int64_t *order_to = order.mutable_data(), *starts_to = starts.mutable_data(),
            *offsets_to = offsets.mutable_data();
    unlocked([&] {
        unpack_rows(rows.data(), rows.size(), bin_offsets.data(), bin_offsets.size(),
                    cu_seqlens.data(), cu_seqlens.size(), input_ids.size(), capacity, order_to,
                    starts_to, offsets_to);
    });
    const UnpackIn<Int> in{input_ids.data(), labels.data(), data_or_null(loss_weights),
                           starts_to,        offsets_to,    rows.size()};
    const int64_t tokens = offsets_to[rows.size()];
    auto ids = aligned<int32_t>({tokens});
    auto mask = aligned<uint8_t>({tokens});
    py::object weights = py::none();
    UnpackOut out{ids.mutable_data(), mask.mutable_data(), nullptr};
    if (loss_weights) {
        auto gathered = aligned<float>({tokens});
        out.loss_weights = gathered.mutable_data();
        weights = gathered;
    }
    unlocked([&] { turnpack::unpack(in, out, threads); });
    return py::make_tuple(ids, mask, offsets, order, weights);
}

template <class Int>
void def_unpack(py::module_& m) {
    m.def("unpack", &unpack<Int>, py::arg("input_ids").noconvert(), py::arg("labels").noconvert(),
          py::arg("rows").noconvert(), py::arg("bin_offsets").noconvert(),
          py::arg("cu_seqlens").noconvert(), py::arg("loss_weights").noconvert(),
          py::arg("capacity"), py::arg("threads"));
}

}  // namespace

PYBIND11_MODULE(_core, m) {
    m.doc() = "The array kernels of turnpack; use turnpack.kernels.";
    m.def("concat", &concat, py::arg("turn_ids").noconvert(), py::arg("turn_offsets").noconvert(),
          py::arg("roles").noconvert(), py::arg("row_offsets").noconvert(),
          py::arg("affixes").noconvert(), py::arg("affix_offsets").noconvert(),
          py::arg("targets").noconvert(), py::arg("suffix_targets").noconvert(),
          py::arg("bos").noconvert(), py::arg("eos").noconvert(), py::arg("out"),
          py::arg("threads"));
    m.def("mask_spans", &mask_spans, py::arg("extents").noconvert(), py::arg("offsets").noconvert(),
          py::arg("spans").noconvert(), py::arg("span_offsets").noconvert(),
          py::arg("out").noconvert(), py::arg("threads"));
    m.def("mask_markers", &mask_markers, py::arg("input_ids").noconvert(),
          py::arg("offsets").noconvert(), py::arg("starts").noconvert(),
          py::arg("start_offsets").noconvert(), py::arg("ends").noconvert(),
          py::arg("end_offsets").noconvert(), py::arg("include_end"), py::arg("out").noconvert(),
          py::arg("threads"));
    m.def("plan", &plan, py::arg("lengths").noconvert(), py::arg("capacity"), py::arg("strategy"),
          py::arg("align"), py::arg("max_rows"), py::arg("threads"), py::arg("wide") = false);
    // An ordinary class, as its stub says: `type` makes it, not a type of pybind11's.
    const py::metaclass ordinary(reinterpret_cast<PyObject*>(&PyType_Type));
    py::class_<SharedPlanner>(m, "Planner", ordinary)
        .def(py::init<int64_t, int64_t, int64_t, int64_t>(), py::arg("capacity"), py::arg("window"),
             py::arg("align"), py::arg("max_rows"))
        .def("add", &planner_add, py::arg("lengths").noconvert())
        .def("flush", &planner_flush)
        .def("state", &planner_state)
        .def("load", &planner_load, py::arg("rows"), py::arg("ids").noconvert(),
             py::arg("lengths").noconvert());
    m.def("pack", &pack, py::arg("input_ids").noconvert(), py::arg("loss_mask").noconvert(),
          py::arg("offsets").noconvert(), py::arg("loss_weights").noconvert(),
          py::arg("rows").noconvert(), py::arg("bin_offsets").noconvert(),
          py::arg("fill").noconvert(), py::arg("capacity"), py::arg("pad_id"), py::arg("flat"),
          py::arg("wide"), py::arg("out"), py::arg("threads"), py::arg("lanes") = 0);
    def_unpack<int32_t>(m);
    def_unpack<int64_t>(m);
    m.def("isa", &isa_name);
    m.def("set_isa", &set_isa, py::arg("name"));
    m.def("stream_from", &stream_from);
    m.def("set_stream_from", &set_stream_from, py::arg("bytes"));
}

}  // namespace turnpack::binding
