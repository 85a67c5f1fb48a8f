// Owns memory for work that is written before it is read: nothing is filled with zeros, and large
// pieces ask for huge pages, without which first touching them costs more than most work on them.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace turnpack {

template <class T>
class Scratch {
  public:
    Scratch() = default;
    explicit Scratch(int64_t size) {
        const size_t bytes = size * sizeof(T);
#ifdef __linux__
        constexpr size_t kHuge = size_t{1} << 21;
        if (bytes >= kHuge / 2) {
            const size_t rounded = (bytes + kHuge - 1) / kHuge * kHuge;
            memory_.reset(static_cast<T*>(std::aligned_alloc(kHuge, rounded)));
            if (!memory_) throw std::bad_alloc();
            madvise(memory_.get(), rounded, MADV_HUGEPAGE);
            return;
        }
#endif
        memory_.reset(static_cast<T*>(std::malloc(bytes ? bytes : 1)));
        if (!memory_) throw std::bad_alloc();
    }

    T* data() { return memory_.get(); }
    const T* data() const { return memory_.get(); }
    const T& operator[](int64_t i) const { return memory_.get()[i]; }

  private:
    struct Free {
        void operator()(T* memory) const { std::free(memory); }
    };
    std::unique_ptr<T, Free> memory_;
};

inline void prefetch_to_write(const void* place) {
#ifdef __GNUC__
    __builtin_prefetch(place, 1);
#else
    (void)place;
#endif
}

}  // namespace turnpack
