# Owns the two loops of the collator: Python lists of ids into cells, and the places of segments.
# Both write into memory that the collator made; what does not fit there it has refused.

from cpython.list cimport PyList_GET_SIZE
from cpython.object cimport PyObject
from libc.stdint cimport int32_t, int64_t

from turnpack._checks import is_int


cdef extern from *:
    """
    #include <stdint.h>

    /* Reads ints up to the first item that is not exactly an int of one digit (30 bits), for which
       CPython needs no call. Returns how many it read. */
    static Py_ssize_t turnpack_read_cells(PyObject **items, Py_ssize_t size, int64_t *to) {
    #if CYTHON_COMPILING_IN_CPYTHON
        for (Py_ssize_t i = 0; i < size; ++i) {
            PyObject *item = items[i];
    #ifdef __GNUC__
            if (i + 16 < size) __builtin_prefetch(items[i + 16]);
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


def read(list rows not None, int64_t[::1] cells not None):
    """Write the ids of all rows, lists of int, into `cells` one after the other."""
    cdef Py_ssize_t number, i, size, at = 0
    cdef list row
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


def number(const int64_t[::1] segments not None, int64_t[::1] positions not None,
           int32_t[::1] numbers not None):
    """Write where in its segment each cell is, and in which segment; their lengths are given."""
    cdef Py_ssize_t segment, i, size, at = 0
    cdef int64_t* position
    cdef int32_t* numbered
    for segment in range(segments.shape[0]):
        size = segments[segment]
        if size < 0 or size > positions.shape[0] - at or size > numbers.shape[0] - at:
            raise ValueError(f"segment {segment} of {size} cells does not fit")
        if size == 0:
            continue
        position = &positions[at]
        numbered = &numbers[at]
        for i in range(size):
            position[i] = i
        for i in range(size):
            numbered[i] = <int32_t>segment
        at += size
