// Owns `plan`: which rows go into which bin. Sees lengths only, never a token.
//
// Rows of one length are interchangeable, and so are neighbouring bins that hold the same lengths,
// so the strategies work on classes of rows and runs of bins: they cost next to nothing a row. What
// is left is to sort the rows by length, and to write out which of them stand where.

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "errors.h"
#include "kernels.h"
#include "scratch.h"
#include "spaces.h"
#include "threads.h"

namespace turnpack {
namespace {

// What a bin takes. Rows take up cells of it in units of `align`.
struct Rule {
    int64_t capacity;
    int64_t align;
    int64_t max_rows;

    int64_t units() const { return capacity / align; }
    int64_t units(int64_t length) const { return align == 1 ? length : (length - 1) / align + 1; }
    int64_t longest() const { return units() * align; }
};

[[noreturn]] void refuse(int64_t row, int64_t length, const Rule& rule) {
    if (length < 0) fail("row ", row, " has ", length, " tokens");
    if (length == 0) fail("row ", row, " is empty");
    if (rule.align == 1) {
        fail("row ", row, " has ", length, " tokens, more than capacity ", rule.capacity);
    }
    // Below length + align, so it fits into 64 bits without a sign.
    const uint64_t aligned =
        static_cast<uint64_t>(rule.units(length)) * static_cast<uint64_t>(rule.align);
    fail("row ", row, " has ", length, " tokens, ", aligned, " aligned to ", rule.align,
         ", more than capacity ", rule.capacity);
}

// Runs work(part, begin, end) on each of `parts` fixed parts of [0, size), each on its own thread.
template <class Work>
void in_parts(int64_t size, int64_t parts, const Work& work) {
    const int64_t step = size / parts, extra = size % parts;
    in_ranges(parts, parts, [&](int64_t first, int64_t last) {
        for (int64_t part = first; part < last; ++part) {
            const int64_t begin = part * step + std::min(part, extra);
            work(part, begin, begin + step + (part < extra));
        }
    });
}

// How many threads are worth starting for so many rows.
int64_t worth(int64_t threads, int64_t size) { return std::min(threads, size / 32768 + 1); }

// The longest length. Throws at the first row that no bin takes.
int64_t checked_longest(const int64_t* lengths, int64_t size, const Rule& rule, int64_t threads) {
    const int64_t parts = worth(threads, size);
    const uint64_t limit = rule.longest();
    std::vector<uint64_t> longest(parts, 0);
    in_parts(size, parts, [&](int64_t part, int64_t begin, int64_t end) {
        uint64_t most =
            0;  // of the lengths less 1, so that 0 and what is below is beyond any limit
        for (int64_t row = begin; row < end; ++row) {
            most = std::max(most, static_cast<uint64_t>(lengths[row]) - 1);
        }
        longest[part] = most;
    });
    const uint64_t most = *std::max_element(longest.begin(), longest.end());
    for (int64_t row = 0; most >= limit && row < size; ++row) {
        if (static_cast<uint64_t>(lengths[row]) - 1 >= limit) refuse(row, lengths[row], rule);
    }
    return size ? static_cast<int64_t>(most + 1) : 0;
}

// The rows by falling length, equal lengths by rising id: a radix sort, of one pass where lengths
// are small beside their number. Id: a type that can number the rows, and one number more.
template <class Id>
class ByLength {
  public:
    // Throws at the first row that no bin takes.
    ByLength(const int64_t* lengths, int64_t size, const Rule& rule, int64_t threads)
        : lengths_(lengths), size_(size), order_(size) {
        // Counts of more values than this would cost more than the rows.
        const int64_t values = std::clamp<int64_t>(4 * size, 1 << 12, 1 << 18);
        const int64_t parts = worth(threads, size);
        const auto row_itself = [](int64_t k) { return static_cast<Id>(k); };
        const auto whole = [=](Id row) { return static_cast<uint64_t>(lengths[row]) - 1; };
        if (rule.longest() <= values) {
            const int64_t wrong = pass(parts, rule.longest(), row_itself, whole, order_.data());
            if (wrong < size) refuse(wrong, lengths[wrong], rule);
            return;
        }
        const int64_t longest = checked_longest(lengths, size, rule, threads);
        if (longest <= values) {
            pass(parts, longest, row_itself, whole, order_.data());
            return;
        }
        int64_t bits = 1, most = 1;
        while (bits < 63 && (longest - 1) >> bits) ++bits;
        while (int64_t{2} << most <= values) ++most;
        const int64_t passes = (bits - 1) / most + 1, width = (bits - 1) / passes + 1;
        Scratch<Id> from(size);
        for (int64_t shift = 0; shift < passes * width; shift += width) {
            const auto digit = [=](Id row) {
                return static_cast<uint64_t>(lengths[row] - 1) >> shift & ((1 << width) - 1);
            };
            if (shift == 0) {
                pass(parts, 1 << width, row_itself, digit, order_.data());
            } else {
                std::swap(order_, from);
                const Id* rows = from.data();
                pass(parts, 1 << width, [=](int64_t k) { return rows[k]; }, digit, order_.data());
            }
        }
        ends_.clear();
    }

