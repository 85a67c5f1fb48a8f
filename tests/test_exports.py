"""The sinks made from Parquet: each holds the bins of the Parquet, as its own consumer reads it."""

import json
import re
import tracemalloc
import warnings
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from turnpack import kernels
from turnpack.nouns import Tokens
from turnpack.sinks import Bins, ParquetSink, stored
from turnpack.sinks.bins import BATCH, Place
from turnpack.sinks.bridge import write_bridge
from turnpack.sinks.exports import SINKS, Facts, export
from turnpack.sinks.megatron import write_megatron
from turnpack.torch import PackedDataset

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that there is no Transformer Engine, and the like
    from megatron.core.datasets.indexed_dataset import IndexedDataset

READS_NO_WEIGHTS = "ignore:Megatron-Bridge reads no loss_weights"


def write(path, lengths, capacity=20, weighted=False, seed=0, group=3, vocabulary=50_000):
    """A Parquet file of packed bins; what is in them, row by row."""
    random = np.random.default_rng(seed)
    total = sum(lengths)
    tokens = Tokens(
        input_ids=random.integers(0, vocabulary, total, np.int32),
        loss_mask=random.integers(0, 2, total, np.uint8),
        offsets=np.cumsum([0, *lengths]).astype(np.int64),
        loss_weights=random.random(total, np.float32) + 0.5 if weighted else None,
    )
    names = pa.array([f"chats:{n}" for n in range(len(tokens))], pa.large_string())
    plan = kernels.plan(tokens.lengths, capacity)
    with ParquetSink(path, weighted) as sink:
        for first in range(0, plan.num_bins, group):
            sink.write(kernels.pack(tokens, plan[first : first + group], layout="flat"), names)
    return pq.read_table(path).to_pylist()


def cut(values, lengths):
    """A bin's values, document by document."""
    ends = np.cumsum([0, *lengths]).tolist()
    return [values[a:b] for a, b in pairwise(ends)]


def documents(row):
    """Of every document of a stored bin: its ids, mask and weights, unshifted."""
    weights = row.get("loss_weights", [1.0] * len(row["input_ids"]))
    mask = [int(label != -100) for label in row["labels"]]
    kept = [weight if target else 0.0 for weight, target in zip(weights, mask, strict=True)]
    columns = [cut(values, row["seq_lengths"]) for values in (row["input_ids"], mask, kept)]
    return list(zip(*columns, strict=True))


# -- as their consumers read them -----------------------------------------------------------------


def from_numpy(folder, split="train"):
    made = []
    for item in PackedDataset(folder, split=split):
        row = {key: values.tolist() for key, values in item.items()}
        made.append(documents(row))
    return made


def from_megatron(folder, split="train"):
    """By megatron-core's own reader; an empty file cannot be mapped."""

    def opened(name):
        prefix = folder / "megatron" / f"{split}{name}"
        mmap = prefix.with_name(f"{prefix.name}.bin").stat().st_size > 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return IndexedDataset(str(prefix), mmap=mmap)

    ids, mask = opened(""), opened("_loss_mask")
    sets = [ids, mask]
    if (folder / "megatron" / f"{split}_loss_weights.bin").exists():
        sets.append(opened("_loss_weights"))
    for other in sets[1:]:
        assert other.sequence_lengths.tolist() == ids.sequence_lengths.tolist()
        assert other.document_indices.tolist() == ids.document_indices.tolist()
    bounds = ids.document_indices.tolist()
    made = []
    for a, b in pairwise(bounds):
        rows = [[one[number].tolist() for one in sets] for number in range(a, b)]
        made.append([(r[0], r[1], r[2] if len(r) > 2 else [float(m) for m in r[1]]) for r in rows])
    return made


def bridge_batch(row):
    """What Megatron-Bridge 0.6 makes of a stored bin: its reading rule, re-stated.

    The package needs CUDA's libraries to be installed. Its GPTSFTPackedParquetDataset cuts a row at
    `seq_start_id`; a document's tokens are all but its last id, its labels all but its first, and
    its loss mask all but the last entry.
    """
    ids, starts = row["input_ids"], row["seq_start_id"]
    assert len(row["loss_mask"]) == len(ids)
    assert starts[0] == 0
    assert sorted(starts) == starts
    assert starts[-1] < len(ids)
    for a, b in zip(starts, [*starts[1:], len(ids)], strict=True):
        weights = row.get("loss_weights", row["loss_mask"])
        yield ids[a : b - 1], ids[a + 1 : b], row["loss_mask"][a : b - 1], weights[a : b - 1]


def firsts(row):
    """The first id of every document, which is in no label."""
    return [row["input_ids"][start] for start in row["seq_start_id"]]


