// Owns `plan`: which rows go into which bin. Sees lengths only, never a token.

#include <algorithm>
#include <map>
#include <numeric>
#include <vector>

#ifdef _MSC_VER
#include <intrin.h>
#endif

#include "errors.h"
#include "kernels.h"

namespace turnpack {
namespace {

inline int64_t lowest_bit(uint64_t word) {
#ifdef _MSC_VER
    unsigned long index;
    _BitScanForward64(&index, word);
    return index;
#else
    return __builtin_ctzll(word);
#endif
}

// A set of small numbers that finds the least member from a number on, by a tree of 64-bit words.
class NumberSet {
  public:
    explicit NumberSet(int64_t size) {
        do {
            size = (size + 63) / 64;
            levels_.emplace_back(size, 0);
        } while (size > 1);
    }

    void insert(int64_t number) {
        for (auto& level : levels_) {
            level[number >> 6] |= uint64_t{1} << (number & 63);
            number >>= 6;
        }
    }

    void erase(int64_t number) {
        for (auto& level : levels_) {
            if (level[number >> 6] &= ~(uint64_t{1} << (number & 63))) return;
            number >>= 6;
        }
    }

    // -1 if there is none.
    int64_t least_from(int64_t number) const {
        for (size_t level = 0; level < levels_.size(); ++level) {
            if (number >> 6 >= static_cast<int64_t>(levels_[level].size())) return -1;
            const uint64_t word = levels_[level][number >> 6] >> (number & 63);
            if (word) {
                number += lowest_bit(word);
                while (level-- > 0) number = number * 64 + lowest_bit(levels_[level][number]);
                return number;
            }
            number = (number >> 6) + 1;
        }
        return -1;
    }

  private:
    std::vector<std::vector<uint64_t>> levels_;
};

struct Queue {
    int64_t head = -1;
    int64_t tail = -1;
};

// The two ways to find the least space, one rule: SmallSpaces takes memory by the capacity and is
// fast, AnySpaces by the bins.
class SmallSpaces {
  public:
    explicit SmallSpaces(int64_t capacity) : numbers_(capacity + 1), queues_(capacity + 1) {}
    int64_t least_from(int64_t space) const { return numbers_.least_from(space); }
    Queue& queue(int64_t space) { return queues_[space]; }
    void insert(int64_t space) { numbers_.insert(space); }
    void erase(int64_t space) { numbers_.erase(space); }

  private:
    NumberSet numbers_;
    std::vector<Queue> queues_;
};

class AnySpaces {
  public:
    int64_t least_from(int64_t space) const {
        const auto found = queues_.lower_bound(space);
        return found == queues_.end() ? -1 : found->first;
    }
    Queue& queue(int64_t space) { return queues_[space]; }
    void insert(int64_t) {}
    void erase(int64_t space) { queues_.erase(space); }

  private:
    std::map<int64_t, Queue> queues_;
};

// Bins as they fill up. Which bin holds the k-th placed row is kept aside; `finish` groups the rows
// by bin, which keeps the order of placement.
class Bins {
  public:
    Bins(int64_t max_rows, int64_t* offsets, int64_t* fill, int64_t size)
        : max_rows_(max_rows), counts_(offsets + 1), fill_(fill) {
        placed_.reserve(size);
    }

    int64_t open() {
        counts_[bins_] = fill_[bins_] = 0;
        return bins_++;
    }
    void place(int64_t bin, int64_t length) {
        placed_.push_back(bin);
        ++counts_[bin];
        fill_[bin] += length;
    }
    bool is_closed(int64_t bin) const { return counts_[bin] == max_rows_; }
    int64_t size() const { return bins_; }

    // Turns counts into offsets and writes the rows, given in order of placement.
    int64_t finish(const std::vector<int64_t>& order, int64_t* rows, int64_t* offsets) const {
        offsets[0] = 0;
        std::partial_sum(offsets, offsets + bins_ + 1, offsets);
        std::vector<int64_t> next(offsets, offsets + bins_);
        for (size_t k = 0; k < order.size(); ++k) rows[next[placed_[k]]++] = order[k];
        return bins_;
    }

  private:
    int64_t max_rows_;
    int64_t* counts_;
    int64_t* fill_;
    int64_t bins_ = 0;
    std::vector<int64_t> placed_;
};

// What the strategies work on: rows in the order they are placed in and the cells they take up,
// counted in units of `align`.
struct Rows {
    const int64_t* lengths;
    std::vector<int64_t> order;
    int64_t align;

