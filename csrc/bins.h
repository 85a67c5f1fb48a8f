// Owns the bins as they fill up, in runs of bins that hold the same lengths, the rule of best fit
// over them, and how they are written out.
//
// Rows of one length are interchangeable, and so are neighbouring bins that hold the same lengths.
// So a strategy places classes of rows into runs of bins, which costs next to nothing a row.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "by_length.h"
#include "rule.h"
#include "spaces.h"

namespace turnpack {

// `each` rows in each bin from number `bin` on; `begin`: where those of that bin are in the order
// of rows, the others after them. `before`: what was placed into these bins before.
template <class Id>
struct Piece {
    Id begin, bin, each, before;
};

// Bins next to each other that hold as many rows of the same lengths.
template <class Id>
struct Run {
    int64_t space, fill;
    Id bin, size;  // the first, and how many
    Id rows;       // in each
    Id piece;      // the last, or none
    Id behind;     // the next run in a queue
    Id next;       // the run of the bins after these
};

struct Share {
    int64_t each;  // rows in each bin
    int64_t bins;
};

template <class Id>
class Bins {
  public:
    static constexpr Id kNone = static_cast<Id>(-1);

    explicit Bins(const Rule& rule) : rule_(rule) {}

    // Room for what so many rows need at most, without which it is found step by step.
    void reserve(int64_t rows) {
        runs_.reserve(rows);
        pieces_.reserve(rows);
    }

    Run<Id>& operator[](Id run) { return runs_[run]; }

    Id open(int64_t size) {
        const Id run = static_cast<Id>(runs_.size());
        if (run > 0) runs_[last_].next = run;
        runs_.push_back({rule_.units(), 0, static_cast<Id>(bins_), static_cast<Id>(size), 0, kNone,
                         kNone, kNone});
        bins_ += size;
        return last_ = run;
    }

    // Cuts a run after `size` bins; returns the rest, in all else like it.
    Id split(Id run, int64_t size) {
        const Id rest = static_cast<Id>(runs_.size());
        runs_.push_back(runs_[run]);
        runs_[rest].bin += static_cast<Id>(size);
        runs_[rest].size -= static_cast<Id>(size);
        runs_[run].size = static_cast<Id>(size);
        runs_[run].next = rest;
        if (last_ == run) last_ = rest;
        return rest;
    }

    // What of `count` rows of so many units the bins of the run take; of new bins, without a run.
    Share share(Id run, int64_t units, int64_t count) const {
        return share(runs_[run].space, rule_.max_rows - runs_[run].rows, units, count);
    }
    Share share(int64_t units, int64_t count) const {
        return share(rule_.units(), rule_.max_rows, units, count);
    }

    // Puts `each` rows into each bin; returns how many that are.
    int64_t place(Id run, int64_t each, int64_t length, int64_t units, int64_t begin) {
        Run<Id>& into = runs_[run];
        pieces_.push_back({static_cast<Id>(begin), into.bin, static_cast<Id>(each), into.piece});
        into.piece = static_cast<Id>(pieces_.size() - 1);
        into.rows += static_cast<Id>(each);
        into.fill += each * length;
        into.space -= each * units;
        if (into.rows == rule_.max_rows) into.space = 0;  // closed
        return each * into.size;
    }

    int64_t size() const { return bins_; }

    // The units that each bin still has, 0 if it is closed; [size()].
    void write_spaces(int64_t* spaces) const {
        for (const Run<Id>& run : runs_) std::fill_n(spaces + run.bin, run.size, run.space);
    }

    // The rows stand in `order` [size] as they were placed; fills as plan (kernels.h) does.
    void write(const Id* order, int64_t size, int64_t threads, int64_t* rows, int64_t* offsets,
               int64_t* fill) const {
        std::vector<Id> in_order;  // the runs by bin, and where their rows begin
        std::vector<int64_t> starts;
        in_order.reserve(runs_.size());
        starts.reserve(runs_.size());
        int64_t start = 0;
        for (Id run = bins_ ? 0 : kNone; run != kNone; run = runs_[run].next) {
            in_order.push_back(run);
            starts.push_back(start);
            start += static_cast<int64_t>(runs_[run].rows) * runs_[run].size;
        }
        offsets[0] = 0;
        in_parts(size, worth(threads, size), [&](int64_t, int64_t begin, int64_t end) {
            size_t at = std::upper_bound(starts.begin(), starts.end(), begin) - starts.begin();
            if (at > 0) --at;
            for (; at < starts.size() && starts[at] < end; ++at) {
                const Run<Id>& run = runs_[in_order[at]];
                const int64_t after = starts[at] + static_cast<int64_t>(run.rows) * run.size;
                // Those of its bins that begin within [begin, end).
                const auto until = [&](int64_t row) {
                    return (row - starts[at] + run.rows - 1) / run.rows;
                };
                write_bins(run, starts[at] < begin ? until(begin) : 0,
                           after > end ? until(end) : run.size, starts[at], order, rows, offsets,
                           fill);
            }
        });
    }

