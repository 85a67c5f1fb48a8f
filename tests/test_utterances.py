"""linksoul and firefly: every utterance encoded by itself, as their originals do.

Both originals are restated here in plain Python, from what is known of them and without turnpack,
and give the same ids and labels on every row of the real files. So does `concat` on the same
utterances. Where an original has a defect, ours has the right thing; the last tests say which.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
import sentencepiece

import turnpack as tp
from at_hand import EACH_FILE, SHARED, mistral_v1, needs_shared, qwen, rows_of, turns_of
from chats import assistant, system, user
from turnpack import kernels, records, tokenizers

# LinkSoul's default system text, as it stands in its train.py: in an indented triple-quoted string.
DEFAULT = """\
            You are a helpful, respectful and honest assistant. Always answer as helpfully as \
possible, while being safe.  Your answers should not include any harmful, unethical, racist, \
sexist, toxic, dangerous, or illegal content. Please ensure that your responses are socially \
unbiased and positive in nature.

            If a question does not make any sense, or is not factually coherent, explain why \
instead of answering something not correct. If you don't know the answer to a question, please \
don't share false information."""


def linksoul(turns, encode, bos, eos, opening=""):
    """Ids and labels of (question, answer) pairs."""
    ids, labels = [], []
    system_block = f"<<SYS>>\n{opening or DEFAULT}\n<</SYS>>\n\n"
    for number, (question, answer) in enumerate(turns):
        question = system_block + question if number == 0 else question
        human = [bos, *encode("[INST] " + question.strip() + " [/INST] ")]
        ids += human
        labels += [-100] * len(human)
        if answer is not None:
            reply = [*encode(answer.strip() + " "), eos]
            ids += reply
            labels += reply
    return ids, labels


def firefly(turns, encode, bos, eos):
    """Ids and labels of (question, answer) pairs."""
    ids, labels = [bos], [-100]
    for question, answer in turns:
        human = [*encode(question), eos]
        ids += human
        labels += [-100] * len(human)
        if answer is not None:
            reply = [*encode(answer), eos]
            ids += reply
            labels += reply
    return ids, labels


def by_concat(name, turns, encode, bos, eos):
    """The same through `concat`: turns that are encoded already, and what goes around each."""
    linksouls = name == "linksoul"
    texts = []
    for number, (question, answer) in enumerate(turns):
        if linksouls:
            block = f"<<SYS>>\n{DEFAULT}\n<</SYS>>\n\n" if number == 0 else ""
            question = f"[INST] {(block + question).strip()} [/INST] "
            answer = None if answer is None else f"{answer.strip()} "
        texts += [(0, question), (1, answer)][: 1 + (answer is not None)]
    human = tp.Role(prefix=[bos]) if linksouls else tp.Role(suffix=[eos])
    reply = tp.Role(suffix=[eos], target=True)
    return kernels.concat(
        *kernels.flatten([encode(text) for _, text in texts]),
        [role for role, _ in texts],
        [0, len(texts)],
        [human, reply],
        bos=[] if linksouls else [bos],
    )


@functools.cache
def family(name):
    """A backend, its own way to encode a text by itself, its BOS and EOS, and its added tokens."""
    if name == "qwen":
        own = qwen()
        backend = tokenizers.load(own, bos="<|endoftext|>", eos="<|im_end|>")
        added = [token.content for token in own.get_added_tokens_decoder().values()]
        return backend, lambda text: own.encode(text, add_special_tokens=False).ids, added
    own = sentencepiece.SentencePieceProcessor(model_file=str(mistral_v1()))
    return tokenizers.load(mistral_v1()), own.encode, []


@needs_shared
@pytest.mark.parametrize("file", EACH_FILE)
@pytest.mark.parametrize("tokenizer", ["qwen", "sentencepiece"])
def test_every_row_as_the_originals_build_it(tokenizer, file):
    backend, encode, added = family(tokenizer)
    bos, eos = backend.control_id(backend.bos), backend.control_id(backend.eos)
    rows = rows_of(file)
    conversations = list(records.read([SHARED / "data" / file]))
    for name, original in (("linksoul", linksoul), ("firefly", firefly)):
        tokens = tp.Encoder(backend, name)(conversations, rejects := [])
        assert {reject.reason for reject in rejects} <= {f"template {name} has no tools"}
        compared = 0
        for index, number in enumerate(tokens.source.tolist()):
            if any(token in str(rows[number]) for token in added):
                continue  # the originals take these for the tokens themselves
            compared += 1
            turns = [
                (f"{question}\n{extra}" if extra else question, answer)
                for question, extra, answer in turns_of(rows[number])
            ]
            ids, labels = original(turns, encode, bos, eos)
            start, end = tokens.offsets[index : index + 2]
            own, mask = tokens.input_ids[start:end], tokens.loss_mask[start:end]
            assert own.tolist() == ids
            assert np.where(mask, own, -100).tolist() == labels
            if number % 20 == 0:
                made = by_concat(name, turns, encode, bos, eos)
                assert made.input_ids.tolist() == ids
                assert made.loss_mask.tolist() == mask.tolist()
        assert compared >= 0.99 * len(tokens)


@pytest.mark.parametrize("tokenizer", ["qwen", "sentencepiece"])
def test_linksoul_with_a_system_message(tokenizer):
    backend, encode, _ = family(tokenizer)
    bos, eos = backend.control_id(backend.bos), backend.control_id(backend.eos)
    messages = [system(" S "), user("  a "), assistant(" b "), user(" c "), assistant("d")]
    tokens = tp.Encoder(backend, "linksoul")([messages])
    ids, labels = linksoul([("  a ", " b "), (" c ", "d")], encode, bos, eos, " S ")
    assert tokens.input_ids.tolist() == ids
    assert np.where(tokens.loss_mask, tokens.input_ids, -100).tolist() == labels


def test_linksoul_is_llama2_but_for_one_blank_per_answer():
    messages = [system("S"), user("a"), assistant("b"), user("c"), assistant("d")]
    apart = tp.Encoder(mistral_v1(), "linksoul")([messages])
    whole = tp.Encoder(mistral_v1(), "llama2")([messages])
    assert tp.get_template("linksoul").render(messages).text == (
        tp.get_template("llama2").render(messages).text
    )
    assert len(apart.input_ids) == len(whole.input_ids) + 2


# -- defects that are not copied -------------------------------------------------------------------


def test_linksoul_keeps_every_added_token():
    """The original turns every id beyond the vocabulary into padding, Qwen's EOS among them."""
    backend, _, _ = family("qwen")
    tokens = tp.Encoder(backend, "linksoul")([[user("a"), assistant("<think>b")]])
    ids = tokens.input_ids.tolist()
    assert backend.control_id("<think>") in ids
    assert ids[-1] == backend.control_id("<|im_end|>")


def test_linksoul_twice_is_the_same_twice():
    """The original stacks one more system text each time that it reads a row."""
    backend, _, _ = family("sentencepiece")
    encoder, row = tp.Encoder(backend, "linksoul"), {"messages": [user("a"), assistant("b")]}
    first = encoder([row])
    assert encoder([row]) == first


@pytest.mark.parametrize("name", ["linksoul", "firefly"])
def test_a_row_that_is_cut_to_nothing_is_a_reject(name):
    """The originals train on a dummy chat instead (LinkSoul), or on nothing (Firefly)."""
    backend, _, _ = family("sentencepiece")
    encoder = tp.Encoder(backend, name, max_length=20)
    tokens = encoder([[user("long " * 50), assistant("b")]], rejects := [])
    assert len(tokens) == 0
    assert [reject.reason for reject in rejects] == ["nothing to train on"]
