// Owns `mask_spans` and `mask_markers`: which tokens are targets, from characters or from ids.
// Both fill a mask that the caller allocated; neither sees text.

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "errors.h"
#include "kernels.h"
#include "machine.h"
#include "threads.h"

#ifdef TP_X86_FORMS
#include <immintrin.h>
#endif

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

// Between the ends of two spans: of the tokens that begin at low..high, those are targets that end
// after `first`, where the second span begins.
struct Window {
    int64_t low;
    int64_t high;
    int64_t first;
};

// The window that `begin` is in.
Window window_at(const std::vector<Span>& spans, int64_t begin) {
    constexpr int64_t never = std::numeric_limits<int64_t>::max();
    const auto next = std::partition_point(spans.begin(), spans.end(),
                                           [=](const Span& span) { return span.second <= begin; });
    const int64_t low = next == spans.begin() ? 0 : next[-1].second;
    if (next == spans.end()) return {low, never, never};
    return {low, next->second - 1, next->first};
}

// Marks tokens up to the first that does not begin in the window or whose extent is none. Returns
// how many it marked.
int64_t mark_scalar(const int64_t* extents, int64_t size, const Window& window, uint8_t* mask) {
    for (int64_t i = 0; i < size; ++i) {
        const int64_t begin = extents[2 * i], end = extents[2 * i + 1];
        if (begin < window.low || begin > window.high || end < begin) return i;
        mask[i] = (begin < end) & (window.first < end);
    }
    return size;
}

#ifdef TP_X86_FORMS
TP_AVX2 int64_t mark_avx2(const int64_t* extents, int64_t size, const Window& window,
                          uint8_t* mask) {
    const __m256i low = _mm256_set1_epi64x(window.low), high = _mm256_set1_epi64x(window.high),
                  first = _mm256_set1_epi64x(window.first);
    int64_t done = 0;
    for (; size - done >= 4; done += 4) {
        const __m256i* at = reinterpret_cast<const __m256i*>(extents + 2 * done);
        const __m256i a = _mm256_loadu_si256(at), b = _mm256_loadu_si256(at + 1);
        const __m256i begin = _mm256_unpacklo_epi64(a, b);  // of tokens 0, 2, 1, 3
        const __m256i end = _mm256_unpackhi_epi64(a, b);
        const __m256i is_outside = _mm256_or_si256(
            _mm256_cmpgt_epi64(begin, end),
            _mm256_or_si256(_mm256_cmpgt_epi64(low, begin), _mm256_cmpgt_epi64(begin, high)));
        if (!_mm256_testz_si256(is_outside, is_outside)) break;
        const __m256i is_target =
            _mm256_and_si256(_mm256_cmpgt_epi64(end, begin), _mm256_cmpgt_epi64(end, first));
        const int bits = _mm256_movemask_pd(_mm256_castsi256_pd(is_target));
        const uint8_t targets[4] = {
            static_cast<uint8_t>(bits & 1), static_cast<uint8_t>(bits >> 2 & 1),
            static_cast<uint8_t>(bits >> 1 & 1), static_cast<uint8_t>(bits >> 3 & 1)};
        std::copy_n(targets, 4, mask + done);
    }
    return done + mark_scalar(extents + 2 * done, size - done, window, mask + done);
}

TP_AVX512 int64_t mark_avx512(const int64_t* extents, int64_t size, const Window& window,
                              uint8_t* mask) {
    const __m512i low = _mm512_set1_epi64(window.low), high = _mm512_set1_epi64(window.high),
                  first = _mm512_set1_epi64(window.first);
    const __m512i evens = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14);
    const __m512i odds = _mm512_setr_epi64(1, 3, 5, 7, 9, 11, 13, 15);
    int64_t done = 0;
    for (; size - done >= 8; done += 8) {
        const __m512i a = _mm512_loadu_si512(extents + 2 * done);
        const __m512i b = _mm512_loadu_si512(extents + 2 * done + 8);
        const __m512i begin = _mm512_permutex2var_epi64(a, evens, b);
        const __m512i end = _mm512_permutex2var_epi64(a, odds, b);
        const __mmask8 is_inside = _mm512_mask_cmple_epi64_mask(
            _mm512_mask_cmple_epi64_mask(_mm512_cmple_epi64_mask(low, begin), begin, high), begin,
            end);
        if (is_inside != 0xff) break;
        const __mmask8 is_target =
            _mm512_mask_cmplt_epi64_mask(_mm512_cmplt_epi64_mask(begin, end), first, end);
        _mm_storel_epi64(reinterpret_cast<__m128i*>(mask + done),
                         _mm_maskz_set1_epi8(is_target, 1));
    }
    return done + mark_scalar(extents + 2 * done, size - done, window, mask + done);
}
#else
constexpr auto mark_avx2 = mark_scalar, mark_avx512 = mark_scalar;
#endif

