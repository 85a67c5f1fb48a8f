"""gigatoken in the tokenizer's place: the same ids or none of its own."""

from __future__ import annotations

import functools
import json
import pickle
import sys

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from at_hand import FILES, SHARED, deepseek, folder_of, llama3, mistral, needs_shared, qwen, tiny
from chats import HOSTILE, assistant, user
from turnpack import Encoder, cli, fast_tokenizer, job, records, tokenizers
from turnpack.encode import FallbackWarning
from turnpack.fast_tokenizer import FIRST, Gigatoken
from turnpack.prepare import OptionError, prepare

REAL = {
    "qwen": lambda **o: tokenizers.load(qwen(), **o),
    "llama3": lambda **o: tokenizers.load(llama3(), **o),
    "deepseek": lambda **o: tokenizers.load(deepseek(), **o),
    "mistral-v1": lambda **o: tokenizers.load(mistral("v1"), **o),
    "mistral-v3": lambda **o: tokenizers.load(mistral("v3"), **o),
    "mistral-v7": lambda **o: tokenizers.load(mistral("v7"), **o),
    "bytes": lambda **o: tokenizers.load(tiny("bytes"), **o),
}


@functools.cache
def fast(name):
    return REAL[name](backend="gigatoken")


HARD = (
    *("", " ", "   a", "a\n\n\n b\t\r\n", "I'M you'Re", "١٢٣4567", "\x00\x01\x7f\x85\u2028", "￾"),
    *("👩‍👩‍👧‍👦👍🏽🇩🇪🇩🇪", "a\u0301\u0302\u0323 é", "ﬁ½①Å", "हिन्दी العربية עברית", "\ufeff\u200b"),
    *("x" * 20_000, " " * 5_000, "\n" * 5_000, "。" * 3_000, "ab" * 9_000 + "!", "<0x0A>▁▁"),
)
TEXTS = st.one_of(
    st.text(max_size=30),
    st.text(st.sampled_from("ab eE'sS1２ \n\t\r.,<|>_▁你\u0301\u200d👩🏽"), max_size=60),
    st.builds(
        lambda text, times: text * times, st.text(min_size=1, max_size=4), st.integers(1, 99)
    ),
)


def equal(one, other):
    return all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(one, other, strict=True))


def exactly(backend, texts, goes_on):
    return backend.encode_exactly(texts, [goes_on] * len(texts))


@pytest.mark.parametrize("goes_on", [False, True])
@pytest.mark.parametrize("name", REAL)
def test_gigatoken_itself_gives_the_same_ids_for_hard_texts(name, goes_on):
    backend = fast(name)
    assert backend._fast.encode(HARD, [goes_on] * len(HARD))[1][-1] > 1000
    assert equal(backend._fast.encode(HARD, [goes_on] * len(HARD)), exactly(backend, HARD, goes_on))


@pytest.mark.parametrize("name", REAL)
@settings(deadline=None)
@given(texts=st.lists(TEXTS, max_size=8), continues=st.lists(st.booleans(), min_size=8))
def test_any_text_has_the_librarys_ids(name, texts, continues):
    backend, continues = fast(name), continues[: len(texts)]
    made = backend._fast.encode(texts, continues)
    spelled = backend._fast.spelled(texts)
    for place, text in enumerate(texts):
        if place not in spelled:
            row = made[0][made[1][place] : made[1][place + 1]]
            assert row.tolist() == exactly(backend, [text], continues[place])[0].tolist()
    assert equal(backend.encode_batch(texts, continues), backend.encode_exactly(texts, continues))
    assert backend.fallback is None


@needs_shared
@pytest.mark.parametrize("name", REAL)
def test_all_real_texts_have_the_librarys_ids(name):
    backend = fast(name)
    rows = records.read([SHARED / "data" / file for file in FILES])
    texts = [message["content"] for row in rows for message in row.messages]
    assert len(texts) > 50_000
    texts = texts[::5]  # the library takes most of the time
    assert equal(backend._fast.encode(texts, [True] * len(texts)), exactly(backend, texts, True))


@pytest.mark.parametrize("name", REAL)
def test_a_text_that_spells_an_added_token_is_the_librarys(name, monkeypatch):
    backend = fast(name)
    added = sorted(backend._control)[:50]
    texts = ["ordinary", *HOSTILE, *(f"a{token} b" for token in added), "plain"]
    assert {1 + len(HOSTILE) + n for n in range(len(added))} <= set(backend._fast.spelled(texts))
    expected = exactly(backend, texts, False)
    assert equal(backend.encode_batch(texts, [False] * len(texts)), expected)
    assert not set(expected[0].tolist()) & {backend.control_id(token) for token in added}


def test_auto_is_gigatoken_where_it_does():
    backend = tokenizers.load(qwen(), backend="auto")
    assert backend.library.startswith("gigatoken ")
    assert (backend.exact_because, backend.compared) == (None, 0)
    exact = tokenizers.load(qwen())
    assert (exact.library.partition(" ")[0], exact.exact_because) == ("tokenizers", None)
    assert backend.fingerprint() == exact.fingerprint()


