// Owns the Python module turnpack._cuda: tables for the kernels from NumPy arrays, and launches on
// arrays of the device that come by __cuda_array_interface__. Allocates no memory of the device,
// computes nothing and never waits for the device. Its caller is turnpack.torch.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "device.h"
#include "errors.h"
#include "kernels.h"
#include "pieces.h"

namespace py = pybind11;

namespace turnpack::cuda::binding {
namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;
using Offsets = Array<int64_t>;

template <class T>
Array<T> array_of(const std::vector<T>& values) {
    return Array<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

void check_size(const std::string& name, int64_t size, int64_t wanted) {
    if (size != wanted) fail(name, " has ", size, " entries, not ", wanted);
}

// A copy of what the core checks and then goes by, which no other thread can write to in between.
Offsets held(const Offsets& given) { return Offsets(given.size(), given.data()); }

int64_t rows_of(const Offsets& offsets) { return std::max<int64_t>(offsets.size() - 1, 0); }

// ---- tables -------------------------------------------------------------------------------------

py::tuple pack_pieces(const Offsets& given_offsets, int64_t tokens, const Offsets& given_rows,
                      const Offsets& given_bin_offsets, const Offsets& fill, int64_t capacity,
                      bool flat, bool wide) {
    const Offsets offsets = held(given_offsets), rows = held(given_rows),
                  bin_offsets = held(given_bin_offsets);
    check_size("plan.fill", fill.size(), bin_offsets.size() - 1);
    const int64_t bins = rows_of(bin_offsets);
    std::vector<int64_t> cells(bins + 1);
    const PackShape shape = pack_cells(offsets.data(), offsets.size(), tokens, rows.data(),
                                       rows.size(), bin_offsets.data(), bin_offsets.size(),
                                       fill.data(), capacity, flat, wide, cells.data());
    PackIn in{};
    in.offsets = offsets.data();
    in.rows = rows.data();
    in.bin_offsets = bin_offsets.data();
    in.cell_offsets = cells.data();
    Offsets starts(shape.segments + 1), sources(shape.segments);
    Array<int32_t> numbers(shape.segments);
    pack_cu_seqlens(in, bins, starts.mutable_data());
    cuda::pack_pieces(in, bins, sources.mutable_data(), numbers.mutable_data());
    return py::make_tuple(starts, sources, numbers, shape.max_seqlen);
}

// `from` is an array of tokens that pack_pieces has seen; `into` has the same dtype and room.
void take_documents(const py::array& from, const Offsets& given_starts,
                    const Offsets& given_sources, py::array& into) {
    const Offsets starts = held(given_starts), sources = held(given_sources);
    check_size("starts", starts.size(), sources.size() + 1);
    check_size("into", into.itemsize(), from.itemsize());
    int64_t wanted = 0;
    for (py::ssize_t i = 0; i < sources.size(); ++i) {
        const int64_t size = starts.data()[i + 1] - starts.data()[i], begin = sources.data()[i];
        if (begin < 0) continue;
        if (size > from.size() - begin) fail("piece ", i, " ends beyond the tokens");
        wanted += size;
    }
    if (wanted > into.size()) fail("into has ", into.size(), " entries, not ", wanted);
    const auto* source = static_cast<const char*>(from.data());
    auto* target = static_cast<char*>(into.mutable_data());
    const int64_t bytes = from.itemsize();
    py::gil_scoped_release release;
    cuda::take_documents(source, bytes, starts.data(), sources.data(), sources.size(), target);
}

py::tuple unpack_pieces(const Offsets& given_rows, const Offsets& given_bin_offsets,
                        const Offsets& given_cu_seqlens, int64_t cells, int64_t capacity) {
    const Offsets rows = held(given_rows), bin_offsets = held(given_bin_offsets),
                  cu_seqlens = held(given_cu_seqlens);
    Offsets order(rows.size()), sources(rows.size()), offsets(rows.size() + 1);
    unpack_rows(rows.data(), rows.size(), bin_offsets.data(), bin_offsets.size(), cu_seqlens.data(),
                cu_seqlens.size(), cells, capacity, order.mutable_data(), sources.mutable_data(),
                offsets.mutable_data());
    return py::make_tuple(offsets, sources, order);
}

py::tuple concat_pieces(int64_t tokens, const Offsets& given_turn_offsets,
                        const Offsets& given_roles, const Offsets& given_row_offsets,
                        const Offsets& affix_offsets, const Array<uint8_t>& targets,
                        const Array<uint8_t>& suffix_targets, int64_t bos_size, int64_t eos_size) {
    const Offsets turn_offsets = held(given_turn_offsets), roles = held(given_roles),
                  row_offsets = held(given_row_offsets);
    check_size("affix_offsets", affix_offsets.size(), 2 * targets.size() + 1);
    check_size("suffix_targets", suffix_targets.size(), targets.size());
    ConcatIn in{};
    in.tokens = tokens;
    in.turn_offsets = turn_offsets.data();
    in.turn_offsets_size = turn_offsets.size();
    in.roles = roles.data();
    in.turns = roles.size();
    in.row_offsets = row_offsets.data();
    in.row_offsets_size = row_offsets.size();
    in.affix_offsets = affix_offsets.data();
    in.targets = targets.data();
    in.suffix_targets = suffix_targets.data();
    in.settings = targets.size();
    in.bos_size = bos_size;
    in.eos_size = eos_size;
    Offsets offsets(rows_of(row_offsets) + 1);
    concat_offsets(in, offsets.mutable_data());
    const ConcatPieces made = cuda::concat_pieces(in, offsets.data());
    return py::make_tuple(array_of(made.starts), array_of(made.sources), array_of(made.targets),
                          offsets);
}

py::tuple mask_pieces(const Offsets& given_offsets, int64_t tokens, const Array<int32_t>& starts,
                      const Offsets& start_offsets, const Array<int32_t>& ends,
                      const Offsets& end_offsets) {
    const Offsets offsets = held(given_offsets);
    check_offsets("start_offsets", start_offsets.data(), start_offsets.size(), starts.size());
    check_offsets("end_offsets", end_offsets.data(), end_offsets.size(), ends.size());
    const MaskPieces made =
        cuda::mask_pieces(offsets.data(), offsets.size(), tokens,
                          {starts.data(), start_offsets.data(), start_offsets.size() - 1},
                          {ends.data(), end_offsets.data(), end_offsets.size() - 1});
    return py::make_tuple(array_of(made.rows), array_of(made.starts.ids),
                          array_of(made.starts.offsets), array_of(made.ends.ids),
                          array_of(made.ends.offsets), made.states);
}

// ---- arrays of the device -----------------------------------------------------------------------

template <class T>
const char* typestr();
template <>
const char* typestr<uint8_t>() {
    return "|u1";
}
template <>
const char* typestr<int32_t>() {
    return "<i4";
}
template <>
const char* typestr<int64_t>() {
    return "<i8";
}
template <>
const char* typestr<float>() {
    return "<f4";
}

py::dict interface_of(const std::string& name, const py::handle& object) {
    const py::object found = py::getattr(object, "__cuda_array_interface__", py::none());
    if (!py::isinstance<py::dict>(found)) {
        throw py::type_error(name + " is " +
                             py::cast<std::string>(py::str(py::type::of(object).attr("__name__"))) +
                             ", which has no __cuda_array_interface__");
    }
    return found;
}

bool is_wide(const char* name, const py::handle& cells) {
    return py::cast<std::string>(interface_of(name, cells)["typestr"]) == typestr<int64_t>();
}

// What a launch is given: arrays that are checked one after another and have to be on one device.
class Launch {
  public:
    Launch(const char* call, uintptr_t stream)
        : call_(call), stream_(reinterpret_cast<Stream>(stream)) {}

    // The memory of a C-contiguous array of T. Any size is one if wanted is -1.
    template <class T>
    const T* in(const std::string& name, const py::handle& object, int64_t wanted = -1) {
        return static_cast<const T*>(take(name, object, typestr<T>(), wanted, false));
    }

    template <class T>
    T* out(const std::string& name, const py::handle& object, int64_t wanted = -1) {
        return static_cast<T*>(take(name, object, typestr<T>(), wanted, true));
    }

    int64_t size() const { return size_; }  // of the array taken last

    template <class Kernel>
    void operator()(const Kernel& kernel) const {
        if (device_ < 0) return;  // all arrays are empty
        const OnDevice current(device_);
        for (const Stream producer : producers_) wait_for(stream_, producer);
        launch(call_, kernel, stream_);
    }

  private:
    void* take(const std::string& name, const py::handle& object, const std::string& type,
               int64_t wanted, bool written) {
        const py::dict found = interface_of(name, object);
        const auto given = py::cast<std::string>(found["typestr"]);
        if (given != type) throw py::type_error(name + " has typestr " + given + ", not " + type);
        if (found.contains("mask") && !found["mask"].is_none()) {
            throw py::type_error(name + " is masked");
        }
        const auto shape = py::cast<std::vector<int64_t>>(found["shape"]);
        size_ = 1;
        for (const int64_t length : shape) size_ *= length;
        check_contiguous(name, found, shape, type.back() - '0');
        if (wanted >= 0) check_size(name, size_, wanted);
        const auto data = py::cast<py::tuple>(found["data"]);
        if (written && py::cast<bool>(data[1])) fail(name, " is read-only");
        void* memory = reinterpret_cast<void*>(py::cast<uintptr_t>(data[0]));
        if (size_ == 0) return memory;
        check_device(name, memory);
        if (found.contains("stream") && !found["stream"].is_none()) {
            const auto producer = reinterpret_cast<Stream>(py::cast<uintptr_t>(found["stream"]));
            if (producer != stream_) producers_.push_back(producer);
        }
        return memory;
    }

    static void check_contiguous(const std::string& name, const py::dict& found,
                                 const std::vector<int64_t>& shape, int64_t bytes) {
        if (!found.contains("strides") || found["strides"].is_none()) return;
        const auto strides = py::cast<std::vector<int64_t>>(found["strides"]);
        for (size_t i = shape.size(); i-- > 0;) {
            if (shape[i] == 0) return;
            if (shape[i] > 1 && strides.at(i) != bytes) {
                throw py::type_error(name + " is not C-contiguous");
            }
            bytes *= shape[i];
        }
    }

    void check_device(const std::string& name, const void* memory) {
        const int device = device_of(memory);
        if (device < 0) fail(name, " is not in the memory of a CUDA device");
        if (device_ >= 0 && device != device_) {
            fail(name, " is on device ", device, ", ", first_, " on ", device_);
        }
        if (device_ < 0) first_ = name;
        device_ = device;
    }

    const char* call_;
    Stream stream_;
    std::vector<Stream> producers_;
    int device_ = -1;
    std::string first_;
    int64_t size_ = 0;
};

// ---- launches -----------------------------------------------------------------------------------

template <class Int>
void pack_as(const py::object& input_ids, const py::object& loss_mask,
             const py::object& loss_weights, const py::object& starts, const py::object& sources,
             const py::object& numbers, int32_t pad_id, const py::object& out_ids,
             const py::object& labels, const py::object& position_ids,
             const py::object& segment_ids, const py::object& out_weights, uintptr_t stream) {
    Launch launch("pack", stream);
    Gather<PackCells<Int>> kernel{};
    PackCells<Int>& write = kernel.write;
    write.input_ids = launch.in<int32_t>("input_ids", input_ids);
    const int64_t tokens = launch.size();
    write.loss_mask = launch.in<uint8_t>("loss_mask", loss_mask, tokens);
    write.sources = launch.in<int64_t>("sources", sources);
    kernel.pieces.count = launch.size();
    write.numbers = launch.in<int32_t>("numbers", numbers, kernel.pieces.count);
    kernel.pieces.starts = launch.in<int64_t>("starts", starts, kernel.pieces.count + 1);
    write.pad_id = pad_id;
    write.out.input_ids = launch.out<Int>("out.input_ids", out_ids);
    const int64_t cells = kernel.pieces.size = launch.size();
    write.out.labels = launch.out<Int>("out.labels", labels, cells);
    write.out.position_ids = launch.out<Int>("out.position_ids", position_ids, cells);
    write.out.segment_ids = launch.out<Int>("out.segment_ids", segment_ids, cells);
    if (!loss_weights.is_none()) {
        write.loss_weights = launch.in<float>("loss_weights", loss_weights, tokens);
        write.out.loss_weights = launch.out<float>("out.loss_weights", out_weights, cells);
    }
    constexpr int kVector = PackCells<Int>::kVector;
    write.aligned =
        is_aligned<kVector>(write.out.input_ids) && is_aligned<kVector>(write.out.labels) &&
        is_aligned<kVector>(write.out.position_ids) && is_aligned<kVector>(write.out.segment_ids) &&
        is_aligned<kVector>(write.out.loss_weights);
    launch(kernel);
}

void pack(const py::object& input_ids, const py::object& loss_mask, const py::object& loss_weights,
          const py::object& starts, const py::object& sources, const py::object& numbers,
          int32_t pad_id, const py::object& out_ids, const py::object& labels,
          const py::object& position_ids, const py::object& segment_ids,
          const py::object& out_weights, uintptr_t stream) {
    const auto run = is_wide("out.input_ids", out_ids) ? pack_as<int64_t> : pack_as<int32_t>;
    run(input_ids, loss_mask, loss_weights, starts, sources, numbers, pad_id, out_ids, labels,
        position_ids, segment_ids, out_weights, stream);
}

template <class Int>
void unpack_as(const py::object& cell_ids, const py::object& labels, const py::object& cell_weights,
               const py::object& offsets, const py::object& sources, const py::object& input_ids,
               const py::object& loss_mask, const py::object& loss_weights, uintptr_t stream) {
    Launch launch("unpack", stream);
    Gather<UnpackTokens<Int>> kernel{};
    UnpackTokens<Int>& write = kernel.write;
    write.cell_ids = launch.in<Int>("input_ids", cell_ids);
    const int64_t cells = launch.size();
    write.cell_labels = launch.in<Int>("labels", labels, cells);
    write.sources = launch.in<int64_t>("sources", sources);
    kernel.pieces.count = launch.size();
    kernel.pieces.starts = launch.in<int64_t>("offsets", offsets, kernel.pieces.count + 1);
    write.input_ids = launch.out<int32_t>("out.input_ids", input_ids);
    const int64_t tokens = kernel.pieces.size = launch.size();
    write.loss_mask = launch.out<uint8_t>("out.loss_mask", loss_mask, tokens);
    if (!cell_weights.is_none()) {
        write.cell_weights = launch.in<float>("loss_weights", cell_weights, cells);
        write.loss_weights = launch.out<float>("out.loss_weights", loss_weights, tokens);
    }
    write.aligned = is_aligned<4>(write.input_ids) && is_aligned<4>(write.loss_mask) &&
                    is_aligned<4>(write.loss_weights);
    launch(kernel);
}

void unpack(const py::object& cell_ids, const py::object& labels, const py::object& cell_weights,
            const py::object& offsets, const py::object& sources, const py::object& input_ids,
            const py::object& loss_mask, const py::object& loss_weights, uintptr_t stream) {
    const auto run = is_wide("input_ids", cell_ids) ? unpack_as<int64_t> : unpack_as<int32_t>;
    run(cell_ids, labels, cell_weights, offsets, sources, input_ids, loss_mask, loss_weights,
        stream);
}

void concat(const py::object& turn_ids, const py::object& around, const py::object& starts,
            const py::object& sources, const py::object& targets, const py::object& input_ids,
            const py::object& loss_mask, uintptr_t stream) {
    Launch launch("concat", stream);
    Gather<ConcatTokens> kernel{};
    ConcatTokens& write = kernel.write;
    write.turn_ids = launch.in<int32_t>("turn_ids", turn_ids);
    write.around = launch.in<int32_t>("around", around);
    write.sources = launch.in<int64_t>("sources", sources);
    kernel.pieces.count = launch.size();
    write.targets = launch.in<uint8_t>("targets", targets, kernel.pieces.count);
    kernel.pieces.starts = launch.in<int64_t>("starts", starts, kernel.pieces.count + 1);
    write.input_ids = launch.out<int32_t>("out.input_ids", input_ids);
    kernel.pieces.size = launch.size();
    write.loss_mask = launch.out<uint8_t>("out.loss_mask", loss_mask, kernel.pieces.size);
    write.aligned = is_aligned<4>(write.input_ids) && is_aligned<4>(write.loss_mask);
    launch(kernel);
}

SortedPatterns patterns(Launch& launch, const char* name, const py::object& ids,
                        const py::object& offsets) {
    const auto* begin = launch.in<int32_t>(name, ids);
    const auto* bounds = launch.in<int64_t>(std::string(name) + "' offsets", offsets);
    return {begin, bounds, launch.size() - 1};
}

void mask_markers(const py::object& input_ids, const py::object& rows, const py::object& starts,
                  const py::object& start_offsets, const py::object& ends,
                  const py::object& end_offsets, bool include_end, int32_t states,
                  const py::object& exits, const py::object& entries, const py::object& loss_mask,
                  uintptr_t stream) {
    if (states < 2 || states > MaskEntries::kMostStates) fail("states is ", states);
    Launch launch("mask_markers", stream);
    MaskIn in{};
    in.input_ids = launch.in<int32_t>("input_ids", input_ids);
    in.rows.size = launch.size();
    in.rows.starts = launch.in<int64_t>("rows", rows);
    in.rows.count = launch.size() - 1;
    in.starts = patterns(launch, "starts", starts, start_offsets);
    in.ends = patterns(launch, "ends", ends, end_offsets);
    in.include_end = include_end;
    in.states = states;
    const int64_t tiles = tiles_of(in.rows.size);
    auto* exits_to = launch.out<int32_t>("exits", exits, tiles * states);
    auto* entries_to = launch.out<int32_t>("entries", entries, tiles);
    auto* mask_to = launch.out<uint8_t>("out.loss_mask", loss_mask, in.rows.size);
    if (tiles == 0) return;
    launch(MaskTiles<false>{in, exits_to, nullptr, nullptr, false});
    launch(MaskEntries{exits_to, entries_to, tiles, states});
    launch(MaskTiles<true>{in, nullptr, entries_to, mask_to, is_aligned<4>(mask_to)});
}

}  // namespace

PYBIND11_MODULE(TP_MODULE, m) {
    m.doc() = "The kernels of turnpack on the GPU; use turnpack.torch.";
    m.attr("TILE") = kTile;
    m.def("missing", &missing);
    m.def("architectures", &architectures);
    m.def("pack_pieces", &pack_pieces, py::arg("offsets").noconvert(), py::arg("tokens"),
          py::arg("rows").noconvert(), py::arg("bin_offsets").noconvert(),
          py::arg("fill").noconvert(), py::arg("capacity"), py::arg("flat"), py::arg("wide"));
    m.def("take_documents", &take_documents, py::arg("from_array").noconvert(),
          py::arg("starts").noconvert(), py::arg("sources").noconvert(),
          py::arg("into").noconvert());
    m.def("unpack_pieces", &unpack_pieces, py::arg("rows").noconvert(),
          py::arg("bin_offsets").noconvert(), py::arg("cu_seqlens").noconvert(), py::arg("cells"),
          py::arg("capacity"));
    m.def("concat_pieces", &concat_pieces, py::arg("tokens"), py::arg("turn_offsets").noconvert(),
          py::arg("roles").noconvert(), py::arg("row_offsets").noconvert(),
          py::arg("affix_offsets").noconvert(), py::arg("targets").noconvert(),
          py::arg("suffix_targets").noconvert(), py::arg("bos_size"), py::arg("eos_size"));
    m.def("mask_pieces", &mask_pieces, py::arg("offsets").noconvert(), py::arg("tokens"),
          py::arg("starts").noconvert(), py::arg("start_offsets").noconvert(),
          py::arg("ends").noconvert(), py::arg("end_offsets").noconvert());
    m.def("pack", &pack, py::arg("input_ids"), py::arg("loss_mask"), py::arg("loss_weights"),
          py::arg("starts"), py::arg("sources"), py::arg("numbers"), py::arg("pad_id"),
          py::arg("out_ids"), py::arg("labels"), py::arg("position_ids"), py::arg("segment_ids"),
          py::arg("out_weights"), py::arg("stream"));
    m.def("unpack", &unpack, py::arg("cell_ids"), py::arg("labels"), py::arg("cell_weights"),
          py::arg("offsets"), py::arg("sources"), py::arg("input_ids"), py::arg("loss_mask"),
          py::arg("loss_weights"), py::arg("stream"));
    m.def("concat", &concat, py::arg("turn_ids"), py::arg("around"), py::arg("starts"),
          py::arg("sources"), py::arg("targets"), py::arg("input_ids"), py::arg("loss_mask"),
          py::arg("stream"));
    m.def("mask_markers", &mask_markers, py::arg("input_ids"), py::arg("rows"), py::arg("starts"),
          py::arg("start_offsets"), py::arg("ends"), py::arg("end_offsets"), py::arg("include_end"),
          py::arg("states"), py::arg("exits"), py::arg("entries"), py::arg("loss_mask"),
          py::arg("stream"));
}

}  // namespace turnpack::cuda::binding
