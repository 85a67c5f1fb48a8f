"""The rules of what is a target, for every template and every kind of text.

The span rule (targets are the answers and their stop tokens), the inference-prompt rule (what
stands before them is the prompt, as text and as the tokenizer's own ids) and the control-token rule
(no spelling in a conversation yields a control token) hold whatever the texts are.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
import sentencepiece
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import turnpack as tp
from at_hand import mistral, tiny_with
from chats import HOSTILE, TEXTS, assistant, conversations, harmless, hostile, system, user
from turnpack import get_template, templates, tokenizers

NAMES = templates()

# The tokens that a template's tokenizer has: those that delimit, and reasoning and tool markup.
MARKUP = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>")


# What the model has to write, for the answers of a conversation. Stated from templates.md.
EOS = {
    "chatml": "<|im_end|>", "qwen2.5": "<|im_end|>", "qwen3": "<|im_end|>", "phi4": "<|im_end|>",
    "yayi": "\n\n<|End|>", "yayi-repo": "\n\n<|End|>", "phi3": "<|end|>",
    "llama3": "<|eot_id|>", "llama3.1": "<|eot_id|>", "gemma": "<end_of_turn>",
    "deepseek-v3": "<｜end▁of▁sentence｜>", "guanaco": "",
}  # fmt: skip
ANSWER = {
    "llama2": lambda text: f" {text.strip()} ",
    "linksoul": lambda text: f"{text.strip()} ",
    "llama3": str.strip,
    "llama3.1": str.strip,
    "gemma": str.strip,
    "mistral-v1": lambda text: f" {text}",
    "mistral-v3": lambda text: f" {text.rstrip(' ')}",
    "mistral-v7": lambda text: f" {text.rstrip(' ')}",
    "vicuna": lambda text: f" {text}",
}


def expected_targets(name, answers):
    written = [ANSWER.get(name, str)(text) + EOS.get(name, "</s>") for text in answers]
    if name == "guanaco":
        written[-1] += "</s>"
    if name == "qwen3":
        written[-1] = "<think>\n\n</think>\n\n" + written[-1].lstrip("\n")
    return written


def spans(rendered):
    """(text before, text) of each run of targets."""
    found, before, inside = [], "", False
    for segment in rendered.segments:
        if segment.target and not inside:
            found.append([before, ""])
        if segment.target:
            found[-1][1] += segment.text
        inside = segment.target
        before += segment.text
    return found


def same_for_all(check):
    return pytest.mark.parametrize("name", NAMES)(
        settings(max_examples=30, deadline=None)(given(data=st.data())(check))
    )


@same_for_all
def test_span_rule(name, data):
    template = get_template(name)
    messages = data.draw(conversations(template, harmless | hostile.filter(no_markup)))
    answers = [n for n, m in enumerate(messages) if m["role"] == "assistant"]
    for number in answers:  # a weight of its own tells the targets of an answer from all others
        messages[number] = {**messages[number], "weight": number}
    found = dict.fromkeys(answers, "")
    for segment in template.render(messages).segments:
        if segment.target:
            found[int(segment.weight)] += segment.text
    texts = [messages[number]["content"] for number in answers]
    assert list(found.values()) == expected_targets(name, texts)


def no_markup(text):
    return not any(tag in text for tag in MARKUP)


@same_for_all
def test_inference_prompt_rule(name, data):
    template = get_template(name)
    messages = data.draw(conversations(template, harmless | hostile))
    answers = [n for n, m in enumerate(messages) if m["role"] == "assistant"]
    if template.system_in_last_user and messages[0]["role"] == "system":
        answers = answers[-1:]  # earlier turns are written without the system text
    for number in answers:
        alone = [
            {**m, "train": n == number} if m["role"] == "assistant" else m
            for n, m in enumerate(messages)
        ]
        found = spans(template.render(alone))
        if found:
            prompt = template.render(messages[:number], for_inference=True)
            assert found[0][0] == prompt.text
            assert not any(segment.target for segment in prompt.segments)


@functools.cache
def tokenizer_of(name, prefix="none"):
    """A small tokenizer with the added tokens of a template's own one."""
    template = get_template(name)
    special = {*template.markers, template.bos, template.eos}
    return tiny_with(tuple(sorted(special)), template.markup, prefix)


@functools.cache
def tokenizer_of_all():
    """A small tokenizer with the added tokens of every template."""
    every = [get_template(name) for name in NAMES]
    special = {token for t in every for token in (*t.markers, t.bos, t.eos)}
    return tiny_with(tuple(sorted(special)), MARKUP)


def encoder_of(name, own):
    template = get_template(name)
    return tp.Encoder(tokenizers.load(own, bos=template.bos, eos=template.eos), template)


