"""PackedDataset: every bin and document as the Parquet has it, decoded once, mapped by all."""

import os
import pickle
import re
import subprocess
import sys
import textwrap

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader

from turnpack import kernels
from turnpack.nouns import Tokens
from turnpack.prepare import prepare
from turnpack.sinks import ParquetSink
from turnpack.torch import Collator, PackedDataset

SAMPLE = ("alpaca.json", "messages.jsonl", "sharegpt.jsonl")


def tokens_of(lengths, seed=0, weighted=False):
    random = np.random.default_rng(seed)
    total = int(np.sum(lengths))
    return Tokens(
        random.integers(0, 50_000, total, np.int32),
        random.integers(0, 2, total, np.uint8),
        np.concatenate([[0], np.cumsum(lengths)]),
        loss_weights=random.random(total, np.float32) if weighted else None,
    )


def write(path, lengths, capacity, seed=0, weighted=False):
    """A Parquet file of packed bins; what is in them, row by row."""
    tokens = tokens_of(lengths, seed, weighted)
    names = pa.array([f"chats:{n}" for n in range(len(tokens))], pa.large_string())
    with ParquetSink(path, weighted) as sink:
        plan = kernels.plan(tokens.lengths, capacity)
        for first in range(0, plan.num_bins, 5):
            sink.write(kernels.pack(tokens, plan[first : first + 5], layout="flat"), names)
    return pq.read_table(path).to_pylist()


def lists(item):
    return {key: value.tolist() for key, value in item.items()}


def plain(row):
    """A bin as it is stored, with the positions that it has as an item."""
    positions = [place for length in row["seq_lengths"] for place in range(length)]
    return {**{k: v for k, v in row.items() if k != "source"}, "position_ids": positions}


@pytest.mark.parametrize("weighted", [False, True])
def test_items_are_the_stored_bins(tmp_path, weighted):
    rows = []
    for shard in range(3):
        path = tmp_path / f"train-{shard:05}-of-00003.parquet"
        rows += write(path, [3 + shard, 9, 1, 5, 7] * 20, 10, shard, weighted)
    dataset = PackedDataset(tmp_path)
    assert len(dataset) == len(rows)
    assert [lists(item) for item in dataset] == [plain(row) for row in rows]
    assert dataset.lengths.tolist() == [len(row["input_ids"]) for row in rows]
    assert [lists(i) for i in dataset.__getitems__([2, -1])] == [plain(rows[2]), plain(rows[-1])]
    for at in (len(rows), -len(rows) - 1):
        with pytest.raises(IndexError, match=f"item {at} of {len(rows)}"):
            dataset[at]
    assert not dataset[0]["input_ids"].flags.writeable


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("seq_lengths", 10**6, "item 1 has documents of other lengths than its own"),
        ("seq_lengths", 1, "item 1 has documents of other lengths than its own"),
        ("seq_lengths", -1, "item 1 has documents of other lengths than its own"),
        ("offsets", -1, "item 1 is from -1 to"),
        ("offsets", 10**9, "item 1 has documents that are not there"),
    ],
)
def test_a_damaged_cache_is_an_error(tmp_path, name, value, said):
    write(tmp_path / "train-0.parquet", [3, 9, 1, 5, 7] * 20, 10)
    dataset = PackedDataset(tmp_path)
    path = tmp_path / f"numpy/train/{name}.npy"
    array = np.load(path)
    # Of the second bin: its first document's length, or where it or its documents start.
    place = dataset[0]["seq_lengths"].size if name == "seq_lengths" else (1, int(value > 0))
    array[place] = value
    np.save(path, array)
    with pytest.raises(ValueError, match=said):
        PackedDataset(tmp_path)[1]


def test_documents_are_kept_apart_without_their_lengths(tmp_path):
    """Trainer's `remove_unused_columns` takes away what is no argument of the model."""
    write(tmp_path / "train-0.parquet", [3, 9, 1, 5, 7] * 20, 10)
    items = PackedDataset(tmp_path).__getitems__([0, 1, 2, 3])
    wanted = Collator()(items)
    for item in items:
        del item["seq_lengths"]
    made = Collator()(items)
    assert made["position_ids"].tolist() == wanted["position_ids"].tolist()
    assert made["cu_seq_lens_q"].tolist() == wanted["cu_seq_lens_q"].tolist()


