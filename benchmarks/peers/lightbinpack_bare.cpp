// LightBinPack's best fit without the Python lists around it: its own source, as its package
// installs it (SOURCE), called on a std::vector and timed from there to the vectors it returns.
#include SOURCE

#include <chrono>
#include <cstdint>

extern "C" double best_fit(const int64_t* lengths, int64_t rows, int64_t capacity, int64_t* bins) {
    const std::vector<int> given(lengths, lengths + rows);
    const auto begun = std::chrono::steady_clock::now();
    const auto found = obfd(given, static_cast<int>(capacity));
    const auto ended = std::chrono::steady_clock::now();
    *bins = static_cast<int64_t>(found.size());
    return std::chrono::duration<double>(ended - begun).count();
}