  private:
    // Divisions cost as much as all the rest here, and mostly one row has room or one is left.
    static Share share(int64_t space, int64_t most, int64_t units, int64_t count) {
        int64_t each = std::min(most, count);
        if (each > 1) each = space - units < units ? 1 : std::min(each, space / units);
        return {each, each == 1 ? count : each == count ? 1 : count / each};
    }

    // Bins [bin, end) of the run, whose rows begin at `start`.
    void write_bins(const Run<Id>& run, int64_t bin, int64_t end, int64_t start, const Id* order,
                    int64_t* rows, int64_t* offsets, int64_t* fill) const {
        const int64_t each = run.rows;
        // A piece after the other, for as many bins as stay in the nearest cache meanwhile.
        const int64_t block = end - bin == 1 ? 1 : std::max<int64_t>(1, 1024 / each);
        for (int64_t next; bin < end; bin = next) {
            next = std::min(bin + block, end);
            int64_t* to = rows + start + (bin + 1) * each;
            for (Id at = run.piece; at != kNone; at = pieces_[at].before) {
                const Piece<Id>& piece = pieces_[at];
                const int64_t of_bin = piece.each;
                const Id* from = order + piece.begin + (run.bin + bin - piece.bin) * of_bin;
                to -= of_bin;
                if (of_bin == 1) {
                    for (int64_t i = 0; i < next - bin; ++i) to[i * each] = from[i];
                } else {
                    for (int64_t i = 0; i < next - bin; ++i) {
                        for (int64_t j = 0; j < of_bin; ++j) {
                            to[i * each + j] = from[i * of_bin + j];
                        }
                    }
                }
            }
            for (int64_t i = bin; i < next; ++i) {
                offsets[run.bin + i + 1] = start + (i + 1) * each;
                fill[run.bin + i] = run.fill;
            }
        }
    }

    Rule rule_;
    std::vector<Run<Id>> runs_;
    std::vector<Piece<Id>> pieces_;
    int64_t bins_ = 0;
    Id last_ = 0;  // the run of the last bins
};

// The longest-waiting bin of the least sufficient space takes as many rows of a length as it can:
// while it has room for one more it stays the tightest, alone with its new space.
// `first`: where these rows begin in the order that `write` is given.
template <class Id, class Spaces>
void best_fit(const ByLength<Id>& order, int64_t first, const Rule& rule, Spaces& spaces,
              Bins<Id>& bins) {
    order.each_length([&](int64_t length, int64_t begin, int64_t end) {
        const int64_t units = rule.units(length);
        while (begin < end) {
            const int64_t space = spaces.least_from(units);
            Id run;
            Share share;
            if (space < 0) {
                share = bins.share(units, end - begin);
                run = bins.open(share.bins);
            } else {
                Queue<Id>& queue = spaces.queue(space);
                run = queue.head;
                share = bins.share(run, units, end - begin);
                if (share.bins < static_cast<int64_t>(bins[run].size)) {
                    queue.head = bins.split(run, share.bins);
                    if (queue.tail == run) queue.tail = queue.head;
                } else if (queue.tail == run) {
                    spaces.erase(space);
                } else {
                    queue.head = bins[run].behind;
                }
            }
            begin += bins.place(run, share.each, length, units, first + begin);
            const int64_t left = bins[run].space;
            if (left == 0) continue;
            if (spaces.has(left)) {
                Queue<Id>& queue = spaces.queue(left);
                bins[queue.tail].behind = run;
                queue.tail = run;
            } else {
                spaces.insert(left, run);
            }
        }
    });
}

}  // namespace turnpack
