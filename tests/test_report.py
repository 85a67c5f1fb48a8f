"""The report: the same numbers as JSON, as a table and as a page."""

import hashlib
import json
import re
import shutil
from html.parser import HTMLParser

import pytest

import shown
from turnpack.cli import main
from turnpack.report import Report, of, relist, remarks, summary, table, write_page
from turnpack.survey import Count, Survey

EVIL = "<script>alert(1)</script>\x1b[31m\u202e&\"'"


def made(**changes):
    values = {
        "options": {"seed": 0, "system": EVIL},
        "tokenizer": {"name": EVIL, "sha256": "ab" * 32},
        "template": {"name": "chatml", "sha256": None},
        "inputs": [{"file": EVIL, "bytes": 1234, "read": 1100, "packed": 1093, "rejected": 7}],
        "conversations": {"read": 1100, "packed": 1093, "rejected": 7},
        "rejected_by_reason": {"unknown role": 5, EVIL: 2},
        "rows": 1093,
        "tokens": {"total": 123456, "trained": 30864, "share": 0.25},
        "bins": 31,
        "capacity": 4096,
        "utilization": 0.97226,
        "warnings": {"truncated": 3},
        "seconds": {"read": 0.123, "total": 2.5},
    }
    return Report(**{**values, **changes})


def test_the_table_says_what_matters():
    lines = [line.strip() for line in table(made()).splitlines()]
    pairs = [tuple(line.split("  ", 1)) for line in lines]
    text = {name: value.strip() for name, value in pairs}
    assert text["rows read"] == "1,100"
    assert text["rejected"] == "7"
    assert text["unknown role"] == "5"
    assert text["trained on"] == "30,864 (25.0%)"
    assert text["bins"] == "31 of 4,096 tokens"
    assert text["utilization"] == "97.23%"
    assert text["seconds"] == "read 0.12, total 2.50"
    assert text["warning"] == "truncated (3)"
    assert "in rows" not in text
    assert "\x1b" not in table(made())


def test_rows_are_named_where_they_are_not_the_conversations():
    assert ("  in rows", "1,200") in list(summary(made(rows=1200)))


def test_what_the_input_spells_stays_on_its_line():
    lines = table(made(warnings={"[bold]x\n\x1b[2J": 1})).splitlines()
    assert lines[-2].endswith("  [bold]x ⟨U+001B⟩[2J (1)")


def test_what_is_read_is_a_report_again():
    told = made().to_dict() | made().about_the_run()
    assert of({**told, "new": 1}) == made()
    assert "seconds" not in table(of(made().to_dict()))


# -- the page ---------------------------------------------------------------------------------


class Page(HTMLParser):
    """Collects texts, tags and attributes, and checks that tags close."""

    VOID = ("meta", "input")
    OPTIONAL = ("th", "td")

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID + self.OPTIONAL:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        if tag not in self.OPTIONAL:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def parsed(page):
    parser = Page()
    parser.feed(page.read_text("utf-8"))
    parser.close()
    assert parser.open == []
    return parser


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("report")
    return shown.prepared(tmp_path, shown.chats(tmp_path))


def test_the_page_is_whole_and_loads_and_runs_nothing(folder):
    page = parsed(folder / "report.html")
    assert page.tags.count("script") == 2
    assert not {"img", "link", "iframe", "object", "form", "base"} & {*page.tags}
    names = {name for name, _ in page.attributes}
    assert not {name for name in names if name.startswith("on")} | {"src", "style"} & names
    assert all(link.startswith("#") for name, link in page.attributes if name == "href")
    text = (folder / "report.html").read_text("utf-8")
    assert not set("\x1b\u202e\u2066") & set(text)
    assert "http" not in re.sub(r"http://www.w3.org/2000/svg|http-equiv", "", text)
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert any("<script>document.title" in "".join(row["p"]) for row in data["rows"])


def test_report_writes_the_page_that_prepare_wrote(folder, capsys):
    page = folder / "report.html"
    before, manifest = page.read_bytes(), (folder / "manifest.json").read_bytes()
    page.unlink()
    assert main(["report", str(folder)]) == 0
    assert page.read_bytes() == before
    assert (folder / "manifest.json").read_bytes() == manifest
    assert "the page is " in capsys.readouterr().out
    other = folder.parent / "other.html"
    assert main(["report", str(folder), "--html", str(other)]) == 0
    assert other.read_bytes() == before


def test_nothing_of_a_conversation_reaches_the_terminal(folder, tmp_path, capfd):
    for command in (["report"], ["preview", "--bins", "99"], ["preview", "--find", "script"]):
        assert main([*command, str(folder)]) == 0
    chats = next(shown.chats(tmp_path).parent.glob("*.jsonl"))
    asked = ["--tokenizer", str(shown.tokenizer()), "--template", "chatml"]
    assert main(["preview", str(chats), *asked, "--bins", "99"]) == 0
    said = "".join(capfd.readouterr())
    assert "onerror" in said
    assert "⟨U+001B⟩" in said
    assert not {"\x1b", "\x07", "\x9b", "\u202e", "\u2066"} & {*said}


