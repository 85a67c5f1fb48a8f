// Owns how work is shared out among threads. Knows nothing of what they do.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

namespace turnpack {

// Runs work(begin, end) over [0, size) in up to `threads` ranges; end_of(begin, range, ranges) says
// where one ends. A thread that cannot be started leaves its range to this one. Throws what the
// work threw in the lowest range.
template <class EndOf, class Work>
void in_ranges_to(int64_t size, int64_t threads, const EndOf& end_of, const Work& work) {
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
        const int64_t end = end_of(begin, range, ranges);
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

// In ranges of about the same size.
template <class Work>
void in_ranges(int64_t size, int64_t threads, const Work& work) {
    const auto end_of = [=](int64_t begin, int64_t range, int64_t ranges) {
        return begin + (size - begin) / (ranges - range);
    };
    in_ranges_to(size, threads, end_of, work);
}

// In ranges with about as many of what `offsets` [size + 1] count.
template <class Work>
void in_ranges(const int64_t* offsets, int64_t size, int64_t threads, const Work& work) {
    const auto end_of = [=](int64_t begin, int64_t range, int64_t ranges) {
        const int64_t share = offsets[size] / ranges * (range + 1);
        return static_cast<int64_t>(std::lower_bound(offsets + begin, offsets + size, share) -
                                    offsets);
    };
    in_ranges_to(size, threads, end_of, work);
}

}  // namespace turnpack
