// Owns the rule of a plan in plain loops, for the targets that fuzz it.
#pragma once

#include "fuzz.h"
#include "kernels.h"

namespace turnpack::fuzz {

inline __int128 cells_of(int64_t length, int64_t align) {
    return (static_cast<__int128>(length) + align - 1) / align * align;
}

struct Bin {
    __int128 space;
    int64_t since;  // which placement gave it this space
    int64_t size = 0, fill = 0;
};

struct Bins {
    std::vector<Bin> bins;
    Numbers offsets, rows;  // of each bin, as they were placed
};

inline Bins planned(const Numbers& order, const Numbers& lengths, int64_t capacity,
                    Strategy strategy, int64_t align, int64_t max_rows) {
    std::vector<Bin> bins;
    Numbers bin_of;
    for (const int64_t row : order) {
        const __int128 cells = cells_of(lengths[row], align);
        Bin* into = nullptr;
        for (Bin& bin : bins) {
            if (strategy == Strategy::in_order && &bin != &bins.back()) continue;
            if (bin.space < cells || bin.size == max_rows) continue;
            const bool is_better =
                into == nullptr || (strategy == Strategy::best_fit &&
                                    (bin.space < into->space ||
                                     (bin.space == into->space && bin.since < into->since)));
            if (is_better) into = &bin;
        }
        if (into == nullptr) {
            bins.push_back({capacity, 0});
            into = &bins.back();
        }
        bin_of.push_back(into - bins.data());
        into->space -= cells;
        into->since = static_cast<int64_t>(bin_of.size());
        into->fill += lengths[row];
        ++into->size;
    }
    Numbers sizes;
    for (const Bin& bin : bins) sizes.push_back(bin.size);
    Numbers offsets = offsets_of(sizes), next = offsets, rows(order.size());
    for (size_t k = 0; k < order.size(); ++k) rows[next[bin_of[k]]++] = order[k];
    return {bins, offsets, rows};
}

}  // namespace turnpack::fuzz