// Refuses the first extent of a row that is none.
void check_extents(const int64_t* extents, int64_t row, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
        if (!is_extent(extents[2 * i], extents[2 * i + 1])) {
            fail("row ", row, ", token ", i - begin, " has extent [", extents[2 * i], ", ",
                 extents[2 * i + 1], ")");
        }
    }
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

// The ids that patterns begin with, each once.
std::vector<int32_t> first_ids(const std::vector<Pattern>& patterns) {
    std::vector<int32_t> firsts;
    for (const Pattern& pattern : patterns) firsts.push_back(pattern.ids[0]);
    std::sort(firsts.begin(), firsts.end());
    firsts.erase(std::unique(firsts.begin(), firsts.end()), firsts.end());
    return firsts;
}

// The first place in [at, end) that holds one of the ids, or end. All before it are marked with
// `mark`, and perhaps some behind it, but none behind `end`.
const int32_t* mark_until_scalar(const int32_t* at, const int32_t* end,
                                 const std::vector<int32_t>& ids, uint8_t mark, uint8_t* mask) {
    const int32_t* const found = std::find_first_of(at, end, ids.begin(), ids.end());
    std::fill_n(mask, found - at, mark);
    return found;
}

#ifdef TP_X86_FORMS
TP_AVX2 const int32_t* mark_until_avx2(const int32_t* at, const int32_t* end,
                                       const std::vector<int32_t>& ids, uint8_t mark,
                                       uint8_t* mask) {
    const int32_t* const wanted = ids.data();
    const size_t size = ids.size();
    const __m128i marks = _mm_set1_epi8(static_cast<char>(mark));
    for (; end - at >= 16; at += 16, mask += 16) {
        const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
        const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + 8));
        __m256i in_a = _mm256_setzero_si256(), in_b = _mm256_setzero_si256();
        for (size_t i = 0; i < size; ++i) {
            const __m256i id = _mm256_set1_epi32(wanted[i]);
            in_a = _mm256_or_si256(in_a, _mm256_cmpeq_epi32(a, id));
            in_b = _mm256_or_si256(in_b, _mm256_cmpeq_epi32(b, id));
        }
        _mm_storeu_si128(reinterpret_cast<__m128i*>(mask), marks);
        const int found = _mm256_movemask_ps(_mm256_castsi256_ps(in_a)) |
                          _mm256_movemask_ps(_mm256_castsi256_ps(in_b)) << 8;
        if (found) return at + __builtin_ctz(found);
    }
    return mark_until_scalar(at, end, ids, mark, mask);
}

TP_AVX512 const int32_t* mark_until_avx512(const int32_t* at, const int32_t* end,
                                           const std::vector<int32_t>& ids, uint8_t mark,
                                           uint8_t* mask) {
    const int32_t* const wanted = ids.data();
    const size_t size = ids.size();
    const __m128i marks = _mm_set1_epi8(static_cast<char>(mark));
    for (; end - at >= 16; at += 16, mask += 16) {
        const __m512i a = _mm512_loadu_si512(at);
        __mmask16 found = 0;
        for (size_t i = 0; i < size; ++i) {
            found |= _mm512_cmpeq_epi32_mask(a, _mm512_set1_epi32(wanted[i]));
        }
        _mm_storeu_si128(reinterpret_cast<__m128i*>(mask), marks);
        if (found) return at + __builtin_ctz(found);
    }
    const __mmask16 valid = (1 << (end - at)) - 1;
    const __m512i a = _mm512_maskz_loadu_epi32(valid, at);
    __mmask16 found = 0;
    for (size_t i = 0; i < size; ++i) {
        found |= _mm512_mask_cmpeq_epi32_mask(valid, a, _mm512_set1_epi32(wanted[i]));
    }
    _mm_mask_storeu_epi8(mask, valid, marks);
    return found ? at + __builtin_ctz(found) : end;
}
#else
constexpr auto mark_until_avx2 = mark_until_scalar, mark_until_avx512 = mark_until_scalar;
#endif

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

