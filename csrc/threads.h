// Owns how work is shared out among threads. Knows nothing of what they do.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

namespace turnpack {

// Runs work(begin, end) over [0, size) in up to `threads` ranges with about as many of what
// `offsets` [size + 1] count. A thread that cannot be started leaves its range to this one. Throws
// what the work threw in the lowest range.
template <class Work>
void in_ranges(const int64_t* offsets, int64_t size, int64_t threads, const Work& work) {
    const int64_t ranges = std::max<int64_t>(1, std::min(threads, size));
    std::vector<std::exception_ptr> thrown(ranges);
    const auto run = [&](int64_t range, int64_t begin, int64_t end) {
        try {
            work(begin, end);
        } catch (...) {
            thrown[range] = std::current_exception();
        }
    };
    std::vector<std::thread> running;
    running.reserve(ranges - 1);
    int64_t begin = 0;
    for (int64_t range = 0; range + 1 < ranges; ++range) {
        const int64_t share = offsets[size] / ranges * (range + 1);
        const int64_t end = std::lower_bound(offsets + begin, offsets + size, share) - offsets;
        try {
            running.emplace_back(run, range, begin, end);
        } catch (const std::exception&) {  // no thread or no memory for one
            break;
        }
        begin = end;
    }
    run(ranges - 1, begin, size);
    for (std::thread& thread : running) thread.join();
    for (const std::exception_ptr& error : thrown) {
        if (error) std::rethrow_exception(error);
    }
}

}  // namespace turnpack
