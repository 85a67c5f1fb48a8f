"""Owns the benchmark of rendering with targets, beside one bare render of the same template.

`program`: a conversation of a shape that was seen before, as most are. `composed`: one of a new
shape, of which the messages and the prompts were seen in others. `traced`: one of which nothing is
known but the prompts, as of the first few. `jinja`: the bare text, one render, no targets.
"""

import pytest

import baselines
from turnpack import ChatTemplate, get_template

SOURCES = {name: get_template(name).to_jinja() for name in ("qwen2.5", "qwen3", "llama3")}
MESSAGES = [
    {"role": "system", "content": "You are a helpful assistant. " * 4},
    {"role": "user", "content": "What is the capital of this country? " * 5},
    {"role": "assistant", "content": "The capital of this country is its largest city. " * 10},
    {"role": "user", "content": "And of the other one?"},
    {"role": "assistant", "content": "That one has two capitals, north and south. " * 6},
]
NAMES = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize("form", ["program", "composed", "traced", "jinja"])
@pytest.mark.parametrize("name", SOURCES)
def test_render(benchmark, name, form):
    benchmark.group = f"render {name}"
    source = SOURCES[name]
    bare = baselines.bare_jinja(source)
    given = dict(messages=MESSAGES, tools=None, add_generation_prompt=False, **NAMES)
    text = bare(**given)
    template = ChatTemplate(source, **NAMES)
    for _ in range(20):  # the first few are also compared with the bare text
        rendered = template.render(MESSAGES)
    assert rendered.text == text
    assert template._replayed
    if form == "jinja":
        benchmark(bare, **given)
    elif form == "program":
        benchmark(template.render, MESSAGES)
    elif form == "composed":
        composing = knows_messages(source)
        assert composed(composing).segments == rendered.segments
        benchmark(composed, composing)
    else:
        template._composer = lambda shape: None
        assert traced(template).segments == rendered.segments
        benchmark(traced, template)


def knows_messages(source):
    """A template that has seen longer and shorter conversations, but none of two answers."""
    template = ChatTemplate(source, **NAMES)
    for _ in range(20):
        for shorter in (MESSAGES[:3], MESSAGES[1:3]):
            template.render(shorter)
        for longer in (3, 4):
            template.render(MESSAGES[:3] + MESSAGES[3:] * (longer - 1))
    (composer,) = template._composers.values()
    composer.succeeded = 16  # past the first few, which are traced too
    before = template._traced
    composed(template)
    assert (composer.succeeded, template._traced) == (17, before)
    return template


def composed(template):
    """A render of a shape that the template has not seen."""
    template._seen.clear()
    return template.render(MESSAGES)


def traced(template):
    """A render of a shape that the template has not seen; it has seen the prompts."""
    template._programs.clear()
    template._seen.clear()
    return template.render(MESSAGES)
