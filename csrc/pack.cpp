// Owns `pack` and `unpack` on the CPU: checks of the plan, the tuned copies, threads over ranges.
// Which cell holds which token is index.h's to say; the tuned form must equal it.

#include <algorithm>
#include <atomic>
#include <numeric>
#include <utility>
#include <vector>

#include "errors.h"
#include "kernels.h"
#include "machine.h"
#include "stream.h"
#include "threads.h"

namespace turnpack {
namespace {

template <class T>
TP_INLINE void prefetch_lines(const T* array, int64_t begin, int64_t end) {
    if (array == nullptr) return;
    for (const T* line = array + begin; line < array + end; line += 64 / sizeof(T)) prefetch(line);
}

struct Row {
    int64_t begin;
    int64_t size;
};

// The rows that pack reads, by their place in the plan.
struct PackRows {
    const PackIn& in;

    TP_INLINE Row at(int64_t k) const {
        const int64_t* offset = in.offsets + in.rows[k];
        return {offset[0], offset[1] - offset[0]};
    }
    TP_INLINE void fetch_index(int64_t k) const { prefetch(in.offsets + in.rows[k]); }
    TP_INLINE void fetch(int64_t begin, int64_t end) const {
        prefetch_lines(in.input_ids, begin, end);
        prefetch_lines(in.loss_mask, begin, end);
        prefetch_lines(in.loss_weights, begin, end);
    }
};

// The rows that unpack reads, by their number.
template <class Int>
struct UnpackRows {
    const UnpackIn<Int>& in;

    TP_INLINE Row at(int64_t row) const {
        return {in.starts[row], in.offsets[row + 1] - in.offsets[row]};
    }
    TP_INLINE void fetch_index(int64_t) const {}  // read from front to back
    TP_INLINE void fetch(int64_t begin, int64_t end) const {
        prefetch_lines(in.input_ids, begin, end);
        prefetch_lines(in.labels, begin, end);
        prefetch_lines(in.loss_weights, begin, end);
    }
};

// Rows stand anywhere in the memory they are read from, so the machine cannot foresee where the
// next one begins. This cursor runs over them in the order they are copied in, some way ahead of
// the copying, and fetches what it passes.
template <class Rows>
class Ahead {
  public:
    TP_INLINE Ahead(const Rows& rows, int64_t first, int64_t last)
        : rows_(rows), next_(first), last_(last) {
        advance(kTokens);
    }

    TP_INLINE void advance(int64_t size) {
        while (size > 0) {
            if (row_.size == 0) {
                if (next_ == last_) return;
                if (next_ + kRows < last_) rows_.fetch_index(next_ + kRows);
                row_ = rows_.at(next_++);
            }
            const int64_t part = std::min(size, row_.size);
            rows_.fetch(row_.begin, row_.begin + part);
            row_.begin += part;
            row_.size -= part;
            size -= part;
        }
    }

  private:
    static constexpr int64_t kTokens = 1024, kRows = 16;

