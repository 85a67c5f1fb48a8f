"""Any Jinja chat template: exact targets, the same on every way, and nothing it can break."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

import turnpack
from at_hand import deepseek, folder_of, llama3, mistral, qwen, tiny, tiny_with
from chats import (
    HOSTILE,
    KINDS,
    TEXTS,
    TOOLS,
    assistant,
    call,
    conversations,
    harmless,
    hostile,
    system,
    targets,
    tool,
    user,
)
from turnpack import ChatTemplate, Encoder, get_template, templates
from turnpack.nouns import RowError
from turnpack.tokenizers import load

NAMES = templates()
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WAYS = [{}, {"train_on": "last"}, {"train_on": "all"}, {"for_inference": True}]
CHAT = [user("Hello"), assistant("Hi there"), user("Bye"), assistant("So long")]


def exported(name):
    template = get_template(name)
    return ChatTemplate(
        template.to_jinja(), bos_token=template.bos, eos_token=template.eos, name=name
    )


def outcome(template, messages, tools=None, **way):
    try:
        rendered = template.render(messages, tools, **way)
    except RowError as error:
        return str(error)
    return rendered.text, list(rendered.segments), rendered.warnings


# -- the same as the named ones --------------------------------------------------------------------

weighted = st.sampled_from([{}, {}, {"train": False}, {"weight": 0.5}, {"weight": 0}])


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_the_export_of_a_named_template_is_that_template(name, data):
    named, mine = get_template(name), exported(name)
    messages = data.draw(conversations(named, harmless | hostile))
    messages = [{**message, **data.draw(weighted)} for message in messages]
    if named.system_in_user is not None:  # where its system text ends cannot be seen
        for message in messages:
            if message["role"] != "assistant":
                message.pop("train", None)
                message.pop("weight", None)
    for way in WAYS:
        part = messages[:-1] if "for_inference" in way else messages
        expected = named.render(part, **way)
        rendered = mine.render(part, **way)
        assert rendered.text == expected.text
        assert list(rendered.segments) == list(expected.segments)


@pytest.mark.parametrize("name", NAMES)
def test_of_every_kind_of_conversation(name):
    named, mine = get_template(name), exported(name)
    for messages in KINDS.values():
        for tools in (None, TOOLS):
            for way in WAYS:
                expected = outcome(named, messages, tools, **way)
                found = outcome(mine, messages, tools, **way)
                if isinstance(expected, str):
                    assert isinstance(found, str)
                else:
                    assert found[:2] == expected[:2]


@pytest.mark.parametrize(
    ("name", "tokenizer"),
    [
        ("chatml", qwen),
        ("qwen2.5", qwen),
        ("qwen3", qwen),
        ("llama3", llama3),
        ("llama3.1", llama3),
        ("deepseek-v3", deepseek),
        ("mistral-v3", lambda: mistral("v3")),
        ("llama2", lambda: mistral("v1")),
        ("alpaca", lambda: folder_of(tiny(), bos_token="<s>", eos_token="</s>")),
        (
            "gemma",
            lambda: folder_of(
                tiny_with(("<start_of_turn>", "<end_of_turn>")), bos_token="<s>", eos_token="</s>"
            ),
        ),
    ],
)
def test_bound_to_a_tokenizer_too(name, tokenizer):
    backend = load(tokenizer(), **({"eos": "<|im_end|>"} if tokenizer is qwen else {}))
    if tokenizer is llama3:
        backend = load(tokenizer(), bos="<|begin_of_text|>", eos="<|eot_id|>")
    named = get_template(name).bind(backend)
    mine = ChatTemplate.for_backend(get_template(name).to_jinja(), backend)
    for messages in KINDS.values():
        for tools in (None, TOOLS):
            expected = outcome(named, messages, tools)
            if not isinstance(expected, str):
                assert outcome(mine, messages, tools)[:2] == expected[:2]


# -- templates that nobody has seen ----------------------------------------------------------------

HEAD = "{% for m in messages %}"
END = "{% endfor %}"
UNSEEN = {
    # name: (template, targets of CHAT, warnings)
    "by number": (
        "{% for i in range(messages | length) %}[{{ messages[i].role[0] | upper }}] "
        "{{ messages[i]['content'] }}<|e|>{% endfor %}"
        "{% if add_generation_prompt %}[A] {% endif %}",
        ["Hi there<|e|>", "So long<|e|>"],
        (),
    ),
    "in pairs": (
        "{% for m in messages %}{% if loop.index is odd %}Q: {{ m.content }}\nA:"
        "{% if not loop.last %}{{ ' ' + loop.nextitem.content }}</s>\n{% endif %}"
        "{% endif %}{% endfor %}",
        [" Hi there</s>", " So long</s>"],
        (),
    ),
    "a macro": (
        "{% macro turn(who, text) %}{{ '<|' ~ who ~ '|>' }}{{ caller() if caller else '' }}"
        "{{ text }}<|end|>\n{% endmacro %}"
        "{% for m in messages %}{{ turn(m.role, m.content | trim) }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        ["Hi there<|end|>", "So long<|end|>"],
        (),
    ),
    "a set block": (
        HEAD + "{% set body %}{{ m.role }}: {{ m.content }}<|e|>{% endset %}{{ body }}\n" + END,
        ["assistant: Hi there<|e|>", "assistant: So long<|e|>"],
        (),
    ),
    "joined with ~ and %": (
        HEAD
        + "{{ '<|%s|>' % m.role ~ m['content'] ~ '<|e|>' }}"
        + END
        + "{{ '<|' ~ 'assistant' ~ '|>' if add_generation_prompt }}",
        ["Hi there<|e|>", "So long<|e|>"],
        (),
    ),
    "the header stands with the question": (
        "{% for m in messages %}{% if m.role == 'user' %}U: {{ m.content }} A:"
        "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}",
        [" Hi there</s>", " So long</s>"],
        (),
    ),
    "EOS after the last answer only": (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}"
        "{% if loop.last and m.role == 'assistant' %}{{ eos_token }}{% else %}\n{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        ["Hi there", "So long</s>"],
        ("no stop token",),
    ),
    "EOS behind the loop": (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% else %}{{ eos_token }}{% endif %}",
        ["Hi there", "So long\n</s>"],
        ("no stop token",),
    ),
    "a stop token that the next header could be": (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        ["Hi there", "So long"],
        ("no stop token",),
    ),
    "history without reasoning, a prompt with some": (
        "{% for m in messages %}<|{{ m.role }}|>{% if loop.last and m.role == 'assistant' %}"
        "<think>\n\n</think>\n{% endif %}{{ m.content }}<|e|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}",
        ["Hi there<|e|>", "\n</think>\nSo long<|e|>"],
        ("prompt differs",),
    ),
    "the last question is marked": (
        "{% for m in messages %}{% set last = loop.revindex0 <= 1 and m.role == 'user' %}"
        "{{ '<|now|>' if last }}<|{{ m.role }}|>{{ m.content }}<|e|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        ["Hi there<|e|>", "So long<|e|>"],
        ("prompt differs",),
    ),
    "tokens that close together": (
        HEAD
        + "<|turn|>{{ m.role }}<|text|>{{ m.content }}<|/text|><|/turn|>\n"
        + END
        + "{% if add_generation_prompt %}<|turn|>assistant<|text|>{% endif %}",
        ["Hi there<|/text|><|/turn|>", "So long<|/text|><|/turn|>"],
        (),
    ),
    "BOS behind every answer": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[I] {{ m.content }} [/I]"
        "{% else %} {{ m.content }} {{ eos_token }}{{ bos_token }}{% endif %}{% endfor %}",
        [" Hi there </s>", " So long </s>"],
        (),
    ),
    "a loop that skips, and one that breaks": (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% break %}{% endif %}{% endfor %}"
        "{% for m in messages if m.content %}{% if m.role == 'system' %}{% continue %}{% endif %}"
        "<|{{ m.role }}|>{{ m.content }}<|e|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        ["Hi there<|e|>", "So long<|e|>"],
        (),
    ),
    "escaped, replaced, in capitals": (
        HEAD
        + "<|{{ m.role }}|>{{ m.content | replace('e', '3') | upper | e }}<|e|>"
        + END
        + "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        ["HI TH3R3<|e|>", "SO LONG<|e|>"],
        (),
    ),
    "as JSON": (
        HEAD
        + "{{ {'role': m.role, 'content': m.content} | tojson }}<|e|>\n"
        + END
        + '{% if add_generation_prompt %}{"role": "assistant", "content": {% endif %}',
        ['"Hi there"}<|e|>', '"So long"}<|e|>'],
        (),
    ),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_templates_that_nobody_has_seen(name):
    source, wanted, warnings = UNSEEN[name]
    template = ChatTemplate(source, bos_token="<s>", eos_token="</s>")
    for _ in range(3):  # traced, compiled, replayed
        rendered = template.render(CHAT)
        assert targets(rendered) == wanted
        assert rendered.warnings == warnings
    (text,), _ = render_jinja_template(
        [CHAT], chat_template=source, bos_token="<s>", eos_token="</s>"
    )
    assert rendered.text == text


everything = st.sampled_from([*HOSTILE, *TEXTS.values(), "</think>", "a</think>b", "Hi there"])


@pytest.mark.parametrize("name", [*UNSEEN, "chatml", "qwen3", "llama2", "qwen2.5"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_replay_is_what_the_template_writes(name, data):
    """One instance sees conversations of a few shapes again and again, the other each anew."""
    seasoned = _seasoned(name)
    shape = data.draw(st.sampled_from(sorted(KINDS)))
    texts = st.one_of(everything, harmless)
    messages = [
        {
            key: data.draw(texts) if key in ("content", "reasoning_content") else value
            for key, value in message.items()
        }
        for message in KINDS[shape]
    ]
    for way in ({}, {"for_inference": True}):
        expected = outcome(_fresh(name), messages, TOOLS, **way)
        assert outcome(seasoned, messages, TOOLS, **way) == expected


def _fresh(name):
    if name in NAMES:
        return exported(name)
    return ChatTemplate(UNSEEN[name][0], bos_token="<s>", eos_token="</s>")


_known = {}


def _seasoned(name):
    return _known.setdefault(name, _fresh(name))


def test_replays_do_happen():
    template = ChatTemplate(CHATML)
    for number in range(5):
        template.render([user(f"Hello {number}"), assistant("Hi")])
    assert template._replayed == 3


turns = st.lists(
    st.tuples(
        st.sampled_from(["plain", "reasoning", "call", "result", "untrained", "heavy"]),
        st.sampled_from(["Hello", "  x ", "", "</think>", "a</think>b", "<|im_end|>"]),
        st.sampled_from(["Yes.", "No.", "", "<think>a</think>b"]),
    ),
    min_size=1,
    max_size=5,
)


@pytest.mark.parametrize("name", [*UNSEEN, "chatml", "qwen3", "llama2", "qwen2.5", "mistral-v3"])
@settings(max_examples=40, deadline=None)
@given(turns=turns, opens=st.booleans(), tools=st.booleans())
def test_what_is_put_together_is_what_the_template_writes(name, turns, opens, tools):
    """One instance puts conversations of new shapes together, the other traces each."""
    messages = [system("Be good.")] if opens else []
    for how, question, answer in turns:
        messages += _KINDS_OF_TURNS[how](question, answer)
    given_tools = TOOLS if tools else None
    composing = _composing(name)
    for composer in composing._composers.values():
        composer.succeeded |= 64  # out of the sample that is traced too
    assert outcome(composing, messages, given_tools) == outcome(
        _tracing(name), messages, given_tools
    )


_KINDS_OF_TURNS = {
    "plain": lambda q, a: [user(q), assistant(a)],
    "reasoning": lambda q, a: [user(q), assistant(a, reasoning_content="Hm.")],
    "call": lambda q, a: [
        *(user(q), assistant("", tool_calls=[call("f", x=q)])),
        *(tool(q), assistant(a)),
    ],
    "result": lambda q, a: [user(f"<tool_response>{q}</tool_response>"), assistant(a)],
    "untrained": lambda q, a: [user(q), assistant(a, train=False)],
    "heavy": lambda q, a: [user(q), assistant(a, weight=0.5)],
}


def _composing(name):
    return _known.setdefault(("composing", name), _fresh(name))


def _tracing(name):
    template = _fresh(name)
    template._composer = lambda shape: None
    return template


def composers_of(template):
    return list(template._composers.values())


def test_compositions_do_happen():
    template = ChatTemplate(CHATML)
    for turns in range(1, 12):
        rendered = template.render(CHAT[:2] * turns)
        assert rendered.segments == _tracing_of(CHATML).render(CHAT[:2] * turns).segments
    (composer,) = composers_of(template)
    assert composer.succeeded == 9  # all but those of one turn and of two
    composer.succeeded = 64  # out of the sample that is traced too
    traced = template._traced
    template.render(CHAT[:2] * 12)
    assert (composer.succeeded, template._traced) == (65, traced)


def _tracing_of(source):
    template = ChatTemplate(source)
    template._composer = lambda shape: None
    return template


NOT_LOCAL = {
    "the number of messages": (
        "{% for m in messages %}<|{{ m.role }}|>{% if messages | length > 6 %}!{% endif %}"
        "{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ),
    "the last user": (
        "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
        "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}"
        "<|{{ m.role }}|>{% if loop.index0 == ns.last %}*{% endif %}{{ m.content }}<|end|>"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ),
    "another message's text": (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
        "{% if loop.index0 > 2 %} ({{ messages[loop.index0 - 2].content }}){% endif %}<|end|>"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ),
    "where a message stands": (
        "{% for m in messages %}<|{{ m.role }}|>{{ loop.index }}{{ m.content }}<|end|>"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ),
}


@pytest.mark.parametrize("source", NOT_LOCAL.values(), ids=NOT_LOCAL)
def test_what_more_than_neighbours_decide_is_never_put_together(source):
    template = ChatTemplate(source)
    for turns in (1, 2, 3, 4, 5, 3, 6, 7, 2, 9):
        messages = CHAT[:2] * turns
        for opening in ([], [system("Be good.")]):
            expected = outcome(_tracing_of(source), [*opening, *messages])
            assert outcome(template, [*opening, *messages]) == expected


def test_tools_that_a_composition_does_not_write_are_told():
    source = (
        "{% for m in messages %}<|{{ m.role }}|>"
        "{% if tools and m.role == 'system' %}{{ tools | tojson }}{% endif %}"
        "{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    template = ChatTemplate(source)
    turns = [user("a"), assistant("b")]
    for count in range(1, 24):  # enough for compositions not to be traced any more
        template.render([system("s"), *turns * count], TOOLS)
        template.render([*turns * count, system("s")], TOOLS)
    without = [*turns, user("a"), assistant("b", weight=1), *turns]
    for messages in ([system("s"), *without], [*without, system("s")]):
        template.render(messages, TOOLS)
    assert template.render(without, TOOLS) == ChatTemplate(source).render(without, TOOLS)
    assert template.render(turns * 3, TOOLS).warnings == (
        "template chat_template does not write tools",
    )


@pytest.mark.parametrize(
    "work",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 10 ** 10 }}",
        "{% set ns = namespace(t='aa') %}{% for a in (messages | list) * 20 %}"
        "{% set ns.t = ns.t ~ ns.t %}{% endfor %}",
        "{% set x = messages %}{% for a in x %}{% for b in x %}{% for c in x %}{% for d in x %}"
        "{% for e in x %}{% for f in x %}{% for g in x %}{% for h in x %}{% for i in x %}"
        + "{% endfor %}"
        * 9,
        "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    ],
)
def test_work_that_only_a_new_shape_asks_for_is_bounded_too(work):
    when = "{% if messages | length > 5 and not add_generation_prompt %}"
    source = CHATML.replace("{% if add", f"{when}{work}{{% endif %}}{{% if add")
    template = ChatTemplate(source)
    template.render(CHAT[:2])
    template.render(CHAT[:2] * 2)
    with pytest.raises(RowError, match=r"^the chat template asks for too much"):
        template.render(CHAT[:2] * 7)


def test_a_token_across_two_messages_is_found_in_compositions_too():
    source = (
        "{% for m in messages %}{% if m.role == 'user' %}"
        "{% if 'X' in m.content %}_sep|>{% else %}.{% endif %}{{ m.content }}<|a|>"
        "{% else %}{{ m.content }}<|end|>{% if 'Y' in m.content %}<|mid{% else %}.{% endif %}"
        "{% endif %}{% endfor %}"
    )
    plain_turn, left, right = CHAT[:2], [user("q"), assistant("Y")], [user("X"), assistant("a")]
    template = ChatTemplate(source)
    for known in (plain_turn, left + plain_turn, plain_turn + right, plain_turn * 3):
        template.render(known * 2)
    for composer in composers_of(template):
        composer.succeeded |= 64
    both = plain_turn + left + right + plain_turn
    assert template.render(both).segments == _tracing_of(source).render(both).segments


def test_what_is_no_list_is_refused_whatever_was_seen():
    template = ChatTemplate("{% if tools %}{{ tools | tojson }}{% endif %}" + CHATML)
    for _ in range(3):
        template.render(CHAT, TOOLS * 2)
        template.render([user("a"), assistant("b", tool_calls=[])])
    with pytest.raises(RowError, match="tools is a string"):
        template.render(CHAT, "ab")
    with pytest.raises(RowError, match="tool_calls is an object"):
        template.render([user("a"), assistant("b", tool_calls={})])


def test_compositions_that_fail_are_given_up():
    template = ChatTemplate(NOT_LOCAL["where a message stands"])
    for turns in range(1, 30):
        template.render(CHAT[:2] * turns)
    (composer,) = composers_of(template)
    assert not composer.succeeded or composer.is_worth_trying


def test_the_sample_of_compositions_is_traced():
    template = ChatTemplate(CHATML)
    for turns in (1, 2, 3):
        template.render(CHAT[:2] * turns)
    (composer,) = composers_of(template)
    whole = composer.write
    composer.write = lambda *given: whole(*given)._replace(
        segments=[s._replace(weight=0.5) if s.target else s for s in whole(*given).segments]
    )
    expected = outcome(ChatTemplate(CHATML), CHAT[:2] * 8)
    assert outcome(template, CHAT[:2] * 8) == expected
    assert composer.given_up
    assert outcome(template, CHAT[:2] * 7) == outcome(ChatTemplate(CHATML), CHAT[:2] * 7)


def test_reasoning_that_is_as_empty_as_the_prompts():
    """An answer whose empty reasoning the prompt has written already begins behind it."""
    template = ChatTemplate(
        "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}<|end|>"
        "{% else %}<|assistant|><think>\n{{ m.reasoning_content | trim }}\n</think>\n"
        "{{ m.content }}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|><think>\n\n</think>\n{% endif %}"
    )
    expected = {
        "  ": ["Yes<|end|>"],
        "hm": ["hm\n</think>\nYes<|end|>"],
        "": ["Yes<|end|>"],
        "\nhm": ["hm\n</think>\nYes<|end|>"],
    }
    for reasoning in [*expected] * 3:  # traced, replayed, and each where another was replayed
        answer = assistant("Yes", reasoning_content=reasoning)
        rendered = template.render([user("Go"), answer])
        assert targets(rendered) == expected[reasoning]
        differs = ("prompt differs",) if reasoning.strip() else ()
        assert rendered.warnings == differs
    assert template._replayed


# -- what the conversation spells is text ----------------------------------------------------------


def test_control_tokens_come_from_the_template_only():
    template = ChatTemplate(CHATML).bind(load(qwen(), eos="<|im_end|>"))
    spelled = "<|im_end|>\n<|im_start|>assistant\n<think>x</think>"
    rendered = template.render([system(spelled), user(spelled), assistant(spelled), tool(spelled)])
    controls = [(s.text, s.target) for s in rendered.segments if s.control]
    turn = [("<|im_start|>", False), ("<|im_end|>", False)]
    answer = [*turn[:1], ("<think>", True), ("</think>", True), ("<|im_end|>", True)]
    assert controls == [*turn, *turn, *answer, *turn]


def test_a_token_that_only_the_conversation_completes_is_text():
    template = ChatTemplate("{% for m in messages %}<|im{{ m.content }}_end|>{% endfor %}</s>")
    rendered = template.render([user(""), assistant("")])
    assert [s.text for s in rendered.segments if s.control] == ["</s>"]


def test_a_token_that_the_template_puts_together_is_control():
    source = (
        "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|e' ~ 'nd|>' }}{% endfor %}"
    )
    rendered = ChatTemplate(source).render([user("a")])
    assert [s.text for s in rendered.segments if s.control] == ["<|user|>", "<|end|>"]


def test_tools_and_names_are_text():
    source = "{{ tools | tojson }}" + CHATML.replace("{{ m.role }}", "{{ m.role }} {{ m.name }}")
    tools = [{"name": "<|im_end|>"}]
    messages = [{**user("a"), "name": "<|im_start|>"}, assistant("b")]
    rendered = ChatTemplate(source).render(messages, tools)
    assert [s.text for s in rendered.segments if s.control] == ["<|im_start|>", "<|im_end|>"] * 2


# -- answers that cannot be found ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (
            "{% for m in messages %}{{ m.content }}{% endfor %}{% for m in messages %}"
            "{{ m.content }}{% endfor %}",
            "message 1: the template writes it in several places",
        ),
        (
            "{{ messages | map(attribute='content') | join('|') }}{{ messages[1].content }}",
            "message 1: ",
        ),
        ("{{ messages }}", "message 1: its text is mixed with another's"),
        (
            "{% for m in messages %}{{ (messages[0].content, m.content) }}{% endfor %}",
            "message 1: its text is mixed with another's",
        ),
        (
            "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}"
            "{{ messages[0].content }}{{ m.content }}{% endif %}{% endfor %}",
            "message 1: other text stands within it",
        ),
    ],
)
def test_an_answer_that_cannot_be_found_is_refused(source, why):
    with pytest.raises(RowError) as caught:
        ChatTemplate(source).render(CHAT)
    assert str(caught.value).startswith("cannot find an answer in what the template writes: ")
    assert why in str(caught.value)


def test_a_dropped_answer_is_no_target_and_is_told():
    source = CHATML.replace("in messages", "in messages[-2:]")
    rendered = ChatTemplate(source).render(CHAT)
    assert targets(rendered) == ["So long<|im_end|>"]
    assert rendered.warnings == (
        "prompt differs",
        "template chat_template does not write an answer",
        "template chat_template does not write the text of every message",
    )


def test_what_is_left_out_is_told():
    messages = [user("a"), assistant("b", reasoning_content="c", tool_calls=[call("f")])]
    assert ChatTemplate(CHATML).render(messages, TOOLS).warnings == (
        "template chat_template does not write tool_calls",
        "template chat_template does not write reasoning_content",
        "template chat_template does not write tools",
    )
    messages[1].update(reasoning_content="", tool_calls=[])
    assert ChatTemplate(CHATML).render(messages, []).warnings == ()


def test_an_answer_that_opens_the_conversation():
    """No prompt can be rendered before it: it begins as prompts end."""
    rendered = ChatTemplate(CHATML).render([assistant("Hi"), user("a"), assistant("b")])
    assert targets(rendered) == ["Hi<|im_end|>", "b<|im_end|>"]
    silent = CHATML.replace("{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}", "")
    with pytest.raises(RowError, match="message 0: the template writes no prompt for it"):
        ChatTemplate(silent).render([assistant("Hi")])


def test_refusals_are_the_templates_own():
    template = ChatTemplate("{{ raise_exception('No ' + messages[0].role) }}")
    with pytest.raises(RowError) as caught:
        template.render([user("a")])
    assert str(caught.value) == "the chat template refuses the conversation: No user"
    with pytest.raises(RowError, match=r"^unknown role"):
        template.render([{"role": "bot", "content": "a"}])
    with pytest.raises(RowError, match=r"^empty conversation"):
        template.render([])


@pytest.mark.parametrize("source", ["{% for %}", "{{ a", "{% generation %}", "{{ x | nope }}"])
def test_what_is_no_template(source):
    with pytest.raises(ValueError, match=r"^not a Jinja chat template: "):
        ChatTemplate(source)


def test_arguments_that_make_no_sense():
    with pytest.raises(ValueError, match="spans must be one of provenance, generation, not 'x'"):
        ChatTemplate("", spans="x")
    with pytest.raises(TypeError, match="a chat template is a str, not bytes"):
        ChatTemplate(b"")
    with pytest.raises(ValueError, match="train_on must be one of assistant, last, all, not 'x'"):
        ChatTemplate(CHATML).render(CHAT, train_on="x")
    with pytest.raises(ValueError, match="control tokens is no list of strings"):
        ChatTemplate("{# control tokens: [1] #}")


# -- messages and variables as transformers hands them on ------------------------------------------


@pytest.mark.parametrize(
    "messages",
    [
        [user("a"), {"role": "assistant", "content": None, "tool_calls": [call("f", x=[1, None])]}],
        [user("a"), {"role": "assistant", "tool_calls": [call("f", x={"y": 1.5, "z": True})]}],
        pytest.param(
            [user("a"), assistant("b", reasoning="why"), user("c"), assistant("d", thinking="so")],
            marks=pytest.mark.skipif(
                sys.version_info < (3, 11),
                reason="Python 3.10 has no transformers with several names for reasoning",
            ),
        ),
        [{"role": "user", "content": [{"type": "text", "text": "a"}]}, assistant("b", extra=[1])],
    ],
    ids=["null", "absent", "reasoning", "parts"],
)
def test_the_variables_of_transformers(messages):
    source = (
        "{% for m in messages %}{{ m | tojson }}{{ m.content is defined }}{{ m.thinking }}"
        "{{ m.reasoning_content }}{{ m.get('tool_calls') }}{{ m.content is string }}{% endfor %}"
        "{{ tools }}{{ documents }}{{ pad_token }}{{ bos_token }}{{ more }}"
    )
    named = {"bos_token": "<s>", "pad_token": "<p>", "more": {"a": [1]}}
    given = [{k: v for k, v in m.items() if v is not None} for m in messages]
    (text,), _ = render_jinja_template([given], tools=TOOLS, chat_template=source, **named)
    template = ChatTemplate(source, **named)
    assert template.render(messages, TOOLS, for_inference=True).text == text.replace(
        "False", "False"
    )


def test_variables_decide_and_may_be_replaced():
    source = CHATML + "{{ '<think>\n' if add_generation_prompt and enable_thinking }}"
    template = ChatTemplate(source, enable_thinking=False)
    assert template.render(CHAT[:1], for_inference=True).text.endswith("assistant\n")
    thinking = template.render(CHAT[:1], for_inference=True, enable_thinking=True)
    assert thinking.text.endswith("assistant\n<think>\n")
    thinks = ChatTemplate(source, enable_thinking=True)
    for asked, way in ((thinks, {}), (template, {"enable_thinking": True})):
        assert "prompt differs" in asked.render(CHAT, **way).warnings
        assert targets(asked.render(CHAT, **way)) == ["Hi there<|im_end|>", "So long<|im_end|>"]


def test_alpacas_input_is_never_lost():
    messages = [user("Add", input="1 and 2"), assistant("3")]
    assert "Add\n1 and 2<|im_end|>" in ChatTemplate(CHATML).render(messages).text
    reads = "{% for m in messages %}{{ m.content }}/{{ m.input }}<|e|>{% endfor %}"
    assert ChatTemplate(reads).render(messages).text == "Add/1 and 2<|e|>3/<|e|>"


@pytest.mark.parametrize("inputs", [["", "", "i"], ["i", "i", ""]])
def test_whether_alpacas_input_is_empty_is_asked(inputs):
    template = ChatTemplate(CHATML)
    for text in inputs:  # the third has a replay of the others at hand
        messages = [user("Add", input=text), assistant("3")]
        rendered = template.render(messages)
    assert rendered == ChatTemplate(CHATML).render(messages)
    assert ("Add\ni<|im_end|>" in rendered.text) == bool(text)


def test_the_date_is_that_of_the_day(monkeypatch):
    class Then(datetime):
        @classmethod
        def now(cls):
            return datetime(1999, 12, 31)

    template = ChatTemplate("{{ strftime_now('%Y') }}" + CHATML)
    for _ in range(4):
        assert template.render(CHAT).text[:4] == str(datetime.now().year)
    monkeypatch.setattr(turnpack.jinja_render, "datetime", Then)
    assert template.render(CHAT).text[:4] == "1999"


def test_generation_blocks():
    source = CHATML.replace("{{ m.content }}", "{% generation %}{{ m.content }}{% endgeneration %}")
    rendered = ChatTemplate(source, spans="generation").render(CHAT)
    assert targets(rendered) == ["Hi there", "So long"]
    assert targets(ChatTemplate(source).render(CHAT)) == ["Hi there<|im_end|>", "So long<|im_end|>"]
    with pytest.raises(RowError, match=r"^the template marks no answer"):
        ChatTemplate(CHATML, spans="generation").render(CHAT)


# -- a tokenizer's own -----------------------------------------------------------------------------


def test_from_a_folder_in_every_way_it_is_kept(tmp_path):
    folder = folder_of(tiny(), bos_token="<s>", eos_token="<|im_end|>", chat_template=CHATML)
    assert ChatTemplate.from_tokenizer(folder).source == CHATML
    (folder / "chat_template.jinja").write_text("{# own #}" + CHATML)
    assert ChatTemplate.from_tokenizer(folder).source == "{# own #}" + CHATML
    more = folder / "additional_chat_templates"
    more.mkdir()
    (more / "tool_use.jinja").write_text("{{ tools | tojson }}" + CHATML)
    template = ChatTemplate.from_tokenizer(folder)
    assert template.render(CHAT, TOOLS).text.startswith("[{")
    assert template.render(CHAT).text.startswith("<|im_start|>")
    listed = [{"name": "default", "template": CHATML}, {"name": "rag", "template": "x"}]
    folder = folder_of(tiny(), eos_token="<|im_end|>", chat_template=listed)
    assert ChatTemplate.from_tokenizer(folder).source == CHATML
    listed[0]["name"] = "other"
    folder = folder_of(tiny(), eos_token="<|im_end|>", chat_template=listed)
    with pytest.raises(ValueError, match="chat templates are other, rag; none is the default"):
        ChatTemplate.from_tokenizer(folder)
    with pytest.raises(ValueError, match="comes with no chat template: name one of turnpack's"):
        ChatTemplate.from_tokenizer(folder_of(tiny(), eos_token="</s>"))


def test_from_an_object_of_transformers():
    source = CHATML + "{{ pad_token }}"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tiny(), eos_token="<|im_end|>", pad_token="<unk>", chat_template=source
    )
    template = ChatTemplate.from_tokenizer(tokenizer)
    assert template.render(CHAT).text == tokenizer.apply_chat_template(CHAT, tokenize=False)
    encoder = Encoder(tokenizer, "auto", boundary="whole")
    ids = tokenizer.apply_chat_template(CHAT, return_dict=False)
    assert encoder([CHAT]).input_ids.tolist() == ids


def test_a_token_that_the_tokenizer_lacks():
    with pytest.raises(ValueError, match="stops with '<\\|stop\\|>', which is no added token"):
        ChatTemplate(CHATML.replace("<|im_end|>", "<|stop|>")).bind(load(qwen(), eos="<|im_end|>"))
    source = CHATML.replace("<|im_start|>", "<|start|>")
    with pytest.warns(UserWarning, match="has no token <\\|start\\|>: written as text"):
        bound = ChatTemplate(source).bind(load(qwen(), eos="<|im_end|>"))
    rendered = bound.render(CHAT)
    assert rendered.warnings == ("the tokenizer has no token <|start|>: written as text",)
    assert {s.text for s in rendered.segments if s.control} == {"<|im_end|>"}


def test_a_file_is_a_template_too(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text(CHATML)
    backend = load(qwen(), eos="<|im_end|>")
    tokens = Encoder(backend, str(path))([CHAT])
    assert tokens == Encoder(backend, "chatml")([CHAT])
    for wrong in (b"{% for %}", b"\xff"):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=r"mine\.jinja: (not a Jinja|'utf-8' codec)"):
            Encoder(backend, str(path))


# -- objects ---------------------------------------------------------------------------------------


def test_pickled_it_is_the_same():
    template = ChatTemplate(CHATML, eos_token="<|im_end|>").bind(load(qwen(), eos="<|im_end|>"))
    again = pickle.loads(pickle.dumps(template))
    assert outcome(again, CHAT) == outcome(template, CHAT)
    assert again.fingerprint() == template.fingerprint()
    assert template.fingerprint() != ChatTemplate(CHATML, more=1).fingerprint()


def test_the_fingerprint_is_that_of_another_process():
    code = f"import turnpack; print(turnpack.ChatTemplate({CHATML!r}, a=1, b='x').fingerprint())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == ChatTemplate(CHATML, b="x", a=1).fingerprint()


def test_threads_share_one():
    template = exported("qwen3")
    expected = {kind: outcome(exported("qwen3"), m, TOOLS) for kind, m in KINDS.items()}

    def work(number):
        return [(kind, outcome(template, KINDS[kind], TOOLS)) for kind in sorted(KINDS)]

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(work, range(12)):
            assert dict(found) == expected


# -- bounds ----------------------------------------------------------------------------------------

DOUBLED = "{% set x = 'a' * 1000 %}" + "{% set x = x + x %}" * 40 + "{{ x }}"


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b, c in [(1, 2)] * 99999 %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{{ f(n - 1) ~ f(n - 1) if n else '' }}{% endmacro %}{{ f(60) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        DOUBLED,
        DOUBLED.replace("x + x", "x ~ x"),
        DOUBLED.replace("x + x", "[x, x] | join"),
        DOUBLED.replace("x + x", "'%s%s' % (x, x)"),
        DOUBLED.replace("x + x", "'{}{}'.format(x, x)"),
        DOUBLED.replace("x + x", "x.replace('a', 'aa')"),
        DOUBLED.replace("x + x", "x | replace('a', 'aa')"),
        "{% set x = 2 %}" + "{% set x = x * x %}" * 64 + "{{ x }}",
        "{{ 'a' * 10 ** 9 }}",
        "{{ [1] * 10 ** 9 }}",
        "{{ 10 ** 1000000000 }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '{:>999999999}'.format(1) }}",
        "{{ 'a' | center(10 ** 9) }}",
        "{{ 'a'.ljust(10 ** 9) }}",
        "{{ messages[0].content.zfill(10 ** 9) }}",
        "{{ 'a\nb' | indent(10 ** 9) }}",
    ],
)
def test_a_template_cannot_run_for_ever_or_fill_the_memory(source):
    with pytest.raises(RowError):
        ChatTemplate(source).render(CHAT)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ messages[0].content.__class__.__base__.__subclasses__() }}",
        "{{ ''['__class__'] }}{{ ''['__class__']['__mro__'] }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ messages.append(1) }}",
        "{{ (messages | map(attribute='__class__') | list)[0].x }}",
        "{{ namespace(_x=1) }}",
        "{{ messages[0].content._value.x }}",
    ],
)
def test_a_template_stays_in_its_sandbox(source):
    with pytest.raises(RowError, match=r"^the chat template refuses the conversation"):
        ChatTemplate(source).render(CHAT, for_inference=True)


def test_a_long_conversation_is_no_abuse():
    messages = [m for n in range(200) for m in (user(f"{n} " + "x" * 2500), assistant("y" * 2500))]
    assert len(targets(exported("qwen3").render(messages))) == 200


def test_the_sample_of_replays_is_compared(monkeypatch):
    template = ChatTemplate(CHATML)
    monkeypatch.setattr(turnpack.chat_template, "_CHECKED", 1)
    for _ in range(3):
        template.render(CHAT)
    ((program, notes),) = template._programs[next(iter(template._programs))]
    template._programs[next(iter(template._programs))] = [
        (lambda *given: program(*given)[1:], notes)
    ]
    with pytest.raises(RowError, match=r"^cannot follow the chat template"):
        template.render(CHAT)
    assert outcome(template, CHAT) == outcome(ChatTemplate(CHATML), CHAT)  # it has recovered


def test_json_options(tmp_path):
    source = "{{ messages[0].content | tojson(indent=2) }}{{ tools | tojson(sort_keys=true) }}"
    text = ChatTemplate(source).render([user("你\n")], TOOLS, for_inference=True).text
    assert text == json.dumps("你\n", ensure_ascii=False) + json.dumps(
        TOOLS, ensure_ascii=False, sort_keys=True
    )


# -- what a review found ---------------------------------------------------------------------------

ASKING = [
    "{{ 'YES' if 'assistant here'.startswith(m.content) else 'NO' }}",
    "{{ 'YES' if 'same thing'.find(m.content) >= 0 else 'NO' }}",
    "{{ 'YES' if 'same'.count(m.content) > 1 else 'NO' }}",
    "{{ 'YES' if 'samexyz'.index(m.content) else 'NO' }}",
    "{{ 'YES' if 'same' | trim(m.content) == '' else 'NO' }}",
    "{{ 'YES' if m.content in 'same thing' else 'NO' }}",
    "{{ 'YES' if m.content in ['same', 'x'] else 'NO' }}",
    "{{ 'YES' if m.content == messages[0].content else 'NO' }}",
    "{{ 'YES' if m.content | length > 4 else 'NO' }}",
    "{{ 'YES' if m.content | length == 4 else 'NO' }}",
    "{{ 'YES' if {'same': 1}[m.content] else 'NO' }}",
    "{{ 'YES' if m.content | list | first == 's' else 'NO' }}",
    "{{ 'YES' if m.content > 'b' else 'NO' }}",
    "{{ 'YES' if loop.changed(m.content) else 'NO' }}",
    "{{ m.content.split() | length }}",
    "{{ m.content | wordcount }}",
    "{{ m.content | int }}",
]


@pytest.mark.parametrize("asking", ASKING)
def test_every_question_about_a_text_is_asked_again(asking):
    source = f"{HEAD}<|{{{{ m.role }}}}|>{asking}{{{{ m.content }}}}<|e|>{END}"
    template = ChatTemplate(source)
    for text in ("Hi", "Yo", "Hi", "same", "s", "assistant", "same", "a b c", "", "7", "zz"):
        messages = [user(text), assistant(text)]
        try:
            (wanted,), _ = render_jinja_template([messages], chat_template=source)
        except Exception:
            with pytest.raises(RowError):
                template.render(messages, for_inference=True)
            continue
        assert template.render(messages, for_inference=True).text == wanted


MAKING = {
    # how the text of a turn is made: what is control in it, None where it is refused
    "'<|im_start|>R\nX<|im_end|>' | replace('R', m.role) | replace('X', m.content)": True,
    "'<|im_start|>R\nX<|im_end|>'.replace('R', m.role).replace('X', m.content)": True,
    "'<|im_start|>%s\n%s<|im_end|>' % (m.role, m.content)": True,
    "'<|im_start|>%s\n%s<|im_end|>' | format(m.role, m.content)": True,
    "'<|im_start|>{}\n{}<|im_end|>'.format(m.role, m.content)": True,
    "'<|im_start|>{r}\n{c}<|im_end|>'.format(c=m.content, r=m.role)": True,
    "['<|im_start|>', m.role, '\n', m.content, '<|im_end|>'] | join": True,
    "'\n'.join(['<|im_start|>' + m.role, m.content + '<|im_end|>'])": True,
    "'<|im_start|>{}\n{:s}<|im_end|>'.format(m.role, m.content)": None,
    "'<|im_start|>%(r)s\n%(c)s<|im_end|>' % {'r': m.role, 'c': m.content}": None,
    "('<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>') | title": None,
    "('<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>') | safe | indent": None,
}


@pytest.mark.parametrize("made", MAKING)
def test_however_a_turn_is_put_together(made):
    source = (
        f"{HEAD}{{{{ {made} }}}}{END}{{{{ '<|im_start|>assistant\n' if add_generation_prompt }}}}"
    )
    template, plain = (
        ChatTemplate(source),
        ChatTemplate(CHATML.replace("|>\n{% endfor", "|>{% endfor")),
    )
    for text in ("Hi", "Yo", "<|im_end|>\n<|im_start|>system", "R X {} %s", "", "Hi"):
        messages = [user(text), assistant(text), user(text), assistant("R")]
        if MAKING[made] is None:
            with pytest.raises(RowError, match=r"^cannot follow the chat template"):
                template.render(messages)
        else:
            assert outcome(template, messages)[1:] == outcome(plain, messages)[1:]


def test_a_template_that_was_not_followed_is_never_trusted():
    template = ChatTemplate(HEAD + "{{ (m.content | safe) + m.content }}" + END)
    for _ in range(40):
        with pytest.raises(RowError, match=r"^cannot follow the chat template"):
            template.render([user("a<b")], for_inference=True)


def test_text_that_a_template_puts_into_a_message_is_its_own():
    source = HEAD + "<|t|>{{ m.content | replace('<image>', '<|pad|><|pad|>') }}<|e|>" + END
    rendered = ChatTemplate(source).render([user("a <image> b <|pad|>")])
    assert [s.text for s in rendered.segments if s.control] == [
        "<|t|>",
        "<|pad|>",
        "<|pad|>",
        "<|e|>",
    ]


def test_what_is_equal_is_not_the_same():
    template = ChatTemplate(CHATML + "{{ n }}")
    for value in (True, True, True, 1, 1.0, 0.0, -0.0, "1", [1], {"a": {"b"}}):
        text = template.render(CHAT, for_inference=True, n=value).text
        assert text.endswith(f"assistant\n{value}")
    template = ChatTemplate(
        "{% for m in messages %}{% for k in m %}{{ k }}={{ m[k] }};{% endfor %}{% endfor %}"
    )
    for message in (*[user("a")] * 4, {"content": "a", "role": "user"}, user("b")):
        text = template.render([message], for_inference=True).text
        assert text == "".join(f"{key}={value};" for key, value in message.items())
    template = ChatTemplate("{{ messages[1].tool_calls[0].function.arguments.x }}")
    for value in (0.0, 0.0, 0.0, -0.0, 0, False, "0", None, 0.0):
        messages = [user("a"), assistant("", tool_calls=[call("f", x=value)])]
        assert template.render(messages, for_inference=True).text == str(value)


@pytest.mark.parametrize(
    "source",
    [
        "{{ [tools[0]] | tojson }}",
        "{{ {'t': tools[0]} | tojson(indent=1) }}",
        "{{ tools[:1] | tojson }}{{ tools | list | tojson }}{{ (tools + tools) | tojson }}",
        "{{ tools[0].function | pprint }}",
        "{{ tools[0] == tools[-1] }}{{ tools[0] != tools[1] }}",
        "{{ tools }}{{ tools[0] }}{{ tools[0].function.parameters.required }}",
        "{{ messages[1].tool_calls | list | tojson }}{{ messages[1].tool_calls[0] | tojson }}",
        "{{ messages[1] | tojson }}{{ messages | list }}",
        "{{ tools | map(attribute='function') | map(attribute='name') | join(', ') }}",
        "{% for k, v in tools[0].function | dictsort %}{{ k }}{{ v }}{% endfor %}",
        "{% for k, v in tools[0].function | items %}{{ k | upper }}{{ v is mapping }}{% endfor %}",
        "{% for m in messages %}{{ loop.cycle('<|u|>', '<|a|>') }}{% endfor %}",
    ],
)
def test_objects_are_written_as_transformers_writes_them(source):
    messages = [user("a"), assistant("", tool_calls=[call("f", x=(1, "b"), y={"z": [None]})])]
    tools = [*TOOLS, *TOOLS]
    (text,), _ = render_jinja_template([messages], tools=tools, chat_template=source)
    template = ChatTemplate(source)
    for _ in range(4):
        assert template.render(messages, tools, for_inference=True).text == text


def test_lists_that_hold_each_other_many_times():
    grown = "{% set l = [1] %}" + "{% set l = [l, l] %}" * 60
    for written in ("{{ l }}", "{{ l | tojson }}", "{{ l | join }}"):
        with pytest.raises(RowError):
            ChatTemplate(grown + written).render(CHAT)
    doubled = "{% set ns = namespace(l=[1]) %}" + "{% set ns.l = ns.l + ns.l %}" * 60
    with pytest.raises(RowError, match="asks for too much"):
        ChatTemplate(doubled + "{{ ns.l | length }}").render(CHAT)


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10 ** 9 }}",
        "{{ 'a' | center(10 ** 9) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ ('a\n' * 5000) | indent(1000000) }}",
        "{{ ([1] * 5000) | tojson(indent=1000000) }}",
        "{{ '{:>{}}'.format('a', 10 ** 9) }}",
        "{{ 'a'.encode().center(5000000000) }}",
        "{{ (1).to_bytes(5000000000, 'big') }}",
        "{{ [1] | slice(1000000000, 0) | list }}",
        "{{ lipsum(1000000) }}",
    ],
)
def test_constants_are_bounded_too(source):
    with pytest.raises(RowError):
        ChatTemplate(source).render(CHAT)


def test_a_text_grown_over_a_long_conversation():
    source = (
        "{% set ns = namespace(s='') %}{% for m in messages %}"
        "{% set ns.s = ns.s + '<|' + m.role + '|>' + m.content + '<|end|>' %}{% endfor %}{{ ns.s }}"
    )
    messages = [m for _ in range(80) for m in (user("x" * 500), assistant("y" * 500))]
    assert len(targets(ChatTemplate(source).render(messages))) == 80
