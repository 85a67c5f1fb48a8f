"""The report: the same numbers as JSON, as a table and as a page."""

from html.parser import HTMLParser

from turnpack.report import Report, page, summary, table

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
    assert lines[-1].endswith("  [bold]x ⟨U+001B⟩[2J (1)")


class Page(HTMLParser):
    """Collects the text, checks that tags close, and keeps every tag and attribute."""

    VOID = ("meta",)
    OPTIONAL = ("th", "td")

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], set(), [], []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in self.VOID + self.OPTIONAL:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data.strip())


def test_the_page_is_whole_and_runs_nothing():
    text = page(made(), {"unknown role": [f"{EVIL}:1: unknown role"], EVIL: ["x" * 1000, "y"]})
    parser = Page()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    assert parser.tags <= {
        *("html", "head", "meta", "title", "style", "body", "main"),
        *("h1", "h2", "h3", "table", "tr", "th", "td", "ul", "li"),
    }
    assert {name for name, _ in parser.attributes} == {"lang", "charset", "name", "content"}
    assert not set("\x1b\u202e") & set(text)
    for part in ("1,100", "30,864 (25.0%)", "97.23%", "1,234", "and 4 more in rejects.jsonl"):
        assert part in parser.texts
    assert any(piece.startswith("<script>alert(1)</script>⟨U+001B⟩") for piece in parser.texts)
    assert max(map(len, parser.texts)) < 1000


def test_the_page_without_rejects_has_no_such_part():
    assert "Rejected" not in page(made(rejected_by_reason={}), {})


def test_to_dict_is_plain():
    assert made().to_dict()["tokens"]["total"] == 123456
    assert next(iter(made().to_dict())) == "turnpack"
