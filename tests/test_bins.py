"""Bins read back: the rows that were written, however many are read at a time."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shown import drawn_bins, write_bins
from turnpack import bins


def written(tmp_path):
    random = np.random.default_rng(1)
    made = drawn_bins(random, 23)
    write_bins(tmp_path / "data/validation-00000.parquet", made[:5])
    write_bins(tmp_path / "data/train-00001.parquet", made[5:11], group=2)
    write_bins(tmp_path / "data/train-00000.parquet", made[11:], group=4)
    return made[11:] + made[5:11] + made[:5]


def rows_of(found):
    return [
        (row.number, row.bin, row.source, row.input_ids.tolist(), row.targets.tolist())
        for some in found
        for row in map(some.row, range(len(some.rows) - 1))
    ]


@pytest.mark.parametrize("most", [None, 1, 3, 100])
def test_rows_are_those_written_in_order(tmp_path, most):
    made = written(tmp_path)
    expected = [
        (bin, source, ids, targets)
        for bin, rows in enumerate(made)
        for ids, targets, source in rows
    ]
    found = rows_of(bins.read(bins.files(tmp_path), most))
    assert [row[1:] for row in found] == expected
    assert [row[0] for row in found] == [*range(len(expected))]


def test_few_tokens_are_read_at_a_time(tmp_path, monkeypatch):
    written(tmp_path)
    whole = rows_of(bins.read(bins.files(tmp_path)))
    monkeypatch.setattr(bins, "TOKENS", 100)
    found = list(bins.read(bins.files(tmp_path)))
    assert rows_of(found) == whole
    assert max(len(some.input_ids) for some in found) < 500


def test_rows_are_found_by_number(tmp_path, monkeypatch):
    written(tmp_path)
    monkeypatch.setattr(bins, "TOKENS", 100)
    indexer = bins.Indexer()
    found = list(bins.read(bins.files(tmp_path)))
    for some in found:
        indexer.add(some)
    expected = rows_of(found)
    wanted = [0, len(expected) - 1, *range(3, len(expected), 7)]
    index = indexer.index()
    again = [
        (row.number, row.bin, row.source, row.input_ids.tolist(), row.targets.tolist())
        for row in index.rows(wanted)
    ]
    assert again == [expected[number] for number in sorted(wanted)]
    assert list(index.rows([])) == []


def test_what_is_no_bins_says_so(tmp_path):
    path = tmp_path / "x.parquet"
    lists = pa.array([[1, 2], [3]], pa.list_(pa.int32()))
    names = pa.array([["a"], ["b"]], pa.list_(pa.string()))
    columns = {"input_ids": lists, "labels": lists, "seq_lengths": lists, "source": names}
    pq.write_table(pa.table(columns), path)
    assert bins.is_bins(path)
    with pytest.raises(ValueError, match=r"x\.parquet: bin 0 has 2 tokens, but its documents 3"):
        list(bins.read([path]))
    assert not bins.is_bins(tmp_path / "no.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    assert not bins.is_bins(tmp_path / "broken.parquet")


def test_files_are_training_bins_first(tmp_path):
    written(tmp_path)
    assert [file.stem for file in bins.files(tmp_path)] == [
        "train-00000",
        "train-00001",
        "validation-00000",
    ]
    assert [bins.split(file) for file in bins.files(tmp_path)] == ["train", "train", "validation"]
    assert bins.files(tmp_path / "one.parquet") == [tmp_path / "one.parquet"]
