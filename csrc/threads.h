// Owns how the core uses threads: one call on equal ranges of a size, at most as many as asked for.
#pragma once

#include <algorithm>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace turnpack {

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

}  // namespace turnpack
