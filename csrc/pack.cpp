// Owns `pack` and `unpack` on the CPU: checks of the plan, the tuned copy, threads over bins.
// Which cell holds which token is index.h's to say; the tuned form must equal it.

#include <algorithm>
#include <atomic>
#include <numeric>
#include <system_error>
#include <thread>
#include <vector>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "errors.h"
#include "kernels.h"

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

// Copies past the caches where the machine can: cells of a large result are not read again soon,
// and an ordinary store would first fetch what it overwrites.
template <class T>
void stream(const T* from, int64_t size, T* to) {
#ifdef __SSE2__
    while (size > 0 && reinterpret_cast<uintptr_t>(to) % 16 != 0) *to++ = *from++, --size;
    constexpr int64_t step = 16 / sizeof(T);
    for (; size >= step; size -= step, from += step, to += step) {
        _mm_stream_si128(reinterpret_cast<__m128i*>(to),
                         _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    }
#endif
    std::copy_n(from, size, to);
}

// The cells of pack_bin, bin after bin: rows are cut into pieces that fill a block in the first
// cache, in loops that the compiler vectorises, and a full block is copied out.
template <class Int>
class BlockWriter {
  public:
    BlockWriter(const PackIn& in, const PackOut<Int>& out, int64_t cell, bool is_large)
        : in_(in), out_(out), cell_(cell), is_large_(is_large) {}

    void write_bin(int64_t bin) {
        const int64_t* row = in_.rows + in_.bin_offsets[bin];
        int64_t padding = in_.cell_offsets[bin + 1] - in_.cell_offsets[bin];
        for (int64_t k = in_.bin_offsets[bin]; k < in_.bin_offsets[bin + 1]; ++k, ++row) {
            const int64_t token = in_.offsets[*row], size = in_.offsets[*row + 1] - token;
            const Int segment = static_cast<Int>(k - in_.bin_offsets[bin] + 1);
            in_pieces(size, segment, [&](int64_t begin, int64_t count) {
                const int32_t* ids = in_.input_ids + token + begin;
                const uint8_t* mask = in_.loss_mask + token + begin;
                Int* labels = labels_ + used_;
                std::copy_n(ids, count, input_ids_ + used_);
                for (int64_t i = 0; i < count; ++i) {
                    const int32_t id = ids[i];  // read in any case, so that nothing branches
                    labels[i] = mask[i] ? id : kIgnore;
                }
                if (begin == 0) labels[0] = kIgnore;
                if (!out_.loss_weights) return;
                std::copy_n(in_.loss_weights + token + begin, count, loss_weights_ + used_);
                if (begin == 0) loss_weights_[used_] = 0.0f;
            });
            padding -= size;
        }
        in_pieces(padding, 0, [&](int64_t, int64_t count) {
            std::fill_n(input_ids_ + used_, count, Int{in_.pad_id});
            std::fill_n(labels_ + used_, count, Int{kIgnore});
            std::fill_n(loss_weights_ + used_, count, 0.0f);
        });
    }

    void flush() {
        copy_out(input_ids_, out_.input_ids);
        copy_out(labels_, out_.labels);
        copy_out(position_ids_, out_.position_ids);
        copy_out(segment_ids_, out_.segment_ids);
        if (out_.loss_weights) copy_out(loss_weights_, out_.loss_weights);
        cell_ += used_;
        used_ = 0;
#ifdef __SSE2__
        if (is_large_) _mm_sfence();  // before another thread reads what was streamed
#endif
    }

  private:
    // Calls write(begin, count) for [0, size) in pieces that fit into the block, and writes what is
    // alike in documents and padding.
    template <class Write>
    void in_pieces(int64_t size, Int segment, const Write& write) {
        for (int64_t begin = 0; begin < size;) {
            const int64_t count = std::min(size - begin, kBlock - used_);
            write(begin, count);
            Int* positions = position_ids_ + used_;
            for (int64_t i = 0; i < count; ++i) positions[i] = static_cast<Int>(begin + i);
            std::fill_n(segment_ids_ + used_, count, segment);
            begin += count;
            used_ += count;
            if (used_ == kBlock) flush();
        }
    }

    template <class T>
    void copy_out(const T* block, T* cells) const {
        is_large_ ? stream(block, used_, cells + cell_)
                  : (void)std::copy_n(block, used_, cells + cell_);
    }

    static constexpr int64_t kBlock = 1024;
    const PackIn& in_;
    const PackOut<Int>& out_;
    int64_t cell_;
    int64_t used_ = 0;
    bool is_large_;
    Int input_ids_[kBlock], labels_[kBlock], position_ids_[kBlock], segment_ids_[kBlock];
    float loss_weights_[kBlock];
};

template <class Int>
void pack_bins(const PackIn& in, const PackOut<Int>& out, int64_t bins, int64_t threads,
               int64_t lanes) {
    const bool is_large = in.cell_offsets[bins] > (int64_t{8} << 20) / int64_t{sizeof(Int)};
    in_ranges(bins, threads, [&](int64_t begin, int64_t end) {
        for (int64_t bin = begin; bin < end; ++bin) {
            for (int64_t lane = 0; lane < lanes; ++lane) pack_bin(in, out, bin, lane, lanes);
        }
        if (lanes > 0) return;
        BlockWriter<Int> writer(in, out, in.cell_offsets[begin], is_large);
        for (int64_t bin = begin; bin < end; ++bin) writer.write_bin(bin);
        writer.flush();
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
