"""Templates: byte-exact text, targets, control tokens, and what they refuse."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from at_hand import SHARED, needs_shared
from turnpack import get_template, templates
from turnpack.nouns import RowError
from turnpack.templates import Template

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n"
)


def user(text, **more):
    return {"role": "user", "content": text, **more}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def system(text):
    return {"role": "system", "content": text}


def targets(rendered):
    """The text of each run of targets."""
    runs, inside = [], False
    for segment in rendered.segments:
        if segment.target:
            runs = [*runs[:-1], runs[-1] + segment.text] if inside else [*runs, segment.text]
        inside = segment.target
    return runs


def _golden():
    if not SHARED.is_dir():
        return []
    entries = json.loads((SHARED / "golden.json").read_text(encoding="utf-8"))
    return [entry for entry in entries if entry["name"] in templates()]


@needs_shared
def test_golden_knows_every_template():
    assert {entry["name"] for entry in _golden()} == set(templates())


@needs_shared
@pytest.mark.parametrize("entry", [pytest.param(e, id=e["id"]) for e in _golden()])
def test_golden(entry):
    messages = entry["conversation"]
    if "row" in entry:  # the original's own input, which `conversation` only restates
        row = entry["row"]
        messages = [user(row["instruction"], input=row.get("input", ""))]
        if not entry["add_generation_prompt"]:
            messages.append(assistant(row["output"]))
    template = get_template(entry["name"])
    rendered = template.render(messages, for_inference=entry["add_generation_prompt"])
    assert rendered.text == entry["text"]
    if "segments" in entry:
        assert targets(rendered) == [text for text, trained in entry["segments"] if trained]


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


def test_unknown_name_lists_the_names():
    with pytest.raises(ValueError) as caught:
        get_template("chatlm")
    assert str(caught.value) == (f"unknown template 'chatlm'; there are: {', '.join(templates())}")


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


ROLES = {"system": system, "user": user, "assistant": assistant}
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
