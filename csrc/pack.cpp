// Owns `pack` and `unpack` on the CPU: checks of the plan, the tuned copy, threads over bins.
// Which cell holds which token is index.h's to say; the tuned form must equal it.

#include <algorithm>
#include <atomic>
#include <numeric>
#include <system_error>
#include <thread>
#include <vector>

#include "errors.h"
#include "kernels.h"

// The package is built for any x86-64; where the compiler can, the loop of `pack` also has an AVX2
// form, chosen at run time. It is the difference between slower and faster than numba.
#if defined(__x86_64__) && defined(__GNUC__)
#define TP_AVX2 __attribute__((target("avx2")))
#define TP_INLINE inline __attribute__((always_inline))
#else
#define TP_INLINE inline
#endif

namespace turnpack {
namespace {

// Runs work(begin, end) over [0, size) in as many ranges as there are threads. A thread that cannot
// be started leaves its range to this one.
template <class Work>
void in_ranges(int64_t size, int64_t threads, const Work& work) {
    const int64_t ranges = std::max<int64_t>(1, std::min(threads, size));
    const int64_t step = size / ranges, extra = size % ranges;
    std::vector<std::thread> running;
    running.reserve(ranges - 1);
    int64_t begin = 0;
    for (int64_t range = 1; range < ranges; ++range) {
        const int64_t end = begin + step + (range <= extra);
        try {
            running.emplace_back(work, begin, end);
        } catch (const std::system_error&) {
            break;
        }
        begin = end;
    }
    work(begin, size);
    for (std::thread& thread : running) thread.join();
}

// Rows stand anywhere in the tokens, so the machine cannot foresee where the next one begins: the
// first 1,024 bytes of its ids and of its mask are fetched ahead.
void prefetch_row(const PackIn& in, int64_t row) {
#ifdef __GNUC__
    const int64_t token = in.offsets[row], size = in.offsets[row + 1] - token;
    for (int64_t i = 0; i < std::min<int64_t>(size, 256); i += 16) {
        __builtin_prefetch(in.input_ids + token + i);
    }
    for (int64_t i = 0; i < std::min<int64_t>(size, 1024); i += 64) {
        __builtin_prefetch(in.loss_mask + token + i);
    }
#else
    (void)in, (void)row;
#endif
}

template <class Int>
TP_INLINE void count(Int* positions, Int* segments, int64_t size, Int segment) {
    for (int64_t i = 0; i < size; ++i) positions[i] = static_cast<Int>(i);
    for (int64_t i = 0; i < size; ++i) segments[i] = segment;
}

// The cells of pack_bin in one loop for each array, which is what compilers make the most of.
// Stores are ordinary ones: streaming past the caches changed little for outputs of this size, for
// better or worse. Rows are fetched ahead up to `last`, where the plan's rows end.
template <class Int>
TP_INLINE void pack_bin_plain(const PackIn& in, const PackOut<Int>& out, int64_t bin,
                              int64_t last) {
    int64_t cell = in.cell_offsets[bin];
    const int64_t first = in.bin_offsets[bin];
    for (int64_t k = first; k < in.bin_offsets[bin + 1]; ++k) {
        const int64_t token = in.offsets[in.rows[k]];
        const int64_t size = in.offsets[in.rows[k] + 1] - token;
        if (k + 2 < last) prefetch_row(in, in.rows[k + 2]);
        const int32_t* ids = in.input_ids + token;
        const uint8_t* mask = in.loss_mask + token;
        Int* input_ids = out.input_ids + cell;
        Int* labels = out.labels + cell;
        for (int64_t i = 0; i < size; ++i) input_ids[i] = ids[i];
        for (int64_t i = 0; i < size; ++i) {
            const int32_t id = ids[i];  // read in any case, so that nothing branches
            labels[i] = mask[i] ? id : kIgnore;
        }
        labels[0] = kIgnore;
        count(out.position_ids + cell, out.segment_ids + cell, size,
              static_cast<Int>(k - first + 1));
        if (out.loss_weights) {
            std::copy_n(in.loss_weights + token, size, out.loss_weights + cell);
            out.loss_weights[cell] = 0.0f;
        }
        cell += size;
    }
    const int64_t padding = in.cell_offsets[bin + 1] - cell;
    std::fill_n(out.input_ids + cell, padding, Int{in.pad_id});
    std::fill_n(out.labels + cell, padding, Int{kIgnore});
    count(out.position_ids + cell, out.segment_ids + cell, padding, Int{0});
    if (out.loss_weights) std::fill_n(out.loss_weights + cell, padding, 0.0f);
}

#ifdef TP_AVX2
template <class Int>
TP_AVX2 void pack_bin_avx2(const PackIn& in, const PackOut<Int>& out, int64_t bin, int64_t last) {
    pack_bin_plain(in, out, bin, last);
}
#endif

template <class Int>
void pack_bin_tuned(const PackIn& in, const PackOut<Int>& out, int64_t bin, int64_t last) {
#ifdef TP_AVX2
    static const bool has_avx2 = __builtin_cpu_supports("avx2");
    if (has_avx2) return pack_bin_avx2(in, out, bin, last);
#endif
    pack_bin_plain(in, out, bin, last);
}

template <class Int>
void pack_bins(const PackIn& in, const PackOut<Int>& out, int64_t bins, int64_t threads,
               int64_t lanes) {
    in_ranges(bins, threads, [&](int64_t begin, int64_t end) {
        for (int64_t bin = begin; bin < end; ++bin) {
            if (lanes == 0) pack_bin_tuned(in, out, bin, in.bin_offsets[bins]);
            for (int64_t lane = 0; lane < lanes; ++lane) pack_bin(in, out, bin, lane, lanes);
        }
    });
}

template <class Int>
bool is_int32(Int value) {
    return value == static_cast<int32_t>(value);
}

template <class Int>
void unpack_all(const UnpackIn<Int>& in, int64_t threads, int32_t* input_ids, uint8_t* loss_mask,
                float* loss_weights) {
    std::atomic<bool> fits{true};
    in_ranges(in.rows, threads, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            const Int* ids = in.input_ids + in.starts[row];
            const Int* labels = in.labels + in.starts[row];
            const int64_t token = in.offsets[row], size = in.offsets[row + 1] - token;
            int32_t* to = input_ids + token;
            bool all = true;
            for (int64_t i = 0; i < size; ++i) {
                to[i] = static_cast<int32_t>(ids[i]);
                all &= is_int32(ids[i]);
            }
            for (int64_t i = 0; i < size; ++i) loss_mask[token + i] = labels[i] != kIgnore;
            if (loss_weights) {
                std::copy_n(in.loss_weights + in.starts[row], size, loss_weights + token);
            }
            if (!all) fits = false;
        }
    });
    if (fits) return;
    for (int64_t row = 0; row < in.rows; ++row) {
        const int64_t size = in.offsets[row + 1] - in.offsets[row];
        for (int64_t cell = in.starts[row]; cell < in.starts[row] + size; ++cell) {
            if (!is_int32(in.input_ids[cell])) {
                fail("cell ", cell, " holds ", in.input_ids[cell], ", beyond int32");
            }
        }
    }
}

}  // namespace

