"""On Ray: the rows, rejects and totals of a run on one machine, whoever dies meanwhile."""

import gc
import gzip
import os
import pickle
import signal
import sys
import warnings
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import at_hand
import turnpack.prepare
import turnpack.ray as on_ray
from test_prepare import BAD, data_bytes, documents, good, tree
from turnpack import pieces, piecework, records, shards
from turnpack.cli import main
from turnpack.encode import FallbackWarning
from turnpack.nouns import RowError
from turnpack.output import is_output
from turnpack.prepare import OptionError, prepare, prepare_recipe
from turnpack.templates import get_template


@pytest.fixture(scope="module")
def cluster():
    """A Ray of two CPUs for all tests; what it warns of is its own business."""
    ray = pytest.importorskip("ray")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(
            "local",
            num_cpus=2,
            object_store_memory=on_ray.STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
        yield ray
        ray.shutdown()


@pytest.fixture
def here(monkeypatch):
    """In the place of Ray a loop in this process; gives the calls that there were."""
    calls = []

    def mapped(function, rows, arguments=(), workers=None):
        calls.append(rows)
        call = function(*arguments) if isinstance(function, type) else function
        return chain.from_iterable(call(pa.Table.from_pylist([row])).to_pylist() for row in rows)

    pytest.importorskip("ray")
    monkeypatch.setattr(on_ray, "_mapped", mapped)
    monkeypatch.setattr(on_ray, "_connected", lambda *arguments: nullcontext())
    # What a worker does to its own process.
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    threshold = gc.get_threshold()
    yield calls
    gc.set_threshold(*threshold)


@pytest.fixture(scope="module")
def options():
    return {
        "tokenizer": at_hand.folder_of(at_hand.tiny(), bos_token="<s>", eos_token="</s>"),
        "template": "chatml",
        "max_length": 200,
        "tokenizer_backend": "hf",
        "workers": 2,
        "page": False,
    }


@pytest.fixture
def chats(tmp_path):
    """Files of every kind, of which some are larger than a piece and one cannot be read."""
    lines = [good(number) for number in range(600)]
    for place, line in zip((0, 7, 30, 555), BAD, strict=True):
        lines.insert(place, line)
    lines[100:100] = [b"", b" \r"]
    lines[300] = orjson.dumps(
        {
            "messages": [
                {"role": "user", "content": "long"},
                {"role": "assistant", "content": "Why? " * 400, "weight": 0.5},
            ]
        }
    )
    (tmp_path / "large.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines))
    rows = [orjson.loads(good(number)) for number in range(300)]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "large.parquet", row_group_size=40)
    pq.write_table(table, tmp_path / "torn.parquet", row_group_size=40, compression="none")
    with (tmp_path / "torn.parquet").open("r+b") as file:
        file.seek(
            pq.ParquetFile(tmp_path / "torn.parquet")
            .metadata.row_group(3)
            .column(0)
            .data_page_offset
        )
        file.write(b"\xff" * 50)
    (tmp_path / "small.json").write_bytes(orjson.dumps(rows[:5]))
    (tmp_path / "some.jsonl.gz").write_bytes(gzip.compress(b"\n".join(lines))[:-200])
    (tmp_path / "empty.jsonl").write_bytes(b"")
    names = ("empty.jsonl", "large.jsonl", "small.json", "torn.parquet", "some.jsonl.gz")
    return [str(tmp_path / name) for name in (*names, "large.parquet")]


def alike(report, other, folder, beside):
    """Both hold the same, in files of the same kind; only which bin holds what may differ."""
    assert Counter(map(repr, documents(folder))) == Counter(map(repr, documents(beside)))
    assert (folder / "rejects.jsonl").read_bytes() == (beside / "rejects.jsonl").read_bytes()
    counts = []
    for each in (report, other):
        each = {**each.to_dict()}
        del each["bins"], each["utilization"], each["files"]
        each["options"] = {k: v for k, v in each["options"].items() if k != "piece_bytes"}
        counts.append(each)
    assert counts[0] == counts[1]
    assert main(["verify", str(folder)]) == 0
    assert {path.name for path in folder.iterdir()} == {path.name for path in beside.iterdir()}
    assert {key for file in report.files for key in file} == {
        key for file in other.files for key in file
    }


MANY = {"truncate": "split", "validation": 0.2}


@pytest.mark.parametrize("strategy", ["stream", "best_fit", "in_order", "none"])
def test_every_strategy(here, options, chats, tmp_path, strategy):
    more = {**options, **MANY, "strategy": strategy, "window": 16, "shard_tokens": 20_000}
    local = prepare(chats, output=tmp_path / "local", **more | {"workers": 1})
    report = on_ray.prepare(chats, output=tmp_path / "ray", piece_bytes=20_000, **more)
    alike(report, local, tmp_path / "ray", tmp_path / "local")
    assert len(here[1]) > 10


class Dying:
    """ChatML, at which a process dies once: at one conversation, while there is no marker."""

    name = "dying"

    def __init__(self, marker, template=None):
        self.marker = marker
        self.template = template or get_template("chatml")
        self.bos, self.writes_bos = self.template.bos, self.template.writes_bos
        self.runs = self.template.runs

    def bind(self, backend):
        return Dying(self.marker, self.template.bind(backend))

    def render(self, messages, *arguments, **options):
        if messages[0]["content"].startswith("Question 211 ") and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.template.render(messages, *arguments, **options)


def test_a_run_in_which_a_worker_is_killed(cluster, options, chats, tmp_path):
    more = {**options, **MANY, "template": Dying(tmp_path / "died")}
    cluster.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    told = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = on_ray.prepare(
            chats, output=tmp_path / "ray", piece_bytes=20_000, progress=told.append, **more
        )
    assert (tmp_path / "died").exists()  # so from here on nobody dies
    local = prepare(chats, output=tmp_path / "local", **more | {"workers": 1})
    alike(report, local, tmp_path / "ray", tmp_path / "local")
    assert report.rejected_by_reason["unreadable file"] == 2
    assert len(told) > 10
    assert [each.done for each in told] == sorted(each.done for each in told)
    assert told[-1].done == told[-1].total


@pytest.mark.parametrize("address", [None, "ray://there:10001"])
def test_which_ray(monkeypatch, address):
    """The one at the address; else a small one that is started and stopped here."""
    ray = pytest.importorskip("ray")
    told = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda to, **options: told.append((to, options)))
    monkeypatch.setattr(ray, "shutdown", lambda: told.append("stopped"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with on_ray._connected(address, 3):
        ((to, given),) = told
    assert (to, given.get("num_cpus")) == ((address, None) if address else ("local", 3))
    assert told[1:] == ["stopped"]


def test_a_piece_at_which_all_die_is_given_up(here, options, chats, tmp_path, monkeypatch):
    real = piecework.Worker.__call__

    def later(self, batch):
        for attempt in range(piecework.ATTEMPTS):
            (self._home / f"2-{attempt}").mkdir(exist_ok=True)
        return real(self, batch)

    monkeypatch.setattr(piecework.Worker, "__call__", later)
    message = "4 workers died at the same piece of .*large.jsonl, perhaps for lack of memory"
    with pytest.raises(ChildProcessError, match=message):
        on_ray.prepare(chats, output=tmp_path / "out", piece_bytes=20_000, **options)
    assert not is_output(tmp_path / "out")
    monkeypatch.setattr(piecework.Worker, "__call__", real)
    report = on_ray.prepare(
        chats, output=tmp_path / "out", piece_bytes=20_000, resume=True, **options
    )
    local = prepare(chats, output=tmp_path / "local", **options | {"workers": 1})
    alike(report, local, tmp_path / "out", tmp_path / "local")


def test_what_is_made_is_not_made_again(here, options, chats, tmp_path, monkeypatch):
    """As when the process dies between its last rename and its answer, or two are at work."""
    local = prepare(chats, output=tmp_path / "local", **options | {"workers": 1})
    made = []
    call, make = piecework.Worker.__call__, piecework.Worker._make
    monkeypatch.setattr(
        piecework.Worker, "__call__", lambda self, batch: (call(self, batch), call(self, batch))[1]
    )

    def twice(self, number, exact, home):
        made.append(number)
        make(self, number, exact, home)
        if number % 2:
            make(self, number, exact, home.with_name(f"{number}-other"))
            home.with_name(f"{number}-other").rename(self._home / str(number))

    monkeypatch.setattr(piecework.Worker, "_make", twice)
    report = on_ray.prepare(chats, output=tmp_path / "ray", piece_bytes=20_000, **options)
    alike(report, local, tmp_path / "ray", tmp_path / "local")
    assert made == [*range(len(here[1]))]


def test_where_the_file_system_has_no_links(here, options, chats, tmp_path, monkeypatch):
    def link(*paths):
        raise PermissionError

    local = prepare(chats[1], output=tmp_path / "local", **options | {"workers": 1})
    monkeypatch.setattr(os, "link", link)
    report = on_ray.prepare(chats[1], output=tmp_path / "ray", piece_bytes=20_000, **options)
    alike(report, local, tmp_path / "ray", tmp_path / "local")


def test_bins_are_as_full_as_on_one_machine(here, options, tmp_path):
    rows = [good(number * 7919, "Fine. " * (1 + number * 31 % 17)) for number in range(8000)]
    chats = tmp_path / "chats.jsonl"
    chats.write_bytes(b"\n".join(rows))
    more = {**options, "max_length": 2048}
    local = prepare(chats, output=tmp_path / "local", **more | {"workers": 1})
    report = on_ray.prepare(chats, output=tmp_path / "ray", piece_bytes=120_000, **more)
    assert len(here[1]) > 10
    assert local.utilization > 0.99
    assert abs(report.utilization - local.utilization) < 0.001
    assert report.tokens == local.tokens


def test_without_what_is_left_they_are_not(here, options, tmp_path, monkeypatch):
    """So that the test above can fail."""
    monkeypatch.setattr(piecework, "LEFT", 0)
    chats = tmp_path / "chats.jsonl"
    chats.write_bytes(b"\n".join(good(number) for number in range(2000)))
    more = {**options, "max_length": 2048}
    local = prepare(chats, output=tmp_path / "local", **more | {"workers": 1})
    report = on_ray.prepare(chats, output=tmp_path / "ray", piece_bytes=20_000, **more)
    assert local.utilization - report.utilization > 0.01


def test_a_dataset(cluster, here, options, tmp_path):
    import ray.data

    rows = [orjson.loads(row) for row in (*map(good, range(50)), BAD[0])]
    chats = tmp_path / "chats.jsonl"
    chats.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    local = prepare(chats, output=tmp_path / "local", **options | {"workers": 1})
    out = tmp_path / "ray"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = ray.data.from_items(rows)
        report = on_ray.prepare(dataset, output=out, **options)
    assert report.conversations == local.conversations
    assert report.tokens == local.tokens
    found, expected = (
        Counter(str(row[1:]) for row in documents(folder)) for folder in (out, tmp_path / "local")
    )
    assert found == expected
    assert main(["verify", str(out)]) == 0
    assert orjson.loads((out / "rejects.jsonl").read_bytes().splitlines()[-1])["row"] == rows[-1]
    assert not (out / on_ray.ROWS).exists()
    with pytest.raises(OptionError, match="a run on a Dataset cannot be resumed"):
        on_ray.prepare(dataset, output=out, resume=True, **options)
    before = tree(out)
    dataset.write_parquet = lambda path: None
    with on_ray._written(dataset, out), pytest.raises(BlockingIOError, match="is writing there"):
        on_ray.prepare(dataset, output=out, **options)
    assert tree(out) == before


def test_on_the_command_line(here, options, chats, tmp_path, monkeypatch, capsys):
    places = []
    monkeypatch.setattr(on_ray, "_connected", lambda *asked: places.append(asked) or nullcontext())
    command = ["prepare", *chats[:3], "--template", "chatml", "--max-length", "200", "--no-page"]
    command += ["--tokenizer", str(options["tokenizer"]), "--output", str(tmp_path / "out")]
    assert main([*command, "--ray"]) == 0
    assert "bins in" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "out")]) == 0
    assert main([*command, "--workers", "3", "--ray", "there:6379"]) == 0
    assert places == [(None, None), ("there:6379", 3)]
    assert main(["prepare", "--ray", *command[1:]]) == 2
    assert "for an address: write it behind the files" in capsys.readouterr().err
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    assert main(["prepare", str(recipe), *command[4:], "--ray"]) == 2
    error = capsys.readouterr().err
    assert "not on Ray, where no machine sees all rows: weight of source 'a', cap of" in error
    assert "cap of source 'b', duplicates = 'across', shuffle = true\n" in error


