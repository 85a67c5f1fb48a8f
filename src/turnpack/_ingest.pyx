# Owns the loops over Python containers: lists of ids to ragged arrays and back.
# Takes Python objects and returns arrays or lists; array arithmetic is the core's.

from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE, PyList_New, PyList_SET_ITEM
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_CheckExact, PyLong_FromLong
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.stdint cimport int32_t, int64_t

import numpy as np

from turnpack._checks import is_int


cdef class _Ids:
    """An int32 array that grows."""

    cdef object array
    cdef int32_t[::1] room
    cdef Py_ssize_t size

    def __cinit__(self):
        self.array = np.empty(1024, np.int32)
        self.room = self.array
        self.size = 0

    cdef int32_t* more(self, Py_ssize_t count) except NULL:
        """Makes room for `count` more and returns where they go."""
        cdef Py_ssize_t wanted = self.size + count
        if wanted >= self.room.shape[0]:
            grown = np.empty(max(wanted + 1, 2 * self.room.shape[0]), np.int32)
            grown[: self.size] = self.array[: self.size]
            self.array = grown
            self.room = grown
        return &self.room[self.size]


cdef int32_t _checked(object item, Py_ssize_t row, Py_ssize_t i) except? -1:
    if not is_int(item):
        raise TypeError(f"row {row}, item {i} is {type(item).__name__}, not an int")
    value = int(item)
    if not -(1 << 31) <= value < 1 << 31:
        raise ValueError(f"row {row}, item {i} is {value}, beyond int32")
    return value


cdef inline int32_t _id(object item, Py_ssize_t row, Py_ssize_t i) except? -1:
    cdef int overflow = 0
    cdef long long value
    if PyLong_CheckExact(item):
        value = PyLong_AsLongLongAndOverflow(item, &overflow)
        if overflow == 0 and value == <int32_t>value:
            return <int32_t>value
    return _checked(item, row, i)


cdef int _extend_array(_Ids ids, object row, Py_ssize_t number) except -1:
    """Takes over a 1-D array of integers at once."""
    outside = (row < -(1 << 31)) | (row >= 1 << 31)
    if outside.any():
        i = int(outside.argmax())
        _checked(row[i], number, i)
    ids.more(len(row))
    ids.array[ids.size : ids.size + len(row)] = row
    ids.size += len(row)
    return 0


cdef int _extend(_Ids ids, object row, Py_ssize_t number) except -1:
    cdef Py_ssize_t i, size
    cdef int32_t* to
    if isinstance(row, np.ndarray) and row.ndim == 1 and row.dtype.kind in "iu":
        return _extend_array(ids, row, number)
    if type(row) is not list and type(row) is not tuple:
        try:
            row = list(row)
        except TypeError:
            raise TypeError(
                f"row {number} is {type(row).__name__}, not a sequence of int"
            ) from None
    if type(row) is list:
        size = PyList_GET_SIZE(row)
        to = ids.more(size)
        for i in range(size):
            if i >= PyList_GET_SIZE(row):  # an item that is not quite an int may run any code
                raise RuntimeError(f"row {number} changed while it was read")
            to[i] = _id(<object>PyList_GET_ITEM(row, i), number, i)
    else:
        size = PyTuple_GET_SIZE(row)
        to = ids.more(size)
        for i in range(size):
            to[i] = _id(<object>PyTuple_GET_ITEM(row, i), number, i)
    ids.size += size
    return 0


def flatten(rows):
    """Ragged arrays from rows of ids; see turnpack.kernels.flatten."""
    cdef _Ids ids = _Ids()
    ends = [0]
    for number, row in enumerate(rows):
        _extend(ids, row, number)
        ends.append(ids.size)
    return ids.array[: ids.size].copy(), np.array(ends, np.int64)


def unflatten(const int32_t[::1] values, const int64_t[::1] offsets):
    """Lists of ids from ragged arrays that were checked; see turnpack.kernels.unflatten."""
    cdef Py_ssize_t number, i, begin, size
    cdef list row, rows = []
    for number in range(offsets.shape[0] - 1):
        begin = offsets[number]
        size = offsets[number + 1] - begin
        row = PyList_New(size)
        for i in range(size):
            item = PyLong_FromLong(values[begin + i])
            Py_INCREF(item)  # SET_ITEM takes over a reference
            PyList_SET_ITEM(row, i, item)
        rows.append(row)
    return rows
