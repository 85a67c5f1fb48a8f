// Owns device.h on the CPU, for tests: the kernels of csrc/*.cuh run block by block, phase by phase
// and thread by thread, and all memory counts as that of device 0. The threads of a phase run in
// one of four orders, so that a thread that stands on another's work in the same phase shows in the
// result, and shared memory begins as garbage.

#include <cstring>
#include <new>

#include "device.h"

namespace turnpack::cuda {

template <class Kernel>
void launch(const char*, const Kernel& kernel, Stream) {
    static_assert(sizeof(Kernel) <= 4096, "more than a kernel's arguments may take up");
    static_assert(sizeof(typename Kernel::Shared) <= 48 * 1024, "more than a block may share");
    static_assert(std::is_trivially_copyable_v<Kernel>);
    static unsigned order = 0;
    auto* shared =
        static_cast<typename Kernel::Shared*>(::operator new(sizeof(typename Kernel::Shared)));
    for (int64_t block = 0; block < kernel.blocks(); ++block) {
        std::memset(static_cast<void*>(shared), 0xA5, sizeof *shared);
        for (int64_t phase = 0; phase < kernel.phases(); ++phase) {
            ++order;
            for (int i = 0; i < kThreads; ++i) {
                const int forth = order & 2 ? i * 37 % kThreads : i;
                kernel.run(phase, *shared, block, order & 1 ? kThreads - 1 - forth : forth);
            }
        }
    }
    ::operator delete(shared);
}

// Memory that counts as that of device 1, to be mixed up with the rest.
static Stream waited_for = nullptr;  // the last one
static const void *other_begin = nullptr, *other_end = nullptr;

#define TP_LAUNCH(...) template void launch<__VA_ARGS__>(const char*, const __VA_ARGS__&, Stream);
TP_EACH_KERNEL(TP_LAUNCH)

int device_of(const void* memory) {
    if (memory == nullptr) return -1;
    return other_begin <= memory && memory < other_end ? 1 : 0;
}

OnDevice::OnDevice(int) {}
OnDevice::~OnDevice() {}

void wait_for(Stream, Stream producer) { waited_for = producer; }

std::string missing() { return "this is the emulation"; }

std::string architectures() { return "emulation"; }

// Writes down the piece and the place in it of each element of one tile.
struct Locate {
    static constexpr int kVector = 4;
    struct Piece {
        int64_t number, start;
    };
    struct Vectors {
        Vector<int64_t, kVector> pieces, places;
    };
    int64_t begin;
    int64_t* pieces;
    int64_t* places;

    Piece piece(int64_t p, int64_t start) const { return {p, start}; }
    void make(const Piece& piece, int64_t at, Vectors& made, int i) const {
        made.pieces.of[i] = piece.number;
        made.places.of[i] = at - piece.start;
    }
    void put(int64_t at, const Vectors& made, int wanted) const {
        store(pieces + (at - begin), made.pieces, wanted, false);
        store(places + (at - begin), made.places, wanted, false);
    }
};

}  // namespace turnpack::cuda

// What Python asks of the emulation, by ctypes.
extern "C" __attribute__((visibility("default"))) void emulate_other_device(const void* begin,
                                                                            const void* end) {
    turnpack::cuda::other_begin = begin;
    turnpack::cuda::other_end = end;
}

extern "C" __attribute__((visibility("default"))) const void* emulated_wait() {
    return turnpack::cuda::waited_for;
}

// Runs one tile of any output, however large, for there is no need of memory for the rest.
extern "C" __attribute__((visibility("default"))) void emulate_tile(const int64_t* starts,
                                                                    int64_t count, int64_t size,
                                                                    int64_t block, int64_t* pieces,
                                                                    int64_t* places) {
    using namespace turnpack::cuda;
    const Gather<Locate> kernel{{starts, count, size}, {block * kTile, pieces, places}};
    TilePieces shared;
    for (int64_t phase = 0; phase < kernel.phases(); ++phase) {
        for (int thread = 0; thread < kThreads; ++thread) kernel.run(phase, shared, block, thread);
    }
}
