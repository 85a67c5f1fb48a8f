"""Backends: ordinary text gives the tokenizer's own ids and never a control token."""

from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers
from tokenizers.models import BPE

from at_hand import deepseek, folder_of, mistral_v1, qwen, tiny, unigram
from turnpack import tokenizers

TEXTS = [
    "Hello world",
    "  two  spaces ",
    "\n\nnew\tlines\r\n",
    "你好，世界 🙂👩‍👩‍👧 a\u0301",
    "x",
    "12345 + 67 = :Hello",
    "ʻ\u200fعربي\u202e",
]


def ids_of(backend, text, continues=False):
    ids, offsets = backend.encode_batch([text], [continues])
    assert ids.dtype == np.int32
    assert offsets.tolist() == [0, len(ids)]
    return ids.tolist()


FORMS = ["none", "bytes", "first", "always", "never", "prepend"]


@pytest.mark.parametrize("make", [qwen, *(lambda form=form: tiny(form) for form in FORMS)])
def test_ordinary_text_has_the_tokenizers_own_ids(make):
    own, backend = make(), tokenizers.load(make())
    for text in TEXTS:
        assert ids_of(backend, text) == own.encode(text, add_special_tokens=False).ids


def test_a_batch_is_its_texts_one_by_one():
    for backend in (tokenizers.load(tiny("first")), tokenizers.load(mistral_v1())):
        continues = [index % 2 == 1 for index in range(len(TEXTS))]
        ids, offsets = backend.encode_batch(TEXTS, continues)
        for index, text in enumerate(TEXTS):
            run = ids[offsets[index] : offsets[index + 1]].tolist()
            assert run == ids_of(backend, text, continues[index])
        empty, none = backend.encode_batch([], [])
        assert (len(empty), none.tolist()) == (0, [0])


@pytest.mark.parametrize("make", [mistral_v1, lambda: tiny("first")])
def test_a_text_that_is_there_twice_is_encoded_once(make):
    backend = tokenizers.load(make())
    seen = []
    for name in ("_fresh", "_continuing"):
        setattr(backend, name, Seen(getattr(backend, name), seen))
    texts = TEXTS * 2 + ["", "", *TEXTS]
    continues = [False] * len(TEXTS) + [True] * len(TEXTS) + [False, True] + [False] * len(TEXTS)
    ids, offsets = backend.encode_exactly(texts, continues)
    assert sorted(seen) == sorted([*TEXTS, "", *TEXTS, ""])
    for place, (text, goes_on) in enumerate(zip(texts, continues, strict=True)):
        assert ids[offsets[place] : offsets[place + 1]].tolist() == ids_of(backend, text, goes_on)


class Seen:
    """A library's tokenizer that notes what it encodes."""

    def __init__(self, own, seen):
        self._own, self._seen = own, seen

    def __getattr__(self, name):
        return getattr(self._own, name)

    def encode(self, text, **options):
        self._seen.append(text)
        return self._own.encode(text, **options)

    def encode_batch_fast(self, texts, **options):
        self._seen += texts
        return self._own.encode_batch_fast(texts, **options)

    def encode_as_ids(self, text):
        self._seen.append(text)
        return self._own.encode_as_ids(text)


@pytest.mark.parametrize("form", FORMS)
@given(text=st.text(st.sampled_from("ab Hello\n#:"), min_size=1, max_size=12))
def test_a_continuation_decodes_to_its_text(form, text):
    backend = tokenizers.load(tiny(form))
    start = ids_of(backend, "x")
    both = backend.decode([*start, *ids_of(backend, text, continues=True)])
    unknown = backend.control_id("<unk>") in ids_of(backend, text, continues=True)
    if form in ("none", "bytes"):
        assert both.removeprefix(" ") == f"x{text}"
    elif not unknown:
        assert "▁" not in tiny(form).id_to_token(start[-1])[1:]
        pieces = "".join(tiny(form).id_to_token(i) for i in ids_of(backend, text, True))
        assert pieces == text.replace(" ", "▁")


@given(text=st.text(max_size=20).filter(str.isprintable))
def test_sentencepiece_continues_as_inside_a_text(text):
    """Encoding a line feed and the text, and dropping the line feed's ids, is the yardstick."""
    own = sentencepiece.SentencePieceProcessor(model_file=str(mistral_v1()))
    line_feed = own.encode("\n")
    whole = own.encode(f"\n{text}")
    assert whole[: len(line_feed)] == line_feed
    assert ids_of(_MISTRAL, text, continues=True) == whole[len(line_feed) :]
    assert ids_of(_MISTRAL, text) == own.encode(text)


