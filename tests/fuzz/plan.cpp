// Fuzzes `plan` against its rule in plain loops: each strategy, form and number of threads.

#include "bins.h"

namespace turnpack::fuzz {
namespace {

bool is_valid(const Numbers& lengths, int64_t capacity, int64_t align, int64_t max_rows,
              int64_t threads) {
    if (capacity < 1 || align < 1 || max_rows < 1 || threads < 1) return false;
    return std::all_of(lengths.begin(), lengths.end(), [&](int64_t length) {
        return length >= 1 && cells_of(length, align) <= capacity;
    });
}

void run(Input in) {
    const auto strategy = static_cast<Strategy>(in.below(3));
    const bool wide = in.one_in(2);
    const int64_t threads = in.one_in(64) ? 0 : in.threads();
    const int64_t align = in.one_in(3) ? in.one_in(8) ? in.any() : 1 + in.below(16) : 1;
    const int64_t max_rows = in.one_in(3) ? in.one_in(8) ? in.any() : 1 + in.below(4) : kMax;
    const int64_t capacity = in.one_in(4) ? in.any() : 1 + in.below(256);
    const int64_t kinds = 1 + in.below(24), repeats = in.one_in(4) ? 1 + in.below(8) : 1;
    Numbers lengths(kinds);
    for (int64_t& length : lengths) {
        const int64_t scale = std::max<int64_t>(1, capacity / 256 * in.below(2));
        length = capacity < 1 ? 1 : std::min(capacity, (1 + in.below(256)) * scale);
        if (length > capacity / 4 && in.one_in(2)) length = std::max<int64_t>(1, length / 8);
    }
    in.spoil(lengths);
    for (int64_t i = 0; i < kinds * (repeats - 1); ++i) lengths.push_back(lengths[i]);
    const auto size = static_cast<int64_t>(lengths.size());

    Exactly<int64_t> given(lengths), rows(size), offsets(size + 1), fill(size);
    int64_t bins = 0;
    const bool accepted = accepts([&] {
        bins = plan(given.data(), size, capacity, strategy, align, max_rows, threads, wide,
                    rows.data(), offsets.data(), fill.data());
    });
    TP_REQUIRE(accepted == is_valid(lengths, capacity, align, max_rows, threads));
    if (!accepted) return;
    Numbers order(size);
    std::iota(order.begin(), order.end(), 0);
    if (strategy != Strategy::in_order) {
        std::stable_sort(order.begin(), order.end(),
                         [&](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });
    }
    const Bins wanted = planned(order, lengths, capacity, strategy, align, max_rows);
    TP_REQUIRE(bins == static_cast<int64_t>(wanted.bins.size()));
    TP_REQUIRE(rows == wanted.rows);
    for (int64_t bin = 0; bin < bins; ++bin) {
        TP_REQUIRE(offsets.data()[bin] == wanted.offsets[bin]);
        TP_REQUIRE(fill.data()[bin] == wanted.bins[bin].fill);
    }
    TP_REQUIRE(offsets.data()[bins] == size);
}

}  // namespace
}  // namespace turnpack::fuzz

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    turnpack::fuzz::run({data, size});
    return 0;
}
