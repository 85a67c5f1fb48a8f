// Owns `concat` on the GPU: the tokens of a row from the turns and what stands around them.
// A token is read as 4 bytes and written as 5; a piece costs 17 more.
#pragma once

#include "tiles.cuh"

namespace turnpack::cuda {

// A piece is bos, eos, a prefix, a turn or a suffix. source: where it begins in turn_ids, or -1
// less where it begins in `around`, which holds all the others.
struct ConcatTokens {
    static constexpr int kVector = 4;

    struct Piece {
        const int32_t* ids;
        int64_t start;
        uint8_t target;
    };
    struct Vectors {
        Vector<int32_t, kVector> input_ids;
        Vector<uint8_t, kVector> loss_mask;
    };

    const int32_t* turn_ids;
    const int32_t* around;
    const int64_t* sources;  // [pieces]
    const uint8_t* targets;  // [pieces]
    int32_t* input_ids;
    uint8_t* loss_mask;
    bool aligned;

    TP_HD Piece piece(int64_t p, int64_t start) const {
        const int64_t source = load(sources + p);
        return {source < 0 ? around + (-1 - source) : turn_ids + source, start, load(targets + p)};
    }

    TP_HD void make(const Piece& piece, int64_t token, Vectors& made, int i) const {
        made.input_ids.of[i] = load(piece.ids + (token - piece.start));
        made.loss_mask.of[i] = piece.target;
    }

    TP_HD void put(int64_t token, const Vectors& made, int wanted) const {
        store(input_ids + token, made.input_ids, wanted, aligned);
        store(loss_mask + token, made.loss_mask, wanted, aligned);
    }
};

}  // namespace turnpack::cuda
