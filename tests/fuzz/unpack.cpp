// Fuzzes what `unpack` checks: bins and boundaries that do not belong together, ids beyond int32.
// That it gives what was packed is shown by pack.cpp.

#include <optional>

#include "fuzz.h"
#include "kernels.h"

namespace turnpack::fuzz {
namespace {

struct Place {
    int64_t row, begin, end, place;
};

// The rows by rising id, or nothing where the arrays do not agree.
std::optional<std::vector<Place>> places_of(const Numbers& rows, const Numbers& bin_offsets,
                                            const Numbers& cu_seqlens, int64_t cells,
                                            int64_t capacity) {
    if (!are_offsets(bin_offsets, rows.size()) || !are_offsets(cu_seqlens, cells)) return {};
    const auto segments = static_cast<int64_t>(cu_seqlens.size()) - 1;
    std::vector<Place> places;
    int64_t segment = 0;
    for (size_t bin = 0; bin + 1 < bin_offsets.size(); ++bin) {
        const int64_t begin = cu_seqlens[segment];
        for (int64_t k = bin_offsets[bin]; k < bin_offsets[bin + 1]; ++k, ++segment) {
            if (segment == segments) return {};
            places.push_back({rows[k], cu_seqlens[segment], cu_seqlens[segment + 1], k});
        }
        if (capacity == 0) continue;
        if (cu_seqlens[segment] - begin < capacity && segment < segments) ++segment;
        if (cu_seqlens[segment] - begin != capacity) return {};
    }
    if (segment != segments) return {};
    std::sort(places.begin(), places.end(),
              [](const Place& a, const Place& b) { return a.row < b.row; });
    for (size_t i = 1; i < places.size(); ++i) {
        if (places[i].row == places[i - 1].row) return {};
    }
    return places;
}

template <class Int>
void gather(const std::vector<Place>& places, int64_t cells, Exactly<int64_t>& starts,
            Exactly<int64_t>& offsets, int64_t threads, Input in) {
    Exactly<Int> ids(cells), labels(cells);
    for (int64_t i = 0; i < cells; ++i) {
        ids.data()[i] = scrambled<int32_t>(i);
        labels.data()[i] = in.one_in(2) ? kIgnore : static_cast<Int>(i);
    }
    if (cells > 0 && in.one_in(4)) ids.data()[in.below(256) % cells] = static_cast<Int>(in.any());
    bool fits = true;
    for (const Place& place : places) {
        for (int64_t cell = place.begin; cell < place.end; ++cell) {
            const int64_t id = ids.data()[cell];
            fits &= -(int64_t{1} << 31) <= id && id < int64_t{1} << 31;
        }
    }
    const int64_t tokens = offsets.data()[places.size()];
    choose_machine(in);
    Exactly<int32_t> input_ids(tokens, in.below(8));
    Exactly<uint8_t> loss_mask(tokens, in.below(8));
    const UnpackIn<Int> given{ids.data(),    labels.data(),  nullptr,
                              starts.data(), offsets.data(), starts.size()};
    const bool accepted =
        accepts([&] { unpack(given, {input_ids.data(), loss_mask.data(), nullptr}, threads); });
    TP_REQUIRE(accepted == fits);
    if (!accepted) return;
    int64_t at = 0;
    for (const Place& place : places) {
        for (int64_t cell = place.begin; cell < place.end; ++cell, ++at) {
            TP_REQUIRE(input_ids.data()[at] == ids.data()[cell]);
            TP_REQUIRE(loss_mask.data()[at] == (labels.data()[cell] != kIgnore));
        }
    }
    TP_REQUIRE(at == tokens && input_ids.is_whole() && loss_mask.is_whole());
}

void run(Input in) {
    const bool flat = in.one_in(2), wide = in.one_in(2);
    const int64_t threads = in.threads();
    const int64_t bins = in.below(6);
    Numbers rows, in_bins, segments, used;
    for (int64_t bin = 0; bin < bins; ++bin) {
        in_bins.push_back(in.below(5));
        used.push_back(0);
        for (int64_t k = 0; k < in_bins.back(); ++k) {
            rows.push_back(100 * in.below(8) + static_cast<int64_t>(rows.size()));
            segments.push_back(in.below(40));
            used.back() += segments.back();
        }
    }
    int64_t capacity = 0;
    if (!flat) {
        capacity = 1 + in.below(8);
        for (const int64_t cells : used) capacity = std::max(capacity, cells);
        Numbers padded;
        auto segment = segments.begin();
        for (int64_t bin = 0; bin < bins; ++bin) {
            padded.insert(padded.end(), segment, segment + in_bins[bin]);
            segment += in_bins[bin];
            if (used[bin] < capacity) padded.push_back(capacity - used[bin]);
        }
        segments = padded;
        if (in.one_in(12)) capacity = in.any();
    }
    Numbers bin_offsets = offsets_of(in_bins), cu_seqlens = offsets_of(segments);
    int64_t cells = cu_seqlens.back();
    for (Numbers* numbers : {&rows, &bin_offsets, &cu_seqlens}) {
        in.spoil(*numbers);
        if (in.one_in(24) && !numbers->empty()) numbers->pop_back();
        if (in.one_in(24)) numbers->push_back(numbers->empty() ? in.any() : numbers->back());
    }
    if (in.one_in(24)) cells += in.below(3) - 1;
    if (cells < 0) return;

    Exactly<int64_t> given_rows(rows), given_bins(bin_offsets), given_cu(cu_seqlens);
    const int64_t count = given_rows.size();
    Exactly<int64_t> order(count), starts(count), offsets(count + 1);
    const bool accepted = accepts([&] {
        unpack_rows(given_rows.data(), count, given_bins.data(), given_bins.size(), given_cu.data(),
                    given_cu.size(), cells, capacity, order.data(), starts.data(), offsets.data());
    });
    const auto places = places_of(rows, bin_offsets, cu_seqlens, cells, capacity);
    TP_REQUIRE(accepted == places.has_value());
    if (!accepted) return;
    int64_t token = 0;
    for (int64_t i = 0; i < count; ++i) {
        const Place& place = (*places)[i];
        TP_REQUIRE(order.data()[i] == place.place && starts.data()[i] == place.begin);
        TP_REQUIRE(offsets.data()[i] == token);
        token += place.end - place.begin;
    }
    TP_REQUIRE(offsets.data()[count] == token);
    if (wide) {
        gather<int64_t>(*places, cells, starts, offsets, threads, in);
    } else {
        gather<int32_t>(*places, cells, starts, offsets, threads, in);
    }
}

}  // namespace
}  // namespace turnpack::fuzz

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    turnpack::fuzz::run({data, size});
    return 0;
}
