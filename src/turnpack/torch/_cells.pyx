# Owns the loops of the collator: where documents go among the cells, Python lists of ids into
# cells, and what counts along segments; that of the dataset, its items; and that of the sampler,
# random orders. The collator's write into memory that it made, but for `lay`.

import numpy as np

from cpython.list cimport PyList_GET_SIZE
from cpython.object cimport PyObject
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from turnpack._checks import is_int


cdef extern from *:
    """
    #include <stdint.h>

    /* Reads ints up to the first item that is not exactly an int of one digit (30 bits), for which
       CPython needs no call. Returns how many it read. */
    static Py_ssize_t turnpack_read_cells(PyObject **items, Py_ssize_t size, int64_t *to) {
    #if CYTHON_COMPILING_IN_CPYTHON
    #ifdef __GNUC__
    #pragma GCC unroll 8  /* what counts here is the number of instructions */
    #endif
        for (Py_ssize_t i = 0; i < size; ++i) {
            PyObject *item = items[i];
    #ifdef __GNUC__
            __builtin_prefetch(items[i + 16 < size ? i + 16 : i]);
    #endif
            if (!PyLong_CheckExact(item)) return i;
    #if PY_VERSION_HEX >= 0x030C0000
            if (!PyUnstable_Long_IsCompact((PyLongObject *)item)) return i;
            to[i] = PyUnstable_Long_CompactValue((PyLongObject *)item);
    #else
            Py_ssize_t digits = Py_SIZE(item);
            if (digits < -1 || digits > 1) return i;
            to[i] = digits * (int64_t)((PyLongObject *)item)->ob_digit[0];
    #endif
        }
        return size;
    #else
        return 0;
    #endif
    }
    """
    Py_ssize_t read_cells "turnpack_read_cells"(
        PyObject** items, Py_ssize_t size, int64_t* to
    ) noexcept
    PyObject** PySequence_Fast_ITEMS(object)


cdef int64_t MOST_CELLS = 1 << 31


def lay(const int64_t[::1] lengths not None, const int64_t[::1] documents not None, bint flat,
        int64_t align, int64_t multiple, int64_t capacity, int64_t most):
    """Where documents of these lengths go: in one row if `flat`, else `documents[r]` in row r.

    `align`, `multiple`: what a document's and a row's length are raised to a multiple of;
    `capacity`: the length of a row, `most`: of segments; 0 for as many as it takes.

    Returns boundaries int32 [segments + 1], or [most + 1] with the last one repeated; numbers int32
    [segments]: from 0 if flat, else from 1 in each row and 0 for its padding; starts int64
    [documents], or None where one begins where another ends; the width of a row; the longest
    segment.
    """
    cdef Py_ssize_t rows = 1 if flat else documents.shape[0]
    cdef Py_ssize_t row, end, document = 0, segment = 0
    cdef int64_t filled, width = 0, longest = 0, cell = 0, first, tokens = 0
    for row in range(rows):
        filled = 0
        end = lengths.shape[0] if flat else document + documents[row]
        while document < end:
            filled += _up(lengths[document], align)
            document += 1
            if filled >= MOST_CELLS:
                raise ValueError(f"{filled} cells are too many for int32 boundaries")
        if 0 < capacity < filled:
            raise ValueError(f"item {row} has {filled} tokens, more than capacity {capacity}")
        width = max(width, filled)
    width = _up(capacity or width, multiple)
    if width >= MOST_CELLS or width * rows >= MOST_CELLS:
        raise ValueError(f"{width * rows} cells are too many for int32 boundaries")

    made_boundaries = np.empty(max(most, document + rows) + 1, np.int32)
    made_numbers = np.empty(document + rows, np.int32)
    made_starts = np.empty(document, np.int64)
    cdef int32_t[::1] boundaries = made_boundaries
    cdef int32_t[::1] numbers = made_numbers
    cdef int64_t[::1] starts = made_starts
    document = 0
    for row in range(rows):
        first = segment - (not flat)
        end = lengths.shape[0] if flat else document + documents[row]
        while document < end:
            starts[document] = boundaries[segment] = <int32_t>cell
            numbers[segment] = <int32_t>(segment - first)
            filled = _up(lengths[document], align)
            longest = max(longest, filled)
            tokens += lengths[document]
            cell += filled
            document += 1
            segment += 1
        filled = width * (row + 1) - cell
        if filled:
            boundaries[segment] = <int32_t>cell
            numbers[segment] = <int32_t>segment if flat else 0
            longest = max(longest, filled)
            cell += filled
            segment += 1
    if 0 < most < segment:
        raise ValueError(f"{segment} segments, more than max_segments {most}")
    end = max(segment, most) + 1
    boundaries[segment:end] = <int32_t>cell
    moved = document and starts[document - 1] != tokens - lengths[document - 1]
    return (
        made_boundaries[:end],
        made_numbers[:segment],
        made_starts if moved else None,
        width,
        longest,
    )


