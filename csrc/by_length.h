// Owns the order in which the decreasing strategies place rows: longest first, equal lengths by id.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "rule.h"
#include "scratch.h"
#include "threads.h"

namespace turnpack {

// Runs work(part, begin, end) on each of `parts` equal parts of [0, size), each on its own thread.
template <class Work>
void in_parts(int64_t size, int64_t parts, const Work& work) {
    const int64_t step = size / parts, extra = size % parts;
    std::vector<int64_t> numbers(parts + 1);
    std::iota(numbers.begin(), numbers.end(), 0);
    in_ranges(numbers.data(), parts, parts, [&](int64_t first, int64_t last) {
        for (int64_t part = first; part < last; ++part) {
            const int64_t begin = part * step + std::min(part, extra);
            work(part, begin, begin + step + (part < extra));
        }
    });
}

// How many threads are worth starting for so many rows.
#ifndef TP_ROWS_A_THREAD
#define TP_ROWS_A_THREAD 32768  // the fuzz targets make do with fewer
#endif
inline int64_t worth(int64_t threads, int64_t size) {
    return std::min(threads, size / TP_ROWS_A_THREAD + 1);
}

// The longest length. Throws at the first row that no bin takes.
inline int64_t checked_longest(const int64_t* lengths, int64_t size, const Rule& rule,
                               int64_t threads) {
    const int64_t parts = worth(threads, size);
    const uint64_t limit = rule.longest();
    std::vector<uint64_t> longest(parts, 0);
    in_parts(size, parts, [&](int64_t part, int64_t begin, int64_t end) {
        // Of the lengths less 1, so that 0 and what is below it are beyond any limit.
        uint64_t most = 0;
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

// One read of memory that another thread may be writing to.
inline int64_t read_once(const int64_t* from) {
    return *static_cast<const volatile int64_t*>(from);
}

// The rows by falling length, equal lengths by rising id: a radix sort, of one pass where lengths
// are small beside their number. Id: a type that can number the rows, and one number more.
template <class Id>
class ByLength {
  public:
    // Throws at the first row that no bin takes. Goes by what it read of `lengths` when it checked
    // them, and needs them no more afterwards.
    ByLength(const int64_t* lengths, int64_t size, const Rule& rule, int64_t threads)
        : size_(size), order_(size) {
        // Counts of more values than this would cost more than the rows.
        const int64_t values = std::clamp<int64_t>(4 * size, 1 << 8, 1 << 18);
        int64_t longest = rule.longest();
        if (longest > values) {
            held_ = Scratch<int64_t>(size);
            std::copy_n(lengths, size, held_.data());
            lengths = held_.data();
            longest = checked_longest(lengths, size, rule, threads);
        }
        if (longest > values) {
            by_digits(longest, values, threads);
        } else if (longest <= 1 << 16) {
            at_once<uint16_t>(lengths, longest, rule, threads);
        } else {
            at_once<uint32_t>(lengths, longest, rule, threads);
        }
    }

    const Id* rows() const { return order_.data(); }

    // Calls visit(length, begin, end) for each length there is, longest first: the rows from
    // `begin` to before `end` in this order have it.
    template <class Visit>
    void each_length(const Visit& visit) const {
        if (ends_.empty()) {
            for (int64_t begin = 0, end; begin < size_; begin = end) {
                const int64_t length = held_[order_[begin]];
                end = begin;
                while (end < size_ && held_[order_[end]] == length) ++end;
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
    // By a count of each length, none above `longest`. A length, less 1, is kept in a Code: less to
    // read again than the lengths, and what was counted.
    template <class Code>
    void at_once(const int64_t* lengths, int64_t longest, const Rule& rule, int64_t threads) {
        Scratch<Code> scratch(size_);
        Code* const codes = scratch.data();
        const auto read = [=](Id row) {
            const uint64_t code = static_cast<uint64_t>(read_once(lengths + row)) - 1;
            codes[row] = static_cast<Code>(code);
            return code;
        };
        const auto read_again = [=](Id row) { return codes[row]; };
        const Wrong wrong = pass(threads, longest, row_itself, read, read_again, order_.data());
        if (wrong.place < size_) {
            refuse(wrong.place, static_cast<int64_t>(wrong.digit + 1), rule);
        }
    }

    // By one digit of held_ after the other, the lowest first, each of no more than `values`
    // values.
    void by_digits(int64_t longest, int64_t values, int64_t threads) {
        const int64_t* const held = held_.data();
        int64_t bits = 1, most = 1;
        while (bits < 63 && (longest - 1) >> bits) ++bits;
        while (int64_t{2} << most <= values) ++most;
        const int64_t passes = (bits - 1) / most + 1, width = (bits - 1) / passes + 1;
        Scratch<Id> from(size_);
        for (int64_t shift = 0; shift < passes * width; shift += width) {
            const auto digit = [=](Id row) {
                return static_cast<uint64_t>(held[row] - 1) >> shift & ((1 << width) - 1);
            };
            if (shift == 0) {
                pass(threads, 1 << width, row_itself, digit, digit, order_.data());
            } else {
                std::swap(order_, from);
                const Id* rows = from.data();
                const auto row_at = [=](int64_t k) { return rows[k]; };
                pass(threads, 1 << width, row_at, digit, digit, order_.data());
            }
        }
        ends_.clear();
    }

    static constexpr auto row_itself = [](int64_t k) { return static_cast<Id>(k); };

    // The first place of a row whose digit is too large, and that digit; size where there is none.
    struct Wrong {
        int64_t place;
        uint64_t digit;
    };

    // Puts the rows by falling digit, those of one digit as they were. Where a digit is not below
    // `values`, nothing is written.
    // `first_digit_of` is asked once for each row, `digit_of` then says the same. Leaves in ends_
    // where the rows of each digit end.
    template <class RowAt, class FirstDigitOf, class DigitOf>
    Wrong pass(int64_t threads, int64_t values, const RowAt& row_at,
               const FirstDigitOf& first_digit_of, const DigitOf& digit_of, Id* to) {
        // As many counts as rows at most.
        const int64_t parts = std::min(worth(threads, size_), size_ / (values + 1) + 1);
        std::vector<std::vector<Id>> next(parts, std::vector<Id>(values));
        std::vector<Wrong> wrong(parts, Wrong{size_, 0});
        in_parts(size_, parts, [&](int64_t part, int64_t begin, int64_t end) {
            std::vector<Id>& counts = next[part];
            for (int64_t k = begin; k < end; ++k) {
                const uint64_t digit = first_digit_of(row_at(k));
                if (digit >= static_cast<uint64_t>(values)) {
                    wrong[part] = {k, digit};
                    return;
                }
                ++counts[digit];
            }
        });
        for (const Wrong& found : wrong) {
            if (found.place < size_) return found;
        }
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
        return {size_, 0};
    }

    int64_t size_;
    Scratch<Id> order_;
    std::vector<Id> ends_;   // by length - 1; empty after a sort of several passes
    Scratch<int64_t> held_;  // the lengths, where they may be long
};

}  // namespace turnpack
