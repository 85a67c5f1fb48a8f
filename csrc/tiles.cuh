// Owns how work is cut up on the GPU: what a kernel is, and how the block of a tile finds the
// pieces that fill it. Plain C++ for g++ as for nvcc: the tests run every thread of it on the CPU.
#pragma once

#include <cstdint>

#include "index.h"

namespace turnpack::cuda {

// A kernel is a struct of its arguments that has
//   Shared                             the memory of a block; holds anything at first
//   int64_t blocks()                   how many blocks of kThreads threads there are
//   int64_t phases()                   how often the threads of a block go through run, with a
//                                      barrier after each time
//   run(phase, shared, block, thread)
// In a phase no thread reads what another one writes, so that threads one after another in any
// order do what threads at a time do.
#ifndef TP_TILE
#define TP_TILE 2048  // the fuzz targets make do with fewer
#endif
constexpr int64_t kTile = TP_TILE;  // elements of the output that a block writes
constexpr int kThreads = kTile / 8;

TP_HD int64_t tiles_of(int64_t size) { return (size + kTile - 1) / kTile; }

// Reads what no thread writes: the compiler may move it before stores.
template <class T>
TP_HD T load(const T* from) {
#ifdef __CUDA_ARCH__
    return __ldg(from);
#else
    return *from;
#endif
}

// Elements that go to memory in one store, if the arrays begin where such stores may (`aligned`)
// and all N are wanted.
template <class T, int N>
struct alignas(sizeof(T) * N) Vector {
    T of[N];
};

template <class T, int N>
TP_HD void store(T* to, const Vector<T, N>& vector, int wanted, bool aligned) {
    if (aligned && wanted == N) {
        *reinterpret_cast<Vector<T, N>*>(to) = vector;
        return;
    }
    for (int i = 0; i < N; ++i) {
        if (i < wanted) to[i] = vector.of[i];
    }
}

template <int N, class T>
bool is_aligned(const T* pointer) {
    return reinterpret_cast<uintptr_t>(pointer) % (sizeof(T) * N) == 0;
}

// What fills the elements [0, size): piece p has [starts[p], starts[p + 1]), at least one of them.
// After the last piece, starts may go on with any number of `size`: shapes that stay the same.
struct Pieces {
    const int64_t* starts;  // [count + 1], from 0
    int64_t count;
    int64_t size;
};

// The pieces in one tile. A piece takes up an element, so there are no more than elements.
struct TilePieces {
    int64_t found[2];       // by turns: where the round of the search before ended
    int32_t begins[kTile];  // in the tile; 0 for a piece that began before it
    int32_t count;
};

// The search for a tile's first piece: each round, the threads cut what is left into as many parts.
TP_HD int64_t search_rounds(const Pieces& pieces) {
    int64_t rounds = 0;
    for (int64_t left = pieces.count; left > 1; left = (left + kThreads - 1) / kThreads) ++rounds;
    return rounds;
}

TP_HD int64_t found_before(int64_t round, const TilePieces& tile) {
    return round == 0 ? 0 : tile.found[(round - 1) & 1];
}

TP_HD void search(const Pieces& pieces, int64_t round, TilePieces& tile, int64_t block,
                  int thread) {
    int64_t part = pieces.count;
    for (int64_t i = 0; i <= round; ++i) part = (part + kThreads - 1) / kThreads;
    const int64_t wanted = block * kTile;
    const int64_t piece = found_before(round, tile) + thread * part;
    if (piece >= pieces.count) return;
    const int64_t after = piece + part < pieces.count ? piece + part : pieces.count;
    if (load(pieces.starts + piece) <= wanted && wanted < load(pieces.starts + after)) {
        tile.found[round & 1] = piece;
    }
}

TP_HD int tile_size(int64_t size, int64_t block) {
    const int64_t left = size - block * kTile;
    return static_cast<int>(left < kTile ? left : kTile);
}

// After the search: where the pieces of the tile begin.
TP_HD void list_pieces(const Pieces& pieces, int64_t first, TilePieces& tile, int64_t block,
                       int thread) {
    const int64_t begin = block * kTile, end = begin + tile_size(pieces.size, block);
    for (int64_t i = thread; i < kTile && first + i < pieces.count; i += kThreads) {
        const int64_t start = load(pieces.starts + first + i);
        if (start >= end) break;
        tile.begins[i] = start < begin ? 0 : static_cast<int32_t>(start - begin);
        if (load(pieces.starts + first + i + 1) >= end) tile.count = static_cast<int32_t>(i + 1);
    }
}

// Which piece of the tile has this element of it.
TP_HD int piece_of(const TilePieces& tile, int element) {
    int low = 0, high = tile.count;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (tile.begins[middle] <= element) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

// A kernel that makes each element from what its piece says. Write has
//   kVector               elements that a thread makes at a time
//   Piece, Vectors        what it knows of a piece; the elements at hand
//   piece(p, start)       reads a piece
//   make(piece, at, vectors, i)   element `at` of the output becomes the i-th at hand
//   put(at, vectors, wanted)      stores `wanted` elements from `at` on
template <class Write>
struct Gather {
    using Shared = TilePieces;
    Pieces pieces;
    Write write;

    TP_HD int64_t blocks() const { return tiles_of(pieces.size); }
    TP_HD int64_t phases() const { return search_rounds(pieces) + 2; }

    TP_HD void run(int64_t phase, Shared& tile, int64_t block, int thread) const {
        const int64_t rounds = search_rounds(pieces);
        if (phase < rounds) {
            search(pieces, phase, tile, block, thread);
        } else if (phase == rounds) {
            list_pieces(pieces, found_before(rounds, tile), tile, block, thread);
        } else {
            fill(found_before(rounds, tile), tile, block, thread);
        }
    }

    TP_HD void fill(int64_t first, const Shared& tile, int64_t block, int thread) const {
        constexpr int kVector = Write::kVector;
        const int64_t begin = block * kTile;
        const int size = tile_size(pieces.size, block);
        for (int at = thread * kVector; at < size; at += kThreads * kVector) {
            int i = piece_of(tile, at);
            typename Write::Piece piece = write.piece(first + i, load(pieces.starts + first + i));
            typename Write::Vectors vectors;
            for (int k = 0; k < kVector; ++k) {
                if (at + k >= size) break;
                if (i + 1 < tile.count && tile.begins[i + 1] == at + k) {
                    ++i;
                    piece = write.piece(first + i, begin + at + k);
                }
                write.make(piece, begin + at + k, vectors, k);
            }
            write.put(begin + at, vectors, size - at < kVector ? size - at : kVector);
        }
    }
};

}  // namespace turnpack::cuda
