"""The Jinja export gives the template's own text, and refuses what the template refuses."""

from __future__ import annotations

import dataclasses
import functools

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import _compile_jinja_template

from at_hand import mistral, tiny_with
from chats import (
    HOSTILE,
    TEXTS,
    assistant,
    call,
    conversations,
    harmless,
    hostile,
    system,
    tool,
    user,
)
from turnpack import ChatTemplate, Template, get_template, templates
from turnpack.nouns import RowError

NAMES = templates()
TOOLS = [
    {"type": "function", "function": {"name": "f", "description": "天气 <b>&'x' {{ 1 }}"}},
    {"name": "g", "parameters": {"z": 1.5, "a": [True, None]}},
]


@functools.cache
def compiled(name, **options):
    return _compile_jinja_template(get_template(name).to_jinja(**options))


def exported(name, messages, tools=None, *, for_inference=False, **more):
    template = get_template(name)
    names = {"bos_token": template.bos, "eos_token": template.eos, **more}
    return compiled(name).render(
        messages=messages, tools=tools, add_generation_prompt=for_inference, **names
    )


def same_for_all(check):
    return pytest.mark.parametrize("name", NAMES)(
        settings(max_examples=60, deadline=None)(given(data=st.data())(check))
    )


@same_for_all
def test_the_same_text_for_training_and_for_the_prompt(name, data):
    template = get_template(name)
    messages = data.draw(conversations(template, harmless | hostile))
    assert exported(name, messages) == template.render(messages).text
    assert exported(name, messages[:-1], for_inference=True) == (
        template.render(messages[:-1], for_inference=True).text
    )


texts = st.sampled_from([*HOSTILE, *TEXTS.values()])
calls = st.lists(
    st.builds(lambda text: call("f", x=text, y={"z": [1, None]}), texts)
    | st.builds(lambda text: {"name": "g", "arguments": text}, st.sampled_from(["{}", '{"a": 1}'])),
    max_size=2,
)
answers = (
    st.builds(assistant, texts)
    | st.builds(lambda text, made: assistant(text, tool_calls=made), texts, calls)
    | st.builds(lambda text, why: assistant(text, reasoning_content=why), texts, texts)
)
anything = st.lists(
    st.builds(user, texts) | answers | st.builds(tool, texts) | st.builds(system, texts),
    min_size=1,
    max_size=6,
)


@same_for_all
def test_the_same_text_or_the_same_refusal_whatever_the_roles(name, data):
    messages, for_inference = data.draw(anything), data.draw(st.booleans())
    tools = data.draw(st.sampled_from([None, [], TOOLS]))
    try:
        expected = get_template(name).render(messages, tools, for_inference=for_inference).text
    except RowError:  # where several things are wrong, the two may name different ones
        with pytest.raises(jinja2.TemplateError, match=f"template {name} "):
            exported(name, messages, tools, for_inference=for_inference)
    else:
        assert exported(name, messages, tools, for_inference=for_inference) == expected


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3"])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_tools_calls_results_and_reasoning(name, data):
    turn = st.tuples(st.builds(user, texts), answers) | st.tuples(
        st.builds(user, texts),
        answers,
        st.builds(tool, texts),
        st.builds(tool, texts),
        answers,
    )
    opening = data.draw(st.just([]) | st.builds(lambda text: [system(text)], texts))
    messages = [*opening, *(m for each in data.draw(st.lists(turn, min_size=1)) for m in each)]
    tools = data.draw(st.sampled_from([None, TOOLS]))
    for upto in (len(messages), len(messages) - 1):
        part, prompt = messages[:upto], upto < len(messages)
        assert exported(name, part, tools, for_inference=prompt) == (
            get_template(name).render(part, tools, for_inference=prompt).text
        )


@pytest.mark.parametrize("name", NAMES)
def test_bos_that_the_tokenizer_would_put_there(name):
    messages = [user("a"), assistant("b")]
    template = get_template(name)
    text = compiled(name, bos=True).render(messages=messages, bos_token="<B>", eos_token="<E>")
    own = get_template(name, bos="<B>", eos="<E>").render(messages).text
    assert text == (own if template.writes_bos else f"<B>{own}")


def test_names_that_the_template_was_told_to_spell_are_written_out():
    """They may be other ones than the tokenizer's own."""
    template = get_template("llama2", bos="", eos="<|im_end|>")
    messages = [user("a"), assistant("b")]
    text = _compile_jinja_template(template.to_jinja()).render(
        messages=messages, bos_token="<B>", eos_token="<E>"
    )
    assert text == template.render(messages).text == "[INST] a [/INST] b <|im_end|>"