_MISTRAL = tokenizers.load(mistral_v1())


@pytest.mark.parametrize("make", [qwen, lambda: tiny("none"), lambda: tiny("always"), unigram])
def test_no_spelling_yields_an_added_token(make):
    own, backend = make(), tokenizers.load(make())
    for token_id, token in own.get_added_tokens_decoder().items():
        for text in (token.content, f"a{token.content}b", f" {token.content} " * 2):
            assert token_id not in ids_of(backend, text), token.content
        assert backend.control_id(token.content) == token_id


def test_no_spelling_of_deepseeks_1283_added_tokens_yields_one():
    backend = tokenizers.load(deepseek())
    spec = json.loads((deepseek() / "tokenizer.json").read_bytes())
    added = {token["content"]: token["id"] for token in spec["added_tokens"]}
    assert len(added) == 1283
    ids, offsets = backend.encode_batch(list(added), [False] * len(added))
    assert not set(ids.tolist()) & set(added.values())
    assert {text: backend.control_id(text) for text in added} == added
    for index, text in enumerate(added):
        assert backend.decode(ids[offsets[index] : offsets[index + 1]]) == text


def test_control_id_is_none_for_ordinary_words():
    assert tokenizers.load(qwen()).control_id("user") is None
    assert tokenizers.load(mistral_v1()).control_id("▁the") is None
    assert tokenizers.load(mistral_v1()).control_id("[INST]") is None
    assert tokenizers.load(mistral_v1()).control_id("</s>") == 2


def test_the_vocabulary_ends_behind_its_largest_id(tmp_path):
    own = tiny()
    own.add_tokens([AddedToken("<new>")])
    assert tokenizers.load(own).vocabulary == own.token_to_id("<new>") + 1
    assert tokenizers.load(mistral_v1()).vocabulary == 32_000
    (folder := tmp_path / "model").mkdir()
    (folder / "tokenizer.model").write_bytes(mistral_v1().read_bytes())
    (folder / "added_tokens.json").write_text('{"<new>": 32005}')
    assert tokenizers.load(folder).vocabulary == 32_006


def test_blank_added_tokens_are_ordinary_text():
    own = tiny("none")
    own = type(own).from_str(own.to_str())
    own.add_tokens(["\n\n\n", "    "])
    text = "a\n\n\nb    c"
    backend = tokenizers.load(own)
    assert ids_of(backend, text) == own.encode(text, add_special_tokens=False).ids
    assert backend.control_id("\n\n\n") is None


def test_blank_added_tokens_of_a_metaspace_vocabulary_are_ordinary_text():
    """Gemma's way: runs of blanks are entries of the vocabulary, merges lead to them."""
    own = Tokenizer(BPE({"<unk>": 0, "▁": 1, "▁▁": 2, "▁▁▁": 3, "x": 4}, [("▁", "▁"), ("▁▁", "▁")]))
    own.normalizer = normalizers.Replace(" ", "▁")
    own.add_tokens([AddedToken(text, normalized=False) for text in ("▁▁", "▁▁▁")])
    backend = tokenizers.load(own)
    for text in ("x   x", "  x", "x x    x"):
        assert ids_of(backend, text) == own.encode(text).ids


def test_no_spelling_of_a_hidden_name_yields_an_added_token():
    own = unigram()
    own = type(own).from_str(own.to_str())
    own.pre_tokenizer = None
    backend = tokenizers.load(own)
    for text in ("a\0 </s>b", "\0</s>", "\0 \0 </s>"):
        assert not {1, 2} & set(ids_of(backend, text))


def test_an_added_token_of_one_character_is_warned_of():
    own = type(tiny("none")).from_str(tiny("none").to_str())
    own.add_special_tokens(["|"])
    with pytest.warns(UserWarning, match="text that holds '|' yields the added token"):
        tokenizers.load(own)


def test_a_stripping_normalizer_does_not_strip_at_a_cut():
    own = type(tiny("none")).from_str(tiny("none").to_str())
    own.normalizer = normalizers.Strip()
    backend = tokenizers.load(own)
    assert backend.decode(ids_of(backend, " a ")) == "a"
    assert backend.decode(ids_of(backend, " a ", continues=True)) == " a "