def test_documents_of_a_packed_set(tmp_path):
    rows = write(tmp_path / "train-0.parquet", [3, 9, 1, 5, 7, 2], 10, weighted=True)
    dataset = PackedDataset(tmp_path, documents=True)
    wanted = []
    for row in rows:
        at = 0
        for length in row["seq_lengths"]:
            keys = ("input_ids", "labels", "loss_weights")
            wanted.append({key: row[key][at : at + length] for key in keys})
            at += length
    assert [lists(item) for item in dataset] == wanted
    assert dataset.lengths.tolist() == [len(item["input_ids"]) for item in wanted]


def test_a_row_is_an_item_of_an_unpacked_set(tmp_path):
    table = pa.table(
        {"input_ids": [[1, 2, 3], [4, 5]], "loss_mask": [[True, False, True], [False, True]]}
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    for path in (tmp_path, tmp_path / "rows.parquet"):
        items = [lists(item) for item in PackedDataset(path)]
        assert items == [
            plain({"input_ids": [1, 2, 3], "labels": [1, -100, 3], "seq_lengths": [3]}),
            plain({"input_ids": [4, 5], "labels": [-100, 5], "seq_lengths": [2]}),
        ]


def test_what_prepare_writes(tmp_path):
    from at_hand import mistral_v1

    files = [os.path.join(os.path.dirname(__file__), "../examples/sample", name) for name in SAMPLE]
    options = {"tokenizer": mistral_v1(), "template": "llama2", "max_length": 512}
    prepare(files, output=tmp_path / "plain", **options)
    prepare(files, output=tmp_path / "ready", sinks=["numpy"], **options)
    data = sorted((tmp_path / "plain" / "data").iterdir())
    rows = [row for path in data for row in pq.read_table(path).to_pylist()]
    made = PackedDataset(tmp_path / "plain")
    assert [lists(item) for item in made] == [plain(row) for row in rows]
    before = (tmp_path / "ready" / "numpy" / "train" / "input_ids.npy").stat()
    ready = PackedDataset(tmp_path / "ready")
    assert [lists(item) for item in ready] == [lists(item) for item in made]
    after = (tmp_path / "ready" / "numpy" / "train" / "input_ids.npy").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    # A new run replaces the loader's cache with the rest.
    prepare(files[:1], output=tmp_path / "plain", **options)
    assert not (tmp_path / "plain" / "numpy").exists()
    assert len(PackedDataset(tmp_path / "plain")) < len(made)


def test_a_cache_of_other_files_is_made_anew(tmp_path):
    path = tmp_path / "train-0.parquet"
    write(path, [3, 4], 10)
    first = PackedDataset(tmp_path)
    rows = write(path, [3, 4, 9, 9], 10, seed=1)
    second = PackedDataset(tmp_path)
    assert [lists(item) for item in second] == [plain(row) for row in rows]
    assert len(first[0]["input_ids"]) == 7  # what was mapped stays mapped
    assert sorted(path.name for path in (tmp_path / "numpy").iterdir()) == ["train", "train.lock"]


def test_a_cache_elsewhere(tmp_path):
    write(tmp_path / "train-0.parquet", [3, 4], 10)
    PackedDataset(tmp_path, cache=tmp_path / "else" / "where")
    assert (tmp_path / "else" / "where" / "input_ids.npy").exists()
    assert not (tmp_path / "numpy").exists()


def test_pickles_are_small_and_map_the_same_files(tmp_path):
    write(tmp_path / "train-0.parquet", [30] * 4000, 100)
    dataset = PackedDataset(tmp_path)
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 1000
    again = pickle.loads(pickled)
    assert [lists(again[n]) for n in (0, 7)] == [lists(dataset[n]) for n in (0, 7)]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"labels": [[1]]}, "has no column input_ids"),
        ({"input_ids": [[1, 2]]}, "there is neither a column labels nor one loss_mask"),
        ({"input_ids": [[1, 2]], "labels": [[1]]}, "bin 0 has other lengths in labels"),
        (
            {"input_ids": [[1], [1, 2]], "labels": [[1], [1, 2]], "seq_lengths": [[1], [1]]},
            "bin 1 has 2 tokens, but its documents 1",
        ),
        ({"input_ids": [[1], None], "labels": [[1], [1]]}, "bin 1 is null in input_ids"),
        ({"input_ids": [1], "labels": [1]}, "column input_ids is int64, not lists"),
    ],
)
def test_files_that_are_no_bins(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "train-0.parquet")
    with pytest.raises(ValueError, match=re.escape(message)):
        PackedDataset(tmp_path)
    assert not (tmp_path / "numpy" / "train").exists()


