// Owns `mask_markers` on the GPU. Reading left to right is a machine with few states: inside or
// outside, and how many tokens of a pattern are still to be passed over. So
//   MaskTiles<false>  runs each tile from every state it may be entered in: state -> state
//   MaskEntries       goes through these tables in one block: the state each tile is entered in
//   MaskTiles<true>   runs each tile from that one and writes its mask.
// A token is read twice (4 + 4 bytes) and its mask written once (1); the tables take 4 * states
// bytes a tile. Patterns are compared where they stand, by all threads; a run only goes from one
// place where something may change to the next.
#pragma once

#include "tiles.cuh"

namespace turnpack::cuda {

// Patterns of ids, ragged, the longest first: the first that matches is the longest.
struct SortedPatterns {
    const int32_t* ids;
    const int64_t* offsets;  // [size + 1]
    int64_t size;
};

// Length of the longest pattern at `at`, 0 if none matches there.
TP_HD int64_t match(const SortedPatterns& patterns, const int32_t* at, int64_t left) {
    for (int64_t p = 0; p < patterns.size; ++p) {
        const int64_t begin = load(patterns.offsets + p);
        const int64_t size = load(patterns.offsets + p + 1) - begin;
        if (size > left) continue;
        int64_t same = 0;
        while (same < size && load(patterns.ids + begin + same) == load(at + same)) ++same;
        if (same == size) return size;
    }
    return 0;
}

constexpr int kWords = kTile / 32;
using Bits = uint32_t[kWords];  // one for each element of a tile

TP_HD void set_bit(Bits& bits, int i) {
#ifdef __CUDA_ARCH__
    atomicOr(&bits[i / 32], 1u << i % 32);
#else
    bits[i / 32] |= 1u << i % 32;
#endif
}

TP_HD int lowest_bit(uint32_t word) {
#ifdef __CUDA_ARCH__
    return __ffs(static_cast<int>(word)) - 1;
#else
    return __builtin_ctz(word);
#endif
}

// Sets [begin, end). One thread alone does.
TP_HD void set_bits(Bits& bits, int begin, int end) {
    while (begin < end) {
        const int from = begin % 32, to = end - begin < 32 - from ? from + end - begin : 32;
        bits[begin / 32] |= (to == 32 ? ~0u : (1u << to) - 1) & ~((1u << from) - 1);
        begin += to - from;
    }
}

struct MaskIn {
    const int32_t* input_ids;
    Pieces rows;  // those that are not empty
    SortedPatterns starts, ends;
    bool include_end;
    int32_t states;  // 2 * longest pattern: twice the tokens to be passed over, 1 more if inside
};

struct MaskShared {
    TilePieces pieces;
    Bits row_begins, opening, closing, targets;
};

template <bool kWrite>
struct MaskTiles {
    using Shared = MaskShared;
    static constexpr int kVector = 4;

    MaskIn in;
    int32_t* exits;    // [tiles, states], written unless kWrite
    int32_t* entries;  // [tiles], read if kWrite
    uint8_t* loss_mask;
    bool aligned;

    TP_HD int64_t blocks() const { return tiles_of(in.rows.size); }
    TP_HD int64_t phases() const { return search_rounds(in.rows) + 3 + kWrite; }

    TP_HD void run(int64_t phase, Shared& shared, int64_t block, int thread) const {
        const int64_t rounds = search_rounds(in.rows);
        if (phase < rounds) {
            search(in.rows, phase, shared.pieces, block, thread);
        } else if (phase == rounds) {
            list_pieces(in.rows, found_before(rounds, shared.pieces), shared.pieces, block, thread);
            for (int i = thread; i < kWords; i += kThreads) {
                shared.row_begins[i] = shared.opening[i] = shared.closing[i] = 0;
                shared.targets[i] = 0;
            }
        } else if (phase == rounds + 1) {
            find_patterns(found_before(rounds, shared.pieces), shared, block, thread);
        } else if (phase == rounds + 2) {
            if (!kWrite) {
                for (int32_t state = thread; state < in.states; state += kThreads) {
                    exits[block * in.states + state] =
                        read(shared, block, state, found_before(rounds, shared.pieces));
                }
            } else if (thread == 0) {
                read(shared, block, entries[block], found_before(rounds, shared.pieces));
            }
        } else {
            write_mask(shared, block, thread);
        }
    }

