// Fuzzes `pack` against its cells in plain loops, then `unpack` on what it made: an
// instruction set, ordinary or streaming stores or the lanes of index.h, each layout and cell type.

#include <optional>

#include "fuzz.h"
#include "kernels.h"

namespace turnpack::fuzz {
namespace {

struct Case {
    Numbers offsets, rows, bin_offsets, fill;
    int64_t tokens, capacity;
    bool flat, wide;

    int64_t bins() const { return static_cast<int64_t>(bin_offsets.size()) - 1; }
    int64_t size(int64_t row) const { return offsets[row + 1] - offsets[row]; }
};

// The cells of each bin, or nothing where the plan is not one of these tokens.
std::optional<Numbers> cells_of(const Case& of) {
    if (!are_offsets(of.offsets, of.tokens)) return {};
    if (!are_offsets(of.bin_offsets, of.rows.size())) return {};
    Numbers cells;
    __int128 total = 0;
    std::vector<int> placed(of.offsets.size(), 0);
    for (int64_t bin = 0; bin < of.bins(); ++bin) {
        int64_t used = 0;
        for (int64_t k = of.bin_offsets[bin]; k < of.bin_offsets[bin + 1]; ++k) {
            const int64_t row = of.rows[k];
            if (row < 0 || row >= static_cast<int64_t>(of.offsets.size()) - 1) return {};
            if (placed[row]++ || of.size(row) == 0) return {};
            used += of.size(row);
        }
        if (used > of.capacity || used != of.fill[bin]) return {};
        cells.push_back(of.flat ? used : of.capacity);
        total += cells.back();
        if ((!of.wide && cells.back() > int64_t{1} << 31) || total > kMax / 8) return {};
    }
    return cells;
}

struct Arrays {
    Exactly<int32_t> input_ids;
    Exactly<uint8_t> loss_mask;
    Exactly<float> loss_weights;

    explicit Arrays(int64_t tokens) : input_ids(tokens), loss_mask(tokens), loss_weights(tokens) {
        for (int64_t i = 0; i < tokens; ++i) {
            input_ids.data()[i] = scrambled<int32_t>(i);
            loss_mask.data()[i] = scrambled<int64_t>(i) / 8 % 2;
            loss_weights.data()[i] = static_cast<float>(i) + 0.5f;
        }
    }
};

// Outputs of one pack: where its arrays begin in a line differs.
template <class Int>
struct Cells {
    Exactly<Int> input_ids, labels, position_ids, segment_ids;
    Exactly<float> loss_weights;

    explicit Cells(int64_t size, int64_t shift = 0)
        : input_ids(size, shift % 16),
          labels(size, shift % 7),
          position_ids(size, shift % 5),
          segment_ids(size, shift % 3),
          loss_weights(size, shift % 11) {}

    PackOut<Int> pointers(bool weighted) {
        return {input_ids.data(), labels.data(), position_ids.data(), segment_ids.data(),
                weighted ? loss_weights.data() : nullptr};
    }
    void write(int64_t at, int64_t id, int64_t label, int64_t position, int64_t segment,
               float weight) {
        input_ids.data()[at] = static_cast<Int>(id);
        labels.data()[at] = static_cast<Int>(label);
        position_ids.data()[at] = static_cast<Int>(position);
        segment_ids.data()[at] = static_cast<Int>(segment);
        loss_weights.data()[at] = weight;
    }
    void require(const Cells& wanted, bool weighted) {
        TP_REQUIRE(input_ids == wanted.input_ids && labels == wanted.labels);
        TP_REQUIRE(position_ids == wanted.position_ids && segment_ids == wanted.segment_ids);
        TP_REQUIRE(!weighted || loss_weights == wanted.loss_weights);
        TP_REQUIRE(input_ids.is_whole() && labels.is_whole() && position_ids.is_whole() &&
                   segment_ids.is_whole() && loss_weights.is_whole());
    }
};

struct Segments {
    Numbers cu_seqlens{0};
    int64_t max_seqlen = 0;

