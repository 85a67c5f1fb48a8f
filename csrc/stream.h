// Owns how kernels write long outputs: by ordinary stores, or by streaming ones past the caches.
// Both writers have one face: take up to room() places by next(), fill them, finish() at the end.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "machine.h"

#if defined(__x86_64__) || defined(_M_X64)
#define TP_STREAMS
#include <emmintrin.h>
#endif

namespace turnpack {

TP_INLINE void prefetch(const void* address) {
#if defined(TP_STREAMS)
    _mm_prefetch(static_cast<const char*>(address), _MM_HINT_T0);
#elif defined(__GNUC__)
    __builtin_prefetch(address);
#else
    (void)address;
#endif
}

template <class T>
class Ordinary {
  public:
    TP_INLINE explicit Ordinary(T* to) : to_(to) {}
    TP_INLINE int64_t room() const { return std::numeric_limits<int64_t>::max(); }
    TP_INLINE T* next(int64_t size) {
        to_ += size;
        return to_ - size;
    }
    TP_INLINE void finish() {}

  private:
    T* to_;
};

// A streaming store pays where it writes a whole line of 64 bytes, at an address that is a multiple
// of 64. So values are collected in a small stage, which stays in the nearest cache and has the
// alignment of their destination, and leave it by whole lines. Only the parts of a line at both
// ends, whose other part may be another thread's, are written by ordinary stores.
template <class T>
class Streamed {
  public:
    TP_INLINE explicit Streamed(T* to)
        : to_(to), shift_(reinterpret_cast<uintptr_t>(to) % 64 / sizeof(T)) {
        begin_ = end_ = shift_;
    }

    TP_INLINE int64_t room() const { return is_full() ? kStage : kStage + shift_ - end_; }

    TP_INLINE T* next(int64_t size) {
        if (is_full()) flush();
        end_ += size;
        return stage_ + end_ - size;
    }

    TP_INLINE void finish() {
        std::copy(stage_ + begin_, stage_ + end_, to_);
#ifdef TP_STREAMS
        _mm_sfence();
#endif
    }

  private:
    static constexpr int64_t kLine = 64 / sizeof(T);
    static constexpr int64_t kStage = 128;  // values; more of them ran slower

    TP_INLINE bool is_full() const { return end_ == kStage + shift_; }

    TP_INLINE void flush() {
        if (begin_ > 0) {
            to_ = std::copy(stage_ + begin_, stage_ + kLine, to_);
            begin_ = kLine;
        }
        for (; begin_ < kStage; begin_ += kLine, to_ += kLine) write_line(stage_ + begin_, to_);
        begin_ = 0;
        end_ = shift_;
        std::copy_n(stage_ + kStage, shift_, stage_);
    }

    static TP_INLINE void write_line(const T* from, T* to) {
#ifdef TP_STREAMS
        const __m128i* parts = reinterpret_cast<const __m128i*>(from);
        __m128i* line = reinterpret_cast<__m128i*>(to);
        for (int i = 0; i < 4; ++i) _mm_stream_si128(line + i, _mm_load_si128(parts + i));
#else
        std::copy_n(from, kLine, to);
#endif
    }

    T* to_;  // where stage_[begin_] goes
    int64_t shift_;
    int64_t begin_, end_;  // of what the stage holds
    alignas(64) T stage_[kStage + kLine];
};

template <class Writer, class T>
TP_INLINE void copy_to(Writer& out, const T* from, int64_t size) {
    while (size > 0) {
        const int64_t part = std::min(size, out.room());
        std::copy_n(from, part, out.next(part));
        from += part;
        size -= part;
    }
}

template <class Writer, class T>
TP_INLINE void fill_to(Writer& out, T value, int64_t size) {
    while (size > 0) {
        const int64_t part = std::min(size, out.room());
        std::fill_n(out.next(part), part, value);
        size -= part;
    }
}

}  // namespace turnpack
