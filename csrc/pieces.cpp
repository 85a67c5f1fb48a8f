// Owns how pieces.h's tables are made. Sees offsets, roles and patterns, never a token.

#include "pieces.h"

#include <algorithm>
#include <numeric>

#include "errors.h"
#include "mask.cuh"

namespace turnpack::cuda {
namespace {

struct PieceWriter {
    ConcatPieces made;
    int64_t end = 0;

    void write(int64_t source, int64_t size, bool target) {
        if (size == 0) return;
        made.starts.push_back(end);
        made.sources.push_back(source);
        made.targets.push_back(target);
        end += size;
    }
};

MaskPieces::Sorted longest_first(const char* name, const Patterns& patterns) {
    std::vector<int64_t> order(patterns.size);
    std::iota(order.begin(), order.end(), 0);
    const auto size = [&](int64_t i) { return patterns.offsets[i + 1] - patterns.offsets[i]; };
    for (const int64_t i : order) {
        if (size(i) == 0) fail(name, "[", i, "] is empty");
        if (2 * size(i) > MaskEntries::kMostStates) {
            fail(name, "[", i, "] has ", size(i), " ids, more than ", MaskEntries::kMostStates / 2);
        }
    }
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return size(a) > size(b); });
    MaskPieces::Sorted sorted{{}, {0}};
    for (const int64_t i : order) {
        sorted.ids.insert(sorted.ids.end(), patterns.ids + patterns.offsets[i],
                          patterns.ids + patterns.offsets[i + 1]);
        sorted.offsets.push_back(static_cast<int64_t>(sorted.ids.size()));
    }
    return sorted;
}

int64_t longest(const MaskPieces::Sorted& sorted) {
    return sorted.offsets.size() > 1 ? sorted.offsets[1] : 0;
}

}  // namespace

void pack_pieces(const PackIn& in, int64_t bins, int64_t* sources, int32_t* numbers) {
    for (int64_t bin = 0; bin < bins; ++bin) {
        int64_t cell = in.cell_offsets[bin];
        int32_t number = 0;
        for (int64_t k = in.bin_offsets[bin]; k < in.bin_offsets[bin + 1]; ++k) {
            const int64_t token = in.offsets[in.rows[k]];
            cell += in.offsets[in.rows[k] + 1] - token;
            *sources++ = token;
            *numbers++ = ++number;
        }
        if (cell < in.cell_offsets[bin + 1]) {
            *sources++ = -1;
            *numbers++ = 0;
        }
    }
}

void take_documents(const char* from, int64_t bytes, const int64_t* starts, const int64_t* sources,
                    int64_t pieces, char* to) {
    for (int64_t piece = 0; piece < pieces; ++piece) {
        if (sources[piece] < 0) continue;
        const int64_t size = bytes * (starts[piece + 1] - starts[piece]);
        to = std::copy_n(from + bytes * sources[piece], size, to);
    }
}

ConcatPieces concat_pieces(const ConcatIn& in, const int64_t* offsets) {
    const int64_t bos = in.affix_offsets[2 * in.settings];
    const auto around = [](int64_t place) { return -1 - place; };
    PieceWriter out;
    for (int64_t row = 0; row + 1 < in.row_offsets_size; ++row) {
        bool target = false;
        out.write(around(bos), in.bos_size, false);
        for (int64_t turn = in.row_offsets[row]; turn < in.row_offsets[row + 1]; ++turn) {
            const int64_t role = in.roles[turn];
            const int64_t* affix = in.affix_offsets + 2 * role;
            const int64_t begin = in.turn_offsets[turn];
            target = in.targets[role];
            out.write(around(affix[0]), affix[1] - affix[0], false);
            out.write(begin, in.turn_offsets[turn + 1] - begin, target);
            out.write(around(affix[1]), affix[2] - affix[1], in.suffix_targets[role]);
        }
        out.write(around(bos + in.bos_size), in.eos_size, target);
    }
    out.made.starts.push_back(offsets[in.row_offsets_size - 1]);
    return out.made;
}

MaskPieces mask_pieces(const int64_t* offsets, int64_t offsets_size, int64_t tokens,
                       const Patterns& starts, const Patterns& ends) {
    if (starts.size == 0) fail("starts is empty");
    MaskPieces made;
    made.starts = longest_first("starts", starts);
    made.ends = longest_first("ends", ends);
    made.states = 2 * std::max(longest(made.starts), longest(made.ends));
    check_offsets("offsets", offsets, offsets_size, tokens);
    std::unique_copy(offsets, offsets + offsets_size, std::back_inserter(made.rows));
    return made;
}

}  // namespace turnpack::cuda
