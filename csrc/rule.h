// Owns what a bin takes, and how a row that no bin takes is refused.
#pragma once

#include <cstdint>

#include "errors.h"

namespace turnpack {

// What a bin takes. Rows take up cells of it in units of `align`.
struct Rule {
    int64_t capacity;
    int64_t align;
    int64_t max_rows;

    int64_t units() const { return capacity / align; }
    int64_t units(int64_t length) const { return align == 1 ? length : (length - 1) / align + 1; }
    int64_t longest() const { return units() * align; }
};

inline void check_at_least_one(const char* name, int64_t value) {
    if (value < 1) fail(name, " is ", value, ", less than 1");
}

[[noreturn]] inline void refuse(int64_t row, int64_t length, const Rule& rule) {
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

inline void check_length(int64_t row, int64_t length, const Rule& rule) {
    if (length < 1 || length > rule.longest()) refuse(row, length, rule);
}

}  // namespace turnpack
