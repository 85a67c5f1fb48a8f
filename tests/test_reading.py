"""Reading: ids as text that a person can read, and that no terminal and no page obeys."""

import functools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import at_hand
from turnpack import tokenizers
from turnpack.nouns import Rendered, Segment
from turnpack.reading import NoTokenizer, Piece, Reader, rendered_pieces, visible

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
    assert document.pieces == [Piece("a", False), Piece("龘", True, tokens=3)]


def test_rendered_segments_are_pieces():
    rendered = Rendered([Segment("<s>", False, True), Segment("a\x07", True, False)])
    assert rendered_pieces(rendered) == [
        Piece("<s>", False, True),
        Piece("a⟨U+0007⟩", True),
    ]


def test_how_ordinary_text_spells_control_tokens():
    for backend in map(loaded, BACKENDS):
        reader = Reader(backend)
        eos = backend.control_id(backend.eos)
        spellings = reader.spellings([eos, *encoded(backend, "and other words")])
        assert list(spellings) == [backend.eos]
        inner = spellings[backend.eos]
        text = encoded(backend, f"so, {backend.eos} it was")
        assert any(text[at : at + len(inner)] == inner for at in range(len(text)))
        assert eos not in text


def test_without_a_tokenizer_ids_are_numbers():
    reader = Reader(NoTokenizer())
    pieces = reader.document("", np.array([5, 0, 17], np.int32), [False, True, True]).pieces
    assert pieces == [Piece("5 ", False), Piece("0 ", True), Piece("17 ", True)]
    assert reader.spellings([5, 17]) == {}
    assert reader.spelled(17) == "17 "


def test_a_token_of_half_a_character_is_spelled_by_its_id():
    backend = loaded("tiny")
    half = encoded(backend, "龘")[0]
    assert Reader(backend).spelled(half) == f"⟨id {half}⟩"
    assert Reader(backend).spelled(backend.control_id("</s>")) == "</s>"


@functools.cache
def qwen_reader():
    return Reader(tokenizers.load(at_hand.qwen(), eos="<|im_end|>"))


PARTS = ["Hi", " there", "好的", "👍🏽", "é", "\n", "\ufffd", "𝔘"]


@settings(deadline=None)
@given(st.lists(st.sampled_from(PARTS), max_size=30))
def test_the_quick_way_gives_the_same_groups(texts):
    reader = qwen_reader()
    ids = reader._backend.encode_batch(["".join(texts)], [False])[0].tolist()
    quick = reader._simple_groups(ids)
    assert quick is None or quick == list(reader._groups(ids))
    assert "\ufffd" in texts or quick is not None
