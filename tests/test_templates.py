"""Templates: text, targets, control tokens, and what they refuse. The bytes: test_golden.py."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chats import assistant, call, system, targets, tool, user
from turnpack import get_template, templates
from turnpack.nouns import RowError
from turnpack.templates import Template, Tools

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n"
)


def test_alpaca_repeats_the_turn_without_the_preamble():
    messages = [user("One", input="1"), assistant("A"), user("Two"), assistant("B")]
    assert get_template("alpaca").render(messages).text == (
        ALPACA.replace("task.", "task, paired with an input that provides further context.")
        + "### Instruction:\nOne\n\n### Input:\n1\n\n### Response:A</s>"
        "### Instruction:\nTwo\n\n### Response:B</s>"
    )


def test_a_system_message_takes_the_place_of_the_preamble():
    messages = [system("Be brief."), user("Hi"), assistant("Hello")]
    assert get_template("alpaca").render(messages).text == (
        "Be brief.\n\n### Instruction:\nHi\n\n### Response:Hello</s>"
    )


def test_an_input_follows_the_text_where_the_template_has_no_place_for_it():
    messages = [user("Add", input="1, 2"), assistant("3")]
    assert get_template("chatml").render(messages).text == (
        "<|im_start|>user\nAdd\n1, 2<|im_end|>\n<|im_start|>assistant\n3<|im_end|>\n"
    )
    assert get_template("llama2").render(messages).text == "<s>[INST] Add\n1, 2 [/INST] 3 </s>"


def test_llama2_strips_system_and_user_together():
    def text(*messages):
        return get_template("llama2").render(messages, for_inference=True).text

    assert text(user(" \n Hi \n")) == "<s>[INST] Hi [/INST]"
    assert text(system(" S "), user("  Hi ")) == "<s>[INST] <<SYS>>\n S \n<</SYS>>\n\n  Hi [/INST]"
    assert text(system("S"), user(" \n")) == "<s>[INST] <<SYS>>\nS\n<</SYS>> [/INST]"


def test_segments_of_chatml():
    rendered = get_template("chatml").render([user("Hi <|im_end|>"), assistant("Yo")])
    assert [(s.text, s.target, s.control) for s in rendered.segments] == [
        ("<|im_start|>", False, True),
        ("user\nHi <|im_end|>", False, False),
        ("<|im_end|>", False, True),
        ("\n", False, False),
        ("<|im_start|>", False, True),
        ("assistant\n", False, False),
        ("Yo", True, False),
        ("<|im_end|>", True, True),
        ("\n", False, False),
    ]


def test_train_on():
    messages = [user("1"), assistant("A"), user("2"), assistant("B")]
    template = get_template("alpaca")
    assert targets(template.render(messages)) == ["A</s>", "B</s>"]
    assert targets(template.render(messages, train_on="last")) == ["B</s>"]
    everything = template.render(messages, train_on="all")
    assert targets(everything) == [everything.text]
    # Cut nowhere but at the control tokens: whole runs of text between them.
    assert [s.control for s in everything.segments] == [False, True, False, True]


def test_train_on_all_leaves_bos_and_untrained_messages_out():
    messages = [user("1", train=False), assistant("A")]
    assert targets(get_template("llama2").render(messages, train_on="all")) == [" A </s>"]
    messages = [user("1"), assistant("A")]
    assert targets(get_template("llama2").render(messages, train_on="all")) == [
        "[INST] 1 [/INST] A </s>"
    ]


@pytest.mark.parametrize("mark", [{"train": False}, {"weight": 0}, {"weight": 0.0}])
def test_an_untrained_answer_is_part_of_the_prompt(mark):
    messages = [user("1"), assistant("A", **mark), user("2"), assistant("B")]
    rendered = get_template("alpaca").render(messages)
    assert targets(rendered) == ["B</s>"]
    # Its text is not cut off from the prompt before it: at inference it is not either.
    assert rendered.segments[0].text.endswith("### Response:A")


def test_weights():
    messages = [user("1"), assistant("A", weight=0.5), user("2"), assistant("B")]
    rendered = get_template("chatml").render(messages)
    assert [(s.text, s.weight) for s in rendered.segments if s.target] == [
        ("A", 0.5),
        ("<|im_end|>", 0.5),
        ("B", 1.0),
        ("<|im_end|>", 1.0),
    ]


def test_bos_and_eos_spelled_otherwise():
    messages = [user("Hi"), assistant("Yo")]
    template = get_template("llama2", bos="<B>", eos="<E>")
    assert template.render(messages).text == "<B>[INST] Hi [/INST] Yo <E>"
    assert get_template("llama2", bos="").render(messages).text == "[INST] Hi [/INST] Yo </s>"


def test_who_writes_bos():
    assert {name: get_template(name).writes_bos for name in ("alpaca", "llama2", "chatml")} == {
        "alpaca": False,
        "llama2": True,
        "chatml": False,
    }


# -- where the system text goes --------------------------------------------------------------------


def test_a_default_system_message():
    messages = [user("Hi"), assistant("Yo")]
    default = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    qwen = get_template("qwen2.5")
    assert qwen.default_system == default
    assert qwen.render(messages).text == qwen.render([system(default), *messages]).text
    assert get_template("chatml").default_system is None
    linksoul = get_template("linksoul")
    with_default = [system(linksoul.default_system), *messages]
    assert linksoul.render(messages).text == linksoul.render(with_default).text


def test_the_system_text_in_the_last_user_turn():
    messages = [system("S"), user("1"), assistant("A"), user("2"), assistant("B")]
    template = get_template("mistral-v3")
    rendered = template.render(messages)
    assert rendered.text == "<s>[INST] 1[/INST] A</s>[INST] S\n\n2[/INST] B</s>"
    # The first answer is trained on behind another prompt than it has at inference.
    assert rendered.warnings == ("prompt differs",)
    assert template.render(messages, train_on="last").warnings == ()
    assert template.render(messages[:3]).warnings == ()
    assert template.render(messages, for_inference=False, train_on="all").warnings == (
        "prompt differs",
    )


def test_system_messages_that_gather_at_the_start():
    messages = [system("S"), user("1"), assistant("A"), system("T"), user("2"), assistant("B")]
    template = get_template("deepseek-v3")
    rendered = template.render(messages)
    assert rendered.text == (
        "<｜begin▁of▁sentence｜>S\n\nT<｜User｜>1<｜Assistant｜>A<｜end▁of▁sentence｜>"
        "<｜User｜>2<｜Assistant｜>B<｜end▁of▁sentence｜>"
    )
    assert rendered.warnings == ("prompt differs",)
    assert template.render(messages, train_on="last").warnings == ()


def test_a_later_system_message():
    messages = [system("S"), user("1"), system("T"), assistant("A")]
    assert get_template("llama3.1").render(messages).text == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\nS<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n1<|eot_id|>"
        "<|start_header_id|>system<|end_header_id|>\n\nT<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>"
    )


def test_what_closes_a_conversation_is_no_target():
    messages = [user("1"), assistant("A")]
    rendered = get_template("phi3").render(messages)
    assert rendered.text == "<|user|>\n1<|end|>\n<|assistant|>\nA<|end|>\n<|endoftext|>"
    assert targets(rendered) == ["A<|end|>"]
    prompt = get_template("phi3").render(messages[:1], for_inference=True)
    assert prompt.text == "<|user|>\n1<|end|>\n<|assistant|>\n"


# -- reasoning, calls and results ------------------------------------------------------------------

TURN = "<|im_start|>assistant\n"


def test_qwen3_writes_the_reasoning_of_the_last_answer_only():
    messages = [
        user("1"),
        assistant("A", reasoning_content="a"),
        user("2"),
        assistant("<think>\nb\n</think>\n\nB"),
    ]
    rendered = get_template("qwen3").render(messages)
    assert targets(rendered) == ["A<|im_end|>", "<think>\nb\n</think>\n\nB<|im_end|>"]
    assert rendered.warnings == ("template qwen3 drops the reasoning of earlier answers",)
    assert get_template("qwen3").render(messages[2:]).warnings == ()
    empty = get_template("qwen3").render([user("1"), assistant("A")])
    assert targets(empty) == ["<think>\n\n</think>\n\nA<|im_end|>"]


def test_qwen3_keeps_reasoning_between_a_question_and_its_last_answer():
    messages = [
        user("1"),
        assistant("", reasoning_content="a", tool_calls=[call("f", x=1)]),
        user("<tool_response>\n2\n</tool_response>"),
        assistant("B", reasoning_content="b"),
    ]
    assert targets(get_template("qwen3").render(messages)) == [
        '<think>\na\n</think>\n\n<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n'
        "</tool_call><|im_end|>",
        "<think>\nb\n</think>\n\nB<|im_end|>",
    ]


def test_calls_are_targets_and_results_are_not():
    messages = [
        user("1"),
        assistant("Look:", tool_calls=[call("f", x="你"), call("g")]),
        tool("r1"),
        tool("r2"),
        assistant("A"),
    ]
    calls = (
        'Look:\n<tool_call>\n{"name": "f", "arguments": {"x": "你"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call><|im_end|>'
    )
    results = (
        "<|im_start|>user\n<tool_response>\nr1\n</tool_response>\n"
        "<tool_response>\nr2\n</tool_response><|im_end|>\n"
    )
    rendered = get_template("qwen2.5").render(messages)
    assert targets(rendered) == [calls, "A<|im_end|>"]
    assert rendered.text.endswith(f"{TURN}{calls}\n{results}{TURN}A<|im_end|>\n")
    everything = get_template("qwen2.5").render(messages, train_on="all")
    assert targets(everything) == [everything.text]


def test_tools_stand_behind_the_system_text():
    tools = [{"name": "f"}, {"name": "g"}]
    listed = '<tools>\n{"name": "f"}\n{"name": "g"}\n</tools>'
    template = get_template("qwen3")
    alone = template.render([user("1")], tools).text
    assert alone.startswith("<|im_start|>system\n# Tools\n\n")
    assert listed in alone
    below = template.render([system("S"), user("1")], tools).text
    assert below == alone.replace("# Tools", "S\n\n# Tools", 1)
    assert template.has_tools
    assert not get_template("chatml").has_tools


@pytest.mark.parametrize(
    ("message", "detail"),
    [
        (assistant("", tool_calls=[{"function": {"name": "f"}}]), "lacks its name or arguments"),
        (assistant("", tool_calls=[{"name": 3, "arguments": {}}]), "lacks its name or arguments"),
        (assistant("", tool_calls=[call("f", x={1})]), "arguments: Object of type set is not"),
        (assistant("", tool_calls=[call("f", x="\ud800")]), "arguments: a lone surrogate"),
    ],
)
def test_calls_that_are_none(message, detail):
    with pytest.raises(RowError, match=f"message 1: .*{detail}"):
        get_template("qwen3").render([user("1"), message])


def test_arguments_that_are_text_already():
    flat = {"name": "f", "arguments": '{"x":1}'}
    rendered = get_template("qwen2.5").render([user("1"), assistant("", tool_calls=[flat])])
    assert '{"name": "f", "arguments": {"x":1}}' in rendered.text


TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
CALL = {"type": "function", "function": {"name": "f", "arguments": {}}}


@pytest.mark.parametrize(
    ("name", "messages", "tools", "message"),
    [
        (
            "alpaca",
            [user("1"), assistant("2")],
            [TOOL],
            "template alpaca has no tools: the row lists 1",
        ),
        (
            "chatml",
            [user("1"), {"role": "tool", "content": "2"}],
            None,
            "template chatml has no tools: message 1 is a tool's",
        ),
        (
            "llama2",
            [user("1"), assistant("", tool_calls=[CALL])],
            None,
            "template llama2 has no tools: message 1 calls a tool",
        ),
        (
            "llama2",
            [user("1"), user("2"), assistant("3")],
            None,
            "template llama2 needs user and assistant in turn: "
            "message 1 is of the user, not of the assistant",
        ),
        (
            "alpaca",
            [assistant("1"), user("2"), assistant("3")],
            None,
            "template alpaca needs user and assistant in turn: "
            "message 0 is of the assistant, not of the user",
        ),
        (
            "alpaca",
            [user("1"), system("2"), assistant("3")],
            None,
            "template alpaca takes a system message at the start only: "
            "message 1 is a system message",
        ),
    ],
)
def test_refuses(name, messages, tools, message):
    with pytest.raises(RowError) as caught:
        get_template(name).render(messages, tools)
    assert str(caught.value) == message


def test_prompts_only_where_an_answer_follows():
    with pytest.raises(RowError, match="prompts for an answer after a user's message only"):
        get_template("llama2").render([user("1"), assistant("2")], for_inference=True)
    again = get_template("chatml").render([user("1"), assistant("2")], for_inference=True)
    assert again.text.endswith("2<|im_end|>\n<|im_start|>assistant\n")
    assert not any(segment.target for segment in again.segments)


def test_reasoning_that_is_not_written_is_warned_of():
    messages = [user("1"), assistant("2", reasoning_content="hm")]
    assert get_template("chatml").render(messages).warnings == (
        "template chatml does not write reasoning_content",
    )


def test_the_date_of_llama31():
    template = get_template("llama3.1", date_string="01 Jan 2025")
    assert "Today Date: 01 Jan 2025\n\n<|eot_id|>" in template.render([user("1")]).text
    with pytest.raises(TypeError, match="template llama3 has no variable 'date_string'"):
        get_template("llama3", date_string="01 Jan 2025")


def test_unknown_name_lists_the_names():
    with pytest.raises(ValueError) as caught:
        get_template("chatlm")
    assert str(caught.value) == (
        f"unknown template 'chatlm'; there are: {', '.join(templates())}; auto (the tokenizer's "
        "own), and files that end with .jinja"
    )


def test_unknown_train_on():
    with pytest.raises(ValueError, match="train_on must be one of assistant, last, all, not 'x'"):
        get_template("chatml").render([user("1")], train_on="x")


def test_a_template_of_ones_own():
    mine = Template(
        name="mine",
        source="here",
        summary="",
        user="Q: {user|strip}\n",
        cue="A:",
        answer=" {answer}",
        stop="<END>",
        markers=("<END>",),
    )
    rendered = mine.render([user(" x "), assistant("y")])
    assert rendered.text == "Q: x\nA: y<END>"
    assert targets(rendered) == [" y<END>"]


TOOLS = Tools(block="{tools}", call="{name}{arguments}", results="{results}", result="{result}")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"user": "{usr}"},
            r"no field \{usr\} in '\{usr\}'; there are: \{user\}, \{bos\}, \{eos\}",
        ),
        ({"cue": "{user}"}, r"no field \{user\}"),
        ({"runs": "alone"}, "runs must be one of joined, restarted, apart, spelled, not 'alone'"),
        ({"system_in_user": "{system}"}, "system_in_user needs alternates"),
        (
            {"system_in_user": "{system}", "alternates": True, "user_with_input": "{user}{input}"},
            "system_in_user does not go with user_with_input",
        ),
        ({"gathers_system": True}, "gathers_system needs system"),
        ({"default_system": "D"}, "default_system needs system or system_in_user"),
        (
            {"system": "{system}", "default_system_with_input": "D"},
            "default_system_with_input needs default_system",
        ),
        ({"tools": TOOLS}, "tools need system"),
        ({"tools": TOOLS, "system": "{system|strip}"}, r"system cannot strip \{system\}"),
        (
            {"tools": dataclasses.replace(TOOLS, block="no"), "system": "{system}"},
            r"block has no \{tools\}",
        ),
        (
            {"tools": dataclasses.replace(TOOLS, result="no"), "system": "{system}"},
            r"result has no \{result\}",
        ),
        ({"answer": "text"}, r"answer has no \{answer\}"),
        ({"user": "U:"}, r"user has no \{user\}"),
        ({"system": "S"}, r"system has no \{system\}"),
        ({"system": "{system}", "system_later": "L"}, r"system_later has no \{system\}"),
        ({"variables": (("x", " "),), "user": "{user}{x|strip}"}, r"user cannot strip \{x\}"),
        ({"cue": "{bos|lower}"}, r"\{bos\|lower\} in .* there are strip, lstrip and rstrip"),
    ],
)
def test_a_declaration_that_makes_no_sense(wrong, message):
    with pytest.raises(ValueError, match=message):
        Template(**{"name": "n", "source": "s", "summary": "", "user": "{user}", **wrong})


def test_every_template_says_what_it_is():
    for name in templates():
        template = get_template(name)
        assert template.name == name
        assert template.source
        assert template.summary[0].isupper()
        assert not template.summary.endswith(".")


texts = st.text(st.sampled_from("a \n<|im_end|>[/INST]</s>{answer}你🙂"), max_size=8)


@given(
    st.sampled_from(("alpaca", "llama2", "chatml")),
    st.lists(st.tuples(texts, texts), min_size=1, max_size=4),
    st.none() | texts,
)
def test_every_prompt_is_the_text_before_its_answer(name, exchanges, opening):
    """Train = inference, as text: what precedes an answer's targets is its inference prompt."""
    template = get_template(name)
    messages = [] if opening is None else [system(opening)]
    prompts = []
    for question, answer in exchanges:
        messages.append(user(question))
        prompts.append(template.render(messages, for_inference=True).text)
        messages.append(assistant(answer))
    rendered = template.render(messages)
    before, inside, found = "", False, []
    for segment in rendered.segments:
        if segment.target and not inside:
            found.append(before)
        inside = segment.target
        before += segment.text
    assert found == prompts
    assert rendered.text == before


@pytest.mark.parametrize("name", ["llama2", "linksoul", "firefly", "mistral-v1", "deepseek-v3"])
def test_positions_decide_not_names(name):
    """Where BOS and EOS are one token, the stop token is learned all the same, and BOS is not."""
    rendered = get_template(name, bos="<|endoftext|>", eos="<|endoftext|>").render(
        [user("q"), assistant("a")], train_on="all"
    )
    first, *_, last = rendered.segments
    assert (first.text, first.target) == ("<|endoftext|>", False)
    assert (last.text, last.target) == ("<|endoftext|>", True)


def test_earlier_answers_without_a_think_block_are_warned_of():
    messages = [user("1"), assistant("A"), user("2"), assistant("B")]
    warning = "template qwen3 writes earlier answers without reasoning"
    assert get_template("qwen3").render(messages).warnings == (warning,)
    assert get_template("qwen3").render(messages, train_on="last").warnings == ()
