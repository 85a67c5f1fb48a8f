"""Owns what the kernels are compared with: numba, NumPy and plain Python, as one would write them.

Same results as the kernels, which each benchmark asserts before it times; but for planner_windows,
which nobody writes as a stream. Never imported by src/.
"""

import json
from bisect import bisect_left, insort
from itertools import chain, pairwise

import jinja2
import numpy as np
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from numba import njit

IGNORE = -100


def bare_jinja(source):
    """A chat template's `render`, in the environment that transformers gives it."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = lambda x: json.dumps(x, ensure_ascii=False)

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(source).render


def flatten_numpy(rows):
    values = np.fromiter(chain.from_iterable(rows), np.int32)
    return values, np.cumsum([0, *map(len, rows)], dtype=np.int64)


def unflatten_numpy(values, offsets):
    return [values[a:b].tolist() for a, b in pairwise(offsets)]


def concat_plain(turns, roles, rows, settings, bos):
    """Turns as lists of ids, a row as a range of turns."""
    input_ids, loss_mask = [], []
    for begin, end in rows:
        ids, mask = list(bos), [0] * len(bos)
        for turn in range(begin, end):
            role = settings[roles[turn]]
            ids += [*role.prefix, *turns[turn], *role.suffix]
            mask += [0] * len(role.prefix)
            mask += [int(role.target)] * (len(turns[turn]) + len(role.suffix))
        input_ids.append(ids)
        loss_mask.append(mask)
    return input_ids, loss_mask


@njit(cache=False)
def mask_spans_numba(extents, offsets, spans, span_offsets, mask):
    for row in range(len(offsets) - 1):
        for i in range(offsets[row], offsets[row + 1]):
            mask[i] = 0
            for s in range(span_offsets[row], span_offsets[row + 1]):
                if max(extents[i, 0], spans[s, 0]) < min(extents[i, 1], spans[s, 1]):
                    mask[i] = 1
                    break


@njit(cache=False)
def mask_markers_numba(input_ids, offsets, start, end, mask):
    """One pattern of each kind; the end counts."""
    for row in range(len(offsets) - 1):
        at, stop, inside = offsets[row], offsets[row + 1], False
        while at < stop:
            pattern = end if inside else start
            size = len(pattern) if at + len(pattern) <= stop else 0
            for k in range(size):
                if input_ids[at + k] != pattern[k]:
                    size = 0
                    break
            step = max(size, 1)
            for i in range(at, at + step):
                mask[i] = inside
            at += step
            inside = inside != (size > 0)


def plan_bisect(lengths, capacity):
    """Best fit by a sorted list of (space, since when, bin)."""
    bins, pool = [], []
    for tick, row in enumerate(np.argsort(-lengths, kind="stable").tolist()):
        length = int(lengths[row])
        at = bisect_left(pool, (length,))
        if at < len(pool):
            space, _, chosen = pool.pop(at)
        else:
            space, chosen = capacity, len(bins)
            bins.append([])
        bins[chosen].append(row)
        if space > length:
            insort(pool, (space - length, tick, chosen))
    return bins


def planner_windows(lengths, capacity, window):
    """A stream as others plan it, each window by itself: no bin of it is the Planner's."""
    bins = []
    for begin in range(0, len(lengths), window):
        made = plan_bisect(lengths[begin : begin + window], capacity)
        bins += [[begin + row for row in rows] for rows in made]
    return bins


@njit(cache=False)
def pack_numba(
    ids, mask, offsets, rows, bin_offsets, capacity, pad, input_ids, labels, positions, segments
):
    """One loop over the cells, as one writes it."""
    for b in range(len(bin_offsets) - 1):
        cell = 0
        for k in range(bin_offsets[b], bin_offsets[b + 1]):
            token = offsets[rows[k]]
            size = offsets[rows[k] + 1] - token
            segment = k - bin_offsets[b] + 1
            for i in range(size):
                id = ids[token + i]
                input_ids[b, cell + i] = id
                labels[b, cell + i] = id if mask[token + i] else IGNORE
                positions[b, cell + i] = i
                segments[b, cell + i] = segment
            labels[b, cell] = IGNORE
            cell += size
        for i in range(capacity - cell):
            input_ids[b, cell + i] = pad
            labels[b, cell + i] = IGNORE
            positions[b, cell + i] = i
            segments[b, cell + i] = 0


@njit(cache=False)
def pack_numba_by_array(
    ids, mask, offsets, rows, bin_offsets, capacity, pad, input_ids, labels, positions, segments
):
    """One loop for each array: the form that numba compiles best, written for this comparison."""
    for b in range(len(bin_offsets) - 1):
        cell = 0
        for k in range(bin_offsets[b], bin_offsets[b + 1]):
            begin, end = offsets[rows[k]], offsets[rows[k] + 1]
            after = cell + end - begin
            row_ids, row_mask = ids[begin:end], mask[begin:end]
            ids_to, labels_to = input_ids[b, cell:after], labels[b, cell:after]
            positions_to, segments_to = positions[b, cell:after], segments[b, cell:after]
            segment = k - bin_offsets[b] + 1
            for i in range(end - begin):
                ids_to[i] = row_ids[i]
            for i in range(end - begin):
                token = row_ids[i]
                labels_to[i] = token if row_mask[i] else IGNORE
            for i in range(end - begin):
                positions_to[i] = i
            for i in range(end - begin):
                segments_to[i] = segment
            labels_to[0] = IGNORE
            cell = after
        input_ids[b, cell:] = pad
        labels[b, cell:] = IGNORE
        segments[b, cell:] = 0
        for i in range(capacity - cell):
            positions[b, cell + i] = i


def pack_numpy(tokens, plan, pad, input_ids, labels, positions, segments):
    """A slice for each row."""
    trained = np.where(tokens.loss_mask, tokens.input_ids, np.int32(IGNORE))
    count = np.arange(plan.capacity, dtype=np.int32)
    offsets, rows = tokens.offsets.tolist(), plan.rows.tolist()
    bin_offsets = plan.offsets.tolist()
    for b in range(plan.num_bins):
        cell = 0
        for segment, k in enumerate(range(bin_offsets[b], bin_offsets[b + 1]), start=1):
            begin, end = offsets[rows[k]], offsets[rows[k] + 1]
            after = cell + end - begin
            input_ids[b, cell:after] = tokens.input_ids[begin:end]
            labels[b, cell:after] = trained[begin:end]
            labels[b, cell] = IGNORE
            positions[b, cell:after] = count[: end - begin]
            segments[b, cell:after] = segment
            cell = after
        input_ids[b, cell:] = pad
        labels[b, cell:] = IGNORE
        positions[b, cell:] = count[: plan.capacity - cell]
        segments[b, cell:] = 0


@njit(cache=False)
def unpack_numba(input_ids, labels, starts, offsets, ids, mask):
    """`starts`: the first cell of each row, in order of output."""
    for row in range(len(starts)):
        shift = starts[row] - offsets[row]
        for i in range(offsets[row], offsets[row + 1]):
            ids[i] = input_ids[i + shift]
            mask[i] = labels[i + shift] != IGNORE
