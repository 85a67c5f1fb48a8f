"""Every example runs to its end; each checks for itself what it shows."""

import importlib
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
# What the trainers' own code warns of is not the examples'.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("name", ["transformers_trainer", "trl_sft", "lora_merge", "plain_loop"])
def test_an_example_trains(name, tmp_path, monkeypatch, capfd):
    if name == "lora_merge":
        pytest.importorskip("peft")
    monkeypatch.syspath_prepend(EXAMPLES)
    example = importlib.import_module(name)
    example.main(tmp_path, epochs=1)
    said = capfd.readouterr().out
    assert "loss" in said
    assert (tmp_path / "bins" / "manifest.json").exists()


def test_all_examples_are_run():
    names = {path.stem for path in EXAMPLES.glob("*.py")} - {"tiny"}
    assert names == {"transformers_trainer", "trl_sft", "lora_merge", "plain_loop"}
