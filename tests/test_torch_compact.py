"""The collator for a GPU: what travels, and that it becomes the batch of the CPU, bit for bit.

On the emulation of a GPU; test_cuda.py does the same on a real one.
"""

import pickle
import re
from importlib.util import find_spec
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import BlockMask
from torch.utils.data import DataLoader

import emulation
from test_torch_collate import as_form, batches
from turnpack.torch import Collator, CompactBatch
from turnpack.torch import device as on_torch

GOOD = {"input_ids": [1, 2], "labels": [-100, 2]}


@pytest.fixture(autouse=True)
def emulated():
    with emulation.active():
        yield


def assert_same(made, wanted):
    assert list(made) == list(wanted)
    for key, value in wanted.items():
        if isinstance(value, BlockMask):
            assert torch.equal(made[key].to_dense(), value.to_dense())
            value, made[key] = value.kv_num_blocks, made[key].kv_num_blocks
        if not isinstance(value, torch.Tensor):
            assert type(made[key]) is type(value)
            assert made[key] == value
            continue
        assert (made[key].dtype, made[key].shape) == (value.dtype, value.shape), key
        assert torch.equal(made[key].cpu(), value), key
    if "cu_seq_lens_q" in wanted:
        assert made["cu_seq_lens_q"] is made["cu_seq_lens_k"]


OPTIONS = [
    {},
    {"normalize": "sequence", "shift_labels": True, "align": 4},
    {"mask": "dense", "pad_to_multiple_of": 8, "pad_id": 9},
    {"mask": "flex", "use_cache": None, "pad_id": -1, "align": 2, "pad_to_multiple_of": 7},
]


@settings(deadline=None)
@given(
    batches(),
    st.sampled_from(["flat", "rows"]),
    st.sampled_from(["lists", "arrays", "tensors"]),
    st.sampled_from(OPTIONS),
    st.booleans(),
)
def test_the_batch_is_that_of_the_cpu(items, layout, form, options, fixed):
    if fixed:
        options = options | ({"capacity": 64} if layout == "rows" else {"max_segments": 20})
    items = as_form(form, items)
    wanted = Collator(layout, **options)(items)
    made = Collator(layout, **options, device="cuda")(items)
    assert isinstance(made, CompactBatch)
    assert_same(pickle.loads(pickle.dumps(made)).to("cuda"), wanted)
    assert_same(made.to(), wanted)


def test_five_bytes_a_token_travel():
    ids = np.arange(4096, dtype=np.int32)
    items = [{"input_ids": ids, "labels": ids}] * 8
    for layout, more in product(("flat", "rows"), (0, 1)):
        weighted = [{**item, **({"loss_weights": np.ones(4096)} if more else {})} for item in items]
        staged = Collator(layout, device="cuda")(weighted).staged
        assert staged.buffer.nbytes - (5 + 4 * more) * 8 * 4096 < 400


def test_it_is_pinned_by_the_loader(monkeypatch):
    """DataLoader(pin_memory=True) calls pin_memory() of what is no container, and of no parts."""
    from torch.utils.data._utils.pin_memory import pin_memory

    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    made = Collator(device="cuda")([GOOD])
    again = pin_memory(made)
    assert isinstance(again, CompactBatch)
    assert [each.data_ptr() for each in pinned] == [made.staged.buffer.data_ptr()]


ABSENT = pytest.mark.skipif(
    find_spec("turnpack._cuda") is None, reason="turnpack was built without its CUDA module"
)


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=ABSENT)])
def test_workers_make_it_without_a_device(method):
    items = [{"input_ids": [n] * n, "labels": [n] * n} for n in range(1, 9)]
    loader = DataLoader(
        items,
        2,
        collate_fn=Collator(device="cuda"),
        num_workers=2,
        multiprocessing_context=method,
    )
    for made, wanted in zip(loader, DataLoader(items, 2, collate_fn=Collator()), strict=True):
        assert_same(made.to("cuda"), wanted)


def test_accelerate_moves_it_to_the_device():
    send = pytest.importorskip("accelerate.utils").send_to_device
    made = Collator(device="cuda")([GOOD])
    assert_same(send(made, torch.device("cuda"), non_blocking=True), Collator()([GOOD]))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (
            {"input_ids": [1, 5, 2], "labels": [1, -100, 3]},
            "item 1: id 2 has another label, which a GPU is not sent: neither it nor -100",
        ),
        (
            {"input_ids": [1 << 31], "labels": [1 << 31], "seq_lengths": [1]},
            "item 1: id 2147483648 is beyond int32",
        ),
        ({"input_ids": [1, 2]}, "item 1 has neither labels nor loss_mask"),
    ],
)
@pytest.mark.parametrize("layout", ["flat", "rows"])
def test_what_cannot_travel(layout, item, message):
    packed = {"input_ids": [1, 2], "labels": [1, 2], "seq_lengths": [1, 1]}
    with pytest.raises(ValueError, match=re.escape(message)):
        Collator(layout, device="cuda", align=2)([packed, item])


def test_the_first_label_of_a_document_is_nothing_to_send():
    items = [{"input_ids": [1, 2], "labels": [7, 2]}]
    assert_same(Collator(device="cuda")(items).to(), Collator()(items))


def test_too_many_segments_are_refused_where_they_are_made():
    with pytest.raises(ValueError, match="2 segments, more than max_segments 1"):
        Collator(max_segments=1, device="cuda")([GOOD, GOOD])


def test_devices_that_cannot_be():
    with pytest.raises(ValueError, match="device is meta, neither cpu nor cuda"):
        Collator(device="meta")
    assert isinstance(Collator(device="cpu")([GOOD]), dict)


def test_without_the_module_there_is_one_clear_error(monkeypatch):
    def absent():
        raise ModuleNotFoundError("No module named 'turnpack._cuda'")

    collator = Collator(device="cuda")
    monkeypatch.setattr(on_torch._ops, "module", absent)
    for make in (lambda: Collator(device="cuda"), lambda: collator([GOOD])):
        with pytest.raises(RuntimeError, match=r"^device 'cuda' cannot be used: "):
            make()


def test_the_cpu_has_no_use_for_it(monkeypatch):
    made = Collator(device="cuda")([GOOD])
    monkeypatch.setattr(on_torch, "ready", lambda device: None)
    with pytest.raises(ValueError, match="works on a GPU only"):
        made.to("cpu")
