// Owns what every fuzz target needs: arguments made of bytes, arrays that end where their last
// value does, and what is said of a result that is wrong. Knows no kernel.
//
// A target defines LLVMFuzzerTestOneInput: libFuzzer calls it where there is clang, driver.cpp
// elsewhere. Any bytes are some input, and an input that has come to its end goes on with zeros.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "machine.h"

// What does not hold is reported with its place, then the process ends as by a crash.
#define TP_REQUIRE(holds)                                                            \
    do {                                                                             \
        if (!(holds)) {                                                              \
            std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #holds); \
            std::abort();                                                            \
        }                                                                            \
    } while (false)

namespace turnpack::fuzz {

using Numbers = std::vector<int64_t>;

constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
constexpr int64_t kMin = std::numeric_limits<int64_t>::min();

class Input {
  public:
    Input(const uint8_t* data, size_t size) : begin_(data), at_(data), end_(data + size) {}

    uint8_t byte() { return at_ < end_ ? *at_++ : 0; }
    int64_t below(int64_t size) { return byte() % size; }  // size: 256 at most
    bool one_in(int64_t size) { return below(size) == size - 1; }

    // Any integer, most often one at which arithmetic turns.
    int64_t any() {
        static constexpr int64_t kEdges[] = {0, 1, -1, 2, 63, 64, 65, 255, 256, 257};
        const int64_t kind = below(16);
        if (kind < 10) return kEdges[kind];
        const int64_t near = below(5) - 2;
        switch (kind) {
            case 10:
                return kMax - below(4);
            case 11:
                return kMin + below(4);
            case 12:
                return (int64_t{1} << 31) + near;
            case 13:
                return (int64_t{1} << below(63)) + near;
            case 14:
                return near;
        }
        int64_t value = 0;
        for (int i = 0; i < 8; ++i) value = value << 8 | byte();
        return value;
    }

    // Sizes of `count` pieces, each below `most`.
    Numbers sizes(int64_t count, int64_t most) {
        Numbers made(count);
        for (int64_t& size : made) size = below(most);
        return made;
    }

    // Once in a while makes one of the values wrong.
    void spoil(Numbers& values) {
        if (!values.empty() && one_in(12)) values[below(256) % values.size()] = any();
    }

    // What costs much hangs on all the bytes, so that an input made of a costly one seldom is one.
    bool seldom() const { return (hash() >> 40) % 16 == 0; }
    // On how many threads to run: more than one cost what a hundred runs do.
    int64_t threads() const { return hash() >> 58 ? 1 : 2 + static_cast<int64_t>(hash() >> 56); }

  private:
    uint64_t hash() const {
        uint64_t hash = 0;
        for (const uint8_t* at = begin_; at < end_; ++at) {
            hash = (hash + *at + 1) * 0x9E3779B97F4A7C15u;
        }
        return hash;
    }

    const uint8_t* begin_;
    const uint8_t* at_;
    const uint8_t* end_;
};

inline Numbers offsets_of(const Numbers& sizes) {
    Numbers offsets{0};
    for (const int64_t size : sizes) offsets.push_back(offsets.back() + size);
    return offsets;
}

inline bool are_offsets(const Numbers& offsets, int64_t end) {
    if (offsets.empty() || offsets[0] != 0 || offsets.back() != end) return false;
    for (size_t i = 1; i < offsets.size(); ++i) {
        if (offsets[i] < offsets[i - 1]) return false;
    }
    return true;
}

// Values that look like nothing else, so that one in a wrong place shows.
template <class T>
T scrambled(int64_t i) {
    return static_cast<T>(static_cast<uint64_t>(i + 1) * 0x9E3779B97F4A7C15u >> 33);
}

// Memory of just so many values, of which none is known. It begins `shift` values after where
// memory does, for what a kernel does may hang on its place in a line of the cache.
template <class T>
class Exactly {
  public:
    explicit Exactly(int64_t size, int64_t shift = 0)
        : memory_(new T[size + shift]), shift_(shift), size_(size) {
        std::memset(static_cast<void*>(memory_.get()), 0xA5, (size + shift) * sizeof(T));
    }
    explicit Exactly(const std::vector<T>& values) : Exactly(values.size()) {
        std::copy(values.begin(), values.end(), data());
    }

    T* data() const { return memory_.get() + shift_; }
    int64_t size() const { return size_; }

    // Whether they are just these.
    template <class Values>
    bool operator==(const Values& others) const {
        return size_ == static_cast<int64_t>(others.size()) &&
               std::equal(data(), data() + size_, others.data());
    }

    // Whether nothing was written before the beginning.
    bool is_whole() const {
        T before;
        std::memset(&before, 0xA5, sizeof before);
        for (int64_t i = 0; i < shift_; ++i) {
            if (std::memcmp(&memory_[i], &before, sizeof before) != 0) return false;
        }
        return true;
    }

  private:
    std::unique_ptr<T[]> memory_;
    int64_t shift_, size_;
};

// Whether the work was done; it was not if it refused the values.
template <class Work>
bool accepts(const Work& work) {
    try {
        work();
    } catch (const std::invalid_argument& refused) {
        TP_REQUIRE(std::strlen(refused.what()) > 0);
        return false;
    }
    return true;
}

// Has the kernels run as on one of the machines that this one can be: an instruction set, ordinary
// or streaming stores.
inline void choose_machine(Input& in) {
    static const std::vector<std::string> sets = [] {
        std::vector<std::string> found;
        for (const char* name : {"scalar", "avx2", "avx512"}) {
            if (accepts([&] { set_isa(name); })) found.push_back(name);
        }
        return found;
    }();
    set_isa(sets[in.below(static_cast<int64_t>(sets.size()))]);
    set_stream_from(in.one_in(2) ? 0 : kMax);
}

}  // namespace turnpack::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
