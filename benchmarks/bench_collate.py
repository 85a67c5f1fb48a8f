"""Owns the benchmark of the collator: 8 documents of 4,096 tokens into one padding-free batch.

`transformers` is its DataCollatorWithFlattening, making the same keys, `plain` its own choice by
default. `lists` and `arrays` are what ours is given: as theirs, and as PackedDataset has it.
"""

import random

import numpy as np
import pytest
import torch
from transformers import DataCollatorWithFlattening

from turnpack.torch import Collator

KEYS = ("input_ids", "labels", "position_ids", "seq_idx", "cu_seq_lens_q", "cu_seq_lens_k")


@pytest.fixture(scope="module")
def items():
    """Ids above 256, so that no two are one object, and labels that are not the ids' objects."""
    draw = random.Random(0)
    made = []
    for _ in range(8):
        ids = [draw.randrange(1000, 150_000) for _ in range(4096)]
        labels = [int(str(id)) if draw.random() < 0.5 else -100 for id in ids]
        made.append({"input_ids": ids, "labels": labels})
    return made


def form_of(name, items):
    if name == "arrays":
        items = [{key: np.array(value, np.int32) for key, value in item.items()} for item in items]
    if name in ("lists", "arrays"):
        return Collator(), items
    full = {"return_flash_attn_kwargs": True, "return_seq_idx": True}
    return DataCollatorWithFlattening(**(full if name == "transformers" else {})), items


@pytest.mark.benchmark(group="collate 8 x 4,096")
@pytest.mark.parametrize("form", ["lists", "arrays", "transformers", "transformers, plain"])
def test_collate(benchmark, items, form):
    torch.set_num_threads(1)
    run, given = form_of(form, items)
    made, wanted = run(given), form_of("transformers", items)[0](items)
    for key in KEYS:
        assert key not in made or torch.equal(made[key], wanted[key].to(made[key].dtype))
    benchmark.pedantic(run, (given,), rounds=40 if "transformers" in form else 400, warmup_rounds=2)
