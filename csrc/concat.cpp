// Owns `concat`: puts role ids around turns and marks targets. Reads no text, allocates nothing.

#include <algorithm>

#include "errors.h"
#include "kernels.h"
#include "machine.h"
#include "stream.h"
#include "threads.h"

namespace turnpack {
namespace {

template <template <class> class Writer>
void concat_rows(const ConcatIn& in, const ConcatOut& out, int64_t first, int64_t last) {
    Writer<int32_t> input_ids(out.input_ids + out.offsets[first]);
    Writer<uint8_t> loss_mask(out.loss_mask + out.offsets[first]);
    const auto write = [&](const int32_t* from, int64_t size, bool target) {
        copy_to(input_ids, from, size);
        fill_to(loss_mask, static_cast<uint8_t>(target), size);
    };
    for (int64_t row = first; row < last; ++row) {
        bool target = false;
        write(in.bos, in.bos_size, false);
        for (int64_t turn = in.row_offsets[row]; turn < in.row_offsets[row + 1]; ++turn) {
            const int64_t role = in.roles[turn];
            const int64_t* affix = in.affix_offsets + 2 * role;
            const int64_t begin = in.turn_offsets[turn];
            target = in.targets[role];
            write(in.affixes + affix[0], affix[1] - affix[0], false);
            write(in.turn_ids + begin, in.turn_offsets[turn + 1] - begin, target);
            write(in.affixes + affix[1], affix[2] - affix[1], in.suffix_targets[role]);
        }
        write(in.eos, in.eos_size, target);
    }
    input_ids.finish();
    loss_mask.finish();
}

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

void concat(const ConcatIn& in, const ConcatOut& out, int64_t threads) {
    const int64_t rows = in.row_offsets_size - 1;
    const bool streams = out.offsets[rows] >= stream_from() / 5;  // bytes a token
    const auto write = streams ? &concat_rows<Streamed> : &concat_rows<Ordinary>;
    in_ranges(out.offsets, rows, threads,
              [&](int64_t first, int64_t last) { write(in, out, first, last); });
}

}  // namespace turnpack