def test_a_variable_can_be_given_at_inference():
    messages = [user("a")]
    for date in ("26 Jul 2024", "01 Jan 2025"):
        given_now = exported("llama3.1", messages, date_string=date)
        given_before = get_template("llama3.1", date_string=date)
        assert given_now == given_before.render(messages).text
        text = _compile_jinja_template(given_before.to_jinja()).render(
            messages=messages, bos_token=given_before.bos
        )
        assert text == given_now


def test_the_export_can_be_read():
    assert get_template("chatml").to_jinja() == (
        "{#- turnpack template chatml: OpenAI's ChatML as unslothai/unsloth chat_templates.py "
        "writes it #}\n"
        '{#- control tokens: ["<|im_start|>", "<|im_end|>"] #}\n'
        "{%- if tools %}\n"
        "    {{- raise_exception('template chatml has no tools') }}\n"
        "{%- endif %}\n"
        "{%- for message in messages %}\n"
        "    {%- if message['role'] == 'user' %}\n"
        "        {%- set user = message['content'] + "
        "('\\n' + message['input'] if message['input'] else '') %}\n"
        "        {{- '<|im_start|>user\\n' + user + '<|im_end|>\\n' }}\n"
        "    {%- elif message['role'] == 'assistant' %}\n"
        "        {%- if message['tool_calls'] %}\n"
        "            {{- raise_exception('template chatml has no tools') }}\n"
        "        {%- endif %}\n"
        "        {{- '<|im_start|>assistant\\n' + message['content'] + '<|im_end|>\\n' }}\n"
        "    {%- elif message['role'] == 'system' %}\n"
        "        {{- '<|im_start|>system\\n' + message['content'] + '<|im_end|>\\n' }}\n"
        "    {%- else %}\n"
        "        {{- raise_exception('template chatml has no ' + message['role']) }}\n"
        "    {%- endif %}\n"
        "{%- endfor %}\n"
        "{%- if add_generation_prompt %}\n"
        "    {{- '<|im_start|>assistant\\n' }}\n"
        "{%- endif %}"
    )


@pytest.mark.parametrize("name", ["alpaca", "chatml", "llama2", "gemma", "qwen3"])
def test_apply_chat_template_gives_the_ids_of_training(name):
    """With transformers itself: the export in the tokenizer, and the ids of the Encoder."""
    from transformers import PreTrainedTokenizerFast

    import turnpack as tp

    template = get_template(name)
    own = tiny_with((*template.markers, template.bos, template.eos), template.markup)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=own, bos_token=template.bos, eos_token=template.eos
    )
    fast.chat_template = template.to_jinja()
    messages = [user("Hello"), assistant("fine")]
    tokens = tp.Encoder(fast, template)([messages])
    prompt = fast.apply_chat_template(
        messages[:1], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert tokens.input_ids[: len(prompt)].tolist() == prompt
    assert tokens.loss_mask.tolist()[: len(prompt) + 1] == [0] * len(prompt) + [1]


def test_alpaca_with_a_tokenizer_that_adds_bos():
    """apply_chat_template adds none, so the export writes it."""
    import turnpack as tp

    template = get_template("alpaca")
    backend = tp.tokenizers.load(mistral("v1"))
    row = tp.Encoder(backend, template)([[user("a"), assistant("b")]]).input_ids.tolist()
    text = _compile_jinja_template(template.to_jinja(bos=True)).render(
        messages=[user("a"), assistant("b")], bos_token="<s>", eos_token="</s>"
    )
    assert backend.decode(row) == text


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3"])
@pytest.mark.parametrize("answer", [{"content": None}, {}])
def test_an_answer_of_calls_alone_needs_no_content(name, answer):
    """As OpenAI writes it; the readers take the null for an empty text."""
    calls = [call("f", x=1)]
    written = exported(name, [user("q"), {"role": "assistant", "tool_calls": calls, **answer}])
    assert written == get_template(name).render([user("q"), assistant("", tool_calls=calls)]).text


def test_a_name_and_a_source_of_any_kind():
    mine = Template(name="bob's", source="x #} y", summary="", user="<#}>{user}", markers=("<#}>",))
    same = dataclasses.replace(mine, name="mine", source="here", user="{user}", markers=())
    assert mine.to_jinja().count("#}") - 1 == same.to_jinja().count("#}") == 2
    assert ChatTemplate(mine.to_jinja()).control_tokens == ("<#}>",)
    _compile_jinja_template(mine.to_jinja())