RECIPE = """
duplicates = "across"
sources = [
    {name = "a", files = "large.jsonl", weight = 0.5},
    {name = "b", files = ["small.json", "large.*"], cap = {rows = 9}, filters = {max_tokens = 90}},
]
"""


def test_a_recipe(here, options, chats, tmp_path):
    text = RECIPE.replace("weight = 0.5", 'template = "llama2", filters = {min_trained = 0.2}')
    for said, instead in (('"across"', '"keep"\nshuffle = false'), ("cap = {rows = 9}, ", "")):
        assert said in text
        text = text.replace(said, instead)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(text)
    more = {**options, "validation": 0.2}
    local = prepare_recipe(recipe, output=tmp_path / "local", **more | {"workers": 1})
    report = on_ray.prepare_recipe(recipe, output=tmp_path / "ray", piece_bytes=20_000, **more)
    alike(report, local, tmp_path / "ray", tmp_path / "local")
    assert [source["filtered"] > 0 < source["packed"] for source in report.sources] == [True] * 2


@pytest.mark.parametrize("where", ["told", "adopt", "complete_weights", "write_manifest"])
def test_what_is_there_is_not_made_again(here, options, chats, tmp_path, monkeypatch, where):
    """However far a run came: resumed, it ends with the bytes of one that was not stopped."""
    chats.append(chats[0].replace("empty", "again"))
    Path(chats[-1]).write_bytes(Path(chats[1]).read_bytes())
    more = {**options, **MANY, "piece_bytes": 20_000}
    whole = on_ray.prepare(chats, output=tmp_path / "whole", **more)
    all_pieces = len(here.pop())
    calls = []

    def stopped(*arguments):
        calls.append(arguments)
        if len(calls) == 3 or where in ("complete_weights", "write_manifest"):
            if where == "complete_weights":  # which changes a file, and is killed then
                shards.complete_weights(*arguments)
            raise KeyboardInterrupt
        return shards.adopt(*arguments) if where == "adopt" else None

    with monkeypatch.context() as patch:
        if where != "told":
            patch.setattr(on_ray if where == "adopt" else turnpack.prepare, where, stopped)
        progress = stopped if where == "told" else None
        with pytest.raises(KeyboardInterrupt):
            on_ray.prepare(chats, output=tmp_path / "out", **more, progress=progress)
    assert not is_output(tmp_path / "out")
    with pytest.raises(OptionError, match="piece_bytes was 20000, now 8000"):
        on_ray.prepare(chats, output=tmp_path / "out", **more | {"piece_bytes": 8000}, resume=True)
    with pytest.raises(OptionError, match="piece_bytes was 20000, now absent"):
        prepare(chats, output=tmp_path / "out", **options, **MANY, resume=True)
    made, make = [], piecework.Worker._make
    monkeypatch.setattr(
        piecework.Worker, "_make", lambda *arguments: (made.append(0), make(*arguments))
    )
    report = on_ray.prepare(chats, output=tmp_path / "out", **more, resume=True)
    assert len(made) == (all_pieces - 3 if where == "told" else 0)
    assert report.to_dict() == whole.to_dict()
    assert data_bytes(tmp_path / "out") == data_bytes(tmp_path / "whole")
    assert main(["verify", str(tmp_path / "out")]) == 0


