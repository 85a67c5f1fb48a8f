// Owns `pack` and `unpack` on the GPU: what stands in a cell, from the piece that covers it, and
// back. The same cells as index.h's pack_bin, cut into tiles instead of bins.
//
// The floor of pack, in bytes: a token is read as 4 (id) + 1 (mask), a cell of four arrays written
// as 16 (int32) or 32 (int64); a piece costs 20 + 8 more, a weight 4 + 4. At int64 and full bins
// that is 37 bytes a cell, all of it streamed once: tokens by threads side by side from wherever
// their row begins, cells by 16-byte stores. unpack reads 8 or 16 bytes a cell and writes 5.
#pragma once

#include "index.h"
#include "tiles.cuh"

namespace turnpack::cuda {

// A piece is a document or the padding of a bin. It has source: where its tokens begin, or -1 for
// padding; number: 1, 2.. in each bin, 0 for padding.
template <class Int>
struct PackCells {
    static constexpr int kVector = 16 / sizeof(Int);

    struct Piece {
        int64_t start, source;
        int32_t number;
    };
    struct Vectors {
        Vector<Int, kVector> input_ids, labels, position_ids, segment_ids;
        Vector<float, kVector> loss_weights;
    };

    const int32_t* input_ids;
    const uint8_t* loss_mask;
    const float* loss_weights;  // or null
    const int64_t* sources;     // [pieces]
    const int32_t* numbers;     // [pieces]
    int32_t pad_id;
    PackOut<Int> out;
    bool aligned;

    TP_HD Piece piece(int64_t p, int64_t start) const {
        return {start, load(sources + p), load(numbers + p)};
    }

    TP_HD void make(const Piece& piece, int64_t cell, Vectors& made, int i) const {
        const int64_t position = cell - piece.start, token = piece.source + position;
        const bool padding = piece.source < 0;
        const int32_t id = padding ? pad_id : load(input_ids + token);
        const bool target = !padding && position > 0 && load(loss_mask + token) != 0;
        made.input_ids.of[i] = id;
        made.labels.of[i] = target ? id : kIgnore;
        made.position_ids.of[i] = static_cast<Int>(position);
        made.segment_ids.of[i] = piece.number;
        if (loss_weights) {
            const bool weighted = !padding && position > 0;
            made.loss_weights.of[i] = weighted ? load(loss_weights + token) : 0.0f;
        }
    }

    TP_HD void put(int64_t cell, const Vectors& made, int wanted) const {
        store(out.input_ids + cell, made.input_ids, wanted, aligned);
        store(out.labels + cell, made.labels, wanted, aligned);
        store(out.position_ids + cell, made.position_ids, wanted, aligned);
        store(out.segment_ids + cell, made.segment_ids, wanted, aligned);
        if (loss_weights) store(out.loss_weights + cell, made.loss_weights, wanted, aligned);
    }
};

// A piece is a row; source: the cell where it begins. Ids beyond int32, which pack never makes,
// lose their upper half.
template <class Int>
struct UnpackTokens {
    static constexpr int kVector = 4;

    struct Piece {
        int64_t start, source;
    };
    struct Vectors {
        Vector<int32_t, kVector> input_ids;
        Vector<uint8_t, kVector> loss_mask;
        Vector<float, kVector> loss_weights;
    };

    const Int* cell_ids;
    const Int* cell_labels;
    const float* cell_weights;  // or null
    const int64_t* sources;     // [rows]
    int32_t* input_ids;
    uint8_t* loss_mask;
    float* loss_weights;
    bool aligned;

    TP_HD Piece piece(int64_t p, int64_t start) const { return {start, load(sources + p)}; }

    TP_HD void make(const Piece& piece, int64_t token, Vectors& made, int i) const {
        const int64_t cell = piece.source + (token - piece.start);
        made.input_ids.of[i] = static_cast<int32_t>(load(cell_ids + cell));
        made.loss_mask.of[i] = load(cell_labels + cell) != kIgnore;
        if (cell_weights) made.loss_weights.of[i] = load(cell_weights + cell);
    }

    TP_HD void put(int64_t token, const Vectors& made, int wanted) const {
        store(input_ids + token, made.input_ids, wanted, aligned);
        store(loss_mask + token, made.loss_mask, wanted, aligned);
        if (cell_weights) store(loss_weights + token, made.loss_weights, wanted, aligned);
    }
};

}  // namespace turnpack::cuda
