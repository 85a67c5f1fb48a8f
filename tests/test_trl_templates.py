"""The chat templates that trl ships: their text, and their targets beside its hand-made patches.

`<name>_training.jinja` is trl's patch of `<name>.jinja` with `{% generation %}` around what it
trains on. Where both write the same text, the targets are compared. What differs is in one table
here; the rule of design.md decides: a token is a target if and only if the model must produce it.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from chats import KINDS, TOOLS
from turnpack import ChatTemplate
from turnpack.nouns import RowError

if sys.version_info < (3, 11):
    pytest.skip("trl 1.16, which is compared, needs Python 3.11", allow_module_level=True)

FOLDER = Path(
    next(iter(importlib.util.find_spec("trl").submodule_search_locations)), "chat_templates"
)
NAMES = sorted(path.stem for path in FOLDER.glob("*.jinja") if not path.stem.endswith("_training"))
TWINS = [name for name in NAMES if (FOLDER / f"{name}_training.jinja").is_file()]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

# Behind the stop token: the model has stopped, trl trains on it nevertheless.
NEWLINE = ("behind", "\n")
THINK = ("header", "<think>\n")
# name: what trl has in front of our span or behind it ("header", "behind"), or we have in front of
# trl's ("ours"). Everything else is equal.
EXCEPTIONS = {
    # The header is in the prompt.
    "deepseek_r1_distill": {("header", "<｜Assistant｜>"), ("header", "<｜tool▁outputs▁end｜>")},
    "deepseekv3": {("header", "<｜Assistant｜>")},
    "gptoss": {("header", "<|start|>assistant")},
    "muse_glimmer": {("header", "<|start|>assistant")},
    "qwen2_5": {("header", "\n"), NEWLINE},
    # So is what the prompt writes of the reasoning.
    "nemotron_3_5_lightning": {("header", "<think>"), THINK, NEWLINE},
    "nemotron_3_nano": {("header", "<think>"), THINK, NEWLINE},
    "nemotron_3_super": {("header", "<think>"), THINK, NEWLINE},
    "nemotron_3_ultra": {("header", "<think>"), THINK, NEWLINE},
    "qwen3_5_nothink": {("header", "<think>\n\n</think>\n\n"), THINK, NEWLINE},
    "qwen3_5_think": {THINK, NEWLINE},
    "qwen3_6": {THINK, NEWLINE},
    "qwen3_8": {THINK, NEWLINE},
    # The prompt behind a tool's result has no header, the conversation has one.
    "diffusion_gemma": {NEWLINE, ("ours", "<|turn>model\n")},
    "gemma": {NEWLINE},
    "gemma3": {NEWLINE},
    "idefics3": {NEWLINE},
    "lfm2": {NEWLINE},
    "lfm2_v2": {NEWLINE},
    "phi3": {NEWLINE, ("behind", "\n</s>")},
    "phi3_5": {NEWLINE, ("behind", "\n</s>")},
    "qwen2_5_vl": {NEWLINE},
    "qwen3": {NEWLINE},
    "qwen3_instruct_2507": {NEWLINE},
    "qwen3_vl": {NEWLINE},
    "smolvlm": {NEWLINE},
}
# These write an answer's text behind the result of its call: it has no prompt of its own.
TORN = {"diffusion_gemma", "gemma4", "gemma4_v3", "gemma4_v4", "gemma4_v5"}
# trl's patch never writes the text of the original.
OTHER_TEXT = {"glm4moe"}


@functools.cache
def source(name):
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


def rendered(source, messages, tools, **options):
    """What transformers makes of it, None where the template refuses."""
    try:
        texts, spans = render_jinja_template(
            [messages], tools=tools, chat_template=source, **TOKENS, **options
        )
    except Exception:
        return None
    return texts[0], spans[0] if spans else None


def spans_of(rendered):
    """The runs of targets, in characters."""
    spans, at = [], 0
    for segment in rendered.segments:
        end = at + len(segment.text)
        if segment.target:
            spans.append((at, end))
        at = end
    return joined(spans)


def joined(spans):
    made = []
    for start, end in spans:
        if made and made[-1][1] == start:
            start = made.pop()[0]
        if start < end:
            made.append((start, end))
    return made


@pytest.mark.parametrize("tools", [None, TOOLS], ids=["plain", "tools"])
@pytest.mark.parametrize("name", NAMES)
def test_the_text_of_transformers(name, tools):
    template = ChatTemplate(source(name), **TOKENS)
    written = 0
    for kind, messages in KINDS.items():
        for upto, prompt in ((len(messages), False), (len(messages) - 1, True)):
            part = messages[:upto]
            expected = rendered(source(name), part, tools, add_generation_prompt=prompt)
            if expected is None:
                with pytest.raises(RowError, match=r"^the chat template refuses the conversation"):
                    template.render(part, tools, for_inference=prompt)
            elif kind == "text and a call" and name in TORN and not prompt:
                with pytest.raises(RowError, match=r"^cannot find an answer"):
                    template.render(part, tools)
            else:
                written += 1
                assert template.render(part, tools, for_inference=prompt).text == expected[0]
    assert written or name == "llava_next"  # it reads lists only


@pytest.mark.parametrize("name", TWINS)
def test_the_targets_of_the_hand_made_patch(name):
    template = ChatTemplate(source(name), **TOKENS)
    seen = defaultdict(list)
    compared = 0
    for kind, messages in KINDS.items():
        for tools in (None, TOOLS):
            theirs = rendered(
                source(f"{name}_training"), messages, tools, return_assistant_tokens_mask=True
            )
            if theirs is None or rendered(source(name), messages, tools) != (theirs[0], None):
                continue
            if kind == "text and a call" and name in TORN:
                continue
            text, marked = theirs
            ours, marked = spans_of(template.render(messages, tools)), joined(marked)
            assert len(ours) == len(marked)
            compared += 1
            for (start, end), (their_start, their_end) in zip(ours, marked, strict=True):
                seen["header", text[their_start:start]].append(kind)
                seen["ours", text[start:their_start]].append(kind)
                seen["behind", text[end:their_end]].append(kind)
                assert end <= their_end  # none of theirs stops before ours
    found = {(where, text) for where, text in seen if text}
    assert found == EXCEPTIONS.get(name, set())
    assert bool(compared) is (name not in OTHER_TEXT and name != "llava_next")


def test_the_patches_are_those_of_the_table():
    assert EXCEPTIONS.keys() | OTHER_TEXT <= set(TWINS)
    assert len(TWINS) >= 30


@pytest.mark.parametrize("name", TWINS)
def test_marked_spans_are_used_when_asked_for(name):
    training = source(f"{name}_training")
    template = ChatTemplate(training, spans="generation", **TOKENS)
    for messages in KINDS.values():
        theirs = rendered(training, messages, None, return_assistant_tokens_mask=True)
        if theirs is None or not any(start < end for start, end in theirs[1]):
            continue
        ours = template.render(messages)
        assert ours.text == theirs[0]
        assert spans_of(ours) == joined(theirs[1])


@pytest.mark.parametrize("name", NAMES)
def test_content_in_parts(name):
    """Templates of vision models read a list of parts; its texts are traced as any other."""
    template = ChatTemplate(source(name), **TOKENS)
    messages = [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        for message in KINDS["several turns"]
    ]
    theirs = rendered(source(name), messages, None)
    if theirs is None:
        with pytest.raises(RowError, match=r"^the chat template refuses the conversation"):
            template.render(messages)
        return
    ours = template.render(messages)
    assert ours.text == theirs[0]
    as_text = rendered(source(name), KINDS["several turns"], None)
    if as_text == theirs:
        assert ours.segments == template.render(KINDS["several turns"]).segments