struct Markers {
    explicit Markers(std::vector<Pattern> longest_first)
        : patterns(std::move(longest_first)), firsts(first_ids(patterns)) {}

    std::vector<Pattern> patterns;
    std::vector<int32_t> firsts;
};

void mark_rows(const int32_t* input_ids, const int64_t* offsets, int64_t first, int64_t last,
               const Markers& opening, const Markers& closing, bool include_end,
               uint8_t* loss_mask) {
    const auto mark_until = by_isa(mark_until_scalar, mark_until_avx2, mark_until_avx512);
    for (int64_t row = first; row < last; ++row) {
        const int32_t* const end = input_ids + offsets[row + 1];
        bool inside = false;
        for (const int32_t* at = input_ids + offsets[row]; at < end;) {
            const Markers& markers = inside ? closing : opening;
            const int32_t* after =
                mark_until(at, end, markers.firsts, inside, loss_mask + (at - input_ids));
            if (after == end) break;
            const int64_t size = match(markers.patterns, after, end);
            // What only begins like a marker is none.
            const int64_t taken = size == 0 ? 1 : !inside || include_end ? size : 0;
            for (int64_t i = 0; i < taken; ++i, ++after) loss_mask[after - input_ids] = inside;
            at = after;
            if (size) inside = !inside;
        }
    }
}

}  // namespace

void mask_spans(const int64_t* extents, int64_t tokens, const int64_t* offsets,
                int64_t offsets_size, const int64_t* spans, int64_t spans_size,
                const int64_t* span_offsets, int64_t span_offsets_size, int64_t threads,
                uint8_t* loss_mask) {
    check_offsets("offsets", offsets, offsets_size, tokens);
    check_offsets("span_offsets", span_offsets, span_offsets_size, spans_size);
    if (offsets_size != span_offsets_size) {
        fail("offsets has ", offsets_size - 1, " rows, but span_offsets has ",
             span_offsets_size - 1);
    }
    const auto mark = by_isa(mark_scalar, mark_avx2, mark_avx512);
    in_ranges(offsets, offsets_size - 1, threads, [&](int64_t first, int64_t last) {
        std::vector<Span> wanted;
        for (int64_t row = first; row < last; ++row) {
            const int64_t end = offsets[row + 1];
            wanted.clear();
            for (int64_t i = span_offsets[row]; i < span_offsets[row + 1]; ++i) {
                const Span span{spans[2 * i], spans[2 * i + 1]};
                if (!is_extent(span.first, span.second)) {
                    check_extents(extents, row, offsets[row], end);
                    fail("row ", row, ", span ", i - span_offsets[row], " is [", span.first, ", ",
                         span.second, ")");
                }
                if (span.first < span.second) wanted.push_back(span);
            }
            normalize(wanted);
            for (int64_t i = offsets[row]; i < end;) {
                const Window window = window_at(wanted, extents[2 * i]);
                const int64_t marked = mark(extents + 2 * i, end - i, window, loss_mask + i);
                if (marked == 0) check_extents(extents, row, offsets[row], end);
                i += marked;
            }
        }
    });
}

void mask_markers(const int32_t* input_ids, int64_t tokens, const int64_t* offsets,
                  int64_t offsets_size, const Patterns& starts, const Patterns& ends,
                  bool include_end, int64_t threads, uint8_t* loss_mask) {
    if (starts.size == 0) fail("starts is empty");
    const Markers opening(longest_first("starts", starts));
    const Markers closing(longest_first("ends", ends));
    check_offsets("offsets", offsets, offsets_size, tokens);
    in_ranges(offsets, offsets_size - 1, threads, [&](int64_t first, int64_t last) {
        mark_rows(input_ids, offsets, first, last, opening, closing, include_end, loss_mask);
    });
}

}  // namespace turnpack