def test_truncation_and_padding_of_the_file_are_not_ours():
    own = tiny("none")
    own = type(own).from_str(own.to_str())
    plain = own.encode("Hello world, how are you?").ids
    own.enable_truncation(2)
    own.enable_padding(length=64)
    assert ids_of(tokenizers.load(own), "Hello world, how are you?") == plain


def test_white_space_around_control_tokens():
    assert tokenizers.load(tiny("none", strip=True)).strips("<|im_end|>") == (False, True)
    assert tokenizers.load(tiny("none")).strips("<|im_end|>") == (False, False)


def test_what_the_tokenizer_puts_in_front():
    from tokenizers.processors import TemplateProcessing

    own = tiny("none")
    own = type(own).from_str(own.to_str())
    assert tokenizers.load(own).prefix_ids == ()
    own.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    assert tokenizers.load(own).prefix_ids == (1,)
    for adds, prefix in ((True, (1,)), (False, ())):
        folder = folder_of(own, bos_token="<s>", eos_token="</s>", add_bos_token=adds)
        assert tokenizers.load(folder).prefix_ids == prefix
    assert tokenizers.load(mistral_v1()).prefix_ids == (1,)


def test_bos_and_eos_come_from_the_config_beside_or_from_the_caller():
    folder = folder_of(tiny("none"), bos_token={"content": "<s>"}, eos_token="</s>")
    for path in (folder, str(folder), folder / "tokenizer.json"):
        backend = tokenizers.load(path)
        assert (backend.bos, backend.eos) == ("<s>", "</s>")
    assert tokenizers.load(folder, eos="<|im_end|>").eos == "<|im_end|>"
    bare = tokenizers.load(tiny("none"))
    assert (bare.bos, bare.eos) == (None, None)
    mistral = tokenizers.load(mistral_v1())
    assert (mistral.bos, mistral.eos) == ("<s>", "</s>")


def test_bos_that_is_to_be_added_and_is_no_token(tmp_path):
    folder = folder_of(tiny("none"), bos_token="<zz>", add_bos_token=True)
    with pytest.raises(ValueError, match="BOS '<zz>' is no added token of "):
        tokenizers.load(folder)
    with pytest.raises(ValueError, match="BOS '<zz>' is no added token of "):
        tokenizers.load(mistral_v1(), bos="<zz>")
    with pytest.raises(ValueError, match="says add_bos_token, but names no bos_token"):
        tokenizers.load(folder_of(tiny("none"), add_bos_token=True))