    const Id* rows() const { return order_.data(); }

    // Calls visit(length, begin, end) for each length there is, longest first: the rows from
    // `begin` to before `end` in this order have it.
    template <class Visit>
    void each_length(const Visit& visit) const {
        if (ends_.empty()) {
            for (int64_t begin = 0, end; begin < size_; begin = end) {
                const int64_t length = lengths_[order_[begin]];
                end = begin;
                while (end < size_ && lengths_[order_[end]] == length) ++end;
                visit(length, begin, end);
            }
        } else {
            int64_t begin = 0;
            for (int64_t length = ends_.size(); begin < size_; --length) {
                const int64_t end = ends_[length - 1];
                if (begin < end) visit(length, begin, end);
                begin = end;
            }
        }
    }

  private:
    // Puts the rows by falling digit, those of one digit as they were. Where a digit is not below
    // `values`, the place of the first such row is returned and nothing written; otherwise size.
    // Leaves in ends_ where the rows of each digit end.
    template <class RowAt, class DigitOf>
    int64_t pass(int64_t parts, int64_t values, const RowAt& row_at, const DigitOf& digit_of,
                 Id* to) {
        std::vector<std::vector<Id>> next(parts);
        std::vector<int64_t> wrong(parts, size_);
        in_parts(size_, parts, [&](int64_t part, int64_t begin, int64_t end) {
            std::vector<Id>& counts = next[part];
            counts.assign(values, 0);
            for (int64_t k = begin; k < end; ++k) {
                const uint64_t digit = digit_of(row_at(k));
                if (digit >= static_cast<uint64_t>(values)) {
                    wrong[part] = k;
                    return;
                }
                ++counts[digit];
            }
        });
        const int64_t first_wrong = *std::min_element(wrong.begin(), wrong.end());
        if (first_wrong < size_) return first_wrong;
        Id before = 0;
        for (int64_t digit = values; digit-- > 0;) {
            for (std::vector<Id>& counts : next) before += std::exchange(counts[digit], before);
        }
        // A row's place is in a cache line that is hardly ever at hand, so it is fetched ahead.
        constexpr int64_t kAhead = 64;
        in_parts(size_, parts, [&](int64_t part, int64_t begin, int64_t end) {
            Id* places = next[part].data();
            int64_t k = begin;
            for (; k + kAhead < end; ++k) {
                prefetch_to_write(to + places[digit_of(row_at(k + kAhead))]);
                const Id row = row_at(k);
                to[places[digit_of(row)]++] = row;
            }
            for (; k < end; ++k) {
                const Id row = row_at(k);
                to[places[digit_of(row)]++] = row;
            }
        });
        ends_ = std::move(next.back());
        return size_;
    }

    const int64_t* lengths_;
    int64_t size_;
    Scratch<Id> order_;
    std::vector<Id> ends_;  // by length - 1; empty after a sort of several passes
};

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

template <class Id>
class Bins {
  public:
    static constexpr Id kNone = static_cast<Id>(-1);

    explicit Bins(const Rule& rule) : rule_(rule) {}

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

    // How many of `count` rows of so many units each bin of the run takes; none if it is closed.
    int64_t each(Id run, int64_t units, int64_t count) const {
        return std::min({runs_[run].space / units, rule_.max_rows - runs_[run].rows, count});
    }

    // Puts `each` rows into each bin; returns how many that are.
    int64_t place(Id run, int64_t each, int64_t length, int64_t begin) {
        Run<Id>& into = runs_[run];
        pieces_.push_back({static_cast<Id>(begin), into.bin, static_cast<Id>(each), into.piece});
        into.piece = static_cast<Id>(pieces_.size() - 1);
        into.rows += static_cast<Id>(each);
        into.fill += each * length;
        into.space -= each * rule_.units(length);
        if (into.rows == rule_.max_rows) into.space = 0;
        return each * into.size;
    }

    int64_t size() const { return bins_; }

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
        in_ranges(size, worth(threads, size), [&](int64_t begin, int64_t end) {
            std::vector<Piece<Id>> pieces;
            size_t at = std::upper_bound(starts.begin(), starts.end(), begin) - starts.begin();
            if (at > 0) --at;
            for (; at < starts.size() && starts[at] < end; ++at) {
                const Run<Id>& run = runs_[in_order[at]];
                // Those of its bins that begin within [begin, end).
                const int64_t each = run.rows;
                const auto until = [&](int64_t row) {
                    const int64_t rows = std::max<int64_t>(row - starts[at], 0);
                    return std::min<int64_t>((rows + each - 1) / each, run.size);
                };
                write_bins(run, until(begin), until(end), starts[at], order, pieces, rows, offsets,
                           fill);
            }
        });
    }

