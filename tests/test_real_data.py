"""Every row of every real file, under real tokenizers: targets, prompts and packing are exact.

The expected targets and texts are restated here from the rows' own keys, without turnpack.
"""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
import sentencepiece

import turnpack as tp
from at_hand import EACH_FILE, FILES, SHARED, mistral_v1, needs_shared, qwen, rows_of, turns_of
from turnpack import records, tokenizers

pytestmark = needs_shared


def expected_prompt_and_targets(template, turns):
    """The first inference prompt, and every target, as each template's original writes them."""
    question, extra, _ = turns[0]
    joined = f"{question}\n{extra}" if extra else question
    answers = [answer for _, _, answer in turns if answer is not None]
    if template == "chatml":
        prompt = f"<|im_start|>user\n{joined}<|im_end|>\n<|im_start|>assistant\n"
        return prompt, [f"{answer}<|im_end|>" for answer in answers]
    if template == "llama2":
        return f"<s>[INST] {joined.strip()} [/INST]", [f" {a.strip()} </s>" for a in answers]
    if extra:
        prompt = (
            "Below is an instruction that describes a task, paired with an input that provides "
            "further context. Write a response that appropriately completes the request.\n\n"
            f"### Instruction:\n{question}\n\n### Input:\n{extra}\n\n### Response:"
        )
    else:
        prompt = (
            "Below is an instruction that describes a task. Write a response that appropriately "
            f"completes the request.\n\n### Instruction:\n{question}\n\n### Response:"
        )
    return prompt, [f"{answer}<|im_end|>" for answer in answers]


def sentencepiece_prompt(own, prompt):
    return [own.bos_id(), *own.encode(prompt.removeprefix("<s>"))]


CASES = [("qwen", "chatml"), ("qwen", "alpaca"), ("sentencepiece", "llama2")]


@pytest.mark.parametrize("name", EACH_FILE)
@pytest.mark.parametrize(("family", "template"), CASES)
def test_every_row(family, template, name):
    rows = rows_of(name)
    assert len(rows) == FILES[name]
    if family == "qwen":
        own = qwen()
        backend = tokenizers.load(own, eos="<|im_end|>")
        added = [token.content for token in own.get_added_tokens_decoder().values()]
        normal = unicodedata.normalize
    else:
        own = sentencepiece.SentencePieceProcessor(model_file=str(mistral_v1()))
        backend, added = tokenizers.load(mistral_v1()), []
        normal = lambda form, text: text  # noqa: E731
    encoder = tp.Encoder(backend, template)
    rejects = []
    conversations = list(records.read([SHARED / "data" / name]))
    tokens = encoder(conversations, rejects)
    assert len(tokens) + len(rejects) == len(rows)
    assert {reject.reason for reject in rejects} <= {f"template {template} has no tools"}

    compared = 0
    packed_rows = set(tokens.source.tolist())
    for number, row in enumerate(rows):
        turns = turns_of(row)
        assert (turns is None) == (number not in packed_rows)
    for index, number in enumerate(tokens.source.tolist()):
        prompt, targets = expected_prompt_and_targets(template, turns_of(rows[number]))
        start, end = tokens.offsets[index : index + 2]
        ids = tokens.input_ids[start:end].tolist()
        mask = tokens.loss_mask[start:end]
        edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]]))).reshape(-1, 2).tolist()
        found = []
        for first, last in edges:
            before = backend.decode(ids[:first])
            found.append(backend.decode(ids[:last])[len(before) :])
        assert found == [normal("NFC", target) for target in targets]
        text = str(rows[number])
        if any(token in text for token in added):
            continue
        compared += 1
        if family == "qwen":
            prompt_ids = own.encode(prompt, add_special_tokens=False).ids
        else:
            prompt_ids = sentencepiece_prompt(own, prompt)
        assert ids[: edges[0][0]] == prompt_ids
    assert compared >= 0.99 * len(tokens)

    plan = tp.plan(tokens.lengths, max(4096, int(tokens.lengths.max(initial=1))))
    assert sorted(plan.rows.tolist()) == list(range(len(tokens)))
    for layout in ("rows", "flat"):
        assert tp.unpack(tp.pack(tokens, plan, layout=layout)) == tokens
