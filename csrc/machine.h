// Owns what the kernels know of the machine: its instruction set and from which size of an output
// on they write past the caches. Results never depend on either.
#pragma once

#include <cstdint>
#include <string>

// A form for an instruction set is a function with a target attribute, not a file with flags of its
// own: setuptools has one set of flags for all files, and of an inline function that both kinds of
// files use the linker would keep one copy, which a lesser machine may not be able to run.
#if defined(__x86_64__) && defined(__GNUC__)
#define TP_X86_FORMS
#define TP_AVX2 __attribute__((target("avx2")))
#define TP_AVX512 __attribute__((target("avx2,avx512f,avx512bw,avx512dq,avx512vl")))
#else
#define TP_AVX2
#define TP_AVX512
#endif

// For what such a function is made of: it becomes part of it and is compiled for the same machine.
#if defined(_MSC_VER)
#define TP_INLINE __forceinline
#define TP_INLINE_LAMBDA
#else
#define TP_INLINE inline __attribute__((always_inline))
#define TP_INLINE_LAMBDA __attribute__((always_inline))
#endif

namespace turnpack {

enum class Isa { scalar, avx2, avx512 };

// The one in use: the best that this machine has, or the one that was set.
Isa isa();
std::string isa_name();

// Throws on a name other than scalar, avx2, avx512 and on one that this machine lacks.
void set_isa(const std::string& name);

// Outputs of at least so many bytes are written by streaming stores, which spare the machine from
// reading the old contents first: by default those that the last-level cache does not hold.
int64_t stream_from();
void set_stream_from(int64_t bytes);

// The form for the instruction set in use.
template <class Form>
Form by_isa(Form scalar, Form avx2, Form avx512) {
    return isa() == Isa::avx512 ? avx512 : isa() == Isa::avx2 ? avx2 : scalar;
}

}  // namespace turnpack
