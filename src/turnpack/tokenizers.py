"""Tokenizer backends: ordinary text to ids, control tokens to their ids, ids back to text.

The one module that knows tokenizer libraries and special tokens. It knows no template and no
message: the Encoder tells it which text is ordinary, and asks for every control id by name.

Ordinary text is encoded by a *twin* of the tokenizer that has no added tokens, so nothing spelled
in a conversation can become one. The one exception: added tokens made of white space alone (runs
of newlines in Gemma, of spaces in GPT-NeoX) delimit nothing and stay part of ordinary text.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import secrets
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import orjson

from . import kernels
from .fast_tokenizer import BACKENDS, Accelerated, Gigatoken, probes
from .garbage import seldom_collecting
from .tokenizer_folder import MAX_IDS, Beside, named_templates, read_beside, save_files

Ids = npt.NDArray[np.int32]
Offsets = npt.NDArray[np.int64]
Extents = npt.NDArray[np.int64]

# So few texts, of so many characters in all, are encoded before the threads of `tokenizers` would
# be awake. More of them go in one call: each call waits for Python's lock behind it.
FEW, SHORT = 4, 1 << 12
# Pieces of the vocabulary that are tried before gigatoken is used.
PIECES = 1000


class TokenizerError(ValueError):
    """A tokenizer's own library cannot work with it."""


@runtime_checkable
class Backend(Protocol):
    """What the Encoder needs of a tokenizer.

    `bos`, `eos`: how the tokenizer spells them, or None. Optional attributes, with what holds when
    a backend has none: `prefix_ids` (ids the tokenizer puts in front of every text; none),
    `fresh_after` (see below; "bos"), `recognised` (added tokens that an assistant's own text
    yields; none), `reads_in_text` (added tokens that the tokenizer itself finds in a text; none),
    `strips(control)` (whether a control token swallows the white space before and
    behind it; neither), `chat_template` (its own, a text or several by name; none),
    `special_tokens` (what that template may call them, `unk_token` say; none), `stop_tokens`
    (where generation stops besides EOS; none), `own_ids(texts)` (the ids that the tokenizer itself
    gives for texts, added tokens read; what it encodes is compared instead), `vocabulary` (one more
    than the largest id that it can give; unknown), `fingerprint()`, `name`, `save(directory)` (in
    another thread than encodes, perhaps meanwhile). `boundary="whole"` asks for an ExtentBackend.

    `fresh_after` says where a run of ordinary text is encoded as the tokenizer encodes the start
    of a text (a SentencePiece model puts a `▁` there): at the start of a row only ("none"), also
    after BOS ("bos"), or after every control token ("control").
    """

    bos: str | None
    eos: str | None

    def encode_batch(self, texts: Sequence[str], continues: Sequence[bool]) -> tuple[Ids, Offsets]:
        """Ids int32 [n] of ordinary texts, ragged by offsets int64 [texts + 1].

        Adds nothing and recognises no added token. `continues[i]`: text i goes on where other
        text ends, so nothing is put in front of it.
        """
        ...

    def control_id(self, text: str) -> int | None:
        """The id of the added token that is spelled `text`, None where there is none."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, control tokens spelled out."""
        ...


@runtime_checkable
class ExtentBackend(Backend, Protocol):
    """A Backend that also knows which characters a token stands for."""

    def encode_batch_extents(
        self, texts: Sequence[str], continues: Sequence[bool]
    ) -> tuple[Ids, Offsets, Extents]:
        """As `encode_batch`, and each token's extent in its text: int64 [n, 2], in characters."""
        ...


