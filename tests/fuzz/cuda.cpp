// Fuzzes the kernels of the GPU, emulated thread by thread (emulation.cpp), against those of the
// CPU, which have oracles of their own.

#include "device.h"
#include "fuzz.h"
#include "kernels.h"
#include "pieces.h"

namespace turnpack::cuda {

// `launch`'s check of what is aligned is not asked for here: no store may be wider than it says.
template <int N, class... T>
bool are_aligned(const T*... pointers) {
    return (is_aligned<N>(pointers) && ...);
}

}  // namespace turnpack::cuda

namespace turnpack::fuzz {
namespace {

using cuda::are_aligned, cuda::Gather, cuda::launch;
using Ids = std::vector<int32_t>;

Ids scrambled_ids(int64_t size) {
    Ids made(size);
    for (int64_t i = 0; i < size; ++i) made[i] = scrambled<int32_t>(i);
    return made;
}

// Sizes of rows, some so long that they go over several tiles, some so short and so many that they
// fill one.
Numbers row_sizes(Input& in, int64_t least) {
    Numbers sizes = in.sizes(1 + in.below(8), 64);
    const int64_t scale = in.one_in(3) ? 8 : 1;
    for (int64_t& size : sizes) size = least + size * (in.one_in(2) ? scale : 1);
    if (in.seldom()) {
        const int64_t at = in.below(static_cast<int64_t>(sizes.size()));
        sizes.insert(sizes.begin() + at, cuda::kTile + in.below(cuda::kTile), 1);
    }
    return sizes;
}

template <class Int>
void fuzz_pack(Input in, bool flat) {
    const Numbers sizes = row_sizes(in, 1);
    Exactly<int64_t> offsets(offsets_of(sizes));
    const auto count = static_cast<int64_t>(sizes.size()), tokens = offsets.data()[count];
    Numbers order(count), fill, in_bins;
    std::iota(order.begin(), order.end(), 0);
    std::rotate(order.begin(), order.begin() + in.below(count), order.end());
    for (const int64_t row : order) {
        if (fill.empty() || in.one_in(3)) fill.push_back(0), in_bins.push_back(0);
        fill.back() += sizes[row];
        ++in_bins.back();
    }
    const int64_t capacity = *std::max_element(fill.begin(), fill.end()) + in.below(8);
    Exactly<int64_t> rows(order), bin_offsets(offsets_of(in_bins)), fills(fill);
    const int64_t bins = fills.size();
    Exactly<int64_t> cell_offsets(bins + 1);
    const PackShape shape =
        pack_cells(offsets.data(), count + 1, tokens, rows.data(), count, bin_offsets.data(),
                   bins + 1, fills.data(), capacity, flat, sizeof(Int) == 8, cell_offsets.data());
    Exactly<int32_t> ids(scrambled_ids(tokens));
    Exactly<uint8_t> mask(tokens);
    Exactly<float> weights(tokens);
    for (int64_t i = 0; i < tokens; ++i) {
        mask.data()[i] = scrambled<int64_t>(i) / 8 % 2;
        weights.data()[i] = static_cast<float>(i);
    }
    const bool weighted = in.one_in(2);
    const PackIn given{ids.data(),
                       mask.data(),
                       weighted ? weights.data() : nullptr,
                       offsets.data(),
                       rows.data(),
                       bin_offsets.data(),
                       cell_offsets.data(),
                       7};
    struct Cells {
        Exactly<Int> input_ids, labels, position_ids, segment_ids;
        Exactly<float> loss_weights;
        Cells(int64_t size, int64_t shift)
            : input_ids(size, shift),
              labels(size, shift),
              position_ids(size, shift),
              segment_ids(size, shift),
              loss_weights(size, shift) {}
        PackOut<Int> out(bool weighted) {
            return {input_ids.data(), labels.data(), position_ids.data(), segment_ids.data(),
                    weighted ? loss_weights.data() : nullptr};
        }
    } wanted(shape.cells, 0), found(shape.cells, in.below(4));
    pack(given, wanted.out(weighted), bins, 1, 1);

    Exactly<int64_t> starts(shape.segments + 1), sources(shape.segments);
    Exactly<int32_t> numbers(shape.segments);
    pack_cu_seqlens(given, bins, starts.data());
    cuda::pack_pieces(given, bins, sources.data(), numbers.data());
    using Kernel = cuda::PackCells<Int>;
    const PackOut<Int> out = found.out(weighted);
    const bool aligned = are_aligned<Kernel::kVector>(out.input_ids, out.labels, out.position_ids,
                                                      out.segment_ids, out.loss_weights);
    launch("pack",
           Gather<Kernel>{{starts.data(), shape.segments, shape.cells},
                          {ids.data(), mask.data(), given.loss_weights, sources.data(),
                           numbers.data(), 7, out, aligned}},
           nullptr);
    TP_REQUIRE(found.input_ids == wanted.input_ids);
    TP_REQUIRE(found.labels == wanted.labels);
    TP_REQUIRE(found.position_ids == wanted.position_ids);
    TP_REQUIRE(found.segment_ids == wanted.segment_ids);
    TP_REQUIRE(!weighted || found.loss_weights == wanted.loss_weights);

    Exactly<int64_t> places(count), begins(count), ends(count + 1);
    unpack_rows(rows.data(), count, bin_offsets.data(), bins + 1, starts.data(), starts.size(),
                shape.cells, flat ? 0 : capacity, places.data(), begins.data(), ends.data());
    Exactly<int32_t> back(tokens, in.below(4));
    Exactly<uint8_t> back_mask(tokens, in.below(4));
    Exactly<float> back_weights(tokens, in.below(4));
    launch("unpack",
           Gather<cuda::UnpackTokens<Int>>{
               {ends.data(), count, tokens},
               {out.input_ids, out.labels, out.loss_weights, begins.data(), back.data(),
                back_mask.data(), back_weights.data(),
                are_aligned<4>(back.data(), back_mask.data(), back_weights.data())}},
           nullptr);
    for (int64_t row = 0; row < count; ++row) {
        mask.data()[offsets.data()[row]] = 0;
        weights.data()[offsets.data()[row]] = 0;
    }
    TP_REQUIRE(back == ids && back_mask == mask);
    TP_REQUIRE(!weighted || back_weights == weights);
}

void fuzz_concat(Input in) {
    const Numbers sizes = row_sizes(in, 0);
    const auto turns = static_cast<int64_t>(sizes.size());
    Exactly<int64_t> turn_offsets(offsets_of(sizes));
    const Numbers affix_sizes = in.sizes(4, 6);
    Exactly<int64_t> affix_offsets(offsets_of(affix_sizes));
    const int64_t affixes = affix_offsets.data()[4], bos = in.below(3), eos = in.below(3);
    Exactly<int32_t> ids(scrambled_ids(turn_offsets.data()[turns]));
    Exactly<int32_t> around(scrambled_ids(affixes + bos + eos));
    Exactly<uint8_t> targets(2), suffix_targets(2);
    for (int i = 0; i < 2; ++i) {
        targets.data()[i] = in.one_in(2);
        suffix_targets.data()[i] = in.one_in(2);
    }
    Exactly<int64_t> roles(in.sizes(turns, 2));
    Numbers in_rows;
    for (int64_t left = turns; left > 0; left -= in_rows.back()) {
        in_rows.push_back(std::min(left, in.below(4)));
        if (in_rows.size() == 8) in_rows.back() = left;
    }
    Exactly<int64_t> row_offsets(offsets_of(in_rows));
    const ConcatIn given{ids.data(),
                         ids.size(),
                         turn_offsets.data(),
                         turn_offsets.size(),
                         roles.data(),
                         turns,
                         row_offsets.data(),
                         row_offsets.size(),
                         around.data(),
                         affix_offsets.data(),
                         targets.data(),
                         suffix_targets.data(),
                         2,
                         around.data() + affixes,
                         bos,
                         around.data() + affixes + bos,
                         eos};
    Exactly<int64_t> offsets(row_offsets.size());
    const int64_t tokens = concat_offsets(given, offsets.data());
    Exactly<int32_t> wanted(tokens), found(tokens, in.below(4));
    Exactly<uint8_t> wanted_mask(tokens), found_mask(tokens, in.below(4));
    concat(given, {offsets.data(), wanted.data(), wanted_mask.data()}, 1);
    const cuda::ConcatPieces pieces = cuda::concat_pieces(given, offsets.data());
    Exactly<int64_t> starts(pieces.starts), sources(pieces.sources);
    Exactly<uint8_t> of_targets(pieces.targets);
    launch("concat",
           Gather<cuda::ConcatTokens>{
               {starts.data(), sources.size(), tokens},
               {ids.data(), around.data(), sources.data(), of_targets.data(), found.data(),
                found_mask.data(), are_aligned<4>(found.data(), found_mask.data())}},
           nullptr);
    TP_REQUIRE(found == wanted && found_mask == wanted_mask);
}

struct Markers {
    Exactly<int64_t> offsets;
    Exactly<int32_t> ids;