cdef inline int64_t _up(int64_t size, int64_t multiple):
    return -(-size // multiple) * multiple


def read(list rows not None, list sizes not None, str name not None, int64_t[::1] cells not None):
    """Write the ids of all rows, if they are lists of int, into `cells` one after the other.

    Returns whether all are lists. `sizes`: how many ids a row must have, `name`: what they are.
    """
    cdef Py_ssize_t number, i, size, at = 0
    cdef list row
    cdef bint lists = True
    for number in range(PyList_GET_SIZE(rows)):
        lists = lists and type(rows[number]) is list
        size = len(rows[number])
        if size != sizes[number]:
            raise ValueError(f"item {number} has {sizes[number]} input_ids, but {size} {name}")
    if not lists:
        return False
    for number in range(PyList_GET_SIZE(rows)):
        row = rows[number]
        size = PyList_GET_SIZE(row)
        if at + size > cells.shape[0]:
            raise RuntimeError(f"item {number} changed while it was read")
        i = 0
        while i < size:
            i += read_cells(PySequence_Fast_ITEMS(row) + i, size - i, &cells[0] + at + i)
            if i < size:
                item = row[i]
                if not is_int(item):
                    raise TypeError(
                        f"item {number}, token {i} is {type(item).__name__}, not an int"
                    )
                value = int(item)
                if not -(1 << 63) <= value < 1 << 63:
                    raise ValueError(f"item {number}, token {i} is {value}, beyond int64")
                cells[at + i] = value
                i += 1
                # An item that is not quite an int may run any code.
                if PyList_GET_SIZE(row) != size:
                    raise RuntimeError(f"item {number} changed while it was read")
        at += size
    return True


ctypedef fused number_t:
    int32_t
    int64_t


def count(const int32_t[::1] boundaries not None, int64_t[::1] positions not None):
    """Write where in its segment each cell is. Entries of `boundaries` may be repeated."""
    cdef Py_ssize_t segment, i, size
    cdef int64_t* position
    _check(boundaries, positions.shape[0])
    for segment in range(boundaries.shape[0] - 1):
        size = boundaries[segment + 1] - boundaries[segment]
        if size:
            position = &positions[boundaries[segment]]
            for i in range(size):
                position[i] = i


def number(const int32_t[::1] boundaries not None, const int32_t[::1] numbers not None,
           number_t[::1] cells not None):
    """Write the number of its segment into each cell."""
    cdef Py_ssize_t segment, i, size
    cdef number_t* cell
    _check(boundaries, cells.shape[0])
    for segment in range(min(numbers.shape[0], boundaries.shape[0] - 1)):
        size = boundaries[segment + 1] - boundaries[segment]
        if size:
            cell = &cells[boundaries[segment]]
            for i in range(size):
                cell[i] = numbers[segment]


cdef _check(const int32_t[::1] boundaries, Py_ssize_t cells):
    cdef Py_ssize_t segment
    if boundaries.shape[0] < 1 or boundaries[0] < 0 or boundaries[boundaries.shape[0] - 1] > cells:
        raise ValueError(f"boundaries are not those of {cells} cells")
    for segment in range(boundaries.shape[0] - 1):
        if boundaries[segment] > boundaries[segment + 1]:
            raise ValueError(f"boundaries fall at segment {segment}")


def orders(const uint64_t[:, ::1] draws not None):
    """Random orders of 0, 1.. along the last axis, int64 of the same shape: one draw for each place.

    Fisher and Yates' way: place i takes what a place of those up to it has, which takes i.
    """
    if draws.shape[1] >> 32:
        raise ValueError(f"orders of {draws.shape[1]} are too long")
    made = np.empty((draws.shape[0], draws.shape[1]), np.int64)
    cdef int64_t[:, ::1] order = made
    cdef Py_ssize_t row, i, other
    cdef uint64_t draw, high, low
    for row in range(draws.shape[0]):
        for i in range(draws.shape[1]):
            # The upper half of draw * (i + 1), which is 0, 1.. i.
            draw = draws[row, i]
            high = (draw >> 32) * <uint64_t>(i + 1)
            low = <uint64_t><uint32_t>draw * <uint64_t>(i + 1)
            other = <Py_ssize_t>((high + (low >> 32)) >> 32)
            order[row, i] = order[row, other]
            order[row, other] = i
    return made


def items(dict arrays not None, const int64_t[:] starts not None, indices,
          const int64_t[:] firsts=None, lengths=None):
    """Dicts of views of `arrays`: item i is from `starts[i]` to before `starts[i + 1]`.

    `lengths` int32, those `firsts[i]` to before `firsts[i + 1]` being item i's documents': then
    they are in the dicts too, as `seq_lengths`, and with them `position_ids` int64, one new array
    for all items. Negative indices count from the end.

    Raises IndexError for an item that is not there, ValueError where lengths do not agree.
    """
    cdef Py_ssize_t size = starts.shape[0] - 1, index, number, document, i
    cdef int64_t start, stop, cell = 0, end
    cdef const int32_t[:] length
    cdef list made = [], chosen = []
    cdef dict item
    for given in indices:
        index = given
        if not -size <= index < size:
            raise IndexError(f"item {index} of {size}")
        index += size * (index < 0)
        start, stop = starts[index], starts[index + 1]
        if not 0 <= start <= stop:
            raise ValueError(f"item {index} is from {start} to {stop}")
        cell += stop - start
        chosen.append(index)
    cdef int64_t[::1] position
    if firsts is not None:
        length = lengths
        positions = np.empty(cell, np.int64)
        position = positions
        cell = 0
    for number in range(len(chosen)):
        index = chosen[number]
        start, stop = starts[index], starts[index + 1]
        part = slice(start, stop)
        item = {name: array[part] for name, array in arrays.items()}
        if firsts is not None:
            if not 0 <= firsts[index] <= firsts[index + 1] <= length.shape[0]:
                raise ValueError(f"item {index} has documents that are not there")
            end = cell + (stop - start)
            if end > position.shape[0]:
                raise RuntimeError(f"item {index} changed while it was read")
            item["position_ids"] = positions[cell:end]
            for document in range(firsts[index], firsts[index + 1]):
                if not 0 <= length[document] <= end - cell:
                    raise ValueError(f"item {index} has documents of other lengths than its own")
                for i in range(length[document]):
                    position[cell + i] = i
                cell += length[document]
            if cell != end:
                raise ValueError(f"item {index} has documents of other lengths than its own")
            item["seq_lengths"] = lengths[firsts[index]:firsts[index + 1]]
        made.append(item)
    return made