encoder_of_own = functools.cache(
    lambda name, prefix="none": encoder_of(name, tokenizer_of(name, prefix))
)
encoder_of_all = functools.cache(lambda name: encoder_of(name, tokenizer_of_all()))


@same_for_all
def test_ids_before_the_first_target_are_the_tokenizers_own(name, data):
    template = get_template(name)
    messages = data.draw(conversations(template, harmless))
    first = next(n for n, m in enumerate(messages) if m["role"] == "assistant")
    prompt = template.render(messages[:first], for_inference=True).text
    assume(prompt)  # plain may prompt with nothing, and a row's first token is no target
    tokens = encoder_of_own(name)([tp.Conversation(messages[: first + 1])])
    start = int(np.argmax(tokens.loss_mask))
    own = tokenizer_of(name).encode(prompt, add_special_tokens=False).ids
    assert tokens.input_ids[:start].tolist() == own


@pytest.mark.parametrize("prefix", ["bytes", "first", "always", "prepend"])
@pytest.mark.parametrize("name", [n for n in NAMES if get_template(n).runs != "apart"])
def test_ids_with_tokenizers_that_put_a_blank_in_front(name, prefix):
    template = get_template(name)
    for text in ("Hello world", "  Hello \n", "\n 12:"):
        messages = [user(text), assistant(" fine")]
        if template.has_system:
            messages = [system(text), *messages]
        tokens = encoder_of_own(name, prefix)([messages])
        prompt = template.render(messages[:-1], for_inference=True).text
        own = tokenizer_of(name, prefix).encode(prompt, add_special_tokens=False).ids
        assert tokens.input_ids[: int(np.argmax(tokens.loss_mask))].tolist() == own


@same_for_all
def test_control_token_rule(name, data):
    """The control tokens of a row are those of the same row with an x for every text."""
    template = get_template(name)
    texts = st.sampled_from([text for text in HOSTILE if no_markup(text)]) | harmless
    messages = data.draw(conversations(template, hostile))
    messages = [
        {**m, "content": data.draw(texts)} if m["role"] == "assistant" else m for m in messages
    ]
    harmless_ones = [
        {**m, "content": "x", "input": "x" if m.get("input") else ""} for m in messages
    ]
    encoder = encoder_of_all(name)
    added = set(tokenizer_of_all().get_added_tokens_decoder())
    found, expected = (
        [i for i in encoder([tp.Conversation(row)]).input_ids.tolist() if i in added]
        for row in (messages, harmless_ones)
    )
    assert found == expected
    spelled = [s.text for s in encoder.template.render(messages).segments if s.control]
    assert [encoder.backend.control_id(text) for text in spelled] == found


def test_an_answers_markup_is_what_the_model_must_produce():
    """`<think>` in an answer is the token; in a question it is text."""
    for name in ("chatml", "qwen2.5", "qwen3", "deepseek-v3", "llama3"):
        encoder = encoder_of_all(name)
        rendered = encoder.template.render([user("<think>"), assistant("<think>a</think><|x|>")])
        controls = [s for s in rendered.segments if s.control and "think" in s.text]
        assert [s.text for s in controls] == ["<think>", "</think>"]
        assert all(s.target for s in controls)


def test_markup_that_the_tokenizer_lacks_is_text_without_a_warning():
    template = get_template("qwen3")
    own = tiny_with(("<|im_start|>", "<|im_end|>"), ("<tool_call>",))
    encoder = tp.Encoder(own, template)  # warnings are errors here
    rendered = encoder.template.render([user("a"), assistant("b")])
    assert rendered.warnings == ()
    assert [s.text for s in rendered.segments if s.target] == [
        "<think>",  # the small tokenizer has this one
        "\n\n</think>\n\nb",
        "<|im_end|>",
    ]


@pytest.mark.parametrize("version", ["v1", "v3", "v7"])
@pytest.mark.parametrize("text", [text for text in TEXTS.values() if text])
def test_mistrals_blanks_are_the_ones_that_the_template_spells(version, text):
    """With Mistral's own models no blank is added to the text, and none is lost."""
    own = sentencepiece.SentencePieceProcessor(model_file=str(mistral(version)))
    encoder = mistral_encoder(version)
    messages = [user(text), assistant(text), user(text), assistant(text)]
    if version == "v7":
        messages = [system(text), *messages]
    ids = encoder([tp.Conversation(messages)]).input_ids.tolist()
    spelled = b"".join(
        bytes([int(own.id_to_piece(i)[3:5], 16)])
        if own.is_byte(i)
        else own.id_to_piece(i).replace("▁", " ").encode()
        for i in ids
    )
    assert spelled.decode() == encoder.template.render(messages).text


@functools.cache
def mistral_encoder(version):
    return tp.Encoder(mistral(version), f"mistral-{version}")