    explicit Markers(Input& in)
        : offsets(offsets_of(sizes(in))), ids(offsets.data()[offsets.size() - 1]) {
        for (int64_t i = 0; i < ids.size(); ++i) ids.data()[i] = static_cast<int32_t>(in.below(3));
    }
    static Numbers sizes(Input& in) {
        Numbers made = in.sizes(1 + in.below(4), 4);
        for (int64_t& size : made) ++size;
        if (in.one_in(8)) made[0] += 40;
        return made;
    }
    Patterns patterns() { return {ids.data(), offsets.data(), offsets.size() - 1}; }
};

void fuzz_mask_markers(Input in) {
    Markers starts(in), ends(in);
    const bool include_end = in.one_in(2);
    const Numbers sizes = row_sizes(in, 0);
    Exactly<int64_t> offsets(offsets_of(sizes));
    const int64_t tokens = offsets.data()[sizes.size()];
    Exactly<int32_t> ids(tokens);
    const int64_t kinds = 3 + in.below(3);
    Numbers pattern = in.sizes(1 + in.below(32), kinds);
    for (int64_t i = 0; i < tokens; ++i) {
        ids.data()[i] = static_cast<int32_t>(pattern[i % pattern.size()]);
    }
    Exactly<uint8_t> wanted(tokens), found(tokens, in.below(4));
    mask_markers(ids.data(), tokens, offsets.data(), offsets.size(), starts.patterns(),
                 ends.patterns(), include_end, 1, wanted.data());
    if (tokens == 0) return;
    const cuda::MaskPieces pieces = cuda::mask_pieces(offsets.data(), offsets.size(), tokens,
                                                      starts.patterns(), ends.patterns());
    Exactly<int64_t> rows(pieces.rows), start_offsets(pieces.starts.offsets),
        end_offsets(pieces.ends.offsets);
    Exactly<int32_t> start_ids(pieces.starts.ids), end_ids(pieces.ends.ids);
    const auto states = static_cast<int32_t>(pieces.states);
    const cuda::MaskIn given{ids.data(),
                             {rows.data(), rows.size() - 1, tokens},
                             {start_ids.data(), start_offsets.data(), start_offsets.size() - 1},
                             {end_ids.data(), end_offsets.data(), end_offsets.size() - 1},
                             include_end,
                             states};
    const int64_t tiles = cuda::tiles_of(tokens);
    Exactly<int32_t> exits(tiles * states), entries(tiles);
    launch("read", cuda::MaskTiles<false>{given, exits.data(), nullptr, nullptr, false}, nullptr);
    launch("enter", cuda::MaskEntries{exits.data(), entries.data(), tiles, states}, nullptr);
    launch("write",
           cuda::MaskTiles<true>{given, nullptr, entries.data(), found.data(),
                                 cuda::is_aligned<4>(found.data())},
           nullptr);
    TP_REQUIRE(found == wanted && found.is_whole());
}

void run(Input in) {
    switch (in.below(6)) {
        case 0:
            return fuzz_pack<int32_t>(in, false);
        case 1:
            return fuzz_pack<int32_t>(in, true);
        case 2:
            return fuzz_pack<int64_t>(in, false);
        case 3:
            return fuzz_pack<int64_t>(in, true);
        case 4:
            return fuzz_concat(in);
        default:
            return fuzz_mask_markers(in);
    }
}

}  // namespace
}  // namespace turnpack::fuzz

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    turnpack::fuzz::run({data, size});
    return 0;
}