def from_bridge(folder, split="train"):
    """The documents again; a first label is in no batch, and -100 as in every bin."""
    table = pq.read_table(folder / "bridge" / f"{split}.idx.parquet")
    made = []
    for row in table.to_pylist():
        ends = [*row["seq_start_id"][1:], len(row["input_ids"])]
        batch = bridge_batch(row)
        made.append(
            [
                (row["input_ids"][a:b], [0, *mask], [0.0, *map(float, weights)])
                for a, b, (_, _, mask, weights) in zip(
                    row["seq_start_id"], ends, batch, strict=True
                )
            ]
        )
    return made


READERS = {"numpy": from_numpy, "megatron": from_megatron, "bridge": from_bridge}


def test_every_sink_has_a_reader():
    assert READERS.keys() == SINKS.keys()


@pytest.mark.filterwarnings(READS_NO_WEIGHTS)
@pytest.mark.parametrize("name", SINKS)
@settings(
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    shards=st.lists(st.lists(st.integers(1, 20), max_size=12), min_size=1, max_size=3),
    weighted=st.booleans(),
    group=st.integers(1, 5),
    vocabulary=st.sampled_from([None, 50_000, 65_499, 65_500, 200_000]),
)
def test_every_sink_holds_the_bins_of_the_parquet(
    name, shards, weighted, group, vocabulary, tmp_path_factory
):
    folder = tmp_path_factory.mktemp(name)
    (folder / "data").mkdir()
    files, rows = [], []
    for number, lengths in enumerate(shards):
        files.append(folder / "data" / f"train-{number}.parquet")
        rows += write(files[-1], lengths, 20, weighted, number, group, vocabulary or 200_000)
    export(name, {"train": files, "validation": []}, folder, Facts(20, vocabulary))
    assert READERS[name](folder) == [documents(row) for row in rows]
    made = {path.relative_to(folder).parts[0] for path in folder.rglob("*")}
    assert made == {"data", name} | ({"numpy"} if name == "numpy" else set())
    assert not list((folder / name).glob("validation*"))


def test_splits_have_files_of_their_own(tmp_path):
    splits = {}
    rows = {}
    for seed, split in enumerate(("train", "validation")):
        splits[split] = [tmp_path / f"{split}-0.parquet"]
        rows[split] = write(splits[split][0], [3, 9, 1, 12], seed=seed)
    for name, reader in READERS.items():
        if name != "numpy":
            export(name, splits, tmp_path, Facts(20))
            for split in splits:
                assert reader(tmp_path, split) == [documents(row) for row in rows[split]]
    assert len(json.loads((tmp_path / "bridge/metadata.json").read_text())) == 2


def test_a_sink_that_there_is_not(tmp_path):
    with pytest.raises(
        ValueError, match="there is no sink 'tfrecord', but numpy, megatron, bridge"
    ):
        export("tfrecord", {}, tmp_path, Facts(20))


# -- where labels stand ---------------------------------------------------------------------------

TWO = pa.record_batch(
    {
        "input_ids": [[10, 11, 12, 13, 14], [15, 16]],
        "labels": [[-100, -100, 12, -100, 14], [-100, 16]],
        "seq_lengths": [[3, 2], [2]],
        "loss_weights": [[0, 0, 2.0, 0, 0.5], [0, 1.0]],
    }
)


def test_megatrons_mask_is_not_shifted(tmp_path):
    write_megatron([Bins.of(TWO)], tmp_path / "x", vocabulary=100, weighted=True)
    assert np.fromfile(tmp_path / "x.bin", np.uint16).tolist() == [10, 11, 12, 13, 14, 15, 16]
    assert np.fromfile(tmp_path / "x_loss_mask.bin", np.uint8).tolist() == [0, 0, 1, 0, 1, 0, 1]
    weights = np.fromfile(tmp_path / "x_loss_weights.bin", np.float32)
    assert weights.tolist() == [0, 0, 2, 0, 0.5, 0, 1]
    # A step as Megatron's GPTDataset makes it: labels and mask of what comes next.
    ids, masks = (IndexedDataset(str(tmp_path / name)) for name in ("x", "x_loss_mask"))
    text, mask = ids[0], masks[0]  # which are unmapped with their dataset
    labels = np.where(mask[1:] == 1, text[1:].astype(int), -100)
    assert (text[:-1].tolist(), labels.tolist()) == ([10, 11], [-100, 12])