def load(
    tokenizer: Any, *, bos: str | None = None, eos: str | None = None, backend: str = "hf"
) -> Backend:
    """A backend for a tokenizer in any form that people have one.

    `tokenizer`: a transformers fast tokenizer, a `tokenizers.Tokenizer`, a
    `sentencepiece.SentencePieceProcessor`, a path to a folder, to a tokenizer.json or to a
    SentencePiece model, or a Backend. `bos`, `eos` override what the tokenizer says of itself.

    `backend`: what encodes ordinary text. "hf": the library that the tokenizer is of. "gigatoken":
    gigatoken, many times as fast, while it gives the same ids: the first texts and a sample of all
    later ones are encoded both ways, and text that spells an added token is the library's. Where
    the two differ, what is at hand is encoded again by the library, and all that follows; the
    Encoder warns of it. "auto": gigatoken where it is installed and supports the tokenizer.
    A Backend is taken as it is.

    Raises FileNotFoundError for a path that is not there, ValueError for a file that is no
    tokenizer, TypeError for any other object; with "gigatoken" ImportError or ValueError where it
    cannot be had.
    """
    if backend not in BACKENDS:
        raise ValueError(
            f"the tokenizer backend must be one of {', '.join(BACKENDS)}, not {backend!r}"
        )
    with seldom_collecting():
        made = _load(tokenizer, bos, eos)
        if isinstance(made, (HuggingFace, SentencePiece)) and made is not tokenizer:
            made.accelerate(backend, made.gigatoken, probes(made.pieces()))
        return made


def _load(tokenizer: Any, bos: str | None, eos: str | None) -> Backend:
    if isinstance(tokenizer, (str, os.PathLike)):
        return _load_path(Path(tokenizer), bos, eos)
    module = type(tokenizer).__module__.partition(".")[0]
    if module == "tokenizers" and hasattr(tokenizer, "to_str"):
        return HuggingFace(tokenizer.to_str(), bos=bos, eos=eos)
    if hasattr(tokenizer, "backend_tokenizer"):
        own = tokenizer.backend_tokenizer
        special = getattr(tokenizer, "special_tokens_map", {})
        texts = {key: text for key, text in special.items() if isinstance(text, str)}
        return HuggingFace(
            own.to_str(),
            bos=_first(bos, tokenizer.bos_token),
            eos=_first(eos, tokenizer.eos_token),
            name=str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__),
            beside=Beside(texts, None, named_templates(getattr(tokenizer, "chat_template", None))),
        )
    if hasattr(tokenizer, "serialized_model_proto"):
        return SentencePiece(tokenizer.serialized_model_proto(), bos=bos, eos=eos)
    if isinstance(tokenizer, Backend):
        if bos is not None or eos is not None:
            raise TypeError("a Backend spells its own bos and eos")
        return tokenizer
    raise TypeError(
        f"{type(tokenizer).__name__} is not a tokenizer: give a transformers fast tokenizer, a "
        "tokenizers.Tokenizer, a path or a turnpack Backend"
    )


def _load_path(path: Path, bos: str | None, eos: str | None) -> Backend:
    if path.is_dir():
        file = path / "tokenizer.json"
        if not file.is_file():
            models = sorted(path.glob("*.model"))
            if len(models) != 1:
                raise ValueError(
                    f"{path} holds no tokenizer: neither tokenizer.json nor one .model file"
                )
            file = models[0]
    elif path.is_file():
        file = path
    else:
        raise FileNotFoundError(f"tokenizer {path}: no such file or folder")
    beside = read_beside(file)
    bos = _first(bos, beside.special.get("bos_token"))
    eos = _first(eos, beside.special.get("eos_token"))
    content = file.read_bytes()
    if content.lstrip()[:1] == b"{":
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not a tokenizer.json: {error}") from None
        return HuggingFace(text, bos=bos, eos=eos, beside=beside, name=str(path), files=file)
    return SentencePiece(content, bos=bos, eos=eos, beside=beside, name=str(path), files=file)


def _first(*values: str | None) -> str | None:
    return next((value for value in values if value is not None), None)


