"""On real rows: the ids of transformers' apply_chat_template, and of Mistral's own package."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from at_hand import deepseek, llama3, mistral, needs_shared, qwen, rows_of, turns_of
from turnpack import ChatTemplate, Conversation, Encoder, get_template
from turnpack.check import check

TRL = Path(next(iter(importlib.util.find_spec("trl").submodule_search_locations)), "chat_templates")


def _chats():
    """Real conversations without tools, some of each file."""
    for name in ("messages_gsm8k.jsonl", "messages_kdconv_zh.jsonl", "alpaca_en.json"):
        for row in rows_of(name)[:150]:
            messages = []
            for question, extra, answer in turns_of(row):
                content = f"{question}\n{extra}" if extra else question
                messages.append({"role": "user", "content": content})
                messages.append({"role": "assistant", "content": answer})
            if all(message["content"] for message in messages):
                yield messages


_CHATML = get_template("qwen2.5").to_jinja()
_LLAMA3 = get_template("llama3").to_jinja()


@needs_shared
@pytest.mark.thorough
@pytest.mark.parametrize(
    ("tokenizer", "source", "names"),
    [
        (qwen, _CHATML, {"eos_token": "<|im_end|>"}),
        (llama3, _LLAMA3, {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}),
        (lambda: Tokenizer.from_file(str(deepseek() / "tokenizer.json")), None, {}),
    ],
    ids=["qwen", "llama3", "deepseek"],
)
def test_encoded_at_once_the_ids_are_those_of_apply_chat_template(tokenizer, source, names):
    if source is None:
        config = json.loads((deepseek() / "tokenizer_config.json").read_text())
        source = (TRL / "deepseekv3.jinja").read_text(encoding="utf-8")
        names = {key: config[key]["content"] for key in ("bos_token", "eos_token")}
    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer(), chat_template=source, **names)
    chats = list(_chats())
    tokens = Encoder(theirs, "auto", boundary="whole")(chats)
    cut = Encoder(theirs, "auto")(chats)
    other = 0
    for number, messages in enumerate(chats):
        start, end = tokens.offsets[number : number + 2]
        expected = theirs.apply_chat_template(messages, return_dict=False)
        assert tokens.input_ids[start:end].tolist() == expected
        start, end = cut.offsets[number : number + 2]
        other += cut.input_ids[start:end].tolist() != expected
    found = check(map(Conversation, chats), Encoder(theirs, "auto"))
    assert found.at_once == other  # where cutting gives other ids, check says so
    assert found.first_differs == found.unstopped == found.bos_twice == 0


@needs_shared
def test_mistrals_own_tokenizer_on_real_rows():
    """Mistral's own package encodes a conversation as its template and turnpack do."""
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    own = MistralTokenizer.v3()
    template = get_template("mistral-v3")
    mine = ChatTemplate(template.to_jinja(), bos_token="<s>", eos_token="</s>")
    encoder = Encoder(mistral("v3"), mine)
    for messages in list(_chats())[::6]:
        asked = messages[:-1]
        expected = own.encode_chat_completion(ChatCompletionRequest(messages=asked)).tokens
        row = encoder([messages])
        start = len(expected)
        assert row.input_ids[:start].tolist() == expected
        assert row.loss_mask[start] == 1


@needs_shared
def test_metas_own_chat_format_on_real_rows():
    """Meta's own package encodes a conversation as its template and turnpack do.

    The template strips every text and Meta's package does not: they are compared where there is
    nothing to strip.
    """
    from llama_models.datatypes import RawMessage, StopReason
    from llama_models.llama3.chat_format import ChatFormat
    from llama_models.llama3.tokenizer import Tokenizer as MetasTokenizer

    own = ChatFormat(MetasTokenizer.get_instance())
    names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    encoder = Encoder(llama3(), ChatTemplate(_LLAMA3, **names))
    compared = 0
    for messages in _chats():
        if any(m["content"] != m["content"].strip() for m in messages):
            continue
        answer = RawMessage(**messages[-1], stop_reason=StopReason.end_of_turn)
        asked = own.encode_dialog_prompt([RawMessage(**m) for m in messages[:-1]]).tokens
        answered, _ = own.encode_message(answer, None)
        header = len(own._encode_header("assistant"))
        row = encoder([messages])
        assert row.input_ids.tolist() == asked + answered[header:]
        assert row.loss_mask[len(asked) - 1] == 0
        assert row.loss_mask[len(asked) :].all()
        compared += 1
    assert compared > 300
