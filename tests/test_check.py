"""The check on conversations of which it is known what is wrong: counts that are derived by hand,
and prompts that the tokenizer itself encodes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from at_hand import folder_of, mistral_v1, needs_shared, qwen, rows_of, tiny, tiny_with
from chats import assistant, call, system, user
from turnpack import ChatTemplate, Encoder, get_template
from turnpack.check import check, page
from turnpack.cli import main
from turnpack.records import read
from turnpack.tokenizers import load

ONE = [user("Hello there?"), assistant("I am a model.")]
TWO = [*ONE, user("And now?"), assistant("Now this.")]
ALPACA = [user("Who?"), assistant("Natalia"), user("Who else?"), assistant("Nobody")]
TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
CUE = "{% if add_generation_prompt %}<|im_start|>assistant\nX{% endif %}"


@pytest.fixture(scope="module")
def folder():
    return folder_of(qwen(), eos_token="<|im_end|>")


@pytest.fixture(scope="module")
def backend(folder):
    return load(folder)


@pytest.fixture(scope="module")
def small():
    return folder_of(tiny_with(("<tool_call>", "</tool_call>")), eos_token="<|im_end|>")


def write(path, rows):
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return str(path)


def found_in(tokenizer, template, *conversations, against=None, **options):
    encoder = Encoder(tokenizer, template, **options)
    other = None if against is None else Encoder(tokenizer, against, **options)
    return check([encoder.conversation(item) for item in conversations], encoder, against=other)


def line(found, question):
    (wanted,) = [line for line in found.lines() if line.question == question]
    return wanted


def wrongs(found):
    return [line.question for line in found.lines() if line.verdict == "wrong"]


def test_all_is_good(backend):
    found = found_in(backend, "chatml", ONE, TWO, [system("Be good."), *TWO])
    assert not found.wrong
    assert (found.read, found.compared, found.answers) == (3, 3, 5)
    assert found.stops == {"<|im_end|>": 5}
    assert found.at_once == 0
    assert {line.verdict for line in found.lines()} == {"ok"}
    assert not found.unlike
    shown = page(found).splitlines()
    assert shown[0].startswith("chatml with ")
    assert shown[0].endswith(": 3 conversations, 5 answers")
    assert shown[-1] == "training is the same as inference"


def test_the_command(capsys, small, tmp_path):
    chats = write(tmp_path / "chats.jsonl", [ONE, TWO])
    assert main(["check", chats, "--tokenizer", str(small), "--template", "chatml"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.endswith("\n\ntraining is the same as inference\n")


# -- stop tokens and BOS --------------------------------------------------------------------------


def test_generation_stops_elsewhere(capsys, tmp_path):
    folder = folder_of(tiny(), eos_token="</s>")
    chats = write(tmp_path / "chats.jsonl", [ONE])
    arguments = ["check", chats, "--tokenizer", str(folder), "--template", "chatml"]
    assert main(arguments) == 1
    out = capsys.readouterr().out
    assert "<|im_end|> ends the answers, but generation stops at </s>" in out
    assert out.endswith("\nsomething is wrong\n")
    assert main([*arguments, "--eos-token", "<|im_end|>"]) == 0
    stop = tiny().token_to_id("<|im_end|>")
    for stops in ([stop], stop):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
        assert main(arguments) == 0
    assert found_in(folder, "chatml", ONE).stops_at == ("</s>", "<|im_end|>")


def test_no_stop_token(backend):
    source = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    found = found_in(backend, ChatTemplate(source), TWO)
    assert (found.answers, found.unstopped, found.stops) == (2, 2, {})
    assert line(found, "stop token")[1:] == ("wrong", "2 of 2 answers end without one")
    assert wrongs(found) == ["stop token"]


@pytest.mark.parametrize(("times", "twice"), [(1, 0), (2, 2)])
def test_bos_twice(times, twice):
    backend = load(tiny(), bos="<s>", eos="<|im_end|>")
    source = "{{ bos_token }}" * times + TURNS + CUE.replace("X", "")
    found = found_in(backend, ChatTemplate(source), ONE, TWO)
    assert found.bos_twice == twice
    assert wrongs(found) == ["BOS"] * bool(twice)


# -- before the answers ---------------------------------------------------------------------------


def test_another_text_than_at_inference(backend):
    template = ChatTemplate(TURNS + CUE.replace("X", "<think>\n"))
    found = found_in(backend, template, ONE, [system("Be good."), *TWO])
    assert (found.text_differs, found.first_differs, found.later_differs) == (2, 0, 0)
    assert wrongs(found) == ["text before an answer"]
    prompt = "<|im_start|>user\nHello there?<|im_end|>\n<|im_start|>assistant\n"
    at = len(qwen().encode(prompt).ids)
    first, training, inference = found.unlike["text before an answer"].splitlines()
    assert "conversation 0, answer 1 of 1" in first
    assert first.endswith(f"from token {at} on")
    assert training.split(" | ")[1] == "(its end)"
    assert inference.split(" | ")[1].startswith("'<think>'")
    assert "first difference, text before an answer:\n" in page(found)


def test_text_that_merges_over_a_cut(capsys, folder, backend, tmp_path):
    ends = qwen().encode("### Response:").ids
    assert qwen().encode("### Response:Natalia").ids[: len(ends)] != ends
    found = found_in(backend, "alpaca", ALPACA, ALPACA[:2])
    assert (found.text_differs, found.first_differs, found.later_differs) == (0, 0, 1)
    assert found.at_once == 2
    assert {line(found, q).verdict for q in ("ids before a later answer", "encoded at once")} == {
        "note"
    }
    assert not found.wrong
    assert "answer 2 of 2" in found.unlike["ids before a later answer"]
    whole = found_in(backend, "alpaca", ALPACA, ALPACA[:2], boundary="whole")
    assert whole.at_once == 0
    assert whole.first_differs == 2
    chats = write(tmp_path / "chats.jsonl", [ALPACA])
    assert main(["check", chats, "--tokenizer", str(folder), "--template", "alpaca"]) == 0
    assert "1 of 1 conversations (100.0%)" in capsys.readouterr().out


def test_other_ids_before_the_first_answer():
    backend = load(tiny(), eos="<|im_end|>")
    own_ids = backend.own_ids
    backend.own_ids = lambda texts: [
        [*ids, 0][text.count("Hello") :] for text, ids in zip(texts, own_ids(texts), strict=True)
    ]
    found = found_in(backend, "chatml", ONE, TWO)
    assert (found.text_differs, found.first_differs, found.later_differs) == (0, 2, 1)
    assert wrongs(found) == ["ids before the first answer"]
    assert "conversation 0, answer 1 of 1, from token 0 on" in page(found)


def test_a_tokenizer_that_cannot_tell():
    found = found_in(str(mistral_v1()), "llama2", TWO)
    assert found.at_once is None
    assert "encoded at once" not in [line.question for line in found.lines()]
    assert not found.wrong


@needs_shared
def test_real_conversations_against_the_tokenizer(backend):
    rows = rows_of("messages_gsm8k.jsonl")[:200]
    encoder = Encoder(backend, "chatml")
    tokens = encoder(rows)
    for number, row in enumerate(rows):
        text = "".join(
            f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in row["messages"][:-1]
        )
        start, stop = tokens.offsets[number : number + 2]
        before = int(np.argmax(tokens.loss_mask[start:stop]))
        wanted = qwen().encode(text + "<|im_start|>assistant\n").ids
        assert tokens.input_ids[start : start + before].tolist() == wanted
    found = check(map(encoder.conversation, rows), encoder)
    assert (found.read, found.compared, found.answers) == (200, 200, 200)
    assert (found.text_differs, found.first_differs, found.later_differs) == (0, 0, 0)
    assert not found.wrong


# -- what is counted ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "messages",
    [
        [user("What is <|im_end|>?"), assistant("A token.")],
        [user("Which?"), assistant("<|im_end|>"), user("Sure?"), assistant("Yes.")],
        [user("Go", input="<|im_start|>"), assistant("Done.")],
    ],
)
def test_spelled_control_tokens_are_no_fault(backend, messages):
    found = found_in(backend, "alpaca", messages, ONE)
    assert found.spells == 1
    assert not found.wrong


def test_control_tokens_that_a_call_spells_are_no_fault(backend):
    messages = [user("Go"), assistant("", tool_calls=[call("f", x="<|im_end|>")])]
    messages += [{"role": "tool", "content": "42"}, assistant("It is 42.")]
    found = found_in(backend, "qwen2.5", messages)
    assert (found.spells, found.later_differs, found.at_once) == (1, 0, 0)


def test_what_is_left_out_is_counted(tmp_path, backend):
    chats = tmp_path / "chats.jsonl"
    write(chats, [ONE, TWO, [user("Nobody answers")]])
    with chats.open("a") as file:
        file.write('{"messages": [\n')
    encoder = Encoder(backend, "chatml", max_length=20)
    lengths = [encoder.tokens([encoder.template.render(m)]).offsets[-1] for m in (ONE, TWO)]
    assert lengths[0] <= 20 < lengths[1]
    found = check(read([str(chats)]), encoder)
    assert (found.read, found.compared, found.unreadable, found.cut) == (4, 2, 1, 1)
    assert found.rejected == {"nothing to train on": 1}
    assert line(found, "longer than 20")[1:] == ("note", "1 of 4 conversations (25.0%)")
    assert not found.wrong


def test_nothing_to_train_on_is_wrong(backend):
    assert wrongs(found_in(backend, "chatml", [user("Nobody answers")])) == ["conversations"]
    empty = check([], Encoder(backend, "chatml"))
    assert empty.wrong
    assert page(empty).endswith("something is wrong")


# -- another template, and mistakes ---------------------------------------------------------------


def test_against(capsys, backend, small, tmp_path):
    polite = [system("Be good."), *ONE]
    assert found_in(backend, "chatml", polite, against="qwen2.5").other_differs == 0
    found = found_in(backend, "chatml", polite, ONE, TWO, against="qwen2.5")
    assert (found.other, found.other_differs) == ("qwen2.5", 2)
    assert line(found, "against qwen2.5").verdict == "note"
    assert "conversation 1, from token 1 on" in found.unlike["against qwen2.5"]
    chats = write(tmp_path / "chats.jsonl", [polite, ONE])
    arguments = ["check", chats, "--tokenizer", str(small), "--template", "chatml"]
    assert main([*arguments, "--against", "qwen2.5"]) == 0
    assert "other ids or targets: 1 of 2 conversations (50.0%)" in capsys.readouterr().out


@pytest.mark.parametrize("mistake", ["--template", "--against", "FILE", "--tokenizer"])
def test_a_mistake_is_one_line(capsys, small, tmp_path, mistake):
    chats = write(tmp_path / "chats.jsonl", [ONE])
    options = {"--tokenizer": str(small), "--template": "chatml", "FILE": chats}
    options[mistake] = str(tmp_path / "nothing.jsonl")
    arguments = [text for pair in options.items() for text in pair if text != "FILE"]
    assert main(["check", *arguments]) == 2
    captured = capsys.readouterr()
    (message,) = captured.err.splitlines()
    assert message.startswith("turnpack: error: ")
    assert "nothing.jsonl" in message
    assert captured.out == ""


def test_what_is_trained_on_must_be_answers():
    encoder = Encoder(tiny(), get_template("plain", eos="</s>"), train_on="all")
    with pytest.raises(ValueError, match=r"^check looks at answers: train_on must be assistant"):
        check([], encoder)
