# Owns the loops over Python containers: lists of ids to ragged arrays and back, the messages
# that are nothing but a role and a text, as nearly all are, and what is asked of every row.
# Takes Python objects and returns arrays or lists; array arithmetic is the core's.

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE, PyByteArray_Resize
from cpython.bytes cimport PyBytes_FromFormat, PyBytes_FromStringAndSize
from cpython.dict cimport PyDict_Next
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE, PyList_New, PyList_SET_ITEM
from cpython.long cimport PyLong_FromLong
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from cpython.unicode cimport PyUnicode_AsUTF8, PyUnicode_DecodeUTF8
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

import numpy as np

from turnpack._checks import is_int


cdef extern from "Python.h":
    bint PyUnicode_IS_ASCII(object)
    Py_ssize_t PyUnicode_GET_LENGTH(object)
    int PyUnicode_KIND(object)
    void* PyUnicode_DATA(object)
    object PyType_GenericAlloc(type, Py_ssize_t)
    int PyObject_GenericSetAttr(object, object, object) except -1


cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    static int turnpack_holds(const char *text, Py_ssize_t size, const char *part, Py_ssize_t of) {
        const char *end = text + size;
        while (end - text >= of && (text = (const char *)memchr(text, *part, end - text - of + 1))) {
            if (!memcmp(text, part, of)) return 1;
            ++text;
        }
        return 0;
    }

    /* Reads ints up to the first item that is not exactly an int of one digit (30 bits), for which
       CPython needs no call. Returns how many it read. */
    static Py_ssize_t turnpack_read_small(PyObject **items, Py_ssize_t size, int32_t *to) {
    #if CYTHON_COMPILING_IN_CPYTHON
        for (Py_ssize_t i = 0; i < size; ++i) {
            PyObject *item = items[i];
    #ifdef __GNUC__
            if (i + 16 < size) __builtin_prefetch(items[i + 16]);
    #endif
            if (!PyLong_CheckExact(item)) return i;
    #if PY_VERSION_HEX >= 0x030C0000
            if (!PyUnstable_Long_IsCompact((PyLongObject *)item)) return i;
            to[i] = (int32_t)PyUnstable_Long_CompactValue((PyLongObject *)item);
    #else
            Py_ssize_t digits = Py_SIZE(item);
            if (digits < -1 || digits > 1) return i;
            to[i] = digits ? (int32_t)digits * (int32_t)((PyLongObject *)item)->ob_digit[0] : 0;
    #endif
        }
        return size;
    #else
        return 0;
    #endif
    }
    """
    bint holds "turnpack_holds"(
        const char* text, Py_ssize_t size, const char* part, Py_ssize_t of
    ) noexcept
    Py_ssize_t read_small "turnpack_read_small"(
        PyObject** items, Py_ssize_t size, int32_t* to
    ) noexcept
    PyObject** PySequence_Fast_ITEMS(object)


cdef class _Ids:
    """An int32 array that grows."""

    cdef object array
    cdef int32_t[::1] room
    cdef Py_ssize_t size

    def __cinit__(self, Py_ssize_t expected):
        self.array = np.empty(max(expected, 1), np.int32)
        self.room = self.array
        self.size = 0

    cdef int32_t* more(self, Py_ssize_t count) except NULL:
        """Makes room for `count` more and returns where they go."""
        cdef Py_ssize_t wanted = self.size + count
        if wanted > self.room.shape[0]:
            grown = np.empty(max(wanted, 2 * self.room.shape[0]), np.int32)
            grown[: self.size] = self.array[: self.size]
            self.array = grown
            self.room = grown
        return &self.room[0] + self.size

    cdef object taken(self):
        if self.size == self.room.shape[0]:
            return self.array
        return self.array[: self.size].copy()


cdef int32_t _checked(object item, Py_ssize_t row, Py_ssize_t i) except? -1:
    if not is_int(item):
        raise TypeError(f"row {row}, item {i} is {type(item).__name__}, not an int")
    value = int(item)
    if not -(1 << 31) <= value < 1 << 31:
        raise ValueError(f"row {row}, item {i} is {value}, beyond int32")
    return value


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
    cdef object item
    if isinstance(row, np.ndarray) and row.ndim == 1 and row.dtype.kind in "iu":
        if not isinstance(row, np.ma.MaskedArray):  # of which some items may not be there
            return _extend_array(ids, row, number)
    if type(row) is not list and type(row) is not tuple:
        try:
            row = list(row)
        except TypeError:
            raise TypeError(
                f"row {number} is {type(row).__name__}, not a sequence of int"
            ) from None
    cdef bint is_list = type(row) is list
    size = PyList_GET_SIZE(row) if is_list else PyTuple_GET_SIZE(row)
    to = ids.more(size)
    i = 0
    while i < size:
        i += read_small(PySequence_Fast_ITEMS(row) + i, size - i, to + i)
        if i < size:
            item = <object>PyList_GET_ITEM(row, i) if is_list else <object>PyTuple_GET_ITEM(row, i)
            to[i] = _checked(item, number, i)
            i += 1
            # An item that is not quite an int may run any code.
            if is_list and PyList_GET_SIZE(row) != size:
                raise RuntimeError(f"row {number} changed while it was read")
    ids.size += size
    return 0


cdef Py_ssize_t _expected(object rows):
    """How many ids there are, as far as that can be seen beforehand."""
    cdef Py_ssize_t total = 0
    if type(rows) is list or type(rows) is tuple:
        for row in rows:
            if type(row) is list or type(row) is tuple:
                total += len(row)
            elif isinstance(row, np.ndarray):
                total += row.size
    return total


def flatten(rows):
    """Ragged arrays from rows of ids; see turnpack.kernels.flatten."""
    cdef _Ids ids = _Ids(_expected(rows))
    ends = [0]
    for number, row in enumerate(rows):
        _extend(ids, row, number)
        ends.append(ids.size)
    return ids.taken(), np.array(ends, np.int64)


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


cdef inline bint _is_text(object value):
    """Whether a value is a str that is Unicode: a lone surrogate is none."""
    if type(value) is not str:
        return False
    if PyUnicode_IS_ASCII(value):
        return True
    try:
        PyUnicode_AsUTF8(value)
    except UnicodeEncodeError:
        return False
    return True


def first_unusual(object messages, frozenset roles, Py_ssize_t at):
    """The place, from `at` on, of the first message that is more than role, content and input.

    Or whose role is none of `roles`, or a text not Unicode. The length where there is none.
    """
    cdef Py_ssize_t place, size = len(messages)
    cdef dict message
    for place in range(at, size):
        item = messages[place]
        if type(item) is not dict:
            return place
        message = <dict>item
        if message.get("role") not in roles or not _is_text(message.get("content")):
            return place
        if len(message) != 2 and not (len(message) == 3 and _is_text(message.get("input"))):
            return place
    return size


def plain_messages(object items, str role_key, str text_key, dict roles):
    """Messages of a list of dicts that hold a role of `roles` and a text each; None for any other.

    No more than that may be in them, and the text must be Unicode.
    """
    cdef list messages
    cdef Py_ssize_t at
    cdef PyObject* key
    cdef PyObject* value
    if type(items) is not list or not items:
        return None
    messages = []
    for each in <list>items:
        if type(each) is not dict or len(<dict>each) != 2:
            return None
        role = text = None
        at = 0
        while PyDict_Next(each, &at, &key, &value):  # with two keys quicker than to look for them
            if type(<object>key) is not str:
                return None
            if <object>key == text_key:
                text = <object>value
            elif <object>key == role_key:
                role = <object>value
        if type(role) is not str or not _is_text(text):
            return None
        role = roles.get(role)
        if role is None:
            return None
        messages.append({"role": role, "content": text})
    return messages


def plain_row(type conversation, object row, object source, dict roles):
    """A `conversation`, nouns.Conversation, of a row of plain messages; None for any other row.

    That is an object with `messages` as above and no `system`, `tools` or `functions` besides.
    """
    cdef dict fields
    if type(row) is not dict:
        return None
    fields = <dict>row
    if len(fields) > 1 and not (
        fields.get("system") is None
        and fields.get("tools") is None
        and fields.get("functions") is None
    ):
        return None
    messages = plain_messages(fields.get("messages"), "role", "content", roles)
    if messages is None:
        return None
    made = PyType_GenericAlloc(conversation, 0)
    PyObject_GenericSetAttr(made, "messages", messages)
    PyObject_GenericSetAttr(made, "tools", None)
    PyObject_GenericSetAttr(made, "source", source)
    PyObject_GenericSetAttr(made, "row", row)
    return made


def plain_roles(object messages):
    """The roles of messages that are a role and one thing more; None where one is another."""
    cdef list roles = []
    for message in messages:
        if type(message) is not dict or len(<dict>message) != 2:
            return None
        roles.append((<dict>message)["role"])
    return tuple(roles)


def places(list sources, dict numbers):
    """Of every nouns.Source the number of its file, and how it is spelled.

    int32 numbers, and UTF-8 with its int64 offsets: what str(source) gives, with a backslash for
    what of a file's name is not Unicode.
    """
    cdef Py_ssize_t place, size = len(sources)
    cdef list spelled = []
    cdef bytes name = b"", behind
    cdef object last = None
    cdef int32_t number = 0
    files = np.empty(size, np.int32)
    offsets = np.zeros(size + 1, np.int64)
    cdef int32_t[::1] file_of = files
    cdef int64_t[::1] end_of = offsets[1:]
    cdef int64_t end = 0
    for place in range(size):
        file, line, index = sources[place]
        if file is not last:
            name, number, last = file.encode("utf-8", "backslashreplace"), numbers[file], file
        if line is not None:
            behind = PyBytes_FromFormat(":%zd", <Py_ssize_t>line)
        elif index is not None:
            behind = PyBytes_FromFormat("[%zd]", <Py_ssize_t>index)
        else:
            behind = b""
        spelled.append(name)
        spelled.append(behind)
        end += len(name) + len(behind)
        file_of[place], end_of[place] = number, end
    return files, b"".join(spelled), offsets


def fill_plain(
    dict known, object rows, Py_ssize_t row, Py_ssize_t most, list texts, list layouts
):
    """Append the texts of plain rows, from `row` on, to `texts`, and their layouts to `layouts`.

    `rows`: plain_rows.PlainRows. `known`: by the roles of a row, as bytes, a shapes.Straight and
    the layout. Returns the first row that cannot be written so, for which nothing is appended: one
    of roles that are not known, with a text that the template looks into, or with one of more than
    `most` bytes. The number of rows where there is none.
    """
    cdef const uint8_t[::1] roles = rows.roles
    cdef const int32_t[::1] row_at = rows.offsets
    cdef const uint8_t[::1] contents = rows.contents
    cdef const int32_t[::1] text_at = rows.text_offsets
    cdef bytes nothing = b""
    cdef const char* data = nothing
    if contents.shape[0]:
        data = <const char*>&contents[0]
    cdef Py_ssize_t first, size
    cdef bytearray room = bytearray(1 << 12)
    cdef list made
    for row in range(row, row_at.shape[0] - 1):
        first = row_at[row]
        size = row_at[row + 1] - first
        found = known.get(PyBytes_FromStringAndSize(<const char*>&roles[first], size))
        if found is None:
            return row
        (wanted, asked), layout = found
        if not _is_as_asked(<tuple?>asked, data, &text_at[first]):
            return row
        made = []
        for pieces in <tuple?>wanted:
            text = _joined(<tuple?>pieces, data, &text_at[first], most, room)
            if text is None:
                return row
            made.append(text)
        texts.extend(made)
        layouts.append(layout)
    return row_at.shape[0] - 1


cdef bint _is_as_asked(tuple asked, const char* data, const int32_t* ends) except -1:
    """Whether the messages of a row, whose texts end at `ends`, have what their Straight asks."""
    cdef Py_ssize_t number, size
    cdef const char* text
    cdef bytes part
    for number in range(len(asked)):
        needed, without, before = <tuple>asked[number]
        text, size = data + ends[number], ends[number + 1] - ends[number]
        if needed and size == 0:
            return False
        for part in <tuple>without:
            if holds(text, size, part, len(part)):
                return False
        part = before
        if part and size >= len(part) and memcmp(text, <const char*>part, len(part)) == 0:
            return False
    return True


cdef object _joined(
    tuple pieces, const char* data, const int32_t* ends, Py_ssize_t most, bytearray room
):
    """The text of pieces, what is written or the number of a message; None if it is too long."""
    cdef Py_ssize_t number, size, written = 0
    cdef const char* text
    for piece in pieces:
        if type(piece) is bytes:
            text, size = <const char*>(<bytes>piece), len(<bytes>piece)
        else:
            number = piece
            text, size = data + ends[number], ends[number + 1] - ends[number]
        if written + size > most:
            return None
        if written + size > PyByteArray_GET_SIZE(room):
            PyByteArray_Resize(room, 2 * (written + size))
        memcpy(PyByteArray_AS_STRING(room) + written, text, size)
        written += size
    return PyUnicode_DecodeUTF8(PyByteArray_AS_STRING(room), written, NULL)


def line_row(type raw_row, type source, object path, Py_ssize_t line, bytes content):
    """A `raw_row`, records.RawRow, of a line: such named tuples as their classes make them."""
    return tuple.__new__(raw_row, (tuple.__new__(source, (path, line, None)), content))


# Of lists and dicts in which text is looked for, to tell how large a row is.
cdef int LEVELS = 8


def taken(object rows, Py_ssize_t most, Py_ssize_t most_bytes):
    """The next raw rows of an iterator, how much text they have, and those of them that are bytes.

    No more than `most`, and none behind the first that makes them more than `most_bytes` of text.
    """
    cdef list made = []
    cdef Py_ssize_t more, size = 0, known = 0
    while len(made) < most and size <= most_bytes:
        row = next(rows, None)
        if row is None:
            break
        made.append(row)
        content = row[1]
        more = _text_size(content, LEVELS)
        size += more
        if type(content) is bytes:
            known += more
    return made, size, known


def longest(list texts):
    """How many characters the longest of the texts has, 0 where there is none."""
    cdef Py_ssize_t most = 0
    for text in texts:
        most = max(most, len(text))
    return most


cdef Py_ssize_t _text_size(object value, int levels) except -1:
    """How many bytes or characters the texts in lists and dicts have, to so many levels."""
    cdef Py_ssize_t size = 0
    if type(value) is str or type(value) is bytes:
        return len(value)
    if levels == 0:
        return 0
    if type(value) is dict:
        for item in (<dict>value).values():
            size += _text_size(item, levels - 1)
    elif type(value) is list:
        for item in <list>value:
            size += _text_size(item, levels - 1)
    return size


def is_nested(object value, int levels):
    """Whether lists and dicts are nested more than so many levels deep."""
    return _is_nested(value, levels)


cdef bint _is_nested(object value, int levels) noexcept:
    cdef Py_ssize_t at = 0
    cdef PyObject* item
    if type(value) is dict:
        if levels == 0:
            return True
        while PyDict_Next(value, &at, NULL, &item):
            if _is_nested(<object>item, levels - 1):
                return True
    elif type(value) is list:
        if levels == 0:
            return True
        for at in range(PyList_GET_SIZE(value)):
            if _is_nested(<object>PyList_GET_ITEM(value, at), levels - 1):
                return True
    return False


def sampled(list texts, int one_in):
    """The places of about one in so many texts; which ones is for each text alone to say."""
    cdef Py_ssize_t place
    cdef list places = []
    for place in range(len(texts)):
        if _digest(<str?>texts[place]) % one_in == 0:
            places.append(place)
    return places


cdef uint64_t _digest(str text):
    """A number that depends on every byte of a text as it lies in memory."""
    cdef Py_ssize_t at, size = PyUnicode_GET_LENGTH(text) * PyUnicode_KIND(text)
    cdef const char* data = <const char*>PyUnicode_DATA(text)
    cdef uint64_t words[4]
    cdef uint64_t a = size + 1, b = 2, c = 3, d = 4  # a multiplication waits for the one before
    for at in range(0, size, 32):
        if size - at < 32:
            memset(words, 0, 32)
        memcpy(words, data + at, min(32, size - at))
        a = _mixed(a ^ words[0])
        b = _mixed(b ^ words[1])
        c = _mixed(c ^ words[2])
        d = _mixed(d ^ words[3])
    return _mixed(_mixed(_mixed(a ^ b) ^ c) ^ d)


cdef inline uint64_t _mixed(uint64_t word) noexcept:
    word *= <uint64_t>0x9E3779B97F4A7C15ULL
    return word ^ (word >> 32)