def test_what_is_pickled_is_as_fast():
    backend = fast("bytes")
    again = pickle.loads(pickle.dumps(backend))
    assert again.library == backend.library
    for goes_on in (False, True):
        assert equal(
            again.encode_batch(HARD, [goes_on] * len(HARD)), exactly(backend, HARD, goes_on)
        )


def test_a_lone_surrogate_is_the_librarys_error_and_changes_nothing():
    backend = fast("bytes")
    errors = []
    for encode in (backend.encode_batch, backend.encode_exactly):
        with pytest.raises((TypeError, UnicodeEncodeError)) as error:
            encode(["fine", "a\ud800b"], [False, False])
        errors.append((error.type, str(error.value)))
    assert errors[0] == errors[1]
    assert not backend.exact


@pytest.mark.parametrize("form", ["first", "prepend"])
def test_a_tokenizer_that_gigatoken_does_not_support(form):
    backend = tokenizers.load(tiny(form), backend="auto")
    assert backend.exact
    assert backend.exact_because.startswith("gigatoken does not support the tokenizer: ")
    with pytest.raises(ValueError, match="gigatoken does not support the tokenizer"):
        tokenizers.load(tiny(form), backend="gigatoken")


def test_a_backend_that_is_none():
    with pytest.raises(ValueError, match="one of auto, hf, gigatoken, not 'fast'"):
        tokenizers.load(tiny(), backend="fast")


# -- a fast tokenizer that is wrong -----------------------------------------------------------


class Wrong(Gigatoken):
    """Encodes with the library itself, and wrongly where a text says so."""

    name = "gigatoken 0"
    everywhere = False

    def __init__(self, load, fresh, continuing, added):
        super().__init__(load, fresh, continuing, added)
        self._twin = Tokenizer.from_str(fresh)

    def encode(self, texts, continues):
        rows = [encoding.ids for encoding in self._twin.encode_batch(list(texts))]
        for text, row in zip(texts, rows, strict=True):
            if "PANIC" in text:
                raise Panic("a bug")
            if "WRONG" in text or self.everywhere:
                row[:] = [7] * (len(row) + 1)
        ids = np.array([token for row in rows for token in row], np.int32)
        return ids, np.cumsum([0, *map(len, rows)])


class Panic(BaseException):
    pass


class WrongEverywhere(Wrong):
    everywhere = True


@pytest.fixture
def wrong(monkeypatch):
    monkeypatch.setattr(tokenizers, "Gigatoken", Wrong)


def is_sample(text):
    return fast_tokenizer.sampled([text], fast_tokenizer.ONE_IN) == [0]


def sampled(text, yes=True):
    """The text with an end for which it is one of those compared, or is not."""
    return next(made for n in range(99_999) if is_sample(made := f"{text}{n}x") == yes)


def test_what_differs_at_once_is_not_chosen(monkeypatch):
    monkeypatch.setattr(tokenizers, "Gigatoken", WrongEverywhere)
    backend = tokenizers.load(tiny(), backend="auto")
    assert backend.exact
    assert "gives other ids" in backend.exact_because
    assert equal(backend.encode_batch(HARD, [False] * len(HARD)), exactly(backend, HARD, False))
    with pytest.raises(ValueError, match="gives other ids for"):
        tokenizers.load(tiny(), backend="gigatoken")


@pytest.mark.parametrize("text", [sampled("WRONG"), "PANIC"])
def test_at_one_difference_the_call_is_done_again_and_the_library_goes_on(wrong, text):
    backend = tokenizers.load(tiny(), backend="auto")
    plain = [f"text {number}" for number in range(FIRST)]
    backend.encode_batch(plain, [False] * FIRST)
    assert (backend.compared, backend.exact) == (FIRST, False)
    texts = [*plain, sampled("WRONG", False), text]
    made = backend.encode_batch(texts, [False] * len(texts))
    assert equal(made, exactly(backend, texts, False))
    assert backend.exact
    assert backend.library.startswith("tokenizers ")
    assert backend.fallback.reason == backend.exact_because
    assert backend.fallback.text in texts
    assert equal(backend.encode_batch(["WRONG"], [True]), exactly(backend, ["WRONG"], True))


def test_the_first_texts_are_all_compared(wrong):
    backend = tokenizers.load(tiny(), backend="auto")
    texts = ["fine"] * (FIRST - 1) + [sampled("WRONG", False)]
    assert equal(backend.encode_batch(texts, [False] * FIRST), exactly(backend, texts, False))
    assert backend.fallback.text == texts[-1]