def test_bridges_mask_is_shifted_within_each_document(tmp_path):
    path = tmp_path / "x.idx.parquet"
    with pytest.warns(UserWarning, match="Megatron-Bridge reads no loss_weights"):
        write_bridge([Bins.of(TWO)], path, capacity=8, weighted=True)
    assert pq.read_table(path).to_pylist() == [
        {
            "input_ids": [10, 11, 12, 13, 14],
            "loss_mask": [0, 1, 0, 1, 0],
            "seq_start_id": [0, 3],
            "loss_weights": [0, 2, 0, 0.5, 0],
        },
        {
            "input_ids": [15, 16],
            "loss_mask": [1, 0],
            "seq_start_id": [0],
            "loss_weights": [1, 0],
        },
    ]
    trained = [
        label
        for row in pq.read_table(path).to_pylist()
        for _, labels, mask, _ in bridge_batch(row)
        for label, on in zip(labels, mask, strict=True)
        if on
    ]
    assert trained == [12, 14, 16]


# -- the layouts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vocabulary", "dtype"),
    [(None, "int32"), (65_499, "uint16"), (65_500, "int32"), (20, "uint16")],
)
def test_ids_have_the_type_that_megatron_gives_them(tmp_path, vocabulary, dtype):
    write_megatron([Bins.of(TWO)], tmp_path / "x", vocabulary=vocabulary)
    assert IndexedDataset(str(tmp_path / "x")).index.dtype.__name__ == dtype
    assert IndexedDataset(str(tmp_path / "x_loss_mask")).index.dtype.__name__ == "uint8"
    index = (tmp_path / "x.idx").read_bytes()
    assert index[:9] == b"MMIDIDX\x00\x00"
    assert len(index) == 34 + 3 * 4 + 3 * 8 + 3 * 8
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"x{name}.{kind}" for name in ("", "_loss_mask") for kind in ("bin", "idx")
    ]


def test_pointers_go_on_over_blocks_of_the_index(tmp_path, monkeypatch):
    monkeypatch.setattr("turnpack.sinks.megatron._SOME", 3)
    rows = write(tmp_path / "a.parquet", [*range(1, 20)] * 3)
    export("megatron", {"train": [tmp_path / "a.parquet"]}, tmp_path, Facts(20, 60_000))
    assert from_megatron(tmp_path) == [documents(row) for row in rows]


def test_bridges_metadata_counts_as_bridge_counts(tmp_path):
    """A document of n ids is n - 1 tokens long; a list, with an entry for each set."""
    rows = write(tmp_path / "a.parquet", [3, 9, 1, 12, 20], 20)
    export("bridge", {"train": [tmp_path / "a.parquet"]}, tmp_path, Facts(20))
    lengths = [[length - 1 for length in row["seq_lengths"]] for row in rows]
    totals = [sum(row) for row in lengths]
    assert json.loads((tmp_path / "bridge/metadata.json").read_text()) == [
        {
            "dataset_max_seqlen": 19,
            "max_samples_per_bin": max(map(len, lengths)),
            "packing_factor": round(5 / len(rows), 2),
            "packing_efficiency": round(sum(totals) / len(rows) / 20 * 100, 2),
            "pack_size": 20,
            "min_packed_seqlen": min(totals),
        }
    ]
    schema = pq.read_schema(tmp_path / "bridge/train.idx.parquet")
    assert [(field.name, str(field.type.value_type)) for field in schema] == [
        ("input_ids", "int32"),
        ("loss_mask", "int8"),
        ("seq_start_id", "int32"),
    ]


# -- what cannot be written -----------------------------------------------------------------------


