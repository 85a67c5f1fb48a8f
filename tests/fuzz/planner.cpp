// Fuzzes `Planner` against its rule in plain loops: rows that come in pieces, flushed, saved and
// loaded at any moment, with pieces and states among them that have to be refused.

#include "bins.h"

namespace turnpack::fuzz {
namespace {

// The stream as kernels.h tells it, a row at a time.
struct Stream {
    int64_t capacity, window, align, max_rows;
    int64_t rows = 0;
    Numbers ids, lengths;  // of what waits

    bool fits(int64_t length) const { return length >= 1 && cells_of(length, align) <= capacity; }
    bool is_due(int64_t id) const {
        return static_cast<__int128>(rows) - 1 - id > static_cast<__int128>(3) * window;
    }

    void take(int64_t length, Closed& closed) {
        ids.push_back(rows++);
        lengths.push_back(length);
        if (static_cast<int64_t>(ids.size()) == window) close(false, closed);
    }

    void close(bool all, Closed& closed) {
        const size_t count = ids.size();
        Numbers order(count);
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
            if (is_due(ids[a]) != is_due(ids[b])) return is_due(ids[a]);
            return lengths[a] > lengths[b];
        });
        const Bins plan = planned(order, lengths, capacity, Strategy::best_fit, align, max_rows);
        const std::vector<Bin>& bins = plan.bins;
        const Numbers &offsets = plan.offsets, &placed = plan.rows;
        // What is left of a bin that takes nothing any more counts as no space.
        const auto space = [&](size_t bin) {
            const bool is_full = bins[bin].size == max_rows || bins[bin].space < align;
            return is_full ? __int128{0} : bins[bin].space;
        };
        std::vector<bool> closes(bins.size());
        size_t going = 0;
        const auto close_bin = [&](size_t bin) {
            closes[bin] = true;
            going += bins[bin].size;
        };
        for (size_t bin = 0; bin < bins.size(); ++bin) {
            const bool has_due =
                std::any_of(placed.begin() + offsets[bin], placed.begin() + offsets[bin + 1],
                            [&](int64_t k) { return is_due(ids[k]); });
            if (all || has_due || space(bin) == 0) close_bin(bin);
        }
        while (2 * going < count) {
            size_t fullest = bins.size();
            for (size_t bin = 0; bin < bins.size(); ++bin) {
                if (closes[bin]) continue;
                if (fullest == bins.size() || space(bin) < space(fullest)) fullest = bin;
            }
            close_bin(fullest);
        }

        std::vector<bool> goes(count);
        for (size_t bin = 0; bin < bins.size(); ++bin) {
            if (!closes[bin]) continue;
            for (int64_t i = offsets[bin]; i < offsets[bin + 1]; ++i) {
                closed.rows.push_back(ids[placed[i]]);
                goes[placed[i]] = true;
            }
            closed.offsets.push_back(static_cast<int64_t>(closed.rows.size()));
            closed.fill.push_back(bins[bin].fill);
        }
        size_t left = 0;
        for (size_t k = 0; k < count; ++k) {
            ids[left] = ids[k];
            lengths[left] = lengths[k];
            left += !goes[k];
        }
        ids.resize(left);
        lengths.resize(left);
    }

    bool can_load(const Planner::State& state) const {
        if (state.rows < 0 || static_cast<int64_t>(state.ids.size()) >= window) return false;
        for (size_t i = 0; i < state.ids.size(); ++i) {
            const int64_t id = state.ids[i];
            if (id < 0 || id >= state.rows || (i > 0 && id <= state.ids[i - 1])) return false;
            if (!fits(state.lengths[i])) return false;
        }
        return true;
    }
};

void require_same(const Closed& found, const Closed& wanted) {
    TP_REQUIRE(found.fill == wanted.fill);
    TP_REQUIRE(found.offsets == wanted.offsets);
    TP_REQUIRE(found.rows == wanted.rows);
}

void require_same(const Planner::State& found, const Stream& wanted) {
    TP_REQUIRE(found.rows == wanted.rows);
    TP_REQUIRE(found.ids == wanted.ids);
    TP_REQUIRE(found.lengths == wanted.lengths);
}

void run(Input in) {
    const int64_t capacity = in.one_in(8) ? in.any() : 1 + in.below(64);
    const int64_t window = in.one_in(8) ? in.any() : 1 + in.below(12);
    const int64_t align = in.one_in(3) ? in.one_in(8) ? in.any() : 1 + in.below(8) : 1;
    const int64_t max_rows = in.one_in(3) ? in.one_in(8) ? in.any() : 1 + in.below(4) : kMax;
    Stream wanted{capacity, window, align, max_rows, 0, {}, {}};
    const auto make = [&] { return std::make_unique<Planner>(capacity, window, align, max_rows); };
    std::unique_ptr<Planner> planner;
    const bool accepted = accepts([&] { planner = make(); });
    TP_REQUIRE(accepted == (capacity >= 1 && window >= 1 && align >= 1 && max_rows >= 1));
    if (!accepted) return;

    for (int64_t steps = 1 + in.below(in.seldom() ? 24 : 5); steps > 0; --steps) {
        const int64_t step = in.below(8);
        if (step < 5) {
            Numbers lengths(in.below(in.seldom() ? 24 : 6));
            for (int64_t& length : lengths) length = std::min(capacity, 1 + in.below(64));
            in.spoil(lengths);
            Exactly<int64_t> given(lengths);
            Closed found;
            Closed closed;
            const bool taken = accepts([&] { found = planner->add(given.data(), given.size()); });
            const bool all_fit = std::all_of(lengths.begin(), lengths.end(),
                                             [&](int64_t length) { return wanted.fits(length); });
            const auto count = static_cast<int64_t>(lengths.size());
            TP_REQUIRE(taken == (all_fit && wanted.rows <= kMax - count));
            if (taken) {
                for (const int64_t length : lengths) wanted.take(length, closed);
                require_same(found, closed);
            }
        } else if (step == 5) {
            Closed closed;
            const Closed found = planner->flush();
            wanted.close(true, closed);
            require_same(found, closed);
        } else if (step == 6) {  // a planner that goes on for this one
            Planner::State state = planner->state();
            planner = make();
            planner->load(std::move(state));
        } else {
            Planner::State state = planner->state();
            if (in.one_in(3)) {  // about as many as a window
                const int64_t size = std::min<int64_t>(window, 16) + in.below(3) - 1;
                state = {size + in.below(4), Numbers(size), Numbers(size, 1)};
                std::iota(state.ids.begin(), state.ids.end(), 0);
            }
            if (in.one_in(4)) state.rows = in.any();
            in.spoil(state.ids);
            in.spoil(state.lengths);
            const bool loads = wanted.can_load(state);
            const Planner::State given = state;
            TP_REQUIRE(accepts([&] { planner->load(std::move(state)); }) == loads);
            if (loads) {
                wanted.rows = given.rows;
                wanted.ids = given.ids;
                wanted.lengths = given.lengths;
            }
        }
        require_same(planner->state(), wanted);
    }
}

}  // namespace
}  // namespace turnpack::fuzz

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    turnpack::fuzz::run({data, size});
    return 0;
}
