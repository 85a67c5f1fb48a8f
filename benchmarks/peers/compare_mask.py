"""Owns the comparison of masking by markers: ids of ChatML chats in, what is trained on out.

Asserted equal: every row's targets. No text follows a stop token here, so all rules agree.
"""

from itertools import chain

import numpy as np
import packages
from side_by_side import Form

import at_hand
from conftest import lengths_of
from turnpack import kernels

USER, ANSWER, STOP = "<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>"
IGNORE = -100


def compare(share):
    """8,192 rows, 4.3 million ids; each row is turns of about 60 ids, by turns user and model."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=at_hand.qwen(), eos_token=STOP)
    user, answer, stop = (
        tokenizer(text, add_special_tokens=False).input_ids for text in (USER, ANSWER, STOP)
    )
    rows = conversations(int(8192 * share), user, answer, stop)
    ids, offsets = kernels.flatten(rows)
    expected = np.where(kernels.mask_markers(ids, offsets, [answer], [stop]), ids, IGNORE)
    assert (expected != IGNORE).any()

    def equal(labels):
        return np.array_equal(np.fromiter(chain.from_iterable(labels), np.int32), expected)

    unsloth = packages.alone("unsloth-zoo", "unsloth_zoo/dataset_utils.py")
    scan = unsloth.train_on_responses_only(
        None, USER, ANSWER, tokenizer=tokenizer, return_function=True
    )
    assert equal(scan({"input_ids": rows})["labels"])
    arrays = [np.array(row) for row in rows]
    assert equal([by_two_templates(row, user, answer) for row in arrays])

    def from_lists():
        return kernels.mask_markers(*kernels.flatten(rows), [answer], [stop])

    yield (
        f"mask {len(rows):,} rows by markers",
        [
            Form("turnpack", lambda: kernels.mask_markers(ids, offsets, [answer], [stop])),
            Form("turnpack, from lists", from_lists),
            Form(packages.title("unsloth-zoo"), lambda: scan({"input_ids": rows})),
            Form(
                "older TRL's collator, re-stated",
                lambda: [by_two_templates(row, user, answer) for row in arrays],
            ),
        ],
        7,
    )


def conversations(count, user, answer, stop):
    """Rows as lists of ids; the ids between the markers are text."""
    rng = np.random.default_rng(4)
    rows = []
    for length in lengths_of(count).tolist():
        row = []
        for turn in range(max(2, length // 60)):
            text = rng.integers(1000, 100_000, max(1, length // max(2, length // 60) - 4))
            row += [*(answer if turn % 2 else user), *text.tolist(), *stop]
        rows.append(row)
    return rows


def by_two_templates(ids, user, answer):
    """The rule of DataCollatorForCompletionOnlyLM, which TRL has removed, in our words.

    With a template of each side, what lies between an answer's template and the next user's is a
    target. Candidates are found with NumPy by a template's first id, then compared as lists.
    """
    starts = [
        at + len(answer)
        for at in np.flatnonzero(ids == answer[0]).tolist()
        if ids[at : at + len(answer)].tolist() == answer
    ]
    ends = [
        at
        for at in np.flatnonzero(ids == user[0]).tolist()
        if ids[at : at + len(user)].tolist() == user
    ]
    labels = np.full_like(ids, IGNORE)
    for start in starts:
        end = next((at for at in ends if at > start), len(ids))
        labels[start:end] = ids[start:end]
    return labels