def test_the_manifest_lists_the_page_as_it_is(folder):
    page, listed = folder / "report.html", folder / "manifest.json"
    before = page.read_bytes(), listed.read_bytes()
    page.write_text("another")
    relist(folder)
    (file,) = [f for f in json.loads(listed.read_bytes())["files"] if f["path"] == "report.html"]
    assert (file["bytes"], file["sha256"]) == (7, hashlib.sha256(b"another").hexdigest())
    page.write_bytes(before[0])
    relist(folder)
    assert listed.read_bytes() == before[1]


def test_the_page_without_a_tokenizer_shows_ids(folder, tmp_path):
    copied = tmp_path / "out"
    shutil.copytree(folder, copied)
    shutil.rmtree(copied / "tokenizer")
    page = parsed(write_page(copied))
    assert "Conversations" in page.texts


def test_a_set_without_bins_has_a_page(tmp_path):
    chats = tmp_path / "chats.jsonl"
    chats.write_text("{}\n")
    asked = ["--tokenizer", str(shown.tokenizer()), "--template", "chatml", "--max-length", "99"]
    assert main(["prepare", str(chats), *asked, "--output", str(tmp_path / "out")]) == 1
    page = parsed(tmp_path / "out/report.html")
    assert "Nothing was packed: there is nothing to train on." in page.texts


def test_what_is_no_output_says_so(tmp_path, capsys):
    assert main(["report", str(tmp_path / "no")]) == 2
    assert main(["report", str(tmp_path)]) == 2
    (tmp_path / "report.json").write_text("[]")
    assert main(["report", str(tmp_path)]) == 2
    (tmp_path / "report.json").write_text("nope")
    assert main(["report", str(tmp_path)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert [line.startswith("turnpack: error: ") for line in said] == [True] * 4


def test_a_page_that_fails_leaves_the_old_one(folder, monkeypatch):
    before = (folder / "report.html").read_bytes()
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_page(folder)
    assert (folder / "report.html").read_bytes() == before
    assert not list(folder.glob(".report*"))


# -- what is said in words --------------------------------------------------------------------


class Told:
    eos = "</s>"


def said(survey=None, **changes):
    report = {"files": [{"bins": 4, "tokens": 9}, {"bins": 5, "tokens": 90}], **changes}
    found = Survey(10, total=Count(30, 99, 9), bins=9, endings={"</s>": 30})
    for key, value in (survey or {}).items():
        setattr(found, key, value)
    return list(remarks(report, found, Told()))


def test_nothing_is_said_where_all_is_well():
    assert said() == []


CASES = [
    ({"unstopped": 30, "endings": {"x": 30}}, {}, "warning", "No row ends with a control token"),
    ({"unstopped": 3}, {}, "warning", "3 rows have no stop token"),
    ({"unstopped": 1}, {}, "warning", "1 row has no stop token"),
    ({"endings": {"<|im_end|>": 30}}, {}, "note", "generation must stop at <|im_end|>"),
    ({"masked": 2}, {}, "warning", "2 rows have no target at all"),
    ({"spelled": {"</s>": 4}}, {}, "warning", "In 4 rows ordinary text spells </s>"),
    ({"duplicates": 3}, {}, "warning", "3 rows (10.0%) are there already"),
    ({"duplicates": 3, "thinned": 4}, {}, "warning", "About 3 rows"),
    ({"bins": 8}, {}, "warning", "The bins are not those that report.json counts."),
    ({}, {"inputs": [{"file": "a", "read": 7, "packed": 0}]}, "warning", "Nothing of a is left"),
    ({}, {"inputs": [{"file": "a", "read": 0, "packed": 0}]}, "warning", "a has no rows"),
    (
        {},
        {"conversations": {"read": 9, "packed": 5, "rejected": 4}},
        "warning",
        "4 of 9 rows (44%)",
    ),
    ({}, {"warnings": {"no stop token": 5}}, "warning", "does not learn to stop there (5)."),
    ({}, {"warnings": {"something new": 5}}, "warning", "something new (5)."),
]


@pytest.mark.parametrize(("survey", "changes", "kind", "text"), CASES)
def test_what_is_wrong_is_said(survey, changes, kind, text):
    assert [one for one, told in said(survey, **changes) if text in told] == [kind]
    assert len(said(survey, **changes)) == 1


def test_truncation_is_said_with_its_cost():
    changes = {
        "warnings": {"truncated": 3},
        "options": {"truncate": "right", "max_length": 2048},
        "conversations": {"packed": 1000, "read": 1000, "rejected": 0},
    }
    told = "3 of 1,000 conversations are longer than 2,048 tokens and were cut at the end"
    unknown = f"{told}; how many tokens that cost was not counted."
    assert said({"unstopped": 3}, **changes) == [("note", unknown)]
    changes["truncated"] = {"tokens": 5000, "targets": 40}
    cost = f"{told}, at the cost of 5,000 tokens and 40 targets."
    assert said({"unstopped": 3}, **changes) == [("note", cost)]
    assert len(said({"unstopped": 4}, **changes)) == 2


def test_to_dict_is_plain():
    assert made().to_dict()["tokens"]["total"] == 123456
    assert next(iter(made().to_dict())) == "turnpack"