def test_tokens_added_beside_a_sentencepiece_model(tmp_path):
    shutil.copy(mistral_v1(), tmp_path / "tokenizer.model")
    (tmp_path / "added_tokens.json").write_text('{"<|im_start|>": 32000, "<|im_end|>": 32001}')
    config = {"added_tokens_decoder": {"32002": {"content": "<think>", "special": False}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    backend = tokenizers.load(tmp_path)
    assert backend.control_id("<|im_end|>") == 32001
    assert backend.recognised == ("<think>",)
    ids = [32000, *ids_of(backend, "user\n", True), 32002]
    assert backend.decode(ids) == "<|im_start|>user\n<think>"
    backend.save(tmp_path / "again")
    assert tokenizers.load(tmp_path / "again").fingerprint() == backend.fingerprint()


def test_a_transformers_tokenizer():
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=tiny("none"), bos_token="<s>", eos_token="<|im_end|>"
    )
    backend = tokenizers.load(fast)
    assert (backend.bos, backend.eos) == ("<s>", "<|im_end|>")
    assert ids_of(backend, "Hello world") == fast("Hello world", add_special_tokens=False).input_ids


@pytest.mark.parametrize("source", [deepseek, mistral_v1, lambda: folder_of(tiny("first"))])
def test_save_and_load_and_pickle_give_the_same(source, tmp_path):
    first = tokenizers.load(source(), eos="</s>") if source is not deepseek else _DEEPSEEK
    first.save(tmp_path / "tokenizer")
    for again in (tokenizers.load(tmp_path / "tokenizer"), pickle.loads(pickle.dumps(first))):
        assert (again.bos, again.eos) == (first.bos, first.eos)
        assert again.prefix_ids == first.prefix_ids
        assert again.fingerprint() == first.fingerprint()
        assert ids_of(again, TEXTS[3]) == ids_of(first, TEXTS[3])


_DEEPSEEK = tokenizers.load(deepseek())


def test_fingerprint_tells_tokenizers_apart():
    prints = [
        tokenizers.load(tiny("none")),
        tokenizers.load(tiny("first")),
        tokenizers.load(tiny("none"), eos="</s>"),
        _DEEPSEEK,
        _MISTRAL,
    ]
    assert len({backend.fingerprint() for backend in prints}) == len(prints)


@pytest.mark.parametrize("make", [lambda: tiny("none"), lambda: tiny("always"), mistral_v1])
def test_extents_cover_the_text(make):
    backend = tokenizers.load(make())
    for text in ("Hello world", "12 + 3", "a\U00012000b"):
        ids, _, extents = backend.encode_batch_extents([text], [True])
        again, _ = backend.encode_batch([text], [True])
        assert ids.tolist() == again.tolist()
        assert extents.dtype == np.int64
        assert extents.shape == (len(ids), 2)
        covered = {place for start, end in extents.tolist() for place in range(start, end)}
        assert covered == set(range(len(text)))
        assert all(start < end for start, end in extents.tolist())


def test_decode_spells_control_tokens():
    for backend, end in ((_DEEPSEEK, "<｜end▁of▁sentence｜>"), (_MISTRAL, "</s>")):
        ids = [*ids_of(backend, "Hello"), backend.control_id(end)]
        assert backend.decode(ids) == f"Hello{end}"
    start = _MISTRAL.control_id("<s>")
    ids = [
        start,
        *ids_of(_MISTRAL, " a"),
        *ids_of(_MISTRAL, " b", True),
        2,
        *ids_of(_MISTRAL, " c", True),
    ]
    assert _MISTRAL.decode(ids) == "<s> a b</s> c"


def test_what_is_no_tokenizer(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        tokenizers.load(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"holds no tokenizer: neither tokenizer.json nor one"):
        tokenizers.load(tmp_path)
    for name, content in (
        ("tokenizer.json", b'{"a": 1}'),
        ("tokenizer.json", b'{"a": \xff}'),
        ("tokenizer.model", b"nonsense"),
        ("tokenizer.model", b""),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=r"is not a|is neither a"):
            tokenizers.load(tmp_path / name)
    shutil.copy(mistral_v1(), tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        tokenizers.load(tmp_path / "tokenizer.model")
    with pytest.raises(TypeError, match="int is not a tokenizer"):
        tokenizers.load(3)


def test_a_backend_of_ones_own():
    class Letters:
        bos, eos = None, "."

        def encode_batch(self, texts, continues):
            ids = np.array([ord(c) for text in texts for c in text], np.int32)
            return ids, np.cumsum([0, *map(len, texts)])

        def control_id(self, text):
            return 1 if text == "." else None

        def decode(self, ids):
            return "".join(map(chr, ids))

    mine = Letters()
    assert tokenizers.load(mine) is mine
    with pytest.raises(TypeError, match="spells its own"):
        tokenizers.load(mine, bos="x")


def test_what_lies_beside_a_tokenizer(tmp_path):
    """The configuration counts before special_tokens_map.json, null is no token."""
    folder = folder_of(tiny(), eos_token={"content": "</s>"}, pad_token=None)
    beside = {"bos_token": "<s>", "eos_token": "<|im_end|>", "pad_token": "<unk>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(beside))
    end = tokenizers.load(folder).control_id("<|im_end|>")
    for stops, known in (([end, 99999], ("<|im_end|>",)), (end, ("<|im_end|>",)), (None, ())):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
        backend = tokenizers.load(folder)
        assert (backend.bos, backend.eos, backend.stop_tokens) == ("<s>", "</s>", known)
        assert backend.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    backend.save(tmp_path / "copy")
    assert (tmp_path / "copy" / "generation_config.json").is_file()


def test_the_ids_that_the_tokenizer_itself_gives():
    backend = tokenizers.load(qwen(), eos="<|im_end|>")
    texts = ["<|im_start|>user\nHi<|im_end|>", "", "你好 <think>"]
    own = qwen()
    assert backend.own_ids(texts) == [own.encode(t, add_special_tokens=False).ids for t in texts]