    TP_HD void find_patterns(int64_t first, Shared& shared, int64_t block, int thread) const {
        const int64_t begin = block * kTile;
        const int size = tile_size(in.rows.size, block);
        for (int at = thread; at < size; at += kThreads) {
            const int row = piece_of(shared.pieces, at);
            const int64_t left = load(in.rows.starts + first + row + 1) - (begin + at);
            if (load(in.rows.starts + first + row) == begin + at) set_bit(shared.row_begins, at);
            if (match(in.starts, in.input_ids + begin + at, left)) set_bit(shared.opening, at);
            if (match(in.ends, in.input_ids + begin + at, left)) set_bit(shared.closing, at);
        }
    }

    // The pattern that is known to match at this element of the tile.
    TP_HD int matched(const SortedPatterns& patterns, const Shared& shared, int64_t block, int at,
                      int64_t first) const {
        const int64_t row = first + piece_of(shared.pieces, at);
        const int64_t token = block * kTile + at;
        const int64_t left = load(in.rows.starts + row + 1) - token;
        return static_cast<int>(match(patterns, in.input_ids + token, left));
    }

    // Reads the tile from a state on and returns the state after it; with kWrite, marks targets.
    TP_HD int32_t read(Shared& shared, int64_t block, int32_t state, int64_t first) const {
        const int size = tile_size(in.rows.size, block);
        bool inside = state % 2;
        int at = state / 2;
        // Outside, what is still to be passed over is the rest of an end pattern.
        if (kWrite && !inside) set_bits(shared.targets, 0, at);
        while (at < size) {
            const int next = next_change(shared, inside, at, size);
            if (kWrite && inside) set_bits(shared.targets, at, next);
            at = next;
            if (at == size) break;
            if (shared.row_begins[at / 32] >> at % 32 & 1) {
                inside = false;
            } else if (inside) {
                inside = false;
                if (in.include_end) {
                    const int end = at + matched(in.ends, shared, block, at, first);
                    if (kWrite) set_bits(shared.targets, at, end < size ? end : size);
                    at = end;
                    continue;
                }
            }
            if (shared.opening[at / 32] >> at % 32 & 1) {
                at += matched(in.starts, shared, block, at, first);
                inside = true;
            } else {
                ++at;
            }
        }
        return 2 * (at - size) + inside;
    }

    TP_HD int next_change(const Shared& shared, bool inside, int at, int size) const {
        const Bits& pattern = inside ? shared.closing : shared.opening;
        uint32_t unread = ~0u << at % 32;
        for (int word = at / 32; word * 32 < size; ++word) {
            const uint32_t found = (shared.row_begins[word] | pattern[word]) & unread;
            if (found) return word * 32 + lowest_bit(found);
            unread = ~0u;
        }
        return size;
    }

    TP_HD void write_mask(const Shared& shared, int64_t block, int thread) const {
        const int size = tile_size(in.rows.size, block);
        for (int at = thread * kVector; at < size; at += kThreads * kVector) {
            Vector<uint8_t, kVector> mask;
            for (int i = 0; i < kVector; ++i) {
                mask.of[i] = shared.targets[at / 32] >> (at % 32 + i) & 1;
            }
            store(loss_mask + block * kTile + at, mask, size - at < kVector ? size - at : kVector,
                  aligned);
        }
    }
};

// One block, one thread of which reads: what it reads comes into shared memory by all of them.
struct MaskEntries {
    static constexpr int kHeld = 2 * kTile;
    static constexpr int kMostStates = kHeld / 2;
    struct Shared {
        int32_t exits[kHeld];
        int32_t state;
    };

    const int32_t* exits;
    int32_t* entries;
    int64_t tiles;
    int32_t states;

    TP_HD int64_t held() const { return kHeld / states; }  // tiles at a time
    TP_HD int64_t blocks() const { return 1; }
    TP_HD int64_t phases() const { return 2 * ((tiles + held() - 1) / held()); }

    TP_HD void run(int64_t phase, Shared& shared, int64_t, int thread) const {
        const int64_t begin = phase / 2 * held();
        const int64_t count = tiles - begin < held() ? tiles - begin : held();
        if (phase % 2 == 0) {
            for (int64_t i = thread; i < count * states; i += kThreads) {
                shared.exits[i] = load(exits + begin * states + i);
            }
        } else if (thread == 0) {
            int32_t state = phase == 1 ? 0 : shared.state;
            for (int64_t i = 0; i < count; ++i) {
                entries[begin + i] = state;
                state = shared.exits[i * states + state];
            }
            shared.state = state;
        }
    }
};

}  // namespace turnpack::cuda
