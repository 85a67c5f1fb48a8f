"""Owns the tests of the GPU's kernels beyond those of their verbs, which run on them too.

On the emulation (emulation.py) everywhere, as one of the implementations that agree.py compares;
what only a GPU can show is skipped with the reason where there is none. Where there is one, run
`compute-sanitizer --tool memcheck|racecheck|initcheck pytest -k "cuda or gpu"` as well.
"""

import ctypes
import importlib.util
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import agree
import emulation
import turnpack.torch
from emulation import Interface
from on_device import EMULATED
from test_pack import tokens_of
from test_torch_compact import assert_same
from turnpack import Plan, Role, cuda_available, kernels, plan, reference
from turnpack.nouns import CELLS
from turnpack.torch import Collator
from turnpack.torch import device as on_torch

ROOT = Path(__file__).parents[1]
TILE = 2048
needs_gpu = pytest.mark.skipif(
    not cuda_available(), reason=f"no GPU: {cuda_available().reason or 'there is one'}"
)


# ---- tiles --------------------------------------------------------------------------------------

EDGES = [1, 2, 3, 5, 255, 256, 257, TILE - 1, TILE, TILE + 1, 2 * TILE + 7]
LENGTHS = st.lists(st.sampled_from(EDGES) | st.integers(1, 40), max_size=12)


@settings(max_examples=40, deadline=None)
@given(
    LENGTHS,
    st.sampled_from([0, 1, 5, TILE]),
    st.sampled_from(["rows", "flat"]),
    st.sampled_from([np.int32, np.int64]),
    st.booleans(),
)
def test_rows_and_bins_that_cross_tiles(lengths, more, layout, dtype, weighted):
    tokens = tokens_of(lengths, weighted=weighted)
    made = plan(lengths, max([1, *lengths]) + more)
    packed = kernels.pack(tokens, made, pad_id=-1, layout=layout, dtype=dtype)
    assert EMULATED.pack(tokens, made, pad_id=-1, layout=layout, dtype=dtype) == packed
    assert EMULATED.unpack(packed) == kernels.unpack(packed)


@pytest.mark.parametrize("lengths", [[], [1], [1] * 5000, [70_001], [70_001, 1]], ids=len)
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_no_row_one_huge_row_and_rows_of_one_token(lengths, dtype):
    tokens = tokens_of(lengths, weighted=True)
    made = plan(lengths, max([1, *lengths]) + 3)
    packed = kernels.pack(tokens, made, dtype=dtype)
    assert EMULATED.pack(tokens, made, dtype=dtype) == packed
    assert EMULATED.unpack(packed) == kernels.unpack(packed)


def test_a_search_of_three_rounds():
    """More pieces than 256 * 256, so that the threads of a block cut three times."""
    lengths = np.ones(70_000, np.int64)
    tokens = tokens_of(lengths)
    made = plan(lengths, 7)
    assert EMULATED.pack(tokens, made) == kernels.pack(tokens, made)


def tile_of(starts, size, block):
    pieces, places = np.full(TILE, -7), np.full(TILE, -7)
    pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (starts, pieces, places)]
    emulation.library().emulate_tile(
        pointers[0], ctypes.c_int64(len(starts) - 1), ctypes.c_int64(size), ctypes.c_int64(block),
        *pointers[1:],
    )  # fmt: skip
    return pieces, places


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([1, 3, TILE, 2**31 - 1, 2**31, 2**33 + 5]), min_size=1, max_size=600),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
)
def test_beyond_two_to_the_31_cells(lengths, unused, random):
    """Any tile of an output of any size; `unused`: entries that static shapes leave over."""
    starts = agree.ragged(lengths)
    size = int(starts[-1])
    block = random.randrange(-(-size // TILE))
    pieces, places = tile_of(np.append(starts, np.full(unused, size)), size, block)
    cells = np.arange(block * TILE, min((block + 1) * TILE, size))
    expected = np.searchsorted(starts, cells, "right") - 1
    assert np.array_equal(pieces[: len(cells)], expected)
    assert np.array_equal(places[: len(cells)], cells - starts[expected])
    assert (pieces[len(cells) :] == -7).all()


@pytest.mark.parametrize("offset", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_arrays_that_begin_anywhere_and_nothing_beside_them(offset, dtype):
    """Outputs of all alignments, within memory of which no other byte may change."""
    lengths = [5, TILE + 3, 1, 9, 700]
    tokens = tokens_of(lengths, weighted=True)
    made = plan(lengths, TILE + 10)
    expected = kernels.pack(tokens, made, pad_id=3, dtype=dtype)
    module = emulation.module()
    starts, sources, numbers, longest = module.pack_pieces(
        tokens.offsets, len(tokens.input_ids), made.rows, made.offsets, made.fill, made.capacity,
        False, dtype == np.int64,
    )  # fmt: skip
    assert longest == expected.max_seqlen
    cells = expected.input_ids.size
    held = [np.full(cells + 8, -9, dtype) for _ in CELLS] + [np.full(cells + 8, -9, np.float32)]
    outs = [Interface(array[offset : offset + cells]) for array in held]
    given = [tokens.input_ids, tokens.loss_mask, tokens.loss_weights, starts, sources, numbers]
    module.pack(*map(Interface, given), 3, *outs, 0)
    for array, name in zip(held, (*CELLS, "loss_weights"), strict=True):
        assert np.array_equal(array[offset : offset + cells], getattr(expected, name).ravel())
        assert (array[:offset] == -9).all()
        assert (array[offset + cells :] == -9).all()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([0, 1, 2, 7, TILE - 1, TILE, 3 * TILE + 5]), max_size=5),
    st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=9), min_size=1, max_size=3),
    st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=40), max_size=3),
    st.booleans(),
    st.sampled_from([2, 3, 50]),
    st.integers(0, 99),
)
def test_markers_across_tiles(lengths, starts, ends, include_end, vocabulary, seed):
    ids = np.random.default_rng(seed).integers(0, vocabulary, sum(lengths)).astype(np.int32)
    offsets = agree.ragged(lengths)
    kind, _ = agree.agreed("mask_markers", ids, offsets, starts, ends, include_end=include_end)
    assert kind == "result"


