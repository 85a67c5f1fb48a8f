"""The collator against plain loops over lists: every cell of every key, in every layout."""

import pickle
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask

from turnpack.torch import Collator, _cells, weighted_loss
from turnpack.torch.masks import SameDocument, block_mask, dense_mask

IGNORE = -100


def up(size, multiple):
    return -(-size // multiple) * multiple


def expected(items, layout, *, pad_id=0, pad_to=1, capacity=None, align=1, shift=False, norm=False):
    """The batch as lists of rows: what the contract says, cell by cell."""
    rows = [[item] for item in items] if layout == "rows" else [items]
    made = []
    for row in rows:
        cells = []  # (id, label, position, segment, weight)
        segment = 0
        for item in row:
            at = 0
            for length in item.get("seq_lengths", [len(item["input_ids"])]):
                segment += 1
                labels = item["labels"][at : at + length]
                targets = sum(label != IGNORE for label in labels[1:])
                for i in range(up(length, align)):
                    if i >= length:
                        cells.append((pad_id, IGNORE, i, segment, 0.0))
                        continue
                    label = labels[i] if i else IGNORE
                    weight = item.get("loss_weights", [1.0] * (at + length))[at + i]
                    if label == IGNORE:
                        weight = 0.0
                    elif norm:
                        weight = np.float32(weight) / np.float32(targets)
                    cells.append((item["input_ids"][at + i], label, i, segment, weight))
                at += length
        made.append(cells)
    width = up(capacity or max(map(len, made)), pad_to)
    for cells in made:
        cells += [(pad_id, IGNORE, i, 0, 0.0) for i in range(width - len(cells))]
        if shift:
            moved = [*cells[1:], (0, IGNORE, 0, 0, 0.0)]
            cells[:] = [(a[0], b[1], a[2], a[3], b[4]) for a, b in zip(cells, moved, strict=True)]
    return [[list(column) for column in zip(*cells, strict=True)] for cells in made]


@st.composite
def documents(draw):
    length = draw(st.integers(1, 7))
    ids = draw(st.lists(st.integers(0, 2**31 - 1), min_size=length, max_size=length))
    mask = draw(st.lists(st.booleans(), min_size=length, max_size=length))
    return ids, [id if keep else IGNORE for id, keep in zip(ids, mask, strict=True)]


@st.composite
def batches(draw):
    items = []
    weighted = draw(st.booleans())
    for parts in draw(
        st.lists(st.lists(documents(), min_size=1, max_size=3), min_size=1, max_size=4)
    ):
        item = {
            key: [value for part in parts for value in part[n]]
            for n, key in enumerate(["input_ids", "labels"])
        }
        if len(parts) > 1 or draw(st.booleans()):
            item["seq_lengths"] = [len(part[0]) for part in parts]
        if weighted and draw(st.booleans()):
            item["loss_weights"] = [
                draw(st.sampled_from([0.0, 0.5, 1.0, 3.0])) for _ in item["labels"]
            ]
        items.append(item)
    return items


def as_form(form, items):
    """The same items as lists, arrays or tensors."""
    if form == "lists":
        return items
    makes = {
        "arrays": lambda key, v: np.array(v, np.float32 if key == "loss_weights" else np.int32),
        "tensors": lambda key, v: torch.tensor(v),
        "both": lambda key, v: np.array(v) if key == "labels" else v,
    }
    return [{key: makes[form](key, value) for key, value in item.items()} for item in items]


@settings(deadline=None)
@given(
    batches(),
    st.sampled_from(["flat", "rows"]),
    st.sampled_from(["lists", "arrays", "tensors", "both"]),
    st.sampled_from([1, 4]),
    st.sampled_from([1, 8]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_every_cell(items, layout, form, align, pad_to, shift, norm, full):
    capacity = 64 if full and layout == "rows" else None
    collator = Collator(
        layout,
        pad_id=9,
        pad_to_multiple_of=pad_to,
        capacity=capacity,
        align=align,
        shift_labels=shift,
        normalize="sequence" if norm else None,
    )
    batch = collator(as_form(form, items))
    wanted = expected(
        items,
        layout,
        pad_id=9,
        pad_to=pad_to,
        capacity=capacity,
        align=align,
        shift=shift,
        norm=norm,
    )
    ids, labels, positions, segments, weights = zip(*wanted, strict=True)
    for key, value in (("input_ids", ids), ("labels", labels), ("position_ids", positions)):
        assert batch[key].dtype == torch.int64
        assert batch[key].tolist() == list(value), key
    assert ("loss_weights" in batch) == (norm or any("loss_weights" in item for item in items))
    if "loss_weights" in batch:
        assert batch["loss_weights"].dtype == torch.float32
        assert batch["loss_weights"].tolist() == [list(map(float, row)) for row in weights]
    assert batch["use_cache"] is False
    assert "attention_mask" not in batch
    if layout == "rows":
        assert batch["segment_ids"].dtype == torch.int64
        assert batch["segment_ids"].tolist() == list(segments)
        return
    (row,) = segments
    ends = [i for i in range(1, len(row)) if row[i] != row[i - 1]]
    boundaries = [0, *ends, len(row)]
    assert batch["cu_seq_lens_q"].dtype == torch.int32
    assert batch["cu_seq_lens_q"].tolist() == boundaries
    assert batch["cu_seq_lens_k"] is batch["cu_seq_lens_q"]
    longest = max(b - a for a, b in pairwise(boundaries))
    assert batch["max_length_q"] == batch["max_length_k"] == longest
    assert type(batch["max_length_q"]) is int
    assert batch["seq_idx"].dtype == torch.int32
    documents_in = max(row)
    assert batch["seq_idx"].tolist() == [[(s or documents_in + 1) - 1 for s in row]]


@settings(deadline=None)
@given(batches(), st.sampled_from(["flat", "rows"]))
def test_a_loss_mask_says_the_same_as_labels(items, layout):
    masked = [
        {
            **{key: value for key, value in item.items() if key != "labels"},
            "loss_mask": [int(label != IGNORE) for label in item["labels"]],
        }
        for item in items
    ]
    some = [masked[0], *items[1:]]
    wanted = Collator(layout)(items)
    for batch in (Collator(layout)(masked), Collator(layout)(some)):
        for key, value in wanted.items():
            assert torch.equal(torch.as_tensor(batch[key]), torch.as_tensor(value)), key


def test_boundaries_of_a_fixed_shape():
    items = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3], "seq_lengths": [1, 2]}]
    batch = Collator(max_segments=4)(items)
    assert batch["cu_seq_lens_q"].tolist() == [0, 1, 3, 3, 3]
    with pytest.raises(ValueError, match=re.escape("2 segments, more than max_segments 1")):
        Collator(max_segments=1)(items)


