// Owns the run of the core under ThreadSanitizer, without Python: `make test-tsan`. Many threads on
// one Planner; kernels that start threads of their own, called by many, while the machine's
// settings are changed under them. What a kernel computes is tested elsewhere; here it must be the
// same.

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <thread>
#include <vector>

#include "kernels.h"
#include "machine.h"
#include "shared_planner.h"

namespace {

using namespace turnpack;
using Numbers = std::vector<int64_t>;

void require(bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "not so: %s\n", what);
    std::abort();
}

void at_once(int count, const std::function<void(int)>& work) {
    std::vector<std::thread> threads;
    for (int i = 0; i < count; ++i) threads.emplace_back(work, i);
    for (std::thread& thread : threads) thread.join();
}

// Each row comes out once, whoever asks for it.
void one_planner() {
    constexpr int64_t kThreads = 6, kCalls = 300, kRows = 7;
    SharedPlanner planner(64, 32, 1, kThreads * kCalls);
    std::vector<std::atomic<int>> seen(kThreads * kCalls * kRows);
    const auto count = [&](const Closed& closed) {
        for (const int64_t row : closed.rows) ++seen[row];
    };
    at_once(kThreads, [&](int thread) {
        for (int64_t call = 0; call < kCalls; ++call) {
            Numbers lengths(kRows, 1 + (call * 13 + thread) % 64);
            count(planner.add(lengths.data(), kRows));
            if (call % 16 == 0) count(planner.flush());
            if (call % 16 == 1)
                require(planner.state().ids.size() < 32, "fewer than a window wait");
            try {
                planner.load({-1, {}, {}});
            } catch (const std::invalid_argument&) {
            }
        }
    });
    count(planner.flush());
    for (const auto& times : seen) require(times == 1, "each row once");
}

void all_kernels() {
    constexpr int64_t kRows = 400;
    Numbers lengths(kRows), offsets{0};
    for (int64_t row = 0; row < kRows; ++row) {
        lengths[row] = 1 + row * 29 % 60;
        offsets.push_back(offsets.back() + lengths[row]);
    }
    const int64_t tokens = offsets.back();
    std::vector<int32_t> ids(tokens);
    std::iota(ids.begin(), ids.end(), 0);
    for (int32_t& id : ids) id %= 17;
    const std::vector<uint8_t> mask(tokens, 1);
    const int32_t opens = 3, closes = 5;
    const Numbers one{0, 1};
    std::atomic<bool> over{false};
    std::thread settings([&] {
        while (!over) {
            for (const char* name : {"scalar", "avx2", "avx512"}) {
                try {
                    set_isa(name);
                } catch (const std::invalid_argument&) {
                }
                set_stream_from(name[0] == 's' ? 0 : int64_t{1} << 40);
            }
        }
    });
    std::vector<std::vector<uint8_t>> masks(4);
    std::vector<std::vector<int32_t>> cells(4);
    at_once(4, [&](int thread) {
        for (int again = 0; again < 20; ++again) {
            Numbers rows(kRows), bin_offsets(kRows + 1), fill(kRows);
            const int64_t bins = plan(lengths.data(), kRows, 128, Strategy::best_fit, 1, kRows, 4,
                                      false, rows.data(), bin_offsets.data(), fill.data());
            Numbers cell_offsets(bins + 1);
            const PackShape shape = pack_cells(offsets.data(), kRows + 1, tokens, rows.data(),
                                               kRows, bin_offsets.data(), bins + 1, fill.data(),
                                               128, false, false, cell_offsets.data());
            const PackIn in{
                ids.data(),         mask.data(),         nullptr, offsets.data(), rows.data(),
                bin_offsets.data(), cell_offsets.data(), 0};
            std::vector<int32_t> made(4 * shape.cells);
            int32_t* to = made.data();
            pack(in,
                 PackOut<int32_t>{to, to + shape.cells, to + 2 * shape.cells, to + 3 * shape.cells,
                                  nullptr},
                 bins, 4, 0);
            require(again == 0 || made == cells[thread], "the same cells");
            cells[thread] = made;
            std::vector<uint8_t> marked(tokens);
            mask_markers(ids.data(), tokens, offsets.data(), kRows + 1, {&opens, one.data(), 1},
                         {&closes, one.data(), 1}, true, 4, marked.data());
            require(again == 0 || marked == masks[thread], "the same mask");
            masks[thread] = marked;
        }
    });
    over = true;
    settings.join();
    for (int i = 1; i < 4; ++i) require(cells[i] == cells[0] && masks[i] == masks[0], "all alike");
}

}  // namespace

int main() {
    one_planner();
    all_kernels();
    std::puts("no thread stood in another's way");
}
