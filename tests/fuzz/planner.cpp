// Fuzzes `Planner` against its rule in plain loops: rows that come in pieces, flushed, saved and
// loaded at any moment, with pieces and states among them that have to be refused.

#include <set>

#include "fuzz.h"
#include "kernels.h"

namespace turnpack::fuzz {
namespace {

struct Bins {
    std::vector<Numbers> rows;
    Numbers fill;
};

// The stream as kernels.h tells it, a row at a time.
struct Stream {
    int64_t capacity, window, align, max_rows;
    int64_t rows = 0;
    Numbers ids, lengths;  // of what waits

    __int128 cells(int64_t length) const {
        return (static_cast<__int128>(length) + align - 1) / align * align;
    }
    bool fits(int64_t length) const { return length >= 1 && cells(length) <= capacity; }
    bool is_due(int64_t id) const {
        return static_cast<__int128>(rows) - 1 - id > static_cast<__int128>(3) * window;
    }

    void take(int64_t length, Bins& closed) {
        ids.push_back(rows++);
        lengths.push_back(length);
        if (static_cast<int64_t>(ids.size()) == window) close(false, closed);
    }

    void close(bool all, Bins& closed) {
        struct Bin {
            __int128 space;
            int64_t since, fill;
            Numbers places;
        };
        Numbers order(ids.size());
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
            if (is_due(ids[a]) != is_due(ids[b])) return is_due(ids[a]);
            return lengths[a] > lengths[b];
        });
        std::vector<Bin> bins;
        int64_t placements = 0;
        for (const int64_t k : order) {
            Bin* into = nullptr;
            for (Bin& bin : bins) {
                const bool is_full = static_cast<int64_t>(bin.places.size()) == max_rows;
                if (is_full || bin.space < cells(lengths[k])) continue;
                if (into == nullptr || bin.space < into->space ||
                    (bin.space == into->space && bin.since < into->since)) {
                    into = &bin;
                }
            }
            if (into == nullptr) {
                bins.push_back({capacity, 0, 0, {}});
                into = &bins.back();
            }
            into->space -= cells(lengths[k]);
            into->since = ++placements;
            into->fill += lengths[k];
            into->places.push_back(k);
        }

        std::set<int64_t> closes;
        size_t going = 0;
        const auto close_bin = [&](int64_t number) {
            if (closes.insert(number).second) going += bins[number].places.size();
        };
        Numbers by_space;
        // What is left of a bin that takes nothing any more counts as no space.
        const auto space = [&](int64_t number) {
            const Bin& bin = bins[number];
            const bool is_full = static_cast<int64_t>(bin.places.size()) == max_rows;
            return is_full || bin.space < align ? __int128{0} : bin.space;
        };
        for (int64_t number = 0; number < static_cast<int64_t>(bins.size()); ++number) {
            by_space.push_back(number);
            const Numbers& places = bins[number].places;
            const bool has_due = std::any_of(places.begin(), places.end(),
                                             [&](int64_t k) { return is_due(ids[k]); });
            if (all || has_due || space(number) == 0) close_bin(number);
        }
        std::stable_sort(by_space.begin(), by_space.end(),
                         [&](int64_t a, int64_t b) { return space(a) < space(b); });
        for (const int64_t number : by_space) {
            if (2 * going < ids.size()) close_bin(number);
        }

        std::set<int64_t> gone;
        for (const int64_t number : closes) {
            closed.rows.emplace_back();
            closed.fill.push_back(bins[number].fill);
            for (const int64_t k : bins[number].places) {
                closed.rows.back().push_back(ids[k]);
                gone.insert(k);
            }
        }
        Numbers left, left_lengths;
        for (int64_t k = 0; k < static_cast<int64_t>(ids.size()); ++k) {
            if (gone.count(k)) continue;
            left.push_back(ids[k]);
            left_lengths.push_back(lengths[k]);
        }
        ids = left;
        lengths = left_lengths;
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

void require_same(const Closed& found, const Bins& wanted) {
    const size_t bins = wanted.fill.size();
    TP_REQUIRE(found.fill == wanted.fill);
    TP_REQUIRE(found.offsets.size() == bins + 1);
    TP_REQUIRE(are_offsets(found.offsets, found.rows.size()));
    for (size_t bin = 0; bin < bins; ++bin) {
        const Numbers rows(found.rows.begin() + found.offsets[bin],
                           found.rows.begin() + found.offsets[bin + 1]);
        TP_REQUIRE(rows == wanted.rows[bin]);
    }
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

    for (int64_t steps = 1 + in.below(24); steps > 0; --steps) {
        const int64_t step = in.below(8);
        if (step < 5) {
            Numbers lengths(in.below(in.one_in(8) ? 64 : 8));
            for (int64_t& length : lengths) length = std::min(capacity, 1 + in.below(64));
            in.spoil(lengths);
            Exactly<int64_t> given(lengths);
            Closed found;
            Bins closed;
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
            Bins closed;
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