def test_no_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no Parquet files of a split 'train'"):
        PackedDataset(tmp_path)


def test_processes_that_open_it_together_decode_once(tmp_path):
    write(tmp_path / "train-0.parquet", [9] * 20_000, 90)
    script = (
        "import sys; from turnpack import mapped; real = mapped.decode\n"
        "def decode(*given): print('decoded'); real(*given)\n"
        "mapped.decode = decode\n"
        "sys.stdin.read(1)\n"
        "print(mapped.load(*mapped.find(sys.argv[1], 'train'))['input_ids'][:5].tolist())"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(3)]
    for process in processes:
        process.stdin.write("g")
        process.stdin.flush()
    lines = "".join(process.communicate()[0] for process in processes)
    assert lines.count("decoded") == 1
    ids = str(PackedDataset(tmp_path)[0]["input_ids"][:5].tolist())
    assert lines.count(ids) == 3


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_what_the_process_itself_reads(tmp_path, method):
    write(tmp_path / "train-0.parquet", [3, 9, 1, 5, 7] * 8, 10)
    dataset = PackedDataset(tmp_path)
    loader = DataLoader(
        dataset, 3, collate_fn=Collator(), num_workers=1, multiprocessing_context=method
    )
    wanted = DataLoader(dataset, 3, collate_fn=Collator())
    for made, other in zip(loader, wanted, strict=True):
        assert made["input_ids"].tolist() == other["input_ids"].tolist()


def private_of_workers(path, workers=4):
    """MiB that only the workers have, all together, after they have read the whole set.

    Pages of a mapped file that one process alone has touched are no memory of its own, whether
    they are on the disk yet or not.
    """
    script = f"""
        import psutil, torch
        from torch.utils.data import DataLoader
        from turnpack.torch import Collator, PackedDataset

        def private(process):
            size, inode = 0, None
            for line in open(f"/proc/{{process.pid}}/smaps"):
                name, *words = line.split()
                if not name.endswith(":"):
                    inode = words[3]
                elif name == "Private_Dirty:" and inode == "0":
                    size += int(words[0])
            return size

        torch.set_num_threads(1)
        dataset = PackedDataset({str(path)!r})
        loader = DataLoader(
            dataset, 8, collate_fn=Collator(), num_workers={workers}, shuffle=True,
            persistent_workers=True,
        )
        seen = sum(batch["input_ids"].numel() for batch in loader)
        assert seen == dataset.lengths.sum()
        print(sum(private(child) for child in psutil.Process().children()) / 1024)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def test_workers_share_the_set(tmp_path):
    used = []
    for name, bins in (("little", 25), ("much", 2500)):  # 0.8 and 80 MB of arrays
        (tmp_path / name).mkdir()
        write(tmp_path / name / "train-0.parquet", [4096] * bins, 4096)
        PackedDataset(tmp_path / name)[0]  # decoding leaves memory that Arrow keeps
        used.append(private_of_workers(tmp_path / name))
    little, much = used
    assert much - little < 80, f"{much:.0f} and {little:.0f} MiB"


@pytest.mark.soak
def test_workers_share_two_gigabytes(tmp_path):
    for shard in range(16):
        write(tmp_path / f"train-{shard:02}.parquet", [4096] * 4096, 4096, shard)
    used = private_of_workers(tmp_path)
    size = sum(path.stat().st_size for path in (tmp_path / "numpy" / "train").iterdir())
    assert size > 2e9
    assert used < 200, f"{used:.0f} MiB"
