"""Owns the comparison of planning: lengths in, which rows share a bin of 4,096 tokens.

Every peer plans as its own pipeline calls it, windows included, at a size that it can do. Each plan
is checked to hold every row once and no bin above capacity. TRL's rule is ours: equal bins.
"""

import queue

import numpy as np
import packages
import pyarrow as pa
from side_by_side import Form

from conftest import CAPACITY, lengths_of
from turnpack import kernels


def compare(share):
    """Groups of forms, each group at as many rows; `share` of the full number."""
    yield from at_a_million(lengths_of(int(1_000_000 * share)))
    yield from in_process(lengths_of(int(50_000 * share)))
    yield from quadratic(lengths_of(int(5_000 * share)))


def ours(lengths):
    plan = kernels.plan(lengths, CAPACITY)
    return plan, Form(
        "turnpack",
        lambda: kernels.plan(lengths, CAPACITY),
        figures={"utilization": utilization(plan.num_bins, lengths)},
    )


def utilization(bins, lengths):
    return float(lengths.sum() / (bins * CAPACITY))


def at_a_million(lengths):
    plan, turnpack = ours(lengths)
    given = lengths.tolist()

    import lightbinpack

    def packed():
        return lightbinpack.pack(given, CAPACITY, strategy="obfd")

    assert of_rows(packed(), lengths) == plan.num_bins
    bare = packages.bare_lightbinpack()
    assert bare(lengths, CAPACITY)[1] == plan.num_bins
    name = packages.title("lightbinpack")
    figures = turnpack.figures
    forms = [
        turnpack,
        Form(f"{name}, its C++ without lists", lambda: bare(lengths, CAPACITY)[0], True,
             figures=figures),
        Form(name, packed, figures=figures),
    ]  # fmt: skip
    if packages.installed("seqpacker"):
        import seqpacker

        packer = seqpacker.Packer(capacity=CAPACITY, strategy="obfd")
        bins = of_rows(np.split(*packer.pack_flat(lengths)), lengths)
        forms.append(
            Form(
                packages.title("seqpacker"),
                lambda: packer.pack_flat(lengths),
                figures={"utilization": utilization(bins, lengths)},
            )
        )

    axolotl = packages.alone(
        "axolotl",
        "axolotl/utils/samplers/multipack.py",
        ("axolotl.utils.distributed", "axolotl.utils.logging"),
    )
    short = lengths.astype(np.int32)

    def first_fit():
        # The defaults of its settings: groups of 100,000 rows, at most 200 in a bin.
        return axolotl.pack_parallel(short, CAPACITY, 100_000, 200, num_processes=1)

    forms.append(
        Form(
            f"{packages.title('axolotl')}, numba, groups of 100,000",
            first_fit,
            figures={"utilization": utilization(of_rows(first_fit(), lengths), lengths)},
        )
    )

    factory = packages.alone("llamafactory", "llamafactory/data/processor/processor_utils.py")

    def knapsacks():
        bins = []
        for first in range(0, len(given), 1000):
            bins += factory.greedy_knapsack(given[first : first + 1000], CAPACITY)
        return bins

    forms.append(
        Form(
            f"{packages.title('llamafactory')}, windows of 1,000",
            knapsacks,
            figures={"utilization": utilization(of_lengths(knapsacks(), lengths), lengths)},
        )
    )
    forms.append(trl(lengths, plan, figures))
    yield f"plan {len(lengths):,} rows", forms, 5


def trl(lengths, plan, figures):
    """TRL's function with a list column of nulls: no tokens to move, the planning alone."""
    from trl.data_utils import _pack_bfd

    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    rows = pa.ListArray.from_arrays(offsets, pa.nulls(int(offsets[-1])))
    columns = pa.table({"input_ids": rows})

    def best_fit():
        return _pack_bfd(columns, CAPACITY)

    bins = best_fit()["seq_lengths"].combine_chunks()
    assert np.array_equal(bins.offsets, plan.offsets)
    assert np.array_equal(bins.values, lengths[plan.rows])
    # Half a minute at a million rows.
    return Form(packages.title("trl"), best_fit, figures=figures, rounds=1)


def in_process(lengths):
    """ms-swift's function, which a process of its own gives its windows to."""
    _, turnpack = ours(lengths)
    beside = ("swift.template", "swift.utils")
    swift = packages.alone("ms-swift", "swift/dataset/packing.py", beside)
    given = lengths.tolist()

    def constant_volume():
        found = queue.SimpleQueue()
        swift.PackingDataset.create_packed_idx(0, 0, given, found, CAPACITY, "binpack")
        return found

    found, packs = constant_volume(), []
    while not found.empty():
        packs += [[row for row, _ in pack] for pack in found.get()[1]]
    yield (
        f"plan {len(lengths):,} rows",
        [
            turnpack,
            Form(
                f"{packages.title('ms-swift')}, windows of 1,000",
                constant_volume,
                figures={"utilization": utilization(of_rows(packs, lengths), lengths)},
            ),
        ],
        5,
    )


def quadratic(lengths):
    """NeMo's functions add up a bin's rows whenever they look at it."""
    nemo = packages.alone("nemo-toolkit", "nemo/utils/sequence_packing_utils.py", ("nemo.utils",))
    given = lengths.tolist()
    _, turnpack = ours(lengths)
    forms = [turnpack]
    for name in ("first_fit_decreasing", "first_fit_shuffle"):
        rule = getattr(nemo, name)
        forms.append(
            Form(
                f"{packages.title('nemo-toolkit')}, {name}",
                lambda rule=rule: rule(given, CAPACITY),
                figures={
                    "utilization": utilization(of_lengths(rule(given, CAPACITY), lengths), lengths)
                },
            )
        )
    yield f"plan {len(lengths):,} rows", forms, 5


def of_rows(bins, lengths):
    """How many bins of row ids there are; every row is in one of them, none is above capacity."""
    bins = [np.asarray(bin) for bin in bins if len(bin)]
    assert np.array_equal(np.sort(np.concatenate(bins)), np.arange(len(lengths)))
    assert max(lengths[bin].sum() for bin in bins) <= CAPACITY
    return len(bins)


def of_lengths(bins, lengths):
    """The same for bins of lengths."""
    assert np.array_equal(np.sort(np.concatenate(bins)), np.sort(lengths))
    assert max(map(sum, bins)) <= CAPACITY
    return len(bins)
