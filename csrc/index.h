// Owns which output cell holds which token: the arithmetic of `pack`, for g++ and nvcc alike.
// Allocates nothing, checks nothing, knows no threads: the caller has checked every index.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define TP_HD __host__ __device__ __forceinline__
#elif defined(_MSC_VER)
#define TP_HD __forceinline
#else
#define TP_HD inline __attribute__((always_inline))
#endif

namespace turnpack {

constexpr int32_t kIgnore = -100;  // the label that no loss counts

struct PackIn {
    const int32_t* input_ids;     // [n]
    const uint8_t* loss_mask;     // [n]
    const float* loss_weights;    // [n] or null
    const int64_t* offsets;       // [rows + 1], into the tokens
    const int64_t* rows;          // [placed]
    const int64_t* bin_offsets;   // [bins + 1], into rows
    const int64_t* cell_offsets;  // [bins + 1], into the cells; what a bin's rows leave is padding
    int32_t pad_id;
};

template <class Int>
struct PackOut {
    Int* input_ids;  // [cells], as all of them
    Int* labels;
    Int* position_ids;
    Int* segment_ids;
    float* loss_weights;  // or null
};

// Writes the cells of one bin that fall to `lane` of `lanes`: all of them together write each cell
// once. A block of threads passes its thread index and its size, the CPU (0, 1). The GPU's kernel
// departs from this form (pack.cuh: tiles instead of bins), tests hold both to the same cells.
template <class Int>
TP_HD void pack_bin(const PackIn& in, const PackOut<Int>& out, int64_t bin, int64_t lane,
                    int64_t lanes) {
    const int64_t first = in.bin_offsets[bin];
    int64_t cell = in.cell_offsets[bin];
    for (int64_t k = first; k < in.bin_offsets[bin + 1]; ++k) {
        const int64_t token = in.offsets[in.rows[k]];
        const int64_t size = in.offsets[in.rows[k] + 1] - token;
        for (int64_t i = lane; i < size; i += lanes) {
            const int32_t id = in.input_ids[token + i];
            // Labels are unshifted: the first token of a row has nothing that could predict it.
            const bool target = (i > 0) & (in.loss_mask[token + i] != 0);
            out.input_ids[cell + i] = id;
            out.labels[cell + i] = target ? id : kIgnore;
            out.position_ids[cell + i] = static_cast<Int>(i);
            out.segment_ids[cell + i] = static_cast<Int>(k - first + 1);
        }
        if (out.loss_weights) {
            for (int64_t i = lane; i < size; i += lanes) {
                out.loss_weights[cell + i] = i > 0 ? in.loss_weights[token + i] : 0.0f;
            }
        }
        cell += size;
    }
    const int64_t padding = in.cell_offsets[bin + 1] - cell;
    for (int64_t i = lane; i < padding; i += lanes) {
        out.input_ids[cell + i] = in.pad_id;
        out.labels[cell + i] = kIgnore;
        out.position_ids[cell + i] = static_cast<Int>(i);
        out.segment_ids[cell + i] = 0;
        if (out.loss_weights) out.loss_weights[cell + i] = 0.0f;
    }
}

}  // namespace turnpack
