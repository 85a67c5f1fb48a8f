// Owns the questions to the machine that machine.h answers, and what tests set instead.

#include "machine.h"

#include <atomic>
#include <limits>

#include "errors.h"

namespace turnpack {
namespace {

constexpr const char* kNames[] = {"scalar", "avx2", "avx512"};

bool has(Isa wanted) {
#ifdef TP_X86_FORMS
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2");
    if (wanted == Isa::avx2) return avx2;
    if (wanted == Isa::avx512) {
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    }
#endif
    return wanted == Isa::scalar;
}

Isa best_isa() {
    if (has(Isa::avx512)) return Isa::avx512;
    return has(Isa::avx2) ? Isa::avx2 : Isa::scalar;
}

// About what a last-level cache holds, not asked of the machine: glibc's answer can be ten times
// the truth, and nothing hangs on it but the time of whoever reads the output at once.
#if defined(__x86_64__) || defined(_M_X64)
constexpr int64_t kStreamFrom = int64_t{32} << 20;
#else
constexpr int64_t kStreamFrom = std::numeric_limits<int64_t>::max();  // stream.h has no such stores
#endif

std::atomic<Isa> chosen_isa{best_isa()};
std::atomic<int64_t> chosen_stream_from{kStreamFrom};

}  // namespace

Isa isa() { return chosen_isa; }

std::string isa_name() { return kNames[static_cast<int>(isa())]; }

void set_isa(const std::string& name) {
    for (const Isa known : {Isa::scalar, Isa::avx2, Isa::avx512}) {
        if (name != kNames[static_cast<int>(known)]) continue;
        if (!has(known)) fail("this machine has no ", name);
        chosen_isa = known;
        return;
    }
    fail("no instruction set is called '", name, "': scalar, avx2, avx512");
}

int64_t stream_from() { return chosen_stream_from; }

void set_stream_from(int64_t bytes) { chosen_stream_from = bytes; }

}  // namespace turnpack
