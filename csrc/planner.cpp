// Owns `Planner`: plan's best fit over a stream of lengths, in the memory of a window.

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "bins.h"
#include "by_length.h"
#include "errors.h"
#include "kernels.h"
#include "rule.h"
#include "spaces.h"

namespace turnpack {
namespace {

struct Fitted {  // bins as in a plan, and the units that each still has, 0 if it is closed
    std::vector<int64_t> rows, offsets, fill, spaces;
};

// The first `due` rows before the others.
template <class Id>
Fitted fit(const std::vector<int64_t>& lengths, int64_t due, const Rule& rule) {
    const auto size = static_cast<int64_t>(lengths.size());
    Bins<Id> bins(rule);
    bins.reserve(size);
    std::vector<Id> order;
    order.reserve(size);
    with_spaces<Id>(rule.units(), size, [&](auto& spaces) {
        for (const auto& [begin, end] : {std::pair{int64_t{0}, due}, std::pair{due, size}}) {
            const ByLength<Id> sorted(lengths.data() + begin, end - begin, rule, 1);
            best_fit(sorted, begin, rule, spaces, bins);
            for (int64_t k = 0; k < end - begin; ++k) {
                order.push_back(static_cast<Id>(sorted.rows()[k] + begin));
            }
        }
    });
    Fitted fitted{std::vector<int64_t>(size), std::vector<int64_t>(bins.size() + 1),
                  std::vector<int64_t>(bins.size()), std::vector<int64_t>(bins.size())};
    bins.write(order.data(), size, 1, fitted.rows.data(), fitted.offsets.data(),
               fitted.fill.data());
    bins.write_spaces(fitted.spaces.data());
    return fitted;
}

}  // namespace

Planner::Planner(int64_t capacity, int64_t window, int64_t align, int64_t max_rows)
    : rule_{capacity, align, max_rows}, window_(window) {
    check_at_least_one("capacity", capacity);
    check_at_least_one("window", window);
    check_at_least_one("align", align);
    check_at_least_one("max_rows", max_rows);
}

Closed Planner::add(const int64_t* lengths, int64_t size) {
    checked_add(state_.rows, size);
    for (int64_t i = 0; i < size; ++i) check_length(state_.rows + i, lengths[i], rule_);
    Closed closed;
    closed.rows.reserve(state_.ids.size() + size);
    for (int64_t taken = 0; taken < size;) {
        const int64_t room = window_ - static_cast<int64_t>(state_.ids.size());
        const int64_t count = std::min(room, size - taken);
        state_.lengths.insert(state_.lengths.end(), lengths + taken, lengths + taken + count);
        state_.ids.resize(state_.ids.size() + count);
        std::iota(state_.ids.end() - count, state_.ids.end(), state_.rows);
        state_.rows += count;
        taken += count;
        if (count == room) close_some(false, closed);
    }
    return closed;
}

Closed Planner::flush() {
    Closed closed;
    close_some(true, closed);
    return closed;
}

void Planner::load(State state) {
    if (state.rows < 0) fail("rows is ", state.rows, ", less than 0");
    const auto size = static_cast<int64_t>(state.ids.size());
    for (int64_t i = 0; i < size; ++i) {
        const int64_t id = state.ids[i];
        if (id < 0) fail("row id ", id, " is negative");
        if (i > 0 && id <= state.ids[i - 1])
            fail("row ", id, " comes after row ", state.ids[i - 1]);
        if (id >= state.rows) fail("row ", id, " waits, but there were ", state.rows, " rows");
        check_length(id, state.lengths[i], rule_);
    }
    if (size >= window_) fail(size, " rows wait, but the window is ", window_);
    state_ = std::move(state);
}

void Planner::close_some(bool all, Closed& closed) {
    std::vector<int64_t>&ids = state_.ids, &lengths = state_.lengths;
    const auto size = static_cast<int64_t>(ids.size());
    constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
    const int64_t patience = window_ > kMax / 3 ? kMax : 3 * window_;
    const int64_t due =
        std::partition_point(ids.begin(), ids.end(),
                             [&](int64_t id) { return state_.rows - 1 - id > patience; }) -
        ids.begin();

    const Fitted fitted = size < int64_t{1} << 31 ? fit<int32_t>(lengths, due, rule_)
                                                  : fit<int64_t>(lengths, due, rule_);
    const std::vector<int64_t>&rows = fitted.rows, &offsets = fitted.offsets, &fill = fitted.fill,
          &spaces = fitted.spaces;
    const auto count = static_cast<int64_t>(fill.size());

    std::vector<char> closes(count);
    int64_t going = 0;
    const auto close = [&](int64_t bin) {
        closes[bin] = true;
        going += offsets[bin + 1] - offsets[bin];
    };
    for (int64_t bin = 0; bin < count; ++bin) {
        // Rows that are due were placed first, so they are the first of their bins.
        if (all || spaces[bin] == 0 || rows[offsets[bin]] < due) close(bin);
    }
    if (going < size - size / 2) {
        std::vector<int64_t> fullest(count);
        std::iota(fullest.begin(), fullest.end(), 0);
        std::stable_sort(fullest.begin(), fullest.end(),
                         [&](int64_t a, int64_t b) { return spaces[a] < spaces[b]; });
        for (int64_t k = 0; going < size - size / 2; ++k) {
            if (!closes[fullest[k]]) close(fullest[k]);
        }
    }

    std::vector<char> goes(size);
    auto next = static_cast<int64_t>(closed.rows.size());
    closed.rows.resize(next + going);
    for (int64_t bin = 0; bin < count; ++bin) {
        if (!closes[bin]) continue;
        for (int64_t k = offsets[bin]; k < offsets[bin + 1]; ++k) {
            closed.rows[next++] = ids[rows[k]];
            goes[rows[k]] = true;
        }
        closed.offsets.push_back(next);
        closed.fill.push_back(fill[bin]);
    }
    int64_t waiting = 0;
    for (int64_t k = 0; k < size; ++k) {
        ids[waiting] = ids[k];
        lengths[waiting] = lengths[k];
        waiting += !goes[k];
    }
    ids.resize(waiting);
    lengths.resize(waiting);
}

}  // namespace turnpack
