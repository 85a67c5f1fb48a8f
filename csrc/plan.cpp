// Owns `plan`: which rows go into which bin. Sees lengths only, never a token.

#include <algorithm>
#include <vector>

#include "bins.h"
#include "by_length.h"
#include "errors.h"
#include "kernels.h"
#include "rule.h"
#include "spaces.h"

namespace turnpack {
namespace {

// The space of runs, at the number of their first bin, under a tree of maxima.
class Leftmost {
  public:
    // Makes room for so many bins.
    void resize(int64_t size) {
        for (size_t level = 0; level == 0 || size > 1; ++level) {
            if (level == levels_.size()) levels_.push_back({level ? highest(level, 0) : 0});
            size = (size + kWidth - 1) / kWidth;
            levels_[level].resize(size * kWidth, 0);
        }
    }

    void set(int64_t bin, int64_t space) {
        levels_[0][bin] = space;
        for (size_t level = 1; level < levels_.size(); ++level) {
            bin /= kWidth;
            const int64_t most = highest(level, bin);
            if (levels_[level][bin] == most) return;
            levels_[level][bin] = most;
        }
    }

    // The first from `bin` on with so much space, -1 if there is none.
    int64_t first_from(int64_t bin, int64_t space) const {
        size_t level = 0;
        for (;; ++level) {
            if (level == levels_.size()) return -1;
            const std::vector<int64_t>& spaces = levels_[level];
            if (bin >= static_cast<int64_t>(spaces.size())) return -1;
            const int64_t end = (bin / kWidth + 1) * kWidth;
            while (bin < end && spaces[bin] < space) ++bin;
            if (bin < end) break;
            bin = end / kWidth;
        }
        while (level-- > 0) {
            bin *= kWidth;
            while (levels_[level][bin] < space) ++bin;
        }
        return bin;
    }

  private:
    static constexpr int64_t kWidth = 8;

    int64_t highest(size_t level, int64_t node) const {
        const int64_t* children = levels_[level - 1].data() + node * kWidth;
        return *std::max_element(children, children + kWidth);
    }

    std::vector<std::vector<int64_t>> levels_;
};

// From left to right, each bin with room takes as many rows of a length as it can.
template <class Id>
void first_fit(const ByLength<Id>& order, const Rule& rule, Bins<Id>& bins) {
    Leftmost spaces;
    std::vector<Id> run_at;  // by the number of a run's first bin
    const auto stands = [&](Id run) {
        run_at[bins[run].bin] = run;
        spaces.set(bins[run].bin, bins[run].space);
    };
    order.each_length([&](int64_t length, int64_t begin, int64_t end) {
        const int64_t units = rule.units(length);
        int64_t bin = 0;
        while (begin < end) {
            if (bin >= 0) bin = spaces.first_from(bin, units);
            Id run;
            Share share;
            if (bin < 0) {
                share = bins.share(units, end - begin);
                run = bins.open(share.bins);
                run_at.resize(bins.size());
                spaces.resize(bins.size());
            } else {
                run = run_at[bin];
                share = bins.share(run, units, end - begin);
                if (share.bins < static_cast<int64_t>(bins[run].size)) {
                    stands(bins.split(run, share.bins));
                }
            }
            begin += bins.place(run, share.each, length, units, begin);
            stands(run);
        }
    });
}

int64_t in_order(const int64_t* lengths, int64_t size, const Rule& rule, int64_t* rows,
                 int64_t* offsets, int64_t* fill) {
    int64_t bins = 0, space = 0, placed = 0;
    for (int64_t row = 0; row < size; ++row) {
        const int64_t length = read_once(lengths + row);
        check_length(row, length, rule);
        const int64_t units = rule.units(length);
        if (bins == 0 || units > space || placed == rule.max_rows) {
            offsets[bins] = row;
            fill[bins++] = 0;
            space = rule.units();
            placed = 0;
        }
        rows[row] = row;
        fill[bins - 1] += length;
        space -= units;
        ++placed;
    }
    offsets[bins] = size;
    return bins;
}

template <class Id>
int64_t decreasing(const int64_t* lengths, int64_t size, const Rule& rule, Strategy strategy,
                   int64_t threads, int64_t* rows, int64_t* offsets, int64_t* fill) {
    const ByLength<Id> order(lengths, size, rule, threads);
    Bins<Id> bins(rule);
    if (strategy == Strategy::first_fit) {
        first_fit(order, rule, bins);
    } else {
        with_spaces<Id>(rule.units(), size,
                        [&](auto& spaces) { best_fit(order, 0, rule, spaces, bins); });
    }
    bins.write(order.rows(), size, threads, rows, offsets, fill);
    return bins.size();
}

}  // namespace

int64_t plan(const int64_t* lengths, int64_t size, int64_t capacity, Strategy strategy,
             int64_t align, int64_t max_rows, int64_t threads, bool wide, int64_t* rows,
             int64_t* offsets, int64_t* fill) {
    const Rule rule{capacity, align, max_rows};
    check_at_least_one("capacity", capacity);
    check_at_least_one("align", align);
    check_at_least_one("max_rows", max_rows);
    check_at_least_one("threads", threads);
    if (strategy == Strategy::in_order) return in_order(lengths, size, rule, rows, offsets, fill);
    return wide || size >= int64_t{1} << 31
               ? decreasing<int64_t>(lengths, size, rule, strategy, threads, rows, offsets, fill)
               : decreasing<int32_t>(lengths, size, rule, strategy, threads, rows, offsets, fill);
}

}  // namespace turnpack
