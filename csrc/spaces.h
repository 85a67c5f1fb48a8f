// Owns the lookup of best fit: the least space, from a length on, that bins have, and the queue of
// those that have it. What is queued is a number of the caller's: a bin, or a run of bins.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#ifdef _MSC_VER
#include <intrin.h>
#endif

namespace turnpack {

inline int64_t lowest_bit(uint64_t word) {
#ifdef _MSC_VER
    unsigned long index;
    _BitScanForward64(&index, word);
    return index;
#else
    return __builtin_ctzll(word);
#endif
}

// A set of the numbers below a size that finds the least member from a number on, by a tree of
// 64-bit words: a bit of a level says that a word of the level before is not empty.
class NumberSet {
  public:
    explicit NumberSet(int64_t size) {
        do {
            size = (size + 63) / 64;
            starts_[levels_ + 1] = starts_[levels_] + size;
            ++levels_;
        } while (size > 1);
        words_.resize(starts_[levels_]);
    }

    bool has(int64_t number) const { return words_[number >> 6] >> (number & 63) & 1; }

    void insert(int64_t number) {
        for (int level = 0; level < levels_; ++level) {
            uint64_t& word = at(level, number >> 6);
            const bool known = word != 0;
            word |= uint64_t{1} << (number & 63);
            if (known) return;
            number >>= 6;
        }
    }

    void erase(int64_t number) {
        for (int level = 0; level < levels_; ++level) {
            if (at(level, number >> 6) &= ~(uint64_t{1} << (number & 63))) return;
            number >>= 6;
        }
    }

    // -1 if there is none.
    int64_t least_from(int64_t number) const {
        for (int level = 0; level < levels_; ++level) {
            if (number >> 6 >= starts_[level + 1] - starts_[level]) return -1;
            const uint64_t word = at(level, number >> 6) >> (number & 63);
            if (word) {
                number += lowest_bit(word);
                while (level-- > 0) number = number * 64 + lowest_bit(at(level, number));
                return number;
            }
            number = (number >> 6) + 1;
        }
        return -1;
    }

  private:
    uint64_t& at(int level, int64_t word) { return words_[starts_[level] + word]; }
    uint64_t at(int level, int64_t word) const { return words_[starts_[level] + word]; }

    int levels_ = 0;
    int64_t starts_[12] = {0};  // of the words of each level; 11 levels have room for any number
    std::vector<uint64_t> words_;
};

template <class Id>
struct Queue {
    Id head, tail;
};

// The two ways to find the least space, one rule: SmallSpaces takes memory by the capacity and is
// fast, AnySpaces by the bins. A queue is there only while something is in it. No bin that has all
// of its capacity is ever queued.
template <class Id>
class SmallSpaces {
  public:
    explicit SmallSpaces(int64_t capacity) : numbers_(capacity), queues_(new Queue<Id>[capacity]) {}
    int64_t least_from(int64_t space) const { return numbers_.least_from(space); }
    bool has(int64_t space) const { return numbers_.has(space); }
    Queue<Id>& queue(int64_t space) { return queues_[space]; }
    void insert(int64_t space, Id only) {
        numbers_.insert(space);
        queues_[space] = {only, only};
    }
    void erase(int64_t space) { numbers_.erase(space); }

  private:
    NumberSet numbers_;
    std::unique_ptr<Queue<Id>[]> queues_;
};

template <class Id>
class AnySpaces {
  public:
    int64_t least_from(int64_t space) const {
        const auto found = queues_.lower_bound(space);
        return found == queues_.end() ? -1 : found->first;
    }
    bool has(int64_t space) const { return queues_.count(space) > 0; }
    Queue<Id>& queue(int64_t space) { return queues_.find(space)->second; }
    void insert(int64_t space, Id only) { queues_[space] = {only, only}; }
    void erase(int64_t space) { queues_.erase(space); }

  private:
    std::map<int64_t, Queue<Id>> queues_;
};

// Calls work(spaces) with the way that suits bins of so many units and so many rows.
template <class Id, class Work>
void with_spaces(int64_t units, int64_t rows, const Work& work) {
    if (units <= 1 << 18 || units / 4 <= rows) {
        SmallSpaces<Id> spaces(units);
        work(spaces);
    } else {
        AnySpaces<Id> spaces;
        work(spaces);
    }
}

}  // namespace turnpack
