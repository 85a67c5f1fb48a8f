"""Owns the comparison of packing: rows in, what a trainer's batch or a packed data set holds out.

Asserted equal: ids, labels and positions, and where they are made the document boundaries.
"""

from itertools import chain, pairwise

import numpy as np
import packages
from side_by_side import Form

from conftest import CAPACITY, lengths_of
from turnpack import Plan, Tokens, kernels


def compare(share):
    """A batch of 8 bins as collators make it; then 2,048 rows as torchtune packs them."""
    yield collate()
    yield in_order(int(2048 * share))


def rows_of(count):
    """Rows of random ids, half of them targets; as tokens, and as lists of ids and labels."""
    sizes = lengths_of(count)
    rng = np.random.default_rng(6)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    mask = rng.integers(0, 2, offsets[-1], np.uint8)
    mask[offsets[:-1]] = 0
    tokens = Tokens(rng.integers(0, 150_000, offsets[-1], np.int32), mask, offsets)
    labels = np.where(mask, tokens.input_ids, -100).astype(np.int32)
    return tokens, kernels.unflatten(tokens.input_ids, offsets), kernels.unflatten(labels, offsets)


def from_lists(ids, labels):
    """Tokens from what the peers are given."""
    input_ids, offsets = kernels.flatten(ids)
    return Tokens(input_ids, (kernels.flatten(labels)[0] != -100).view(np.uint8), offsets)


def collate():
    from transformers import DataCollatorWithFlattening
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    tokens, ids, labels = rows_of(64)
    plan = kernels.plan(tokens.lengths, CAPACITY)[:8]
    rows = [{"input_ids": ids[row], "labels": labels[row]} for row in plan.rows.tolist()]
    ids, labels = ([row[key] for row in rows] for key in ("input_ids", "labels"))
    tokens = from_lists(ids, labels)
    plan = Plan(np.arange(len(rows)), plan.offsets, plan.fill, CAPACITY)
    bins = []
    for first, last in pairwise(plan.offsets.tolist()):
        bins.append({
            "input_ids": [*chain.from_iterable(ids[first:last])],
            "labels": [*chain.from_iterable(labels[first:last])],
            "seq_lengths": [*map(len, ids[first:last])],
        })  # fmt: skip
    settings = {"layout": "flat", "dtype": np.int64}
    expected = kernels.pack(tokens, plan, **settings)
    trl = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    flattening = DataCollatorWithFlattening(return_flash_attn_kwargs=True)
    for made in (trl(bins), flattening(rows)):
        for key in ("input_ids", "labels", "position_ids"):
            assert np.array_equal(made[key][0], getattr(expected, key)), key
        assert np.array_equal(made["cu_seq_lens_q"], expected.cu_seqlens)
    assert kernels.pack(from_lists(ids, labels), plan, **settings) == expected
    return (
        f"collate 8 bins, {len(expected.input_ids):,} ids",
        [
            Form("turnpack", lambda: kernels.pack(tokens, plan, **settings)),
            Form(
                "turnpack, from lists",
                lambda: kernels.pack(from_lists(ids, labels), plan, **settings),
            ),
            Form(f"{packages.title('trl')}, padding-free", lambda: trl(bins)),
            Form(
                f"{packages.title('transformers')}, DataCollatorWithFlattening",
                lambda: flattening(rows),
            ),
        ],
        51,
    )


def in_order(count):
    """torchtune's set of packed rows; its positions of a bin's padding are not ours."""
    packages.alone("torchtune", "torchtune/data/_common.py")
    torchtune = packages.alone("torchtune", "torchtune/datasets/_packed.py")
    _, ids, labels = rows_of(count)
    dataset = [{"tokens": row, "labels": own} for row, own in zip(ids, labels, strict=True)]

    def turnpack():
        tokens = from_lists(ids, labels)
        plan = kernels.plan(tokens.lengths, CAPACITY, strategy="in_order")
        return kernels.pack(tokens, plan, dtype=np.int64)

    def packed():
        return torchtune.PackedDataset(dataset, max_seq_len=CAPACITY).packs

    expected, packs = turnpack(), packed()
    assert len(packs) == len(expected.input_ids)
    for bin, made in enumerate(packs):
        assert np.array_equal(made["tokens"], expected.input_ids[bin])
        assert np.array_equal(made["labels"], expected.labels[bin])
        text = expected.segment_ids[bin] > 0
        assert np.array_equal(made["input_pos"][text], expected.position_ids[bin][text])
    return (
        f"pack {count:,} rows in order",
        [
            Form("turnpack, from lists", turnpack),
            Form(packages.title("torchtune"), packed),
        ],
        5,
    )