def test_the_encoder_names_the_row(wrong):
    backend = tokenizers.load(tiny(), eos="</s>", backend="auto")
    rows = [[user("Hi"), assistant("Hello")], [user("Hm"), assistant("WRONG")]]
    encoder = Encoder(backend, "chatml")
    with pytest.warns(FallbackWarning, match="^conversation 1: gigatoken 0 gives other ids for"):
        tokens = encoder(rows)
    assert encoder.fallback.startswith("conversation 1: ")
    exact = Encoder(tokenizers.load(tiny(), eos="</s>"), "chatml")
    assert tokens == exact(rows) == encoder(rows)  # and no second warning


@pytest.fixture
def later(tmp_path):
    """400 rows; one behind the first texts is compared and wrong, others are wrong unseen."""
    answers = [f"answer {number}" for number in range(400)]
    answers[311] = sampled("WRONG")
    for number in (305, 320, 399):
        answers[number] = sampled("WRONG", False)
    file = tmp_path / "chats.jsonl"
    file.write_bytes(
        b"".join(
            orjson.dumps({"messages": [user(f"question {n}"), assistant(answer)]}) + b"\n"
            for n, answer in enumerate(answers)
        )
    )
    return file


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_falls_back_at_a_later_row(wrong, later, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(job, "CHUNK", 50)
    folder = folder_of(tiny(), bos_token="<s>", eos_token="</s>")
    common = {"tokenizer": folder, "template": "chatml", "max_length": 300}
    prepare(later, output=tmp_path / "hf", tokenizer_backend="hf", **common)
    with pytest.warns(FallbackWarning) as warned:
        report = prepare(later, output=tmp_path / "auto", workers=workers, **common)
    place = f"{later}:312"
    assert [str(each.message).startswith(f"{place}: ") for each in warned] == [True]
    data = "data/train-00000.parquet"
    assert (tmp_path / "auto" / data).read_bytes() == (tmp_path / "hf" / data).read_bytes()
    told = json.loads((tmp_path / "auto/report.json").read_text())
    assert told["tokenizer"]["library"].startswith("tokenizers ")
    assert told["tokenizer"]["exact_because"].startswith(f"{place}: gigatoken 0 gives other ids")
    assert report.compared >= FIRST
    assert told["warnings"] == {"a fast tokenizer was given up": 1}
    assert (
        report.tokenizer["sha256"]
        == json.loads((tmp_path / "hf/report.json").read_text())["tokenizer"]["sha256"]
    )


def test_without_gigatoken(later, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    folder = folder_of(tiny(), bos_token="<s>", eos_token="</s>")
    common = {"tokenizer": folder, "template": "chatml", "max_length": 300}
    report = prepare(later, output=tmp_path / "out", **common)
    assert report.tokenizer["exact_because"] == (
        "gigatoken is not installed: pip install 'turnpack[fast]'"
    )
    with pytest.raises(OptionError, match=r"turnpack\[fast\]"):
        prepare(later, output=tmp_path / "x", tokenizer_backend="gigatoken", **common)
    arguments = ["--tokenizer", str(folder), "--template", "chatml", "--max-length", "300"]
    for command in (
        ["prepare", str(later), "--output", str(tmp_path / "x")],
        ["check", str(later)],
    ):
        assert cli.main([*command, *arguments, "--tokenizer-backend", "gigatoken"]) == 2
        assert "pip install 'turnpack[fast]'" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_whole_boundary_is_the_librarys(later, tmp_path):
    folder = folder_of(tiny(), bos_token="<s>", eos_token="</s>")
    common = {"tokenizer": folder, "template": "chatml", "max_length": 300, "boundary": "whole"}
    report = prepare(later, output=tmp_path / "out", **common)
    assert report.tokenizer["library"].startswith("tokenizers ")
    with pytest.raises(OptionError, match="gigatoken gives no extents"):
        prepare(later, output=tmp_path / "x", tokenizer_backend="gigatoken", **common)


def test_the_command_line_passes_the_backend_on(later, tmp_path, capsys):
    folder = folder_of(tiny(), bos_token="<s>", eos_token="</s>")
    arguments = ["--tokenizer", str(folder), "--template", "chatml", "--max-length", "300"]
    for name, library in (("auto", "gigatoken"), ("gigatoken", "gigatoken"), ("hf", "tokenizers")):
        out = str(tmp_path / name)
        line = ["prepare", str(later), "--output", out, "--tokenizer-backend", name]
        assert cli.main([*line, *arguments]) == 0
        assert f"\ntokenized by  {library} " in capsys.readouterr().out
        kept = json.loads((tmp_path / name / "report.json").read_text())
        assert kept["tokenizer"]["library"].startswith(f"{library} ")
        assert kept["options"]["tokenizer_backend"] == name
    data = "data/train-00000.parquet"
    assert (tmp_path / "auto" / data).read_bytes() == (tmp_path / "hf" / data).read_bytes()
    line = ["preview", str(later), "--tokenizer-backend", "gigatoken", "--bins", "1"]
    assert cli.main([*line, *arguments]) == 0