def test_what_the_batch_says_of_the_cache():
    items = [{"input_ids": [1], "labels": [1]}]
    assert "use_cache" not in Collator(use_cache=None)(items)
    assert Collator(use_cache=True)(items)["use_cache"] is True


def test_it_can_be_pickled():
    items = [{"input_ids": [1, 2], "labels": [1, 2]}]
    again = pickle.loads(pickle.dumps(Collator("rows", mask="flex", pad_to_multiple_of=128)))
    assert again(items)["input_ids"].shape == (1, 128)


def test_cells_beyond_int32_are_refused():
    many = np.broadcast_to(np.int32(1), (1 << 30,))
    items = [{"input_ids": many, "labels": many}] * 2
    for layout in ("flat", "rows"):
        with pytest.raises(ValueError, match="2147483648 cells are too many for int32 boundaries"):
            Collator(layout)(items)


GOOD = {"input_ids": [1, 2], "labels": [1, 2]}


@pytest.mark.parametrize(
    ("item", "kind", "message"),
    [
        ({"input_ids": [], "labels": []}, ValueError, "item 1 is empty"),
        ({"input_ids": [1, 2]}, ValueError, "item 1 has neither labels nor loss_mask"),
        ({**GOOD, "labels": [1]}, ValueError, "item 1 has 2 input_ids, but 1 labels"),
        (
            {**GOOD, "seq_lengths": [1, 2]},
            ValueError,
            "item 1 has 2 input_ids, but seq_lengths of 3 in all",
        ),
        (
            {**GOOD, "seq_lengths": [0.5, 1.9]},
            TypeError,
            "item 1: seq_lengths is no row of integers",
        ),
        ({**GOOD, "seq_lengths": [[2]]}, TypeError, "item 1: seq_lengths is no row of integers"),
        ({**GOOD, "seq_lengths": None}, TypeError, "item 1: seq_lengths is no row of integers"),
        (
            {**GOOD, "seq_lengths": [2, 0]},
            ValueError,
            "item 1 has no document or an empty one: [2, 0]",
        ),
        (
            {**GOOD, "position_ids": [1, 2]},
            ValueError,
            "item 1 has position_ids that do not count from 0 to its end",
        ),
        (
            {**GOOD, "position_ids": [0, 7]},
            ValueError,
            "item 1 has position_ids that do not count from 0 to its end",
        ),
        (
            {"input_ids": [1] * 3, "labels": [1] * 3, "position_ids": [1, 0, 0]},
            ValueError,
            "item 1 has position_ids that do not count from 0 to its end",
        ),
        (
            {**GOOD, "position_ids": [0, 1, 0]},
            ValueError,
            "item 1 has position_ids that do not count from 0 to its end",
        ),
        (
            {"input_ids": [1], "loss_mask": [1, 1]},
            ValueError,
            "item 1 has 1 input_ids, but 2 loss_mask",
        ),
        ({**GOOD, "loss_weights": [1]}, ValueError, "item 1 has 2 input_ids, but 1 loss_weights"),
        ({**GOOD, "input_ids": [1, "2"]}, TypeError, "item 1, token 1 is str, not an int"),
        ({**GOOD, "input_ids": [1, True]}, TypeError, "item 1, token 1 is bool, not an int"),
        ({**GOOD, "input_ids": np.ones(2)}, TypeError, "item 1: input_ids is no row of integers"),
        (
            {**GOOD, "input_ids": [1, 1 << 80]},
            ValueError,
            f"item 1, token 1 is {1 << 80}, beyond int64",
        ),
    ],
)
def test_errors_name_the_item(item, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        Collator()([GOOD, item])


def test_the_widest_row_beyond_capacity_after_alignment_and_rows_of_several_documents():
    items = [GOOD, {"input_ids": [1, 2, 3], "labels": [1, 2, 3], "seq_lengths": [1, 2]}]
    with pytest.raises(ValueError, match="item 1 has 8 tokens, more than capacity 6"):
        Collator("rows", capacity=6, align=4)(items)
    assert Collator("rows", capacity=8, align=4)(items)["segment_ids"].tolist() == [
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 2, 2, 2, 2],
    ]