def one(**columns):
    return pa.record_batch({"input_ids": [[5], [1, 2]], "labels": [[5], [-100, 2]], **columns})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"input_ids": [[5], None]}, "bin 8 is null in input_ids"),
        ({"input_ids": [[5], [1, None]]}, "bin 8 has a null in input_ids"),
        ({"labels": [[5], [None, 2]]}, "bin 8 has a null in labels"),
        ({"seq_lengths": [None, [2]]}, "bin 7 is null in seq_lengths"),
        ({"labels": [[5], [1]]}, "bin 8 has other lengths in labels than in input_ids"),
        ({"loss_weights": [[1.0], [1.0]]}, "bin 8 has other lengths in loss_weights"),
        ({"seq_lengths": [[1], [3]]}, "bin 8 has 2 tokens, but its documents 3"),
        ({"seq_lengths": [[1], []]}, "bin 8 has 2 tokens, but its documents 0"),
        ({"seq_lengths": [[1], [3, -1]]}, "bin 8 has a document of -1 tokens"),
        ({"input_ids": [[5], [1, 2**31]]}, "bin 8 has 2147483648 in input_ids, more than int32"),
        (
            {"input_ids": [["a"], ["b", "c"]]},
            "input_ids is list<item: string>, not lists",
        ),
        ({"input_ids": [5, 6]}, "column input_ids is int64, not lists"),
        ({"labels": [[5.0], [1.0, 2.0]]}, "labels is list<item: double>, not lists of integers"),
    ],
)
def test_what_is_no_bins_is_named(columns, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Bins.of(one(**columns), Place(first=7))


def test_a_message_says_which_bin_of_which_file(tmp_path):
    good = [[1, 2]] * (BATCH + 3)
    table = pa.table({"input_ids": good, "labels": [*good[:-1], [1, 3]]})
    path = tmp_path / "bins.parquet"
    pq.write_table(table, path)
    message = f"{path}: bin {BATCH + 2} has the label 3 where its token is 2"
    for name in ("megatron", "bridge"):
        with pytest.raises(ValueError, match=re.escape(message)):
            export(name, {"train": [path]}, tmp_path, Facts(20))


def test_more_tokens_than_int32_counts():
    many = 2**31
    cells = np.broadcast_to(np.int32(0), (many,))
    with pytest.raises(ValueError, match="bin 0 has 2147483648 tokens, more than int32 counts"):
        Bins(
            input_ids=cells,
            labels=cells,
            seq_lengths=np.array([many]),
            offsets=np.array([0, many]),
            documents=np.array([0, 1]),
        )


def test_more_cells_than_an_arrow_column_holds(tmp_path):
    half = 2**30
    cells = np.broadcast_to(np.int32(0), (2 * half,))
    bins = Bins(
        input_ids=cells,
        labels=cells,
        seq_lengths=np.array([half, half]),
        offsets=np.array([0, half, 2 * half]),
        documents=np.array([0, 1, 2]),
    )
    with pytest.raises(ValueError, match="2147483648 cells are more than one Arrow list column"):
        write_bridge([bins], tmp_path / "x.idx.parquet", capacity=half)


@pytest.mark.parametrize(("vocabulary", "known"), [(16, ", of 16 that there are"), (None, "")])
def test_ids_that_the_tokenizer_has_not(tmp_path, vocabulary, known):
    wrong = TWO.set_column(0, "input_ids", pa.array([[10, 11, 12, 13, 14], [-1, 16]]))
    bins = Bins.of(TWO if vocabulary else wrong)
    number = 16 if vocabulary else -1
    with pytest.raises(ValueError, match=f"bin 1 has the id {number}{known}$"):
        write_megatron([bins], tmp_path / "x", vocabulary=vocabulary)


def test_bridge_has_no_empty_documents(tmp_path):
    batch = pa.record_batch(
        {"input_ids": [[1], [1, 2]], "labels": [[-100], [-100, 2]], "seq_lengths": [[1], [2, 0]]}
    )
    with pytest.raises(ValueError, match="bin 1 has an empty document"):
        write_bridge([Bins.of(batch)], tmp_path / "x.idx.parquet", capacity=8)


def test_weights_that_are_not_there(tmp_path):
    bins = Bins.of(one())
    with pytest.raises(ValueError, match="bin 0 has no loss_weights"):
        write_megatron([bins], tmp_path / "x", weighted=True)


# -- memory ---------------------------------------------------------------------------------------


def test_row_groups_are_read_one_by_one(tmp_path):
    """No batch spans two, however small; so none is larger than what was written at once."""
    write(tmp_path / "a.parquet", [20] * 10, 20, group=3)
    assert [len(bins) for bins in stored([tmp_path / "a.parquet"])] == [3, 3, 3, 1]


@pytest.mark.parametrize("name", SINKS)
def test_a_sink_holds_no_more_of_a_larger_set(tmp_path, name):
    """What NumPy, Arrow and Python have at the most does not grow with the number of bins."""

    def most(count):
        folder = tmp_path / str(count)
        (folder / "data").mkdir(parents=True)
        path = folder / "data" / "train-0.parquet"
        write(path, [512] * count, 512, group=BATCH)
        pool = pa.system_memory_pool()
        before, peak = pa.default_memory_pool(), 0
        pa.set_memory_pool(pool)

        def watched(files):
            nonlocal peak
            for bins in stored(files):
                peak = max(peak, pool.bytes_allocated())
                yield bins

        with pytest.MonkeyPatch.context() as patch:
            for module in ("turnpack.sinks.exports", "turnpack.mapped"):
                patch.setattr(f"{module}.stored", watched)
            tracemalloc.start()
            try:
                export(name, {"train": [path]}, folder, Facts(512))
                held = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
                pa.set_memory_pool(before)
        assert peak > 0
        return peak + held

    most(BATCH)  # what is imported and made once
    small, large = most(8 * BATCH), most(64 * BATCH)
    assert large < 1.5 * small, f"{small:,} bytes of 8 batches, {large:,} of 64"
