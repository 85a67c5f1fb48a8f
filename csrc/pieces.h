// Owns the tables by which the GPU's kernels find their work (tiles.cuh's pieces): made on the CPU,
// by the checks and in the order of kernels.h, so that bad values are refused in the same words.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"

namespace turnpack::cuda {

// pack: the cells of all bins. Their starts are what pack_cu_seqlens writes; this fills sources and
// numbers [segments] (pack.cuh).
void pack_pieces(const PackIn& in, int64_t bins, int64_t* sources, int32_t* numbers);

// Copies what the documents of a pack have of a token array, items of so many bytes, one document
// after the other: with sources from 0 on in this order, it is all that has to travel.
void take_documents(const char* from, int64_t bytes, const int64_t* starts, const int64_t* sources,
                    int64_t pieces, char* to);

// concat: the tokens of all rows. `around` is thought of as affixes, bos, eos in one array.
struct ConcatPieces {
    std::vector<int64_t> starts;   // [pieces + 1]
    std::vector<int64_t> sources;  // [pieces]
    std::vector<uint8_t> targets;  // [pieces]
};
ConcatPieces concat_pieces(const ConcatIn& in, const int64_t* offsets);

// mask_markers: the rows that are not empty, and the patterns, longest first. Throws as
// mask_markers does, and on a pattern too long for the tables of states.
struct MaskPieces {
    struct Sorted {
        std::vector<int32_t> ids;
        std::vector<int64_t> offsets;
    };
    Sorted starts, ends;
    std::vector<int64_t> rows;  // [rows + 1]
    int64_t states;
};
MaskPieces mask_pieces(const int64_t* offsets, int64_t offsets_size, int64_t tokens,
                       const Patterns& starts, const Patterns& ends);

}  // namespace turnpack::cuda
