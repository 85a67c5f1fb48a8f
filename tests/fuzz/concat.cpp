// Fuzzes `concat` against the rows put together piece by piece, by ordinary or streaming stores.

#include "fuzz.h"
#include "kernels.h"

namespace turnpack::fuzz {
namespace {

using Ids = std::vector<int32_t>;

Ids ids(int64_t size, int64_t from) {
    Ids made(size);
    for (int64_t i = 0; i < size; ++i) made[i] = scrambled<int32_t>(from + i);
    return made;
}

struct Rows {
    Ids input_ids;
    std::vector<uint8_t> loss_mask;
    Numbers offsets{0};

    void write(const Ids& from, int64_t begin, int64_t end, bool target) {
        input_ids.insert(input_ids.end(), from.begin() + begin, from.begin() + end);
        loss_mask.insert(loss_mask.end(), end - begin, target);
    }
};

void run(Input in) {
    const int64_t settings = in.below(4), turns = in.below(12), threads = in.threads();
    const int64_t longest = in.one_in(8) ? 256 : 20;
    Numbers turn_offsets = offsets_of(in.sizes(turns, longest));
    const Numbers affix_offsets = offsets_of(in.sizes(2 * settings, 6));
    const Ids turn_ids = ids(turn_offsets.back(), 0), affixes = ids(affix_offsets.back(), 10000),
              bos = ids(in.below(3), 20000), eos = ids(in.below(3), 30000);
    std::vector<uint8_t> targets(settings), suffix_targets(settings);
    for (uint8_t& target : targets) target = in.one_in(2);
    for (uint8_t& target : suffix_targets) target = in.one_in(2);
    Numbers roles(turns), sizes;
    for (int64_t& role : roles) role = in.below(std::max<int64_t>(1, settings));
    for (int64_t left = turns; left > 0 || in.one_in(3); left -= sizes.back()) {
        sizes.push_back(std::min(left, in.below(4)));
        if (sizes.size() > 16) break;
    }
    Numbers row_offsets = offsets_of(sizes);
    for (Numbers* numbers : {&turn_offsets, &roles, &row_offsets}) {
        in.spoil(*numbers);
        if (in.one_in(24) && !numbers->empty()) numbers->pop_back();
    }
    if (row_offsets.empty()) return;  // as the binding has it

    Exactly<int32_t> given_turns(turn_ids), given_affixes(affixes), given_bos(bos), given_eos(eos);
    Exactly<int64_t> given_turn_offsets(turn_offsets), given_roles(roles), given_rows(row_offsets),
        given_affix_offsets(affix_offsets);
    Exactly<uint8_t> given_targets(targets), given_suffix_targets(suffix_targets);
    const ConcatIn given{given_turns.data(),
                         given_turns.size(),
                         given_turn_offsets.data(),
                         given_turn_offsets.size(),
                         given_roles.data(),
                         given_roles.size(),
                         given_rows.data(),
                         given_rows.size(),
                         given_affixes.data(),
                         given_affix_offsets.data(),
                         given_targets.data(),
                         given_suffix_targets.data(),
                         settings,
                         given_bos.data(),
                         given_bos.size(),
                         given_eos.data(),
                         given_eos.size()};
    Exactly<int64_t> offsets(given_rows.size());
    int64_t tokens = 0;
    const bool accepted = accepts([&] { tokens = concat_offsets(given, offsets.data()); });

    const auto count = static_cast<int64_t>(roles.size());
    bool is_valid = are_offsets(turn_offsets, given_turns.size()) &&
                    turn_offsets.size() == roles.size() + 1 && are_offsets(row_offsets, count);
    for (const int64_t role : roles) is_valid &= 0 <= role && role < settings;
    TP_REQUIRE(accepted == is_valid);
    if (!accepted) return;

    Rows wanted;
    for (size_t row = 0; row + 1 < row_offsets.size(); ++row) {
        bool target = false;
        wanted.write(bos, 0, bos.size(), false);
        for (int64_t turn = row_offsets[row]; turn < row_offsets[row + 1]; ++turn) {
            const int64_t role = roles[turn];
            target = targets[role];
            wanted.write(affixes, affix_offsets[2 * role], affix_offsets[2 * role + 1], false);
            wanted.write(turn_ids, turn_offsets[turn], turn_offsets[turn + 1], target);
            wanted.write(affixes, affix_offsets[2 * role + 1], affix_offsets[2 * role + 2],
                         suffix_targets[role]);
        }
        wanted.write(eos, 0, eos.size(), target);
        wanted.offsets.push_back(static_cast<int64_t>(wanted.input_ids.size()));
    }
    TP_REQUIRE(offsets == wanted.offsets && tokens == wanted.offsets.back());
    choose_machine(in);
    Exactly<int32_t> input_ids(tokens, in.below(16));
    Exactly<uint8_t> loss_mask(tokens, in.below(64));
    concat(given, {offsets.data(), input_ids.data(), loss_mask.data()}, threads);
    TP_REQUIRE(input_ids == wanted.input_ids && input_ids.is_whole());
    TP_REQUIRE(loss_mask == wanted.loss_mask && loss_mask.is_whole());
}

}  // namespace
}  // namespace turnpack::fuzz

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    turnpack::fuzz::run({data, size});
    return 0;
}
