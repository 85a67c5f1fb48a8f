// Fuzzes `mask_markers` against reading left to right, on an instruction set of this machine.

#include "fuzz.h"
#include "kernels.h"

namespace turnpack::fuzz {
namespace {

using Ids = std::vector<int32_t>;

// What the rows, and the patterns of each kind, are made of: few ids, so that patterns match.
Ids ids(Input& in, int64_t size) {
    Ids made(size);
    for (int32_t& id : made) id = static_cast<int32_t>(in.below(4) - 1);
    return made;
}

struct Markers {
    Numbers offsets;
    Ids ids;

    explicit Markers(Input& in)
        : offsets(offsets_of(in.sizes(in.below(5), in.one_in(16) ? 20 : 4))),
          ids(fuzz::ids(in, offsets.back())) {}

    int64_t size() const { return static_cast<int64_t>(offsets.size()) - 1; }
    bool has_empty() const {
        return std::adjacent_find(offsets.begin(), offsets.end()) != offsets.end();
    }
    // Length of the longest that stands in `of` at `at`, not beyond `end`.
    int64_t longest(const Ids& of, int64_t at, int64_t end) const {
        int64_t found = 0;
        for (int64_t i = 0; i < size(); ++i) {
            const int64_t length = offsets[i + 1] - offsets[i];
            if (length > end - at || length <= found) continue;
            bool is_same = true;
            for (int64_t k = 0; k < length; ++k) is_same &= of[at + k] == ids[offsets[i] + k];
            if (is_same) found = length;
        }
        return found;
    }
};

void mark(const Ids& of, int64_t begin, int64_t end, const Markers& starts, const Markers& ends,
          bool include_end, std::vector<uint8_t>& mask) {
    bool inside = false;
    for (int64_t at = begin; at < end;) {
        const int64_t found = (inside ? ends : starts).longest(of, at, end);
        const bool is_target = inside && (found == 0 || include_end);
        const int64_t step = found == 0 ? 1 : inside && !include_end ? 0 : found;
        std::fill_n(mask.begin() + at, step, is_target);
        at += step;
        if (found > 0) inside = !inside;
    }
}

void run(Input in) {
    const int64_t rows = in.below(5), threads = in.threads();
    const bool include_end = in.one_in(2);
    const Markers starts(in), ends(in);
    const int64_t longest = in.one_in(4) ? 100 : 40;
    Numbers offsets = offsets_of(in.sizes(rows, longest));
    const int64_t tokens = offsets.back();
    Ids input_ids(tokens, 9);  // of no pattern
    const int64_t sparse = in.below(64);
    for (int32_t& id : input_ids) {
        if (in.below(256) >= 4 * sparse) id = static_cast<int32_t>(in.below(4) - 1);
    }
    in.spoil(offsets);

    const bool is_valid = are_offsets(offsets, tokens) && starts.size() > 0 &&
                          !starts.has_empty() && !ends.has_empty();
    std::vector<uint8_t> wanted(tokens);
    if (is_valid) {
        for (int64_t row = 0; row < rows; ++row) {
            mark(input_ids, offsets[row], offsets[row + 1], starts, ends, include_end, wanted);
        }
    }
    Exactly<int32_t> given_ids(input_ids), start_ids(starts.ids), end_ids(ends.ids);
    Exactly<int64_t> given_offsets(offsets), start_offsets(starts.offsets),
        end_offsets(ends.offsets);
    choose_machine(in);
    Exactly<uint8_t> loss_mask(tokens, in.below(64));
    const bool accepted = accepts([&] {
        mask_markers(given_ids.data(), tokens, given_offsets.data(), given_offsets.size(),
                     {start_ids.data(), start_offsets.data(), starts.size()},
                     {end_ids.data(), end_offsets.data(), ends.size()}, include_end, threads,
                     loss_mask.data());
    });
    TP_REQUIRE(accepted == is_valid && loss_mask.is_whole());
    TP_REQUIRE(!accepted || loss_mask == wanted);
}

}  // namespace
}  // namespace turnpack::fuzz

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    turnpack::fuzz::run({data, size});
    return 0;
}
