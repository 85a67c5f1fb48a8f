"""Preview: tokens as text that a person can read and no terminal obeys."""

import functools
import io
import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console

import at_hand
from turnpack import preview, tokenizers
from turnpack.nouns import Rendered, Segment
from turnpack.preview import Piece, Reader, paint, visible

BACKENDS = ("deepseek", "mistral_v1", "tiny")

TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.lists(
    st.sampled_from(
        [
            "你好",
            "龘",
            "𠮷",
            "👩‍👩‍👧‍👦",
            "🏳️‍🌈",
            "👋🏽",
            "مرحبا بالعالم",
            "नमस्ते",
            "é",
            "  ",
            "\n\n",
            "\t",
            "def f():",
            "x",
        ]
    )
).map("".join)


@functools.cache
def loaded(name):
    ends = {"bos": "<s>", "eos": "</s>"} if name == "tiny" else {}
    return tokenizers.load(getattr(at_hand, name)(), **ends)


@pytest.fixture(params=BACKENDS)
def backend(request):
    return loaded(request.param)


def encoded(backend, text, continues=False):
    ids, _ = backend.encode_batch([text], [continues])
    return ids.tolist()


def terminal(**options):
    file = io.StringIO()
    return file, Console(file=file, highlight=False, width=30, **options)


@settings(deadline=None, max_examples=150)
@given(text=TEXTS)
@example("A\ufffd \ufffd\ufffdb\ufffd")
@example("   leading and  double spaces")
@example("\x1b]0;title\x07 \x9b31m \u202eevil")
def test_pieces_are_the_text_and_never_a_broken_character(text):
    for backend in map(loaded, BACKENDS):
        ids = [backend.control_id(backend.eos), *encoded(backend, text, True)]
        pieces = Reader(backend).document("", ids, [False] * len(ids)).pieces
        joined = "".join(piece.text for piece in pieces[1:])
        shown = visible(backend.decode(ids).removeprefix(backend.eos))
        if "⟨ids" not in joined:  # U+FFFD at the end cannot be told from half a character
            assert joined == shown
        else:
            assert text.endswith("\ufffd")
        assert "\ufffd" not in joined
        assert pieces[0] == Piece(backend.eos, False, True)


def test_a_long_text_is_decoded_as_a_whole(backend):
    text = "春眠不觉晓，处处闻啼鸟。 👩‍👩‍👧‍👦 " * 200
    ids = encoded(backend, text)
    pieces = Reader(backend).document("", ids, [False] * len(ids)).pieces
    assert "".join(piece.text for piece in pieces) == backend.decode(ids)


def test_a_character_over_several_tokens_is_one_piece(backend):
    ids = encoded(backend, "x𠮷y")
    assert len(ids) > 3
    pieces = Reader(backend).document("", ids, [False] * len(ids)).pieces
    assert [piece.text.strip() for piece in pieces if piece.text.strip()] == ["x", "𠮷", "y"]


def test_half_a_character_at_either_end_is_shown_as_ids():
    backend = loaded("tiny")
    ids = encoded(backend, "龘a龘")
    reader = Reader(backend)
    first, last = ids[1:], ids[:-1]
    shown = [piece.text for piece in reader.document("", first, [False] * 6).pieces]
    assert shown[0].startswith(f"⟨ids {first[0]}")
    assert "".join(shown).endswith("a龘")
    shown = [piece.text for piece in reader.document("", last, [False] * 6).pieces]
    assert "".join(shown) == f"龘a⟨ids {last[-2]} {last[-1]}⟩"


def test_control_tokens_are_told_from_text_that_spells_them():
    backend = loaded("tiny")
    spelled = encoded(backend, "<|im_end|>")
    control = backend.control_id("<|im_end|>")
    ids = [*spelled, control, *spelled]
    pieces = Reader(backend).document("", ids, [False] * len(ids)).pieces
    assert [piece.text for piece in pieces if piece.control] == ["<|im_end|>"]
    assert len(pieces) == len(ids)


def test_a_document_counts_tokens_and_targets():
    backend = loaded("tiny")
    ids = encoded(backend, "a龘")
    document = Reader(backend).document("here", np.array(ids), [0, 1, 1, 1])
    assert (document.tokens, document.targets) == (4, 3)
    assert document.pieces == [Piece("a", False), Piece("龘", True)]


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
    preview.show(console, [preview.Document("a\nb\x1b[2J.jsonl:1", 1, 0, [Piece("x", False)])])
    assert file.getvalue() == "── a b⟨U+001B⟩[2J.jsonl:1 · 1 tokens, 0 targets\nx\n"


def test_rendered_segments_are_pieces():
    rendered = Rendered([Segment("<s>", False, True), Segment("a\x07", True, False)])
    assert preview.rendered_pieces(rendered) == [
        Piece("<s>", False, True),
        Piece("a⟨U+0007⟩", True),
    ]


def test_what_is_no_parquet_file_is_no_bins(tmp_path):
    path = tmp_path / "broken.parquet"
    assert not preview.is_bins(path)
    path.write_bytes(b"PAR1 not really")
    assert not preview.is_bins(path)