PackShape pack_cells(const int64_t* offsets, int64_t offsets_size, int64_t tokens,
                     const int64_t* rows, int64_t rows_size, const int64_t* bin_offsets,
                     int64_t bin_offsets_size, const int64_t* fill, int64_t capacity, bool flat,
                     bool wide, int64_t* cell_offsets) {
    constexpr int64_t max_cells = std::numeric_limits<int64_t>::max() / 8;  // int64 bytes
    constexpr int64_t max_positions = int64_t{1} << 31;
    check_offsets("offsets", offsets, offsets_size, tokens);
    check_offsets("plan.offsets", bin_offsets, bin_offsets_size, rows_size);
    std::vector<bool> placed(offsets_size - 1);
    PackShape shape{0, 0, 0};
    cell_offsets[0] = 0;
    for (int64_t bin = 0; bin + 1 < bin_offsets_size; ++bin) {
        int64_t used = 0;
        for (int64_t k = bin_offsets[bin]; k < bin_offsets[bin + 1]; ++k) {
            const int64_t row = rows[k];
            if (row < 0 || row >= offsets_size - 1) {
                fail("the plan has row ", row, ", but there are ", offsets_size - 1, " rows");
            }
            if (placed[row]) fail("row ", row, " is in the plan twice");
            placed[row] = true;
            const int64_t size = offsets[row + 1] - offsets[row];
            if (size == 0) fail("row ", row, " is empty");
            used += size;  // at most `tokens`: no row counts twice
            shape.max_seqlen = std::max(shape.max_seqlen, size);
        }
        if (used > capacity) {
            fail("bin ", bin, " has ", used, " tokens, more than capacity ", capacity);
        }
        if (used != fill[bin]) {
            fail("bin ", bin, " has ", used, " tokens, but ", fill[bin],
                 " in the plan: it was made for other lengths");
        }
        const int64_t cells = flat ? used : capacity;
        if (!wide && cells > max_positions) {
            fail("bin ", bin, " has ", cells, " cells, too many for int32");
        }
        if (cells > max_cells - shape.cells) {
            fail("bins 0 to ", bin, " have more cells than int64 can count the bytes of");
        }
        shape.cells += cells;
        cell_offsets[bin + 1] = shape.cells;
        shape.segments += bin_offsets[bin + 1] - bin_offsets[bin] + (used < cells);
        shape.max_seqlen = std::max(shape.max_seqlen, cells - used);
    }
    return shape;
}

