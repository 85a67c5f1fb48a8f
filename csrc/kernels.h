// Owns the list of core functions: arguments, order and tie rules, what they throw. No Python here.
// All of them write into memory of the caller and throw std::invalid_argument (errors.h) on bad
// values before writing out of bounds; dtype and layout were checked by the caller.
#pragma once

#include <cstdint>
#include <vector>

#include "index.h"
#include "rule.h"

namespace turnpack {

// ---- concat: turns + roles -> rows and their loss mask ------------------------------------------

struct ConcatIn {
    const int32_t* turn_ids;      // [n]
    int64_t tokens;               // n
    const int64_t* turn_offsets;  // [turns + 1]
    int64_t turn_offsets_size;
    const int64_t* roles;  // [turns], each in [0, settings)
    int64_t turns;
    const int64_t* row_offsets;  // [rows + 1], into the turns
    int64_t row_offsets_size;
    const int32_t* affixes;         // prefix 0, suffix 0, prefix 1, suffix 1, ...
    const int64_t* affix_offsets;   // [2 * settings + 1]
    const uint8_t* targets;         // [settings]: is the turn's own text a target
    const uint8_t* suffix_targets;  // [settings]: is its suffix
    int64_t settings;
    const int32_t* bos;
    int64_t bos_size;
    const int32_t* eos;
    int64_t eos_size;
};

struct ConcatOut {
    const int64_t* offsets;  // [rows + 1], as concat_offsets made them
    int32_t* input_ids;      // [what the last of them says], as the other
    uint8_t* loss_mask;
};

// A row is: bos, then for each of its turns prefix, ids, suffix, then eos. Never targets: bos and
// prefixes. eos is a target if the row's last turn is one. Throws on offsets that are none and on a
// role that has no setting (the first such turn).
// Fills offsets [rows + 1] and returns how many tokens there will be; then concat fills them, on
// `threads` threads.
int64_t concat_offsets(const ConcatIn& in, int64_t* offsets);
void concat(const ConcatIn& in, const ConcatOut& out, int64_t threads);

// ---- mask_spans, mask_markers: -> loss mask -----------------------------------------------------

// extents [n, 2] and spans [m, 2] are half open, in characters, ragged by row. A token is a target
// if its extent and a span of its row share a character, so what is zero wide never is one. Spans
// may overlap and stand in any order, extents too. Throws at the first bad pair: by row, in it the
// extents before the spans. Works on `threads` threads.
void mask_spans(const int64_t* extents, int64_t tokens, const int64_t* offsets,
                int64_t offsets_size, const int64_t* spans, int64_t spans_size,
                const int64_t* span_offsets, int64_t span_offsets_size, int64_t threads,
                uint8_t* loss_mask);

// Patterns of ids, ragged; none is empty.
struct Patterns {
    const int32_t* ids;
    const int64_t* offsets;  // [size + 1]
    int64_t size;
};

// Each row is read left to right and begins outside. Outside, the longest start pattern that
// matches at i opens: targets begin right after it, and reading goes on there; without a match i is
// no target. Inside, the longest end pattern that matches at j closes: with include_end it is
// targets too and reading goes on after it; without, reading goes on outside AT j, so that its
// tokens may belong to a start pattern. What is never closed runs to the end of the row.
// Patterns do not reach over the end of a row. Works on `threads` threads.
void mask_markers(const int32_t* input_ids, int64_t tokens, const int64_t* offsets,
                  int64_t offsets_size, const Patterns& starts, const Patterns& ends,
                  bool include_end, int64_t threads, uint8_t* loss_mask);

// ---- plan: lengths -> bins ----------------------------------------------------------------------

enum class Strategy { best_fit, first_fit, in_order };

// A row of length L takes up ceil(L / align) * align cells of its bin's capacity; fill counts L.
//   best_fit   Longest row first, equal lengths by rising row id. Among the bins with the least
//              sufficient space, the one that has had that space longest: each space has a queue, a
//              bin joins its back when its space becomes that (when it is opened, too).
//   first_fit  The same order of rows; the lowest-numbered bin with room.
//   in_order   Rows by id; the last bin if there is room, otherwise a new one.
// Where no bin fits, one is opened. Bins are numbered as opened, a bin's rows stand in order of
// placement. A bin with max_rows rows takes no more. Throws on capacity, align, max_rows or threads
// below 1, and at the first row, by id, that is negative, empty or does not fit into an empty bin.
// Fills rows [size] and the first bins + 1 (bins) of offsets [size + 1] (fill [size]) on `threads`
// threads; returns bins. Memory is O(size), however large the capacity. `wide`: numbers rows by
// int64 within, as for 2^31 rows and more; the results are the same. Where another thread writes to
// the lengths meanwhile, the plan is one of lengths that were there.
int64_t plan(const int64_t* lengths, int64_t size, int64_t capacity, Strategy strategy,
             int64_t align, int64_t max_rows, int64_t threads, bool wide, int64_t* rows,
             int64_t* offsets, int64_t* fill);

// ---- Planner: a stream of lengths -> bins -------------------------------------------------------

struct Closed {  // bins as in a plan, rows by their number in the stream
    std::vector<int64_t> rows, offsets{0}, fill;
};

// The bins of a stream of rows, numbered from 0, in the memory of a window. Rows wait as they come.
// Whenever `window` rows wait, they are planned and some of the bins closed:
//   A waiting row is due when more than 3 * window rows came after it.
//   Order of rows: those that are due before the others; in both, longest first, equal lengths by
//   rising number. Each goes where best_fit puts it (see plan), into bins that are all new.
//   Closed are the bins that can take no further row (not a unit of `align` is left, or they have
//   max_rows) and those with a row that is due. If fewer than half of the waiting rows stand in
//   these, then further bins, least space first and then lowest number, until at least half do.
// Closed bins are given out by number, in them rows in order of placement; all other rows wait on,
// and nothing but their number and length is kept. So no row waits for more than 4 * window later
// ones, and how the stream is cut into calls changes no bin.
class Planner {
  public:
    // Throws on capacity, window, align or max_rows below 1.
    Planner(int64_t capacity, int64_t window, int64_t align, int64_t max_rows);

