// Owns how the core refuses bad values: std::invalid_argument (a ValueError in Python) with the
// row and the numbers in its text. The reference words every message on its own; tests compare.
#pragma once

#include <cstdint>
#include <limits>
#include <sstream>
#include <stdexcept>

namespace turnpack {

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
    std::ostringstream text;
    (text << ... << parts);
    throw std::invalid_argument(text.str());
}

// Ragged offsets of `count` entries: from 0, never falling, ending at `end`.
inline void check_offsets(const char* name, const int64_t* offsets, int64_t count, int64_t end) {
    if (count < 1) fail(name, " is empty, it needs at least the 0");
    if (offsets[0] != 0) fail(name, " starts at ", offsets[0], ", not 0");
    for (int64_t i = 1; i < count; ++i) {
        if (offsets[i] < offsets[i - 1]) {
            fail(name, " falls from ", offsets[i - 1], " to ", offsets[i], " at ", i);
        }
    }
    if (offsets[count - 1] != end) fail(name, " ends at ", offsets[count - 1], ", not ", end);
}

// a + b of two numbers that are not negative.
inline int64_t checked_add(int64_t a, int64_t b) {
    if (a > std::numeric_limits<int64_t>::max() - b) fail(a, " + ", b, " is beyond int64");
    return a + b;
}

}  // namespace turnpack