void pack_cu_seqlens(const PackIn& in, int64_t bins, int64_t* cu_seqlens) {
    int64_t cell = 0;
    *cu_seqlens = 0;
    for (int64_t bin = 0; bin < bins; ++bin) {
        for (int64_t k = in.bin_offsets[bin]; k < in.bin_offsets[bin + 1]; ++k) {
            cell += in.offsets[in.rows[k] + 1] - in.offsets[in.rows[k]];
            *++cu_seqlens = cell;
        }
        if (cell < in.cell_offsets[bin + 1]) *++cu_seqlens = cell = in.cell_offsets[bin + 1];
    }
}

void pack(const PackIn& in, const PackOut<int32_t>& out, int64_t bins, int64_t threads,
          int64_t lanes) {
    pack_bins(in, out, bins, threads, lanes);
}

void pack(const PackIn& in, const PackOut<int64_t>& out, int64_t bins, int64_t threads,
          int64_t lanes) {
    pack_bins(in, out, bins, threads, lanes);
}

void unpack_rows(const int64_t* rows, int64_t rows_size, const int64_t* bin_offsets,
                 int64_t bin_offsets_size, const int64_t* cu_seqlens, int64_t cu_seqlens_size,
                 int64_t cells, int64_t capacity, int64_t* order, int64_t* starts,
                 int64_t* offsets) {
    check_offsets("bin_offsets", bin_offsets, bin_offsets_size, rows_size);
    check_offsets("cu_seqlens", cu_seqlens, cu_seqlens_size, cells);
    std::vector<int64_t> segments(rows_size);  // of the row at each place
    int64_t segment = 0;
    for (int64_t bin = 0; bin + 1 < bin_offsets_size; ++bin) {
        const int64_t begin = cu_seqlens[segment];
        const int64_t places = bin_offsets[bin + 1] - bin_offsets[bin];
        if (places > cu_seqlens_size - 1 - segment) {
            fail("bin ", bin, " has ", places, " rows, but cu_seqlens has ",
                 cu_seqlens_size - 1 - segment, " segments left");
        }
        for (int64_t k = bin_offsets[bin]; k < bin_offsets[bin + 1]; ++k) segments[k] = segment++;
        if (capacity == 0) continue;
        if (cu_seqlens[segment] - begin < capacity && segment + 1 < cu_seqlens_size) ++segment;
        if (cu_seqlens[segment] - begin != capacity) {
            fail("bin ", bin, " has ", cu_seqlens[segment] - begin, " cells by cu_seqlens, not ",
                 capacity);
        }
    }
    if (segment != cu_seqlens_size - 1) {
        fail("cu_seqlens has ", cu_seqlens_size - 1, " segments, but the bins have ", segment);
    }
    std::iota(order, order + rows_size, 0);
    std::sort(order, order + rows_size, [=](int64_t a, int64_t b) { return rows[a] < rows[b]; });
    offsets[0] = 0;
    for (int64_t i = 0; i < rows_size; ++i) {
        if (i > 0 && rows[order[i]] == rows[order[i - 1]]) {
            fail("row ", rows[order[i]], " is in the bins twice");
        }
        segment = segments[order[i]];
        starts[i] = cu_seqlens[segment];
        offsets[i + 1] = offsets[i] + cu_seqlens[segment + 1] - starts[i];
    }
}

void unpack(const UnpackIn<int32_t>& in, int64_t threads, int32_t* input_ids, uint8_t* loss_mask,
            float* loss_weights) {
    unpack_all(in, threads, input_ids, loss_mask, loss_weights);
}

void unpack(const UnpackIn<int64_t>& in, int64_t threads, int32_t* input_ids, uint8_t* loss_mask,
            float* loss_weights) {
    unpack_all(in, threads, input_ids, loss_mask, loss_weights);
}

}  // namespace turnpack
