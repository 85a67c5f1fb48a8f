// Owns `concat`: puts role ids around turns and marks targets. Reads no text, allocates nothing.

#include <algorithm>

#include "errors.h"
#include "kernels.h"

namespace turnpack {
namespace {

struct Writer {
    int32_t* ids;
    uint8_t* mask;

    void write(const int32_t* from, int64_t size, bool target) {
        ids = std::copy_n(from, size, ids);
        mask = std::fill_n(mask, size, static_cast<uint8_t>(target));
    }
};

}  // namespace

int64_t concat_offsets(const ConcatIn& in, int64_t* offsets) {
    check_offsets("turn_offsets", in.turn_offsets, in.turn_offsets_size, in.tokens);
    if (in.turns != in.turn_offsets_size - 1) {
        fail("roles has ", in.turns, " entries, but there are ", in.turn_offsets_size - 1,
             " turns");
    }
    check_offsets("row_offsets", in.row_offsets, in.row_offsets_size, in.turns);
    offsets[0] = 0;
    for (int64_t row = 0; row + 1 < in.row_offsets_size; ++row) {
        int64_t end = checked_add(offsets[row], checked_add(in.bos_size, in.eos_size));
        for (int64_t turn = in.row_offsets[row]; turn < in.row_offsets[row + 1]; ++turn) {
            const int64_t role = in.roles[turn];
            if (role < 0 || role >= in.settings) {
                fail("turn ", turn, " has role ", role, ", but there are ", in.settings,
                     " settings");
            }
            const int64_t affixes = in.affix_offsets[2 * role + 2] - in.affix_offsets[2 * role];
            end = checked_add(end, in.turn_offsets[turn + 1] - in.turn_offsets[turn]);
            end = checked_add(end, affixes);
        }
        offsets[row + 1] = end;
    }
    return offsets[in.row_offsets_size - 1];
}

void concat(const ConcatIn& in, const int64_t* offsets, int32_t* input_ids, uint8_t* loss_mask) {
    for (int64_t row = 0; row + 1 < in.row_offsets_size; ++row) {
        Writer out{input_ids + offsets[row], loss_mask + offsets[row]};
        bool target = false;
        out.write(in.bos, in.bos_size, false);
        for (int64_t turn = in.row_offsets[row]; turn < in.row_offsets[row + 1]; ++turn) {
            const int64_t role = in.roles[turn];
            const int64_t* affix = in.affix_offsets + 2 * role;
            const int64_t begin = in.turn_offsets[turn];
            target = in.targets[role];
            out.write(in.affixes + affix[0], affix[1] - affix[0], false);
            out.write(in.turn_ids + begin, in.turn_offsets[turn + 1] - begin, target);
            out.write(in.affixes + affix[1], affix[2] - affix[1], in.suffix_targets[role]);
        }
        out.write(in.eos, in.eos_size, target);
    }
}

}  // namespace turnpack