    Rows rows_;
    int64_t next_, last_;
    Row row_{0, 0};
};

// The cells of pack_bin in one loop for each array, which is what compilers make the most of. The
// writers are filled alike, so each has as much room as any other.
template <template <class> class Writer, class Int>
TP_INLINE void pack_range(const PackIn& in, const PackOut<Int>& out, int64_t begin, int64_t end) {
    const int64_t start = in.cell_offsets[begin];
    Writer<Int> input_ids(out.input_ids + start), labels(out.labels + start),
        position_ids(out.position_ids + start), segment_ids(out.segment_ids + start);
    Writer<float> loss_weights(out.loss_weights ? out.loss_weights + start : nullptr);
    const auto count = [&](int64_t from, int64_t size, Int segment) TP_INLINE_LAMBDA {
        Int* positions = position_ids.next(size);
        for (int64_t i = 0; i < size; ++i) positions[i] = static_cast<Int>(from + i);
        std::fill_n(segment_ids.next(size), size, segment);
    };
    const PackRows rows{in};
    Ahead ahead(rows, in.bin_offsets[begin], in.bin_offsets[end]);
    for (int64_t bin = begin; bin < end; ++bin) {
        const int64_t first = in.bin_offsets[bin];
        int64_t padding = in.cell_offsets[bin + 1] - in.cell_offsets[bin];
        for (int64_t k = first; k < in.bin_offsets[bin + 1]; ++k) {
            const auto [token, size] = rows.at(k);
            padding -= size;
            for (int64_t done = 0, part; done < size; done += part) {
                part = std::min(size - done, labels.room());
                ahead.advance(part);
                const int32_t* ids = in.input_ids + token + done;
                const uint8_t* mask = in.loss_mask + token + done;
                std::copy_n(ids, part, input_ids.next(part));
                Int* to = labels.next(part);
                for (int64_t i = 0; i < part; ++i) {
                    const int32_t id = ids[i];  // read in any case, so that nothing branches
                    to[i] = mask[i] ? id : kIgnore;
                }
                if (done == 0) to[0] = kIgnore;
                count(done, part, static_cast<Int>(k - first + 1));
                if (out.loss_weights) {
                    float* weights = loss_weights.next(part);
                    std::copy_n(in.loss_weights + token + done, part, weights);
                    if (done == 0) weights[0] = 0.0f;
                }
            }
        }
        for (int64_t done = 0, part; done < padding; done += part) {
            part = std::min(padding - done, labels.room());
            std::fill_n(input_ids.next(part), part, Int{in.pad_id});
            std::fill_n(labels.next(part), part, Int{kIgnore});
            count(done, part, Int{0});
            if (out.loss_weights) std::fill_n(loss_weights.next(part), part, 0.0f);
        }
    }
    input_ids.finish();
    labels.finish();
    position_ids.finish();
    segment_ids.finish();
    loss_weights.finish();
}

template <template <class> class Writer, class Int>
void pack_scalar(const PackIn& in, const PackOut<Int>& out, int64_t begin, int64_t end) {
    pack_range<Writer>(in, out, begin, end);
}

template <template <class> class Writer, class Int>
TP_AVX2 void pack_avx2(const PackIn& in, const PackOut<Int>& out, int64_t begin, int64_t end) {
    pack_range<Writer>(in, out, begin, end);
}

template <class Int>
void pack_bins(const PackIn& in, const PackOut<Int>& out, int64_t bins, int64_t threads,
               int64_t lanes) {
    constexpr int64_t cell = 4 * sizeof(Int);
    const bool streams = in.cell_offsets[bins] >= stream_from() / cell;
    const auto tuned = streams ? by_isa(&pack_scalar<Streamed, Int>, &pack_avx2<Streamed, Int>,
                                        &pack_avx2<Streamed, Int>)
                               : by_isa(&pack_scalar<Ordinary, Int>, &pack_avx2<Ordinary, Int>,
                                        &pack_avx2<Ordinary, Int>);
    in_ranges(in.cell_offsets, bins, threads, [&](int64_t begin, int64_t end) {
        if (lanes == 0) return tuned(in, out, begin, end);
        for (int64_t bin = begin; bin < end; ++bin) {
            for (int64_t lane = 0; lane < lanes; ++lane) pack_bin(in, out, bin, lane, lanes);
        }
    });
}

template <class Int>
bool is_int32(Int value) {
    return value == static_cast<int32_t>(value);
}

// Says whether all ids are within int32. Its outputs are new memory, which the system has cleared
// just before: that they are in the caches makes up for what streaming stores would save.
template <class Int>
TP_INLINE bool unpack_range(const UnpackIn<Int>& in, const UnpackOut& out, int64_t begin,
                            int64_t end) {
    const UnpackRows<Int> rows{in};
    Ahead ahead(rows, begin, end);
    Int beyond = 0;
    for (int64_t row = begin; row < end; ++row) {
        const auto [cell, size] = rows.at(row);
        ahead.advance(size);
        const int64_t token = in.offsets[row];
        const Int* ids = in.input_ids + cell;
        const Int* labels = in.labels + cell;
        int32_t* to = out.input_ids + token;
        uint8_t* mask = out.loss_mask + token;
        for (int64_t i = 0; i < size; ++i) {
            to[i] = static_cast<int32_t>(ids[i]);
            beyond |= ids[i] ^ static_cast<int32_t>(ids[i]);
        }
        for (int64_t i = 0; i < size; ++i) mask[i] = labels[i] != kIgnore;
        if (out.loss_weights) {
            std::copy_n(in.loss_weights + cell, size, out.loss_weights + token);
        }
    }
    return beyond == 0;
}

template <class Int>
bool unpack_scalar(const UnpackIn<Int>& in, const UnpackOut& out, int64_t begin, int64_t end) {
    return unpack_range(in, out, begin, end);
}

template <class Int>
TP_AVX2 bool unpack_avx2(const UnpackIn<Int>& in, const UnpackOut& out, int64_t begin,
                         int64_t end) {
    return unpack_range(in, out, begin, end);
}

template <class Int>
void unpack_all(const UnpackIn<Int>& in, const UnpackOut& out, int64_t threads) {
    const auto tuned = by_isa(unpack_scalar<Int>, unpack_avx2<Int>, unpack_avx2<Int>);
    std::atomic<bool> fits{true};
    in_ranges(in.offsets, in.rows, threads, [&](int64_t begin, int64_t end) {
        if (!tuned(in, out, begin, end)) fits = false;
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

void unpack(const UnpackIn<int32_t>& in, const UnpackOut& out, int64_t threads) {
    unpack_all(in, out, threads);
}

void unpack(const UnpackIn<int64_t>& in, const UnpackOut& out, int64_t threads) {
    unpack_all(in, out, threads);
}

}  // namespace turnpack