def test_without_ray(options, chats, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(OptionError, match=r"pip install 'turnpack\[ray\]'"):
        on_ray.prepare(chats, output=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_strict_stops_at_the_first_in_order(here, options, chats, tmp_path):
    with pytest.raises(RowError, match=r"large.jsonl:1: nothing to train on"):
        on_ray.prepare(chats, output=tmp_path / "out", piece_bytes=20_000, strict=True, **options)
    assert not (tmp_path / "out").exists()


def test_behind_a_difference_of_the_tokenizers_all_is_exact(
    here, options, chats, tmp_path, monkeypatch
):
    """What was encoded fast behind it is made again; here nothing is fast, it is only said so."""
    make = piecework.Worker._make

    def fast(self, number, exact, home):
        make(self, number, exact, home)
        if not exact:
            made = pickle.loads((home / piecework.MADE).read_bytes())
            made.tally.fallback = "it differs" if number in (3, 5) else None
            made = replace(made, exact=number == 4)
            (home / piecework.MADE).write_bytes(pickle.dumps(made))

    monkeypatch.setattr(piecework.Worker, "_make", fast)
    with pytest.warns(FallbackWarning, match="it differs"):
        on_ray.prepare(chats, output=tmp_path / "out", piece_bytes=20_000, **options)
    numbers = [row["piece"] for row in here[2]]
    assert numbers == [5, *range(6, len(here[1]))]
    assert main(["verify", str(tmp_path / "out")]) == 0


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([b"a", b"{}" * 9, b"", b" ", b"\r", b"\n\n", b"\xef\xbb\xbf"])),
    st.booleans(),
    st.integers(1, 60),
)
def test_parts_of_jsonl_hold_its_rows(tmp_path_factory, lines, ended, most):
    path = tmp_path_factory.mktemp("parts") / "x.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n" * ended)
    name, size = str(path), path.stat().st_size

    def mapped(function, rows):
        return function(pa.Table.from_pylist(rows)).to_pylist()

    parts = [part for _, files in pieces.cut([[name]], most, mapped) for part in files]
    assert [*records.raw_rows(parts)] == [*records.raw_rows(name)]
    if len(parts) > 1:
        assert parts[0].start == 0
        assert parts[-1].stop == size
        assert [part.start for part in parts[1:]] == [part.stop for part in parts[:-1]]


def test_small_files_share_a_piece(tmp_path):
    paths = []
    for number, size in enumerate((3, 4, 0, 5, 10, 20, 1, 1)):
        paths.append(str(tmp_path / f"{number}.json"))
        Path(paths[-1]).write_bytes(b" " * size)
    cut = pieces.cut([paths[:7], [], paths[7:], paths[:1] * 2], 10, None)
    assert [(part, [int(Path(path).stem) for path in files]) for part, files in cut] == [
        *((0, [0, 1, 2]), (0, [3]), (0, [4]), (0, [5]), (0, [6])),
        *((2, [7]), (3, [0, 0])),
    ]