@pytest.mark.parametrize("include_end", [True, False])
def test_markers_longer_than_what_is_between_them(include_end):
    """Patterns of hundreds of ids, which begin in one tile and end in the next."""
    rng = np.random.default_rng(0)
    start, end = [rng.integers(0, 9, 700).tolist() for _ in range(2)]
    pieces = [start, [5] * 30, end, [6] * 100, start, [7] * 1500, end, start[:600], start, [8]]
    ids = np.array([i for piece in pieces * 3 for i in piece], np.int32)
    kind, mask = agree.agreed(
        "mask_markers", ids, [0, len(ids)], [start], [end], include_end=include_end
    )
    assert kind == "result"
    assert 0 < mask.sum() < len(ids)


def test_a_marker_beyond_the_tables():
    ids = np.zeros(5, np.int32)
    assert EMULATED.mask_markers(ids, [0, 5], [[0] * 1024], []).tolist() == [0] * 5
    with pytest.raises(ValueError, match=r"^ends\[1\] has 1025 ids, more than 1024$"):
        EMULATED.mask_markers(ids, [0, 5], [[1]], [[1], [0] * 1025])


def test_turns_across_tiles():
    rng = np.random.default_rng(0)
    lengths = rng.choice([0, 1, 3, TILE - 1, TILE + 1, 5000], 60)
    ids = rng.integers(0, 99, lengths.sum()).astype(np.int32)
    rows = np.array([0, 1, 1, 30, 60])
    roles = [Role([1, 2], [3]), Role(range(TILE), (), target=True), Role(), Role((), [4, 5])]
    arguments = ids, agree.ragged(lengths), rng.integers(0, 4, 60), rows, roles
    kind, made = agree.agreed("concat", *arguments, bos=[8, 9], eos=[7])
    assert kind == "result"
    assert len(made) == 4


# ---- turnpack.torch -----------------------------------------------------------------------------


@pytest.fixture
def emulated():
    with emulation.active():
        yield


def same(packed, expected):
    return all(
        torch.equal(getattr(packed, name), torch.from_numpy(getattr(expected, name)))
        for name in (*CELLS, "cu_seqlens")
    )


def tensors(tokens):
    weights = tokens.loss_weights
    return turnpack.torch.Tokens(
        torch.from_numpy(tokens.input_ids),
        torch.from_numpy(tokens.loss_mask),
        tokens.offsets,
        tokens.source,
        None if weights is None else torch.from_numpy(weights),
    )


