// Owns `mask_spans` and `mask_markers`: which tokens are targets, from characters or from ids.
// Both fill a mask that the caller allocated; neither sees text.

#include <algorithm>
#include <utility>
#include <vector>

#include "errors.h"
#include "kernels.h"

namespace turnpack {
namespace {

using Span = std::pair<int64_t, int64_t>;

bool is_extent(int64_t begin, int64_t end) { return 0 <= begin && begin <= end; }

// Sorts spans and joins those that touch, so that at most one neighbour has to be looked at.
void normalize(std::vector<Span>& spans) {
    if (!std::is_sorted(spans.begin(), spans.end())) std::sort(spans.begin(), spans.end());
    size_t last = 0;
    for (size_t i = 1; i < spans.size(); ++i) {
        if (spans[i].first <= spans[last].second) {
            spans[last].second = std::max(spans[last].second, spans[i].second);
        } else {
            spans[++last] = spans[i];
        }
    }
    if (!spans.empty()) spans.resize(last + 1);
}

struct Pattern {
    const int32_t* ids;
    int64_t size;
};

// Longest first: the first match is the longest.
std::vector<Pattern> longest_first(const char* name, const Patterns& patterns) {
    std::vector<Pattern> sorted;
    for (int64_t i = 0; i < patterns.size; ++i) {
        const int64_t size = patterns.offsets[i + 1] - patterns.offsets[i];
        if (size == 0) fail(name, "[", i, "] is empty");
        sorted.push_back({patterns.ids + patterns.offsets[i], size});
    }
    std::stable_sort(sorted.begin(), sorted.end(),
                     [](const Pattern& a, const Pattern& b) { return a.size > b.size; });
    return sorted;
}

// Length of the longest pattern at `at`, 0 if none matches there.
inline int64_t match(const std::vector<Pattern>& patterns, const int32_t* at, const int32_t* end) {
    for (const Pattern& pattern : patterns) {
        if (pattern.ids[0] == *at && pattern.size <= end - at &&
            std::equal(pattern.ids + 1, pattern.ids + pattern.size, at + 1)) {
            return pattern.size;
        }
    }
    return 0;
}

}  // namespace

void mask_spans(const int64_t* extents, int64_t tokens, const int64_t* offsets,
                int64_t offsets_size, const int64_t* spans, int64_t spans_size,
                const int64_t* span_offsets, int64_t span_offsets_size, uint8_t* loss_mask) {
    check_offsets("offsets", offsets, offsets_size, tokens);
    check_offsets("span_offsets", span_offsets, span_offsets_size, spans_size);
    if (offsets_size != span_offsets_size) {
        fail("offsets has ", offsets_size - 1, " rows, but span_offsets has ",
             span_offsets_size - 1);
    }
    std::vector<Span> wanted;
    for (int64_t row = 0; row + 1 < offsets_size; ++row) {
        for (int64_t i = offsets[row]; i < offsets[row + 1]; ++i) {
            if (!is_extent(extents[2 * i], extents[2 * i + 1])) {
                fail("row ", row, ", token ", i - offsets[row], " has extent [", extents[2 * i],
                     ", ", extents[2 * i + 1], ")");
            }
        }
        wanted.clear();
        for (int64_t i = span_offsets[row]; i < span_offsets[row + 1]; ++i) {
            const Span span{spans[2 * i], spans[2 * i + 1]};
            if (!is_extent(span.first, span.second)) {
                fail("row ", row, ", span ", i - span_offsets[row], " is [", span.first, ", ",
                     span.second, ")");
            }
            if (span.first < span.second) wanted.push_back(span);
        }
        normalize(wanted);
        // `next` is the first span that ends after the token's begin. Extents mostly rise slowly,
        // so it mostly is the same as before.
        size_t next = 0;
        for (int64_t i = offsets[row]; i < offsets[row + 1]; ++i) {
            const int64_t begin = extents[2 * i], end = extents[2 * i + 1];
            const auto is_past = [begin](const Span& span) { return span.second <= begin; };
            if ((next > 0 && !is_past(wanted[next - 1])) ||
                (next < wanted.size() && is_past(wanted[next]))) {
                next = std::partition_point(wanted.begin(), wanted.end(), is_past) - wanted.begin();
            }
            loss_mask[i] = begin < end && next < wanted.size() && wanted[next].first < end;
        }
    }
}

void mask_markers(const int32_t* input_ids, int64_t tokens, const int64_t* offsets,
                  int64_t offsets_size, const Patterns& starts, const Patterns& ends,
                  bool include_end, uint8_t* loss_mask) {
    if (starts.size == 0) fail("starts is empty");
    const std::vector<Pattern> opening = longest_first("starts", starts);
    const std::vector<Pattern> closing = longest_first("ends", ends);
    check_offsets("offsets", offsets, offsets_size, tokens);
    std::fill_n(loss_mask, tokens, uint8_t{0});
    for (int64_t row = 0; row + 1 < offsets_size; ++row) {
        const int32_t* const end = input_ids + offsets[row + 1];
        bool inside = false;
        for (const int32_t* at = input_ids + offsets[row]; at < end;) {
            const int64_t size = match(inside ? closing : opening, at, end);
            if (inside && (size == 0 || include_end)) {
                const int64_t targets = size ? size : 1;
                std::fill_n(loss_mask + (at - input_ids), targets, uint8_t{1});
                at += targets;
            } else if (!inside) {
                at += size ? size : 1;
            }
            if (size) inside = !inside;
        }
    }
}

}  // namespace turnpack