    int64_t length(size_t k) const { return lengths[order[k]]; }
    int64_t units(int64_t length) const { return align == 1 ? length : (length - 1) / align + 1; }
};

// Longest first, equal lengths by rising row id.
std::vector<int64_t> by_falling_length(const int64_t* lengths, int64_t size) {
    std::vector<int64_t> order(size);
    const int64_t longest = size ? *std::max_element(lengths, lengths + size) : 0;
    if (longest <= 65536 || longest / 4 <= size) {
        std::vector<int64_t> next(longest + 1, 0);
        for (int64_t row = 0; row < size; ++row) ++next[longest - lengths[row]];
        std::exclusive_scan(next.begin(), next.end(), next.begin(), int64_t{0});
        for (int64_t row = 0; row < size; ++row) order[next[longest - lengths[row]]++] = row;
    } else {
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(),
                         [=](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });
    }
    return order;
}

template <class Spaces>
void best_fit(const Rows& rows, int64_t capacity, Spaces spaces, Bins& bins) {
    std::vector<int64_t> behind;  // the next bin in a bin's queue
    for (size_t k = 0; k < rows.order.size(); ++k) {
        const int64_t length = rows.length(k), units = rows.units(length);
        int64_t space = spaces.least_from(units), bin;
        if (space < 0) {
            space = capacity;
            bin = bins.open();
            behind.push_back(-1);
        } else {
            Queue& queue = spaces.queue(space);
            bin = queue.head;
            queue.head = behind[bin];
            if (queue.head < 0) spaces.erase(space);
        }
        bins.place(bin, length);
        space -= units;
        if (space == 0 || bins.is_closed(bin)) continue;
        Queue& queue = spaces.queue(space);
        behind[bin] = -1;
        if (queue.head < 0) {
            spaces.insert(space);
            queue.head = bin;
        } else {
            behind[queue.tail] = bin;
        }
        queue.tail = bin;
    }
}

void first_fit(const Rows& rows, int64_t capacity, Bins& bins) {
    // A tree of maxima over the space of all bins there can be. A bin not opened yet has all of it,
    // so the leftmost with room is an open bin or the next to open, and there always is one.
    size_t leaves = 1;
    while (leaves < rows.order.size()) leaves *= 2;
    std::vector<int64_t> space(2 * leaves, capacity);
    for (size_t k = 0; k < rows.order.size(); ++k) {
        const int64_t length = rows.length(k), units = rows.units(length);
        size_t node = 1;
        while (node < leaves) node = 2 * node + (space[2 * node] < units);
        const int64_t bin = static_cast<int64_t>(node - leaves);
        if (bin == bins.size()) bins.open();
        bins.place(bin, length);
        space[node] = bins.is_closed(bin) ? 0 : space[node] - units;
        while (node /= 2) space[node] = std::max(space[2 * node], space[2 * node + 1]);
    }
}

void in_order(const Rows& rows, int64_t capacity, Bins& bins) {
    int64_t space = 0;
    for (size_t k = 0; k < rows.order.size(); ++k) {
        const int64_t length = rows.length(k), units = rows.units(length);
        if (bins.size() == 0 || units > space || bins.is_closed(bins.size() - 1)) {
            bins.open();
            space = capacity;
        }
        bins.place(bins.size() - 1, length);
        space -= units;
    }
}

}  // namespace

int64_t plan(const int64_t* lengths, int64_t size, int64_t capacity, Strategy strategy,
             int64_t align, int64_t max_rows, int64_t* rows, int64_t* offsets, int64_t* fill) {
    if (capacity < 1) fail("capacity is ", capacity, ", less than 1");
    if (align < 1) fail("align is ", align, ", less than 1");
    if (max_rows < 1) fail("max_rows is ", max_rows, ", less than 1");
    Rows placing{lengths, {}, align};
    const int64_t units = capacity / align;
    for (int64_t row = 0; row < size; ++row) {
        const int64_t length = lengths[row];
        if (length < 0) fail("row ", row, " has ", length, " tokens");
        if (length == 0) fail("row ", row, " is empty");
        const int64_t wanted = placing.units(length);
        if (wanted <= units) continue;
        if (align == 1)
            fail("row ", row, " has ", length, " tokens, more than capacity ", capacity);
        // Below length + align, so it fits into 64 bits without a sign.
        const uint64_t aligned = static_cast<uint64_t>(wanted) * static_cast<uint64_t>(align);
        fail("row ", row, " has ", length, " tokens, ", aligned, " aligned to ", align,
             ", more than capacity ", capacity);
    }

    if (strategy == Strategy::in_order) {
        placing.order.resize(size);
        std::iota(placing.order.begin(), placing.order.end(), 0);
    } else {
        placing.order = by_falling_length(lengths, size);
    }
    Bins bins(max_rows, offsets, fill, size);
    if (strategy == Strategy::in_order) {
        in_order(placing, units, bins);
    } else if (strategy == Strategy::first_fit) {
        first_fit(placing, units, bins);
    } else if (units <= 65536 || units / 4 <= size) {
        best_fit(placing, units, SmallSpaces(units), bins);
    } else {
        best_fit(placing, units, AnySpaces(), bins);
    }
    return bins.finish(placing.order, rows, offsets);
}

}  // namespace turnpack