@pytest.mark.parametrize("layout", ["rows", "flat"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("where", ["cpu", "emulated"])
def test_pack_from_both_sides(request, where, layout, dtype):
    if where == "emulated":
        request.getfixturevalue("emulated")
    lengths = [5, 3, 2, 6, 1]
    tokens = tokens_of(lengths, weighted=True, source=[9, 8, 7, 6, 5])
    made = plan(lengths, 8)
    expected = kernels.pack(tokens, made, layout=layout, dtype=str(dtype)[6:], pad_id=4)
    for given_tokens in (tokens, tensors(tokens)):
        packed = turnpack.torch.pack(
            given_tokens, made, device="cpu", layout=layout, dtype=dtype, pad_id=4
        )
        assert same(packed, expected)
        assert packed.input_ids.dtype == dtype
        assert torch.equal(packed.loss_weights, torch.from_numpy(expected.loss_weights))
        assert on_torch.on_cpu(packed) == expected
        assert (packed.layout, packed.num_bins) == (layout, expected.num_bins)
        back = turnpack.torch.unpack(packed)
        assert on_torch._on_host(back) == kernels.unpack(expected)


def test_some_bins_of_a_plan_take_only_their_tokens_along(emulated):
    lengths = [5, 3, 2, 6, 1] * 9
    tokens = tokens_of(lengths, weighted=True)
    whole = plan(lengths, 8)
    for part in (whole[2:5], whole[1:2], whole[3:3], whole):
        staged = turnpack.torch.stage(tokens, part)
        assert len(staged.arrays()["input_ids"]) == part.fill.sum()
        assert same(turnpack.torch.expand(staged), kernels.pack(tokens, part, dtype=np.int64))


def test_documents_are_taken_from_the_tokens_only():
    take = emulation.module().take_documents
    ids, starts, sources = np.arange(6, dtype=np.int32), np.array([0, 2, 3]), np.array([3, -1])
    into = np.zeros(2, np.int32)
    take(ids, starts, sources, into)
    assert into.tolist() == [3, 4]
    with pytest.raises(ValueError, match=r"^piece 0 ends beyond the tokens$"):
        take(ids, starts, sources + 2, into)
    with pytest.raises(ValueError, match=r"^into has 1 entries, not 2$"):
        take(ids, starts, sources, into[:1])


def test_staged_may_be_pinned_moved_and_sent(emulated):
    import pickle

    tokens = tokens_of([5, 3, 2])
    made = plan(tokens.lengths, 8)
    staged = pickle.loads(pickle.dumps(turnpack.torch.stage(tokens, made, layout="flat")))
    expected = kernels.pack(tokens, made, layout="flat", dtype=np.int64)
    assert same(turnpack.torch.expand(staged.to("cpu")), expected)


@pytest.mark.parametrize("where", ["cpu", "emulated"])
def test_max_rows_keeps_every_shape(request, where):
    if where == "emulated":
        request.getfixturevalue("emulated")
    shapes = set()
    for lengths in ([5, 3, 2, 6, 1, 7], [8, 8, 8], [1] * 9):
        tokens = tokens_of(lengths)
        rows = np.argsort(lengths)[-3:]
        made = Plan(rows, [0, 1, 2, 3], np.array(lengths)[rows], 8)
        packed = turnpack.torch.pack(tokens, made, device="cpu", max_rows=5)
        expected = kernels.pack(tokens, made, dtype=np.int64)
        assert all(
            np.array_equal(getattr(packed, name).numpy(), getattr(expected, name)) for name in CELLS
        )
        starts = packed.cu_seqlens.tolist()
        known = expected.cu_seqlens.tolist()
        assert starts == known + [24] * (len(starts) - len(known))
        shapes.add((packed.input_ids.shape, packed.cu_seqlens.shape, packed.max_seqlen))
        if where == "emulated":
            shapes.add(turnpack.torch.stage(tokens, made, max_rows=5).places)
            assert on_torch._on_host(turnpack.torch.unpack(packed)) == kernels.unpack(expected)
    assert len(shapes) == (1 if where == "cpu" else 2)
    for kwargs, message in (
        ({"layout": "flat", "max_rows": 5}, "max_rows is for layout 'rows'"),
        ({"max_rows": 2}, "the plan has 3 rows, more than max_rows 2"),
    ):
        with pytest.raises(ValueError) as caught:
            turnpack.torch.pack(tokens, made, device="cpu", **kwargs)
        assert str(caught.value) == message


def test_concat_and_mask_markers_on_the_cpu():
    ids = np.array([10, 11, 12], np.int32)
    arguments = [0, 2, 3], [0, 1], [0, 2], [Role([1]), Role((), [2], target=True)]
    expected = reference.concat(ids, *arguments)
    for turn_ids in (ids, torch.from_numpy(ids)):
        made = turnpack.torch.concat(turn_ids, *arguments, device="cpu")
        assert on_torch._on_host(made) == expected
    mask = turnpack.torch.mask_markers(torch.from_numpy(ids), [0, 3], [[11]], [], device="cpu")
    assert mask.tolist() == [0, 0, 1]


def test_ids_that_are_on_the_device_already(emulated):
    ids = np.array([10, 11, 12], np.int32)
    arguments = [0, 2, 3], [0, 1], [0, 2], [Role([1]), Role((), [2], target=True)]
    made = turnpack.torch.concat(torch.from_numpy(ids), *arguments)
    assert on_torch._on_host(made) == reference.concat(ids, *arguments)
    assert turnpack.torch.mask_markers(torch.from_numpy(ids), [0, 3], [[11]], []).tolist() == [
        0,
        0,
        1,
    ]


class ByDlpack:
    """What CuPy has on the device, as far as it is asked."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack__(self, **kwargs):
        return self.tensor.__dlpack__(**kwargs)

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()


def test_arrays_of_other_libraries_by_dlpack(emulated):
    tokens = tokens_of([5, 3])
    ids, mask = torch.from_numpy(tokens.input_ids), torch.from_numpy(tokens.loss_mask)
    taken = turnpack.torch.Tokens(ByDlpack(ids), ByDlpack(mask), torch.from_numpy(tokens.offsets))
    assert taken.input_ids.data_ptr() == ids.data_ptr()
    assert taken.lengths.tolist() == [5, 3]
    made = plan(taken.lengths, 8)
    assert same(turnpack.torch.pack(taken, made), kernels.pack(tokens, made, dtype=np.int64))


META = torch.empty(3, dtype=torch.uint8, device="meta")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"input_ids": np.zeros(3, np.int32)}, TypeError,
         "input_ids is a NumPy array, not one of a device"),
        ({"input_ids": [1, 2, 3]}, TypeError, "input_ids is list, not an array"),
        ({"input_ids": torch.zeros(3, dtype=torch.int64)}, TypeError,
         "input_ids has dtype int64, not int32"),
        ({"input_ids": torch.zeros(1, 3, dtype=torch.int32)}, TypeError,
         "input_ids has 2 dimensions, not 1"),
        ({"input_ids": torch.zeros(6, dtype=torch.int32)[::2]}, TypeError,
         "input_ids is not C-contiguous and aligned"),
        ({"loss_mask": META}, ValueError, "loss_mask is on meta, not cpu"),
        ({"loss_mask": torch.zeros(2, dtype=torch.uint8)}, ValueError,
         "loss_mask has 2 entries, not 3"),
        ({"loss_weights": torch.zeros(2)}, ValueError, "loss_weights has 2 entries, not 3"),
        ({"offsets": [0, 2]}, ValueError, "offsets ends at 2, not 3"),
        ({"offsets": META}, TypeError, "offsets is on meta; plans are made of it on the CPU"),
        ({"source": [1, 2]}, ValueError, "source has 2 entries, not 1"),
    ],
)  # fmt: skip
def test_tokens_refuse(change, error, message):
    arguments = {
        "input_ids": torch.zeros(3, dtype=torch.int32),
        "loss_mask": torch.zeros(3, dtype=torch.uint8),
        "offsets": [0, 3],
    }
    with pytest.raises(error) as caught:
        turnpack.torch.Tokens(**(arguments | change))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"dtype": torch.float32}, TypeError, "dtype is float32, not int32 or int64"),
        ({"layout": "columns"}, ValueError, "unknown layout 'columns': rows, flat"),
        ({"pad_id": 2**31}, ValueError, "pad_id is 2147483648, beyond int32"),
        ({"tokens": 5}, TypeError, "tokens is int, not Tokens"),
        ({"plan": 5}, TypeError, "plan is int, not Plan"),
        ({"device": "meta"}, ValueError, "device is meta, neither cpu nor cuda"),
    ],
)
@pytest.mark.parametrize("where", ["cpu", "emulated"])
def test_pack_refuses(request, where, change, error, message):
    if where == "emulated" and "device" not in change:
        request.getfixturevalue("emulated")
    arguments = {"tokens": tokens_of([3]), "plan": plan([3], 4), "device": "cpu"}
    with pytest.raises(error) as caught:
        turnpack.torch.pack(**(arguments | change))
    assert str(caught.value) == message


def test_short_reprs(emulated):
    ids, mask = torch.zeros(10, dtype=torch.int32), torch.ones(10, dtype=torch.uint8)
    tokens = turnpack.torch.Tokens(ids, mask, np.array([0, 5, 8, 10]))
    assert repr(tokens) == "Tokens(rows=3, tokens=10, device='cpu')"
    packed = turnpack.torch.pack(tokens, plan(tokens.lengths, 8), device="cpu")
    assert repr(packed) == (
        "Packed(rows=3, bins=2, capacity=8, layout='rows', dtype=torch.int64, device='cpu')"
    )


def test_expand_is_for_a_device():
    with emulation.active():
        staged = turnpack.torch.stage(tokens_of([3]), Plan([0], [0, 1], [3], 2**31 + 1))
    with pytest.raises(ValueError, match=r"^expand works on a GPU only; pack works on the CPU"):
        turnpack.torch.expand(staged, device="cpu")
    assert staged.max_seqlen == 2**31 - 2


def pack_arguments(weighted=True):
    tokens = tokens_of([5, 3, 2], weighted=weighted)
    staged = turnpack.torch.stage(tokens, plan(tokens.lengths, 8))
    names = ("input_ids", "loss_mask", "loss_weights", "starts", "sources", "numbers")
    return (*(staged.arrays().get(name) for name in names), [2, 8], 0, torch.int64)


OPERATORS = {
    "pack": pack_arguments,
    "pack without weights": lambda: pack_arguments(weighted=False),
    "unpack": lambda: (
        torch.arange(8), torch.arange(8), torch.rand(8), torch.tensor([0, 2, 5]),
        torch.tensor([4, 0]), 5,
    ),
    "concat": lambda: (
        torch.arange(4, dtype=torch.int32), torch.arange(2, dtype=torch.int32),
        torch.tensor([0, 2, 3]), torch.tensor([1, -2]), torch.ones(2, dtype=torch.uint8), 3,
    ),
    "mask_markers": lambda: (
        torch.arange(4, dtype=torch.int32), torch.tensor([0, 4]),
        torch.ones(1, dtype=torch.int32), torch.tensor([0, 1]),
        torch.ones(1, dtype=torch.int32), torch.tensor([0, 1]), True, 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_what_their_fakes_say(emulated, name):
    operator = getattr(torch.ops.turnpack, name.split()[0]).default
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(operator, OPERATORS[name](), test_utils=tests)


def test_expand_compiles(emulated):
    """In one graph, without a break: what is traced is what expand does on the device."""
    torch._dynamo.reset()
    tokens = tokens_of([5, 3, 2], weighted=True)
    made = plan(tokens.lengths, 8)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def step(staged):
        packed = on_torch._expand(staged, 0, torch.int64, None)
        return packed.labels * 2, packed.loss_weights

    labels, weights = step(turnpack.torch.stage(tokens, made, max_rows=5))
    expected = kernels.pack(tokens, made)
    assert np.array_equal(labels.numpy(), 2 * expected.labels)
    assert np.array_equal(weights.numpy(), expected.loss_weights)


# ---- arrays of the device -----------------------------------------------------------------------


def concat_arguments():
    return {
        "turn_ids": np.arange(4, dtype=np.int32),
        "around": np.arange(2, dtype=np.int32),
        "starts": np.array([0, 2, 3]),
        "sources": np.array([1, -2]),
        "targets": np.array([1, 0], np.uint8),
        "input_ids": np.zeros(3, np.int32),
        "loss_mask": np.zeros(3, np.uint8),
    }


def call_concat(**changes):
    arrays = {name: Interface(array) for name, array in concat_arguments().items()} | changes
    emulation.module().concat(**arrays, stream=5)
    return arrays


def test_concat_by_its_binding():
    made = call_concat()
    assert made["input_ids"].array.tolist() == [1, 2, 1]
    assert made["loss_mask"].array.tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"turn_ids": np.arange(4)}, TypeError,
         "turn_ids is ndarray, which has no __cuda_array_interface__"),
        ({"turn_ids": Interface(np.arange(4))}, TypeError,
         "turn_ids has typestr <i8, not <i4"),
        ({"turn_ids": Interface(np.arange(4, dtype=">i4"))}, TypeError,
         "turn_ids has typestr >i4, not <i4"),
        ({"turn_ids": Interface(np.arange(8, dtype=np.int32)[::2])}, TypeError,
         "turn_ids is not C-contiguous"),
        ({"turn_ids": Interface(np.arange(4, dtype=np.int32), mask=5)}, TypeError,
         "turn_ids is masked"),
        ({"turn_ids": Interface(np.arange(4, dtype=np.int32), data=(0, True))}, ValueError,
         "turn_ids is not in the memory of a CUDA device"),
        ({"targets": Interface(np.zeros(3, np.uint8))}, ValueError,
         "targets has 3 entries, not 2"),
        ({"starts": Interface(np.zeros(2, np.int64))}, ValueError,
         "starts has 2 entries, not 3"),
        ({"loss_mask": Interface(np.zeros(4, np.uint8))}, ValueError,
         "out.loss_mask has 4 entries, not 3"),
        ({"loss_mask": Interface(np.zeros(3, np.uint8), data=(16, True))}, ValueError,
         "out.loss_mask is read-only"),
    ],
)  # fmt: skip
def test_the_binding_refuses(change, error, message):
    with pytest.raises(error) as caught:
        call_concat(**change)
    assert str(caught.value) == message


def test_strides_that_say_contiguous_pass():
    ids = np.arange(4, dtype=np.int32)
    made = call_concat(turn_ids=Interface(ids, strides=(4,)), around=Interface(ids, strides=(4,)))
    assert made["input_ids"].array.tolist() == [1, 2, 1]


def test_the_binding_refuses_arrays_of_two_devices():
    sources = np.array([1, -2])
    begin = sources.ctypes.data
    library = emulation.library()
    library.emulate_other_device(ctypes.c_void_p(begin), ctypes.c_void_p(begin + sources.nbytes))
    try:
        with pytest.raises(ValueError, match=r"^sources is on device 1, turn_ids on 0$"):
            call_concat(sources=Interface(sources))
    finally:
        library.emulate_other_device(None, None)


def test_the_stream_of_an_array_is_waited_for():
    ids = np.arange(4, dtype=np.int32)
    call_concat(turn_ids=Interface(ids, stream=5))
    assert emulation.library().emulated_wait() != 5
    call_concat(turn_ids=Interface(ids, stream=77))
    assert emulation.library().emulated_wait() == 77


# ---- is there a GPU -----------------------------------------------------------------------------


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_cuda_available_says_why_not():
    found = cuda_available()
    assert bool(found) == (found.reason == "")
    assert bool(found) or len(found.reason.split()) > 3


def test_without_the_module_there_is_a_reason():
    done = run(
        "import sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'turnpack._cuda': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "import turnpack\n"
        "found = turnpack.cuda_available()\n"
        "print(bool(found), found.reason, 'torch' in sys.modules)"
    )
    assert done.stdout == "False turnpack was built without its CUDA module False\n", done.stderr


def test_a_module_that_does_not_load_is_a_reason(monkeypatch):
    def broken(name):
        raise ImportError("libdl.so.2: not there")

    monkeypatch.setattr("turnpack.cuda.importlib.import_module", broken)
    assert cuda_available().reason == (
        "turnpack's CUDA module does not load (libdl.so.2: not there)"
    )


def test_importing_turnpack_does_not_load_the_module():
    assert run("import sys, turnpack; print('turnpack._cuda' in sys.modules)").stdout == "False\n"


@pytest.mark.skipif(bool(cuda_available()), reason="there is a GPU")
@pytest.mark.parametrize("call", [
    lambda: turnpack.torch.pack(tokens_of([3]), plan([3], 4)),
    lambda: turnpack.torch.concat(np.zeros(0, np.int32), [0], [], [0], []),
    lambda: turnpack.torch.mask_markers(np.zeros(0, np.int32), [0], [[1]], [], device="cuda:3"),
])  # fmt: skip
def test_without_a_gpu_the_error_has_the_reason(call):
    with pytest.raises(RuntimeError) as caught:
        call()
    reason = re.escape(cuda_available().reason)
    assert re.fullmatch(rf"device 'cuda(:3)?' cannot be used: {reason}", str(caught.value))


# ---- how it is built ----------------------------------------------------------------------------


@pytest.fixture
def build_cuda(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(ROOT)
    return importlib.import_module("build_cuda")


@pytest.fixture
def nvcc(tmp_path):
    """An nvcc that is a script, as some installations have it, and knows three architectures."""
    made = tmp_path / "bin" / "nvcc"
    made.parent.mkdir()
    made.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --list-gpu-code ]; then echo sm_80; echo sm_90; echo sm_100; exit; fi\n'
        'echo \'#$ LIBRARIES=  "-L/cuda/lib/stubs" "-L/cuda/lib"\' >&2\n',
        "utf-8",
    )
    made.chmod(0o755)
    return made


def test_without_nvcc_there_is_no_module(build_cuda, tmp_path):
    for choice in ({}, {"TURNPACK_CUDA": "auto"}, {"TURNPACK_CUDA": "0"}):
        assert build_cuda.extensions([], [], {"PATH": str(tmp_path), **choice}) == []


def test_it_may_be_wanted_or_not(build_cuda, nvcc, tmp_path):
    path = {"PATH": str(nvcc.parent)}
    assert build_cuda.extensions([], [], {**path, "TURNPACK_CUDA": "0"}) == []
    with pytest.raises(SystemExit, match=r"^TURNPACK_CUDA=1, but there is no nvcc on PATH nor"):
        build_cuda.extensions([], [], {"PATH": str(tmp_path), "TURNPACK_CUDA": "1"})
    with pytest.raises(SystemExit, match=r"^TURNPACK_CUDA is 'yes': 0, 1 or auto$"):
        build_cuda.extensions([], [], {**path, "TURNPACK_CUDA": "yes"})


@pytest.mark.parametrize("by", ["PATH", "CUDA_HOME"])
def test_with_nvcc_there_is_one(build_cuda, nvcc, tmp_path, by):
    where = nvcc.parent if by == "PATH" else tmp_path
    (module,) = build_cuda.extensions(["-O3"], [], {by: str(where)})
    assert module.name == "turnpack._cuda"
    assert module.library_dirs == ["/cuda/lib/stubs", "/cuda/lib"]
    assert module.libraries[0] == "cudart_static"
    assert "csrc/bind_cuda.cpp" in module.sources
    assert "csrc/bind_core.cpp" not in module.sources
    assert module.nvcc == [
        str(nvcc),
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_100,code=sm_100",
        "-gencode=arch=compute_100,code=compute_100",
    ]


def test_architectures_may_be_chosen(build_cuda, nvcc):
    path = {"PATH": str(nvcc.parent)}
    (module,) = build_cuda.extensions([], [], {**path, "TURNPACK_CUDA_ARCHS": "90; sm_80"})
    assert [flag[-10:] for flag in module.nvcc[1:]] == ["code=sm_80", "code=sm_90", "compute_90"]
    with pytest.raises(SystemExit, match=r"names 70, but this nvcc knows 80, 90, 100$"):
        build_cuda.extensions([], [], {**path, "TURNPACK_CUDA_ARCHS": "70"})


def images_of(binary):
    """The (kind, architecture) of every image in the fat binaries: kind 1 is PTX, 2 is code."""
    found = set()
    for match in re.finditer(re.escape(struct.pack("<IHH", 0xBA55ED50, 1, 16)), binary):
        at, end = (
            match.end() + 8,
            match.end() + 8 + struct.unpack_from("<Q", binary, match.end())[0],
        )
        while at < end:
            kind, _, header, size = struct.unpack_from("<HHIQ", binary, at)
            found.add((kind, struct.unpack_from("<I", binary, at + 28)[0]))
            at += header + size
    return found


@pytest.mark.skipif(
    importlib.util.find_spec("turnpack._cuda") is None or shutil.which("nvcc") is None,
    reason="turnpack was built without its CUDA module, or there is no nvcc to ask",
)
def test_the_module_has_code_for_all_architectures(build_cuda):
    module = importlib.import_module("turnpack._cuda")
    binary = Path(module.__file__).read_bytes()
    known = build_cuda.known_architectures(shutil.which("nvcc"))
    chosen = build_cuda.chosen_architectures({}, known)
    expected = {(2, int(name)) for name in chosen} | {(1, int(chosen[-1]))}
    assert images_of(binary) == expected
    assert module.architectures() == " ".join(f"sm_{name}" for name in chosen)
    assert module.TILE == TILE
    assert b"libcudart.so" not in binary


# ---- what only a GPU can show -------------------------------------------------------------------


def on_gpu(tokens):
    return turnpack.torch.Tokens(
        torch.from_numpy(tokens.input_ids).cuda(),
        torch.from_numpy(tokens.loss_mask).cuda(),
        tokens.offsets,
    )


@needs_gpu
def test_gpu_nothing_waits_for_the_device():
    tokens = tokens_of([5, 3, 2])
    made = plan(tokens.lengths, 8)
    there = on_gpu(tokens)
    torch.cuda.set_sync_debug_mode("error")
    try:
        packed = turnpack.torch.pack(tokens, made)
        again = turnpack.torch.pack(there, made)
        back = turnpack.torch.unpack(packed)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = kernels.pack(tokens, made, dtype=np.int64)
    assert on_torch.on_cpu(packed) == expected
    assert on_torch.on_cpu(again) == expected
    assert back.input_ids.device.type == "cuda"


@needs_gpu
@pytest.mark.parametrize("layout", ["flat", "rows"])
@pytest.mark.parametrize("workers", [0, 2])
def test_gpu_batches_of_a_loader(layout, workers):
    options = {"pad_to_multiple_of": 64, "normalize": "sequence", "mask": "dense"}
    items = [{"input_ids": [n] * n, "labels": [-100] * (n // 2) + [n] * -(-n // 2)}
             for n in range(1, 40)]  # fmt: skip
    loaders = [
        DataLoader(
            items,
            4,
            collate_fn=Collator(layout, **options, device=device),
            num_workers=workers,
            pin_memory=device == "cuda",
        )
        for device in ("cuda", "cpu")
    ]
    for compact, wanted in zip(*loaders, strict=True):
        assert compact.staged.buffer.is_pinned()
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda.set_sync_debug_mode("error")
            try:
                batch = compact.to("cuda")
            finally:
                torch.cuda.set_sync_debug_mode("default")
            assert_same(batch, wanted)
            assert batch["input_ids"].device.type == "cuda"


@needs_gpu
def test_gpu_other_streams_and_two_at_once():
    sets = [tokens_of(np.full(40_000, 97), seed=seed) for seed in range(2)]
    made = plan(sets[0].lengths, 4096)
    streams = [torch.cuda.Stream() for _ in sets]
    packed = [[], []]
    for _ in range(5):
        for number, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                packed[number].append(turnpack.torch.pack(sets[number], made))
    torch.cuda.synchronize()
    for number, tokens in enumerate(sets):
        expected = kernels.pack(tokens, made, dtype=np.int64)
        assert all(on_torch.on_cpu(each) == expected for each in packed[number])


@needs_gpu
def test_gpu_graphs_of_static_shapes():
    batches = []
    for lengths in ([5, 3, 2], [8, 1, 7], [6, 6]):
        tokens = tokens_of(lengths)
        made = plan(lengths, 8)
        assert made.num_bins == 2
        batches.append((turnpack.torch.stage(tokens, made, max_rows=4).pin_memory(), tokens, made))
    static = batches[0][0].to("cuda")
    with torch.cuda.stream(torch.cuda.Stream()):
        turnpack.torch.expand(static)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        packed = turnpack.torch.expand(static)
    for staged, tokens, made in batches:
        static.buffer.copy_(staged.buffer, non_blocking=True)
        graph.replay()
        expected = kernels.pack(tokens, made, dtype=np.int64)
        for name in CELLS:
            assert np.array_equal(getattr(packed, name).cpu().numpy(), getattr(expected, name))


class ByInterface:
    """What Numba has on the device, as far as it is asked."""

    def __init__(self, tensor, stream):
        self.held = tensor
        self.__cuda_array_interface__ = tensor.__cuda_array_interface__ | {
            "version": 3,
            "stream": stream,
        }


@needs_gpu
def test_gpu_arrays_by_their_interface_are_waited_for():
    ids = np.arange(1_000_000, dtype=np.int32)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        there = torch.from_numpy(ids).to("cuda", non_blocking=True)
    given_ids = ByInterface(there, stream.cuda_stream)
    made = turnpack.torch.mask_markers(given_ids, [0, len(ids)], [[5]], [[7]])
    assert made.nonzero().ravel().tolist() == [6, 7]


@needs_gpu
def test_gpu_refuses_what_is_elsewhere():
    ids = torch.zeros(3, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"^input_ids is on cpu, not cuda:"):
        turnpack.torch.mask_markers(ids, [0, 3], [[1]], [])
    with pytest.raises(TypeError, match=r"^input_ids is not C-contiguous and aligned$"):
        turnpack.torch.mask_markers(
            torch.zeros(6, dtype=torch.int32).cuda()[::2], [0, 3], [[1]], []
        )
    with pytest.raises(ValueError, match=r"^loss_mask is on cpu, not cuda:"):
        turnpack.torch.Tokens(ids.cuda(), torch.zeros(3, dtype=torch.uint8), [0, 3])


@needs_gpu
def test_gpu_more_than_two_to_the_31_cells():
    bins, capacity = 65_537, 32_768
    if torch.cuda.mem_get_info()[0] < 4 * 4 * bins * capacity * 1.1:
        pytest.skip("needs 38 GB of the GPU's memory")
    lengths = np.full(bins, 5)
    tokens = tokens_of(lengths)
    made = Plan(np.arange(bins), np.arange(bins + 1), lengths, capacity)
    packed = turnpack.torch.pack(tokens, made, dtype=torch.int32, pad_id=-1)
    assert packed.input_ids.numel() > 2**31
    for part in (slice(0, 2), slice(bins - 2, bins)):
        expected = kernels.pack(tokens, made[part], pad_id=-1)
        for name in CELLS:
            assert np.array_equal(
                getattr(packed, name)[part].cpu().numpy(), getattr(expected, name)
            )
    inside = int(torch.count_nonzero(packed.segment_ids))
    assert inside == lengths.sum()
