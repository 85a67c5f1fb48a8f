// Fuzzes `mask_spans` against each pair of an extent and a span, on an instruction set of this
// machine.

#include "fuzz.h"
#include "kernels.h"

namespace turnpack::fuzz {
namespace {

bool are_ranges(const Numbers& pairs) {
    for (size_t i = 0; i < pairs.size(); i += 2) {
        if (pairs[i] < 0 || pairs[i + 1] < pairs[i]) return false;
    }
    return true;
}

bool is_target(const Numbers& extents, int64_t token, const Numbers& spans, int64_t begin,
               int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
        if (std::max(extents[2 * token], spans[2 * i]) <
            std::min(extents[2 * token + 1], spans[2 * i + 1])) {
            return true;
        }
    }
    return false;
}

void run(Input in) {
    const int64_t rows = in.below(6), threads = in.threads();
    const bool dense = in.one_in(2);
    Numbers offsets = offsets_of(in.sizes(rows, 40)), span_offsets = offsets_of(in.sizes(rows, 5));
    const int64_t tokens = offsets.back(), count = span_offsets.back();
    Numbers extents, spans;
    int64_t at = 0;
    for (int64_t i = 0; i < tokens; ++i) {
        const int64_t begin = dense ? at : in.below(200);
        at = begin + in.below(dense ? 4 : 32);
        if (at > 200) at = 0;
        extents.insert(extents.end(), {begin, std::max(begin, at)});
    }
    for (int64_t i = 0; i < count; ++i) {
        const int64_t begin = in.below(200);
        spans.insert(spans.end(), {begin, begin + in.below(64)});
    }
    for (Numbers* numbers : {&extents, &spans, &offsets, &span_offsets}) in.spoil(*numbers);
    if (in.one_in(24)) span_offsets.pop_back();

    const bool is_valid = are_offsets(offsets, tokens) && are_offsets(span_offsets, count) &&
                          offsets.size() == span_offsets.size() && are_ranges(extents) &&
                          are_ranges(spans);
    Exactly<int64_t> given_extents(extents), given_offsets(offsets), given_spans(spans),
        given_span_offsets(span_offsets);
    choose_machine(in);
    Exactly<uint8_t> loss_mask(tokens, in.below(64));
    const bool accepted = accepts([&] {
        mask_spans(given_extents.data(), tokens, given_offsets.data(), given_offsets.size(),
                   given_spans.data(), count, given_span_offsets.data(), given_span_offsets.size(),
                   threads, loss_mask.data());
    });
    TP_REQUIRE(accepted == is_valid && loss_mask.is_whole());
    if (!accepted) return;
    for (int64_t row = 0; row < rows; ++row) {
        for (int64_t token = offsets[row]; token < offsets[row + 1]; ++token) {
            TP_REQUIRE(loss_mask.data()[token] ==
                       is_target(extents, token, spans, span_offsets[row], span_offsets[row + 1]));
        }
    }
}

}  // namespace
}  // namespace turnpack::fuzz

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    turnpack::fuzz::run({data, size});
    return 0;
}