  private:
    void write_bins(const Run<Id>& run, int64_t bin, int64_t end, int64_t start, const Id* order,
                    std::vector<Piece<Id>>& pieces, int64_t* rows, int64_t* offsets,
                    int64_t* fill) const {
        pieces.clear();
        for (Id piece = run.piece; piece != kNone; piece = pieces_[piece].before) {
            pieces.push_back(pieces_[piece]);
        }
        const int64_t each = run.rows;
        // A piece after the other, for as many bins as stay in the nearest cache meanwhile.
        const int64_t block = std::max<int64_t>(1, 1024 / each);
        for (int64_t next; bin < end; bin = next) {
            next = std::min(bin + block, end);
            int64_t* to = rows + start + bin * each;
            for (size_t k = pieces.size(); k-- > 0;) {
                const Piece<Id>& piece = pieces[k];
                const int64_t of_bin = piece.each;
                const Id* from = order + piece.begin + (run.bin + bin - piece.bin) * of_bin;
                if (of_bin == 1) {
                    for (int64_t i = 0; i < next - bin; ++i) to[i * each] = from[i];
                } else {
                    for (int64_t i = 0; i < next - bin; ++i) {
                        for (int64_t j = 0; j < of_bin; ++j)
                            to[i * each + j] = from[i * of_bin + j];
                    }
                }
                to += of_bin;
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
template <class Id, class Spaces>
void best_fit(const ByLength<Id>& order, const Rule& rule, Spaces spaces, Bins<Id>& bins) {
    order.each_length([&](int64_t length, int64_t begin, int64_t end) {
        const int64_t units = rule.units(length);
        while (begin < end) {
            const int64_t space = spaces.least_from(units);
            Id run;
            int64_t each;
            if (space < 0) {
                each = std::min({rule.units() / units, rule.max_rows, end - begin});
                run = bins.open((end - begin) / each);
            } else {
                Queue<Id>& queue = spaces.queue(space);
                run = queue.head;
                each = bins.each(run, units, end - begin);
                const int64_t size = (end - begin) / each;
                if (size < static_cast<int64_t>(bins[run].size)) {
                    queue.head = bins.split(run, size);
                    if (queue.tail == run) queue.tail = queue.head;
                } else if (queue.tail == run) {
                    spaces.erase(space);
                } else {
                    queue.head = bins[run].behind;
                }
            }
            begin += bins.place(run, each, length, begin);
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
            int64_t each;
            if (bin < 0) {
                each = std::min({rule.units() / units, rule.max_rows, end - begin});
                run = bins.open((end - begin) / each);
                run_at.resize(bins.size());
                spaces.resize(bins.size());
            } else {
                run = run_at[bin];
                each = bins.each(run, units, end - begin);
                const int64_t size = (end - begin) / each;
                if (size < static_cast<int64_t>(bins[run].size)) stands(bins.split(run, size));
            }
            begin += bins.place(run, each, length, begin);
            stands(run);
        }
    });
}

int64_t in_order(const int64_t* lengths, int64_t size, const Rule& rule, int64_t* rows,
                 int64_t* offsets, int64_t* fill) {
    int64_t bins = 0, space = 0, placed = 0;
    for (int64_t row = 0; row < size; ++row) {
        const int64_t units = rule.units(lengths[row]);
        if (bins == 0 || units > space || placed == rule.max_rows) {
            offsets[bins] = row;
            fill[bins++] = 0;
            space = rule.units();
            placed = 0;
        }
        rows[row] = row;
        fill[bins - 1] += lengths[row];
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
    } else if (rule.units() <= 1 << 18 || rule.units() / 4 <= size) {
        best_fit(order, rule, SmallSpaces<Id>(rule.units()), bins);
    } else {
        best_fit(order, rule, AnySpaces<Id>(), bins);
    }
    bins.write(order.rows(), size, threads, rows, offsets, fill);
    return bins.size();
}

}  // namespace

int64_t plan(const int64_t* lengths, int64_t size, int64_t capacity, Strategy strategy,
             int64_t align, int64_t max_rows, int64_t threads, bool wide, int64_t* rows,
             int64_t* offsets, int64_t* fill) {
    if (capacity < 1) fail("capacity is ", capacity, ", less than 1");
    if (align < 1) fail("align is ", align, ", less than 1");
    if (max_rows < 1) fail("max_rows is ", max_rows, ", less than 1");
    if (threads < 1) fail("threads is ", threads, ", less than 1");
    const Rule rule{capacity, align, max_rows};
    if (strategy == Strategy::in_order) {
        checked_longest(lengths, size, rule, threads);
        return in_order(lengths, size, rule, rows, offsets, fill);
    }
    return wide || size >= int64_t{1} << 31
               ? decreasing<int64_t>(lengths, size, rule, strategy, threads, rows, offsets, fill)
               : decreasing<int32_t>(lengths, size, rule, strategy, threads, rows, offsets, fill);
}

}  // namespace turnpack