    void end(int64_t cell) {
        max_seqlen = std::max(max_seqlen, cell - cu_seqlens.back());
        cu_seqlens.push_back(cell);
    }
};

template <class Int>
Segments write_cells(const Case& of, const Numbers& cells, const Arrays& arrays, int64_t pad_id,
                     Cells<Int>& made) {
    Segments segments;
    int64_t at = 0;
    for (int64_t bin = 0; bin < of.bins(); ++bin) {
        const int64_t end = at + cells[bin];
        int64_t segment = 0;
        for (int64_t k = of.bin_offsets[bin]; k < of.bin_offsets[bin + 1]; ++k) {
            const int64_t size = of.size(of.rows[k]), token = of.offsets[of.rows[k]];
            ++segment;
            for (int64_t i = 0; i < size; ++i, ++at) {
                const int64_t id = arrays.input_ids.data()[token + i];
                const bool target = i > 0 && arrays.loss_mask.data()[token + i] != 0;
                made.write(at, id, target ? id : -100, i, segment,
                           i > 0 ? arrays.loss_weights.data()[token + i] : 0.0f);
            }
            segments.end(at);
        }
        if (at == end) continue;
        for (int64_t i = 0; at < end; ++i, ++at) made.write(at, pad_id, -100, i, 0, 0.0f);
        segments.end(at);
    }
    return segments;
}

template <class Int>
void unpacked(const Case& of, const Cells<Int>& cells, const Segments& segments,
              const Arrays& arrays, bool weighted, int64_t threads) {
    Exactly<int64_t> rows(of.rows), bin_offsets(of.bin_offsets), cu_seqlens(segments.cu_seqlens);
    const int64_t count = rows.size();
    Exactly<int64_t> order(count), starts(count), offsets(count + 1);
    unpack_rows(rows.data(), count, bin_offsets.data(), bin_offsets.size(), cu_seqlens.data(),
                cu_seqlens.size(), cells.input_ids.size(), of.flat ? 0 : of.capacity, order.data(),
                starts.data(), offsets.data());
    const int64_t tokens = offsets.data()[count];
    Exactly<int32_t> input_ids(tokens);
    Exactly<uint8_t> loss_mask(tokens);
    Exactly<float> loss_weights(tokens);
    const UnpackIn<Int> in{
        cells.input_ids.data(), cells.labels.data(), weighted ? cells.loss_weights.data() : nullptr,
        starts.data(),          offsets.data(),      count};
    unpack(in, {input_ids.data(), loss_mask.data(), weighted ? loss_weights.data() : nullptr},
           threads);
    Numbers by_id = of.rows;
    std::sort(by_id.begin(), by_id.end());
    int64_t at = 0;
    for (int64_t i = 0; i < count; ++i) {
        TP_REQUIRE(of.rows[order.data()[i]] == by_id[i] && offsets.data()[i] == at);
        const int64_t size = of.size(by_id[i]), token = of.offsets[by_id[i]];
        for (int64_t k = 0; k < size; ++k, ++at) {
            TP_REQUIRE(input_ids.data()[at] == arrays.input_ids.data()[token + k]);
            TP_REQUIRE(loss_mask.data()[at] == (k > 0 && arrays.loss_mask.data()[token + k]));
            TP_REQUIRE(!weighted || loss_weights.data()[at] ==
                                        (k > 0 ? arrays.loss_weights.data()[token + k] : 0.0f));
        }
    }
    TP_REQUIRE(at == tokens);
}

template <class Int>
void run_as(const Case& of, const Numbers& cells, const PackShape& shape, PackIn in,
            const Arrays& arrays, Input more) {
    Cells<Int> wanted(shape.cells);
    const Segments segments = write_cells(of, cells, arrays, in.pad_id, wanted);
    TP_REQUIRE(shape.segments + 1 == static_cast<int64_t>(segments.cu_seqlens.size()));
    TP_REQUIRE(shape.max_seqlen == segments.max_seqlen);
    Exactly<int64_t> cu_seqlens(shape.segments + 1);
    pack_cu_seqlens(in, of.bins(), cu_seqlens.data());
    TP_REQUIRE(cu_seqlens == segments.cu_seqlens);

    const bool weighted = more.one_in(2);
    const int64_t threads = more.threads();
    in.loss_weights = weighted ? arrays.loss_weights.data() : nullptr;
    choose_machine(more);
    Cells<Int> out(shape.cells, more.below(64));
    pack(in, out.pointers(weighted), of.bins(), threads, more.one_in(4) ? 1 + more.below(9) : 0);
    out.require(wanted, weighted);
    unpacked(of, out, segments, arrays, weighted, threads);
}

void run(Input in) {
    Case of;
    of.flat = in.one_in(2);
    of.wide = in.one_in(2);
    const int64_t count = in.below(12);
    const int64_t longest = in.seldom() ? 256 : 20;
    of.offsets = offsets_of(in.sizes(count, longest));
    of.tokens = of.offsets.back();
    // Any order of them, not always all; what is empty stays out most of the time.
    Numbers left(count);
    std::iota(left.begin(), left.end(), 0);
    Numbers bins;
    while (!left.empty() && !in.one_in(16)) {
        const int64_t at = in.below(static_cast<int64_t>(left.size()));
        const int64_t row = left[at];
        left.erase(left.begin() + at);
        if (of.size(row) == 0 && !in.one_in(32)) continue;
        if (bins.empty() || in.one_in(3)) bins.push_back(0);
        if (in.one_in(16)) bins.push_back(0);  // the one before may be empty
        ++bins.back();
        of.rows.push_back(row);
    }
    of.bin_offsets = offsets_of(bins);
    of.capacity = 0;
    for (int64_t bin = 0; bin < of.bins(); ++bin) {
        int64_t used = 0;
        for (int64_t k = of.bin_offsets[bin]; k < of.bin_offsets[bin + 1]; ++k) {
            used += of.size(of.rows[k]);
        }
        of.fill.push_back(used);
        of.capacity = std::max(of.capacity, used);
    }
    of.capacity += in.below(16);
    if (in.one_in(16)) of.capacity = in.any();
    if (in.one_in(16)) of.tokens += in.below(3) - 1;
    for (Numbers* numbers : {&of.offsets, &of.rows, &of.bin_offsets, &of.fill}) in.spoil(*numbers);

    Exactly<int64_t> offsets(of.offsets), rows(of.rows), bin_offsets(of.bin_offsets), fill(of.fill),
        cell_offsets(of.bins() + 1);
    PackShape shape;
    const bool accepted = accepts([&] {
        shape = pack_cells(offsets.data(), offsets.size(), of.tokens, rows.data(), rows.size(),
                           bin_offsets.data(), bin_offsets.size(), fill.data(), of.capacity,
                           of.flat, of.wide, cell_offsets.data());
    });
    const auto cells = cells_of(of);
    TP_REQUIRE(accepted == cells.has_value());
    if (!accepted) return;
    TP_REQUIRE(cell_offsets == offsets_of(*cells));
    TP_REQUIRE(shape.cells == cell_offsets.data()[of.bins()]);
    if (shape.cells > 1 << 11) return;

    Arrays arrays(of.tokens);
    const int64_t pad_id = in.any() % (int64_t{1} << 31);
    const PackIn given{arrays.input_ids.data(),
                       arrays.loss_mask.data(),
                       nullptr,
                       offsets.data(),
                       rows.data(),
                       bin_offsets.data(),
                       cell_offsets.data(),
                       static_cast<int32_t>(pad_id)};
    if (of.wide) {
        run_as<int64_t>(of, *cells, shape, given, arrays, in);
    } else {
        run_as<int32_t>(of, *cells, shape, given, arrays, in);
    }
}

}  // namespace
}  // namespace turnpack::fuzz

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    turnpack::fuzz::run({data, size});
    return 0;
}
