"""Preview: rows in a terminal, in colours or in marks, and which rows they are."""

import io
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from turnpack import preview
from turnpack.bins import Row
from turnpack.preview import paint
from turnpack.reading import Document, Piece, visible


def terminal(**options):
    file = io.StringIO()
    return file, Console(file=file, highlight=False, width=30, **options)


PIECES = [
    Piece("<s>", False, True),
    Piece("Hi", False),
    Piece(" there\n", False),
    Piece("Yes", True),
    Piece(",\tok", True),
    Piece("</s>", True, True),
    Piece("\n", False),
    Piece("end", True),
]


def test_marks_for_a_pipe():
    assert paint(PIECES, styled=False).plain == "‹<s>›Hi│ there⏎\n⟦Yes│,⇥ok‹</s>›⟧⏎\n⟦end⟧"


def test_colours_for_a_terminal():
    painted = paint(PIECES, styled=True)
    assert painted.plain == "<s>Hi there⏎\nYes,⇥ok</s>⏎\nend"
    green = "".join(painted.plain[s.start : s.end] for s in painted.spans if "green" in s.style)
    assert green == "Yes,⇥ok</s>end"
    reverse = [painted.plain[s.start : s.end] for s in painted.spans if "reverse" in s.style]
    assert reverse == ["<s>", "</s>"]


@pytest.mark.parametrize(
    ("environment", "options", "styled"),
    [
        ({}, {"force_terminal": True, "color_system": "standard"}, True),
        ({"NO_COLOR": "1"}, {"force_terminal": True, "color_system": "standard"}, False),
        ({"TERM": "dumb"}, {"force_terminal": True}, False),
        ({}, {}, False),
    ],
)
def test_colours_only_where_they_are_wanted(environment, options, styled):
    file, console = terminal(_environ=environment, **options)
    preview.show_pieces(console, PIECES)
    preview.show_legend(console)
    assert preview.is_styled(console) is styled
    assert ("\x1b[" in file.getvalue()) is styled
    assert ("⟦" in file.getvalue()) is not styled


@settings(deadline=None)
@given(text=st.text(), target=st.booleans(), styled=st.booleans())
def test_nothing_in_a_text_reaches_the_terminal_as_a_command(text, target, styled):
    colours = {"force_terminal": True, "color_system": "standard"} if styled else {}
    file, console = terminal(_environ={}, **colours)
    preview.show_pieces(console, [Piece(visible(text), target)])
    left = re.sub(r"\x1b\[[\d;]*m", "", file.getvalue()) if styled else file.getvalue()
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", left)


def test_a_long_line_is_not_wrapped():
    file, console = terminal()
    preview.show_pieces(console, [Piece("word " * 50, False)])
    assert file.getvalue().count("\n") == 1


def test_titles_are_one_line():
    file, console = terminal()
    preview.show(console, [Document("a\nb\x1b[2J.jsonl:1", 1, 0, [Piece("x", False)])])
    assert file.getvalue() == "── a b⟨U+001B⟩[2J.jsonl:1 · 1 tokens, 0 targets\nx\n"


def row(targets):
    ids = np.arange(len(targets), dtype=np.int32)
    return Row(0, 0, "a:1", ids, np.array(targets, np.bool_))


def test_a_bar_is_its_tokens():
    rows = [row([False] * 12 + [True] * 24), row([True] * 18)]
    assert preview.bar(rows, 72, styled=False).plain == (
        "░" * 12 + "█" * 24 + "│" + "█" * 17 + "·" * 18
    )
    styled = preview.bar(rows, 72, styled=True)
    assert styled.plain == "░" * 12 + "█" * 42 + "·" * 18
    colours = {styled.plain[span.start]: set() for span in styled.spans}
    for span in styled.spans:
        colours[styled.plain[span.start]].add(span.style)
    assert colours == {"░": {"bright_blue"}, "█": {"bright_blue", "cyan"}, "·": {"dim"}}
    assert len(preview.bar(rows, 100_000, styled=False).plain) == 72


@pytest.mark.parametrize(
    ("source", "name", "is_it"),
    [
        (None, "x", True),
        ("a.json", "dir/a.json[7]", True),
        ("dir/a.json", "dir/a.json[7]", True),
        ("dir/a.json[7]", "dir/a.json[7]", True),
        ("a.json[7]", "dir/a.json[7]", True),
        ("a.json[7]", "dir/a.json[77]", False),
        ("b.json", "dir/a.json[7]", False),
        ("r/a.json", "dir/a.json[7]", False),
        ("a:b.jsonl", "a:b.jsonl:3", True),
    ],
)
def test_a_source_is_a_file_or_a_row(source, name, is_it):
    assert preview.Wanted(1, source=source).is_source(name) is is_it