@pytest.mark.parametrize("options", [{"align": 1 << 31}, {"pad_to_multiple_of": 1 << 40}])
def test_multiples_beyond_int32(options):
    with pytest.raises(ValueError, match="cells are too many for int32 boundaries"):
        Collator(**options)([GOOD])


def test_loops_do_not_write_beyond_what_they_are_given():
    cells = np.full(4, -1, np.int64)
    for boundaries in ([0, 5], [-1, 3], [0, 3, 2], []):
        with pytest.raises(ValueError, match="boundaries"):
            _cells.count(np.array(boundaries, np.int32), cells)
        with pytest.raises(ValueError, match="boundaries"):
            _cells.number(np.array(boundaries, np.int32), np.arange(3, dtype=np.int32), cells)
    assert (cells == -1).all()


def test_no_items():
    with pytest.raises(ValueError, match="a batch of no items"):
        Collator()([])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "row"}, "layout is 'row', not one of flat, rows"),
        ({"mask": "causal"}, "mask is 'causal', not dense, flex or None"),
        ({"normalize": "token"}, "normalize is 'token', not sequence or None"),
        ({"align": 0}, "align is 0, less than 1"),
        ({"capacity": 8}, "capacity is the length of a row, layout flat has none"),
        ({"layout": "rows", "max_segments": 8}, "max_segments is for cu_seq_lens"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Collator(**options)


@pytest.mark.parametrize("name", ["pad_id", "align", "pad_to_multiple_of", "max_segments"])
def test_options_that_are_no_numbers(name):
    with pytest.raises(TypeError, match=f"{name} is float, not an int"):
        Collator(**{name: 2.5})


def test_a_row_beyond_capacity():
    with pytest.raises(ValueError, match="item 1 has 3 tokens, more than capacity 2"):
        Collator("rows", capacity=2)([GOOD, {"input_ids": [1, 2, 3], "labels": [1, 2, 3]}])


def test_a_list_that_shrinks_while_it_is_read():
    ids = [1, 2, 3]

    class Shrinks(int):
        def __int__(self):
            ids.clear()
            return 7

    ids[1] = Shrinks(2)
    with pytest.raises(RuntimeError, match="changed while it was read"):
        Collator()([{"input_ids": ids, "labels": [1, 2, 3]}])


@pytest.mark.parametrize("lengths", [[[300]], [[128, 128]], [[1, 260, 39], [130, 170, 0]]])
def test_the_block_mask_is_that_of_flex_attention(lengths):
    documents = torch.stack([torch.repeat_interleave(torch.tensor(row)) for row in lengths])
    made = block_mask(documents)
    rows, length = documents.shape
    wanted = create_block_mask(SameDocument(documents), rows, None, length, length, device="cpu")
    assert made.shape == wanted.shape
    assert torch.equal(made.to_dense(), wanted.to_dense())
    assert torch.equal(made.kv_num_blocks, wanted.kv_num_blocks)
    assert torch.equal(made.full_kv_num_blocks, wanted.full_kv_num_blocks)
    for row in range(rows):
        for query in range(made.kv_num_blocks.shape[-1]):
            for name in ("kv", "full_kv"):
                count = getattr(made, f"{name}_num_blocks")[row, 0, query]
                ours, theirs = (
                    getattr(mask, f"{name}_indices")[row, 0, query, :count].sort().values
                    for mask in (made, wanted)
                )
                assert torch.equal(ours, theirs)


def test_the_dense_mask():
    mask = dense_mask(torch.tensor([[0, 0, 1, 2]]))
    assert mask.int().tolist() == [[[[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]]]


def test_masks_on_request():
    items = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3], "seq_lengths": [1, 2]}, GOOD]
    for layout, ids in (("flat", [[0, 1, 1, 2, 2]]), ("rows", [[0, 1, 1], [0, 0, 1]])):
        batch = Collator(layout, mask="dense")(items)
        assert torch.equal(batch["attention_mask"], dense_mask(torch.tensor(ids)))
        flex = Collator(layout, mask="flex")(items)["attention_mask"]
        assert flex.shape == (len(ids), 1, len(ids[0]), len(ids[0]))


def test_the_loss_is_the_weighted_mean_over_targets():
    torch.manual_seed(0)
    logits = torch.randn(1, 5, 7)
    batch = Collator()(
        [
            {
                "input_ids": [1, 2, 3, 4, 5],
                "labels": [1, 2, -100, 4, 5],
                "loss_weights": [9, 1, 9, 2, 0],
            }
        ]
    )
    losses = torch.log_softmax(logits[0], -1).neg()
    wanted = losses[0, 2] * 1 + losses[2, 4] * 2
    made = weighted_loss(logits, batch["labels"], batch["loss_weights"])
    torch.testing.assert_close(made, wanted / 3)
    made = weighted_loss(logits, batch["labels"], batch["loss_weights"], denominator=10)
    torch.testing.assert_close(made, wanted / 10)


def test_a_batch_without_targets_has_no_loss_and_no_gradient():
    logits = torch.randn(1, 2, 7, requires_grad=True)
    batch = Collator(normalize="sequence")([{"input_ids": [1, 2], "labels": [-100, -100]}])
    loss = weighted_loss(logits, batch["labels"], batch["loss_weights"])
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()
