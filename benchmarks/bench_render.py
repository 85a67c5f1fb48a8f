"""Owns the benchmark of rendering with targets, beside one bare render of the same template.

`program`: a conversation of a shape that was seen before, as all but the first are. `traced`: one
of a new shape, with every prompt looked at. `jinja`: the bare text, one render, no targets.
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


@pytest.mark.parametrize("form", ["program", "traced", "jinja"])
@pytest.mark.parametrize("name", SOURCES)
def test_render(benchmark, name, form):
    benchmark.group = f"render {name}"
    source = SOURCES[name]
    template = ChatTemplate(source, **NAMES)
    bare = baselines.bare_jinja(source)
    text = bare(messages=MESSAGES, tools=None, add_generation_prompt=False, **NAMES)
    for _ in range(20):  # the first few are also compared with the bare text
        rendered = template.render(MESSAGES)
    assert rendered.text == text
    assert template._replayed
    if form == "jinja":
        benchmark(bare, messages=MESSAGES, tools=None, add_generation_prompt=False, **NAMES)
    elif form == "program":
        benchmark(template.render, MESSAGES)
    else:
        assert traced(template).segments == rendered.segments
        benchmark(traced, template)


def traced(template):
    """A render of a shape that the template has not seen; it has seen the prompts."""
    template._programs.clear()
    template._seen.clear()
    return template.render(MESSAGES)