    // Throws as plan does, by the row's number in the stream, and then takes none of the rows.
    Closed add(const int64_t* lengths, int64_t size);

    // Plans what waits, in the same order, and closes every bin. Numbers go on from there.
    Closed flush();

    struct State {
        int64_t rows = 0;                   // of the stream so far
        std::vector<int64_t> ids, lengths;  // of what waits, by rising number
    };
    const State& state() const { return state_; }

    // Goes on from that state, or throws and stays as it was: where a number is below 0, does not
    // rise or is not below `rows`, where plan refuses a length, or where a window of rows waits.
    void load(State state);

  private:
    void close_some(bool all, Closed& closed);

    Rule rule_;
    int64_t window_;
    State state_;
};

// ---- pack, unpack: tokens + plan <-> bins -------------------------------------------------------

struct PackShape {
    int64_t cells;       // in all bins together
    int64_t segments;    // documents, and one more for each bin with padding
    int64_t max_seqlen;  // the longest of them, 0 if there is none
};

// Checks the plan against the tokens and lays out the cells: fills cell_offsets [bins + 1].
// `flat`: bins back to back, otherwise `capacity` cells each. `wide`: cells are int64, not int32.
// Throws on offsets that are none; by bin and in it by place: on a row that is not there, that
// stands in two places or is empty; then on a bin whose tokens pass the capacity or are not the
// plan's fill; and where cells or their positions pass the integers at hand.
PackShape pack_cells(const int64_t* offsets, int64_t offsets_size, int64_t tokens,
                     const int64_t* rows, int64_t rows_size, const int64_t* bin_offsets,
                     int64_t bin_offsets_size, const int64_t* fill, int64_t capacity, bool flat,
                     bool wide, int64_t* cell_offsets);

// Boundaries of the segments, [segments + 1], over the cells of all bins: from 0, strictly rising.
void pack_cu_seqlens(const PackIn& in, int64_t bins, int64_t* cu_seqlens);

// Fills the cells of all bins as pack_bin does, on `threads` threads. lanes 0: the tuned form;
// lanes > 0: pack_bin itself, each of the lanes in turn.
void pack(const PackIn& in, const PackOut<int32_t>& out, int64_t bins, int64_t threads,
          int64_t lanes);
void pack(const PackIn& in, const PackOut<int64_t>& out, int64_t bins, int64_t threads,
          int64_t lanes);

// Where the rows of a packed set stand. Fills order [rows]: the places of the rows by rising row
// id, starts [rows]: the cell where the row of each of these begins, offsets [rows + 1]: of the
// tokens they make. Throws on offsets that are none, where cu_seqlens and bin_offsets do not agree
// and on a row that stands in two places. capacity 0: flat.
void unpack_rows(const int64_t* rows, int64_t rows_size, const int64_t* bin_offsets,
                 int64_t bin_offsets_size, const int64_t* cu_seqlens, int64_t cu_seqlens_size,
                 int64_t cells, int64_t capacity, int64_t* order, int64_t* starts,
                 int64_t* offsets);

template <class Int>
struct UnpackIn {
    const Int* input_ids;  // [cells], as all of them
    const Int* labels;
    const float* loss_weights;  // or null
    const int64_t* starts;      // [rows]
    const int64_t* offsets;     // [rows + 1]
    int64_t rows;
};

struct UnpackOut {
    int32_t* input_ids;  // [n], as all of them
    uint8_t* loss_mask;
    float* loss_weights;  // or null
};

// Gathers the rows on `threads` threads; a token is a target where its label is not -100. Throws at
// the first id, in order of output, beyond int32.
void unpack(const UnpackIn<int32_t>& in, const UnpackOut& out, int64_t threads);
void unpack(const UnpackIn<int64_t>& in, const UnpackOut& out, int64_t threads);

}  // namespace turnpack