class HuggingFace(Accelerated):
    """A tokenizer.json, run by the `tokenizers` package."""

    _library = "tokenizers"

    def __init__(
        self,
        text: str,
        *,
        bos: str | None = None,
        eos: str | None = None,
        beside: Beside = Beside(),  # noqa: B008 - frozen
        name: str = "tokenizer.json",
        files: Path | None = None,
    ) -> None:
        """Make the backend of a tokenizer.json's `text`.

        `beside`: what tokenizer_config.json and the like say; where they do not say whether BOS is
        put in front of a text, the tokenizer itself is asked. `files`: where they lie.
        """
        tokenizers = _import("tokenizers")
        try:
            written = _added_tokens(text)
            self._own = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{name} is not a tokenizer.json: {error}") from None
        self.name, self.bos, self.eos, self._files = name, bos, eos, files
        self._content = text.encode()
        self._own.no_truncation()
        self._own.no_padding()
        own = self._own.to_str()
        self._digest = _sha256(own)
        spec = orjson.loads(own)
        added = [token for token in spec["added_tokens"] if not _is_blank(token)]
        self._control = {token["content"]: token["id"] for token in added}
        self._strips = {
            token["content"]: (token["lstrip"], token["rstrip"])
            for token in added
            if token["lstrip"] or token["rstrip"]
        }
        self.recognised = tuple(token["content"] for token in added if not token["special"])
        self.reads_in_text = tuple(self._control)
        self.chat_template, self.special_tokens = beside.chat_template, beside.special
        self.stop_tokens = _named(beside.stop_ids, self._control)
        with _library_errors(name):
            self.prefix_ids = self._prefix(beside.adds_bos)
        vocab = spec["model"]["vocab"]
        pieces = vocab if isinstance(vocab, dict) else {piece for piece, _ in vocab}
        for token in added:
            if len(token["content"]) == 1 and token["content"] in pieces:
                warnings.warn(
                    f"{name}: text that holds {token['content']!r} yields the added token of that "
                    "name, which is a character of the vocabulary too",
                    stacklevel=4,
                )
        _warn_of_other_ids(name, written, self._control)
        with _library_errors(name):
            self._make_twins(spec)

    def _make_twins(self, spec: dict[str, Any]) -> None:
        make = _import("tokenizers").Tokenizer.from_str
        twin = _without_added_tokens(spec)
        self._fresh = make(orjson.dumps(twin).decode())
        bare, self.fresh_after = _without_text_prefix(twin)
        self._continuing = make(orjson.dumps(bare).decode()) if bare else self._fresh

    def __getstate__(self) -> dict[str, Any]:
        # The twins hold a secret that is new in every process: with them, no pickle of the same
        # tokenizer would be the same, as `datasets` wants it.
        state = {**self.__dict__, "_fast": None if self._fast is None else type(self._fast)}
        del state["_fresh"], state["_continuing"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _fast=None)
        with seldom_collecting():
            self._make_twins(orjson.loads(self._own.to_str()))
        if state["_fast"] is not None:
            self._fast = self.gigatoken(state["_fast"])

    def _prefix(self, adds_bos: bool | None) -> tuple[int, ...]:
        """What the tokenizer itself puts in front of a text."""
        if adds_bos is False:
            return ()
        if adds_bos and self.bos is not None:
            return (_bos_id(self),)
        encoding = self._own.encode("a")
        mask = encoding.special_tokens_mask
        prefix = tuple(encoding.ids[: mask.index(0)] if 0 in mask else ())
        if adds_bos and not prefix:
            raise ValueError(f"{self.name} says add_bos_token, but names no bos_token")
        return prefix

    def encode_exactly(
        self, texts: Sequence[str], continues: Sequence[bool]
    ) -> tuple[Ids, Offsets]:
        """See Accelerated."""
        return kernels.flatten([encoding.ids for encoding in self._encode(texts, continues, True)])

    def gigatoken(self, kind: type[Gigatoken] | None = None) -> Gigatoken:
        """Another way to the same ids; see Gigatoken for what it raises."""
        added = self._own.get_added_tokens_decoder().values()
        fresh = self._fresh.to_str()
        continuing = fresh if self._continuing is self._fresh else self._continuing.to_str()
        return (kind or Gigatoken)(
            "from_json", fresh, continuing, [token.content for token in added]
        )

    @property
    def vocabulary(self) -> int:
        """See Backend."""
        return max(self._own.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def pieces(self) -> list[str]:
        """Some texts of the vocabulary, from all over it."""
        size = self._fresh.get_vocab_size()
        return list(self._fresh.decode_batch([[i] for i in range(0, size, size // PIECES + 1)]))

    def own_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """What the tokenizer itself makes of texts: it reads added tokens, and adds none."""
        return [encoding.ids for encoding in _run(self._own, texts, True)]

    def encode_batch_extents(
        self, texts: Sequence[str], continues: Sequence[bool]
    ) -> tuple[Ids, Offsets, Extents]:
        """See ExtentBackend."""
        encodings = self._encode(texts, continues, False)
        ids, offsets = kernels.flatten([encoding.ids for encoding in encodings])
        pairs = chain.from_iterable(encoding.offsets for encoding in encodings)
        extents = np.fromiter(chain.from_iterable(pairs), np.int64, 2 * len(ids)).reshape(-1, 2)
        return ids, offsets, extents

    def _encode(self, texts: Sequence[str], continues: Sequence[bool], fast: bool) -> list[Any]:
        with _library_errors(self.name):
            return self._encode_by_twins(texts, continues, fast)

    def _encode_by_twins(
        self, texts: Sequence[str], continues: Sequence[bool], fast: bool
    ) -> list[Any]:
        if self._continuing is self._fresh:
            return _run(self._fresh, texts, fast)
        groups: tuple[list[str], list[str]] = ([], [])
        for text, goes_on in zip(texts, continues, strict=True):
            groups[goes_on].append(text)
        fresh = iter(_run(self._fresh, groups[0], fast))
        continuing = iter(_run(self._continuing, groups[1], fast))
        return [next(continuing if goes_on else fresh) for goes_on in continues]

    def control_id(self, text: str) -> int | None:
        """See Backend."""
        return self._control.get(text)

    def strips(self, control: str) -> tuple[bool, bool]:
        """Whether a control token swallows the white space before it, and behind it."""
        return self._strips.get(control, (False, False))

    def decode(self, ids: Sequence[int]) -> str:
        """See Backend."""
        return str(self._own.decode(list(map(int, ids)), skip_special_tokens=False))

    def fingerprint(self) -> str:
        """Sha256 (hex) of all that decides the ids: the tokenizer, its bos, eos and prefix."""
        return _sha256(self._digest, self.bos, self.eos, self.prefix_ids)

    def save(self, directory: Path) -> None:
        """Write the tokenizer so that `load(directory)` gives the same one."""
        save_files(directory, "tokenizer.json", self._content, self._files, self.bos, self.eos)


@contextmanager
def _library_errors(name: str) -> Iterator[None]:
    """Make the library's bare Exception, of a tokenizer that it cannot work with, a ValueError."""
    try:
        yield
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise TokenizerError(f"tokenizer {name} does not work: {error}") from None


def _added_tokens(text: str) -> list[Any]:
    """The added tokens as a tokenizer.json has them, none where it is no such thing.

    Raises ValueError where it has ids for which nobody has the memory.
    """
    try:
        spec = orjson.loads(text)
        vocab, added = spec["model"]["vocab"], spec.get("added_tokens") or []
        ids = vocab.values() if isinstance(vocab, dict) else ()
        largest = max([*ids, *(token["id"] for token in added)], default=0)
        enormous = largest >= MAX_IDS
    except (AttributeError, LookupError, TypeError, ValueError):
        return []  # the library says what is wrong
    if enormous:
        raise ValueError(f"it has the id {largest}, and no vocabulary has {MAX_IDS:,} ids")
    return list(added)


def _warn_of_other_ids(name: str, written: Sequence[Any], given: Mapping[str, int]) -> None:
    """Warn where the library numbers an added token otherwise than it is written in the file."""
    other = [
        (token["content"], token["id"], given[token["content"]])
        for token in written
        if given.get(token["content"], token["id"]) != token["id"]
    ]
    if other:
        content, there, taken = other[0]
        more = f", and so {len(other) - 1} more" if len(other) > 1 else ""
        warnings.warn(
            f"{name}: {content!r} has the id {there} in the file, but the tokenizer's library "
            f"numbers added tokens itself and gives it {taken}{more}",
            stacklevel=4,
        )


def _run(tokenizer: Any, texts: Sequence[str], fast: bool) -> list[Any]:
    """The encodings of texts; what stands there twice, as a system text may, is encoded once."""
    distinct = list(dict.fromkeys(texts))
    if len(distinct) <= FEW and sum(map(len, distinct)) < SHORT:
        made = [tokenizer.encode(text, add_special_tokens=False) for text in distinct]
    else:
        encode = tokenizer.encode_batch_fast if fast else tokenizer.encode_batch
        made = encode(distinct, add_special_tokens=False)
    known = dict(zip(distinct, made, strict=True))
    return [known[text] for text in texts]


def _bos_id(backend: HuggingFace | SentencePiece) -> int:
    token_id = backend.control_id(backend.bos or "")
    if token_id is None:
        raise ValueError(f"BOS {backend.bos!r} is no added token of {backend.name}")
    return token_id


def _named(ids: Sequence[int], control: Mapping[str, int]) -> tuple[str, ...]:
    return tuple(text for text, token_id in control.items() if token_id in ids)


def _is_blank(token: Mapping[str, Any]) -> bool:
    return not token["special"] and not _visible(token["content"])


def _visible(text: str) -> str:
    """Text without the white space around it, also as tokenizers spell blanks."""
    return text.strip(_BLANKS)


_BLANKS = "▁" + "".join(map(chr, (*range(9, 14), 32, 133, 160, 12288)))


def _without_added_tokens(spec: dict[str, Any]) -> dict[str, Any]:
    """The twin: the same model, and no way for text to yield an added token.

    An added token may be an entry of the model's vocabulary too. The model itself must not
    arrive there either, so the entry gets a name that no text can spell; its id stays. An entry of
    one character stays as it is: without it the character could not be written at all. Blank tokens
    enter the vocabulary, because the library numbers an added token anew unless its model knows it.
    """
    blank = [token for token in spec["added_tokens"] if _is_blank(token)]
    names = {token["content"] for token in spec["added_tokens"]} - {t["content"] for t in blank}
    twin = dict(spec, added_tokens=blank, truncation=None, padding=None, post_processor=None)
    model = dict(spec["model"])
    vocab = model["vocab"]
    # Not even somebody who knows this file can spell it.
    secret = secrets.token_hex(16)
    hidden = {name: f"\0 {secret} {name}" for name in names if len(name) > 1}
    if isinstance(vocab, dict):
        hidden = {name: other for name, other in hidden.items() if name in vocab}
        vocab = {hidden.get(name, name): token_id for name, token_id in vocab.items()}
        vocab.update({token["content"]: token["id"] for token in blank})
    else:
        vocab = [[hidden.get(name, name), score] for name, score in vocab]
        least = min(score for _, score in vocab)
        for token in blank:
            places = range(len(vocab), token["id"] + 1)
            vocab += [[f"\0 {secret} {place}", least] for place in places]
            vocab[token["id"]][0] = token["content"]
    model["vocab"] = vocab
    if model.get("unk_token") in hidden:
        model["unk_token"] = hidden[model["unk_token"]]
    if "merges" in model and hidden:
        model["merges"] = [merge for merge in model["merges"] if _parts(merge).isdisjoint(hidden)]
    twin["model"] = model
    return twin


def _parts(merge: Any) -> set[str]:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return {left, right, left + right}


def _without_text_prefix(spec: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """The twin for text that goes on where other text ends, and where text starts afresh.

    None where the tokenizer puts nothing in front of a text.
    """
    schemes: list[str] = []

    def strip(part: Any) -> Any:
        if not isinstance(part, dict):
            return part
        kind = part.get("type")
        if kind == "Sequence":
            key = "normalizers" if "normalizers" in part else "pretokenizers"
            inner = [strip(item) for item in part[key]]
            return dict(part, **{key: [item for item in inner if item is not None]})
        if kind in ("Prepend", "Strip"):  # at a cut there is nothing to add and nothing to strip
            schemes.append("always")
            return None
        if kind == "Metaspace" and part.get("prepend_scheme", "always") != "never":
            schemes.append(part.get("prepend_scheme", "always"))
            return dict(part, prepend_scheme="never")
        if kind == "ByteLevel" and part.get("add_prefix_space"):
            schemes.append("always")
            return dict(part, add_prefix_space=False)
        return part

    bare = dict(
        spec,
        normalizer=strip(spec.get("normalizer")),
        pre_tokenizer=strip(spec.get("pre_tokenizer")),
    )
    if not schemes:
        return None, "none"
    return bare, "none" if set(schemes) == {"first"} else "control"


class SentencePiece(Accelerated):
    """A SentencePiece model, run by the `sentencepiece` package itself.

    The converted Hugging Face form differs on runs of spaces, so a `.model` is not converted.
    """

    fresh_after = "bos"
    _library = "sentencepiece"

    def __init__(
        self,
        model: bytes,
        *,
        bos: str | None = None,
        eos: str | None = None,
        beside: Beside = Beside(),  # noqa: B008 - frozen
        name: str = "sentencepiece",
        files: Path | None = None,
    ) -> None:
        """Make the backend of a serialized model; the arguments are as in HuggingFace.

        Where nothing says whether BOS is put in front of a text, it is: that is what the Llama
        family does with such a model.
        """
        sentencepiece = _import("sentencepiece")
        protobuf = _import("sentencepiece.sentencepiece_model_pb2")
        proto = protobuf.ModelProto()
        try:
            proto.ParseFromString(model)
            own = sentencepiece.SentencePieceProcessor(model_proto=model)
        except Exception as error:
            raise ValueError(
                f"{name} is neither a tokenizer.json nor a SentencePiece model: {error}"
            ) from None
        if not proto.pieces:
            raise ValueError(
                f"{name} is neither a tokenizer.json nor a SentencePiece model: it has no pieces"
            )
        piece_type = protobuf.ModelProto.SentencePiece
        self.name, self._model, self._files = name, model, files
        self._control = {
            piece.piece: token_id
            for token_id, piece in enumerate(proto.pieces)
            if piece.type in (piece_type.CONTROL, piece_type.UNKNOWN)
            or (piece.type == piece_type.USER_DEFINED and _visible(piece.piece))
        }
        self.recognised = tuple(
            proto.pieces[token_id].piece
            for token_id in self._control.values()
            if proto.pieces[token_id].type == piece_type.USER_DEFINED
        )
        later = {
            text: found
            for text, found in beside.added.items()
            if found[0] >= len(proto.pieces) and _visible(text)
        }
        self._control.update({text: token_id for text, (token_id, _) in later.items()})
        self.recognised += tuple(text for text, (_, special) in later.items() if not special)
        self._spelled = {token_id: piece for piece, token_id in self._control.items()}
        self.bos = _first(bos, own.id_to_piece(own.bos_id()) if own.bos_id() >= 0 else None)
        self.eos = _first(eos, own.id_to_piece(own.eos_id()) if own.eos_id() >= 0 else None)
        self.reads_in_text = (*self.recognised, *later)
        self.chat_template, self.special_tokens = beside.chat_template, beside.special
        self.stop_tokens = _named(beside.stop_ids, self._control)
        adds_bos = beside.adds_bos is not False and self.bos is not None
        self.prefix_ids = (_bos_id(self),) if adds_bos else ()
        # gigatoken knows no type but normal pieces, bytes and added tokens.
        self._unlike = [
            p.piece for p in proto.pieces if p.type not in (piece_type.NORMAL, piece_type.BYTE)
        ]
        for piece in proto.pieces:
            if piece.type == piece_type.USER_DEFINED and piece.piece in self._control:
                piece.type = piece_type.UNUSED
        self._fresh = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
        proto.normalizer_spec.add_dummy_prefix = False
        proto.normalizer_spec.remove_extra_whitespaces = False  # the blank at a cut is text
        self._continuing = sentencepiece.SentencePieceProcessor(
            model_proto=proto.SerializeToString()
        )

    def encode_exactly(
        self, texts: Sequence[str], continues: Sequence[bool]
    ) -> tuple[Ids, Offsets]:
        """See Accelerated."""
        pairs = list(zip(texts, continues, strict=True))
        made = {
            (text, goes_on): (self._continuing if goes_on else self._fresh).encode_as_ids(text)
            for text, goes_on in dict.fromkeys(pairs)
        }
        return kernels.flatten([made[pair] for pair in pairs])

    def encode_batch_extents(
        self, texts: Sequence[str], continues: Sequence[bool]
    ) -> tuple[Ids, Offsets, Extents]:
        """See ExtentBackend."""
        ids: list[list[int]] = []
        extents: list[Extents] = []
        for text, goes_on in zip(texts, continues, strict=True):
            processor = self._continuing if goes_on else self._fresh
            mapping = processor.encode_as_offset_mapping(text)
            ids.append(mapping["ids"])
            extents.append(
                _fill_extents(
                    np.array(mapping["offsets"], np.int64).reshape(-1, 2), mapping["pieces"]
                )
            )
        values, offsets = kernels.flatten(ids)
        return values, offsets, np.concatenate([*extents, np.empty((0, 2), np.int64)])

    def control_id(self, text: str) -> int | None:
        """See Backend."""
        return self._control.get(text)

    def decode(self, ids: Sequence[int]) -> str:
        """See Backend."""
        parts: list[str] = []
        run: list[int] = []
        processor = self._fresh
        for token_id in map(int, ids):
            spelled = self._spelled.get(token_id)
            if spelled is None:
                run.append(token_id)
                continue
            parts += (processor.decode(run), spelled)
            run = []
            processor = self._fresh if spelled == self.bos else self._continuing
        parts.append(processor.decode(run))
        return "".join(parts)

    def gigatoken(self) -> Gigatoken:
        """Another way to the same ids; see Gigatoken for what it raises."""
        fresh, continuing = (
            model.serialized_model_proto() for model in (self._fresh, self._continuing)
        )
        added = [*self._unlike, *self._control]
        return Gigatoken("from_sentencepiece", fresh, continuing, added)

    @property
    def vocabulary(self) -> int:
        """See Backend."""
        return max(int(self._fresh.get_piece_size()), *(i + 1 for i in self._spelled), 0)

    def pieces(self) -> list[str]:
        """Some texts of the vocabulary, from all over it."""
        size = self._fresh.get_piece_size()
        return [self._fresh.decode([i]) for i in range(0, size, size // PIECES + 1)]

    def fingerprint(self) -> str:
        """Sha256 (hex) of all that decides the ids: the model, its bos, eos and prefix."""
        model = hashlib.sha256(self._model).hexdigest()
        return _sha256(model, self.bos, self.eos, self.prefix_ids, self._control)

    def save(self, directory: Path) -> None:
        """Write the tokenizer so that `load(directory)` gives the same one."""
        save_files(directory, "tokenizer.model", self._model, self._files, self.bos, self.eos)


def _fill_extents(extents: Extents, pieces: Sequence[str]) -> Extents:
    """Give every piece of a character that became several the extent of the character.

    A character may be spelled in bytes, or be written out by the normalizer; SentencePiece gives
    its extent to the last piece and an empty one to the others. The `▁` that is put in front of a
    text is of no character.
    """
    for index in range(len(extents) - 2, -1, -1):
        start, end = extents[index]
        if start == end == extents[index + 1, 0] and not (index == 0 and pieces[0] == "▁"):
            extents[index] = extents[index + 1]
    return extents


def _import(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"this tokenizer needs {error.name!r}: pip install 'turnpack[tokenizers]'"
        ) from None


def _sha256(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()
