"""Owns the rule "one verb, one name, everywhere": the table of verbs and the places they stand in.

A new verb is a new line here; the test fails until all of its places exist.
"""

import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import turnpack
from turnpack import _arguments, kernels, reference

ROOT = Path(__file__).parents[1]

# verb: where its loop is, and what its tests are called after
VERBS = {
    "flatten": ("src/turnpack/_ingest.pyx", "flatten"),
    "unflatten": ("src/turnpack/_ingest.pyx", "flatten"),
    "concat": ("csrc/concat.cpp", "concat"),
    "mask_spans": ("csrc/mask.cpp", "mask_spans"),
    "mask_markers": ("csrc/mask.cpp", "mask_markers"),
    "plan": ("csrc/plan.cpp", "plan"),
    "Planner": ("csrc/planner.cpp", "planner"),
    "pack": ("csrc/pack.cpp", "pack"),
    "unpack": ("csrc/pack.cpp", "unpack"),
}


def places(verb):
    """Each place as (file, a pattern that names the verb in it)."""
    loop, subject = VERBS[verb]
    python = rf"^(def|class) {verb}\b"
    yield "src/turnpack/reference.py", python
    yield "src/turnpack/kernels.py", python
    yield "src/turnpack/_arguments.py", rf"^def {verb.lower()}\("
    yield f"tests/test_{subject}.py", r"^def test_\w+\(impl"
    yield f"tests/test_{subject}.py", rf"agreed(_by)?\(\s*\"{verb}\""
    yield f"benchmarks/bench_{subject}.py", rf"^def test_{verb.lower()}\w*\(benchmark"
    yield "benchmarks/baselines.py", rf"^def {verb.lower()}_\w+\("
    if loop.endswith(".pyx"):
        yield loop, python
        yield "src/turnpack/_ingest.pyi", python
    else:
        cpp = rf"^(int64_t |void |class |{verb}::){verb}\b"
        yield loop, cpp
        yield "csrc/kernels.h", cpp
        yield "csrc/bind_core.cpp", rf"(def\(|class_<\w+>\(m, )\"{verb}\""
        yield "src/turnpack/_core.pyi", python


@pytest.mark.parametrize(
    ("verb", "place", "pattern"),
    [(verb, *place) for verb in VERBS for place in places(verb)],
)
def test_place(verb, place, pattern):
    assert re.search(pattern, (ROOT / place).read_text("utf-8"), re.MULTILINE), (
        f"{place} has no {verb}"
    )


# Those that are on the GPU too: the kernel there, in a file of the verb's family.
ON_DEVICE = {
    "concat": ("csrc/concat.cuh", "ConcatTokens"),
    "mask_markers": ("csrc/mask.cuh", "MaskTiles"),
    "pack": ("csrc/pack.cuh", "PackCells"),
    "unpack": ("csrc/pack.cuh", "UnpackTokens"),
}


def places_on_device(verb):
    loop, kernel = ON_DEVICE[verb]
    yield loop, rf"^struct {kernel} {{"
    yield "csrc/device.h", rf"WITH\(.*\b{kernel}\b"
    yield "csrc/bind_cuda.cpp", rf"def\(\"{verb}\""
    yield "src/turnpack/_cuda.pyi", rf"^def {verb}\("
    yield "src/turnpack/torch/_ops.py", rf"custom_op\(\s*\"turnpack::{verb}\""
    yield "src/turnpack/torch/device.py", rf"^def {verb}\("
    yield "tests/on_device.py", rf"    def {verb}\("
    yield "benchmarks/bench_cuda.py", rf"_ops\.{verb}\b"


@pytest.mark.parametrize(
    ("place", "pattern"), [place for verb in ON_DEVICE for place in places_on_device(verb)]
)
def test_place_on_device(place, pattern):
    assert re.search(pattern, (ROOT / place).read_text("utf-8"), re.MULTILINE), pattern


def test_the_verbs_are_these():
    assert sorted(VERBS) == sorted(kernels.__all__)
    for module in (kernels, reference, _arguments):
        defined = [
            name
            for name, value in vars(module).items()
            if (inspect.isfunction(value) or name in VERBS)
            and value.__module__ == module.__name__
            and name[0] != "_"
        ]
        listed = [*VERBS]
        if (
            module is _arguments
        ):  # by a function for each, and one more for what a class is loaded from
            listed[listed.index("Planner")] = "planner"
            listed.insert(listed.index("planner") + 1, "planner_state")
        assert defined == listed, f"{module.__name__} has others or another order"


@pytest.mark.parametrize("verb", VERBS)
def test_the_reference_is_called_like_the_kernel(verb):
    assert inspect.signature(getattr(reference, verb)) == inspect.signature(getattr(kernels, verb))


@pytest.mark.parametrize("verb", VERBS)
def test_every_kernel_shows_an_example(verb):
    assert ">>> " in getattr(kernels, verb).__doc__


EXAMPLES = ["kernels", "nouns", "reading", "templates"]
EXAMPLES += ["torch.collate", "torch.sampler", "torch.stream"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_are_true(name):
    module = importlib.import_module(f"turnpack.{name}")
    failed, attempted = doctest.testmod(module)
    assert attempted > 0
    assert failed == 0


def test_the_top_level_verbs_are_the_kernels():
    for verb in ("plan", "Planner", "pack", "unpack"):
        assert getattr(turnpack, verb) is getattr(kernels, verb)


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_import_is_light():
    done = run(
        "import sys, turnpack\n"
        "print({'torch', 'transformers', 'tokenizers', 'numba'} & {*sys.modules})"
    )
    assert done.stdout == "set()\n", done.stderr


def test_only_turnpack_torch_imports_torch():
    source = ROOT / "src" / "turnpack"
    for path in source.rglob("*.py"):
        if path.parent.name != "torch":
            text = path.read_text("utf-8")
            assert not re.search(r"^\s*(import|from) torch\b", text, re.MULTILINE), path


@pytest.mark.parametrize("module", ["_core", "_ingest"])
def test_a_broken_build_says_so(module):
    done = run(
        "import sys\n"
        f"sys.modules['turnpack.{module}'] = None\n"
        "try: import turnpack\n"
        "except ImportError as error: print(error)"
    )
    assert "compiled core is missing or does not load" in done.stdout
    assert "python setup.py build_ext --inplace" in done.stdout


def test_every_compiled_module_is_built():
    found = {module.name for module in pkgutil.iter_modules(turnpack.__path__)}
    assert {"_core", "_ingest"} <= found
    for name in ("_core", "_ingest"):
        assert not importlib.import_module(f"turnpack.{name}").__file__.endswith(".py")
