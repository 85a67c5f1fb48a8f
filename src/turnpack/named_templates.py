"""The named templates, each a declaration of a few lines. They own the bytes, and nothing else.

The bytes come from each template's original, named in its `source`. A new one is a declaration here
(see Template) and its original's text in tests/test_golden.py.
"""

from __future__ import annotations

import dataclasses

from .declaration import Template, Tools

# -- texts that more than one template writes ------------------------------------------------------

_PREAMBLE = "Below is an instruction that describes a task{}. Write a response that appropriately "
_PREAMBLE += "completes the request."
_WITH_INPUT = ", paired with an input that provides further context"

# Llama-2's default system message of July 2023. Others copied it, and changed a word or a blank.
_HONEST = (
    "You are a helpful, respectful and honest assistant{}. Always answer as helpfully as possible, "
    "while being safe.{}Your answers should not include any harmful, unethical, racist, sexist, "
    "toxic, dangerous, or illegal content. Please ensure that your responses are socially unbiased "
    "and positive in nature.\n\n{}If a question does not make any sense, or is not factually "
    "coherent, explain why instead of answering something not correct. If you don't know the "
    "answer to a question, please don't share false information."
)
_COMPANY = "developed by Beijing Wenge Technology Co.,Ltd."
_POLITE = (
    "A chat between a curious {} and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
_BELUGA = (
    "You are Stable Beluga, an AI that follows instructions extremely well. Help as much as you "
    "can. Remember, be safe, and don't do anything illegal."
)

_QWEN_TOOLS = Tools(
    block="# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n{tools}\n"
    "</tools>\n\nFor each function call, return a json object with function name and arguments "
    "within <tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>',
    call='<tool_call>\n{"name": "{name}", "arguments": {arguments}}\n</tool_call>',
    results="<|im_start|>user\n{results}<|im_end|>\n",
    result="<tool_response>\n{result}\n</tool_response>",
)

# -- the templates ---------------------------------------------------------------------------------

_AGAIN = "Single-turn in the original: later turns repeat the turn block after EOS"

_ALPACA = Template(
    name="alpaca",
    source="tatsu-lab/stanford_alpaca train.py, PROMPT_DICT",
    summary=f"Stanford Alpaca; nothing between 'Response:' and the answer. {_AGAIN}, without the "
    "preamble; a system message takes the preamble's place",
    default_system=_PREAMBLE.format(""),
    default_system_with_input=_PREAMBLE.format(_WITH_INPUT),
    system="{system}\n\n",
    user="### Instruction:\n{user}\n\n",
    user_with_input="### Instruction:\n{user}\n\n### Input:\n{input}\n\n",
    cue="### Response:",
    alternates=True,
)

_LLAMA2 = Template(
    name="llama2",
    source="facebookresearch/llama llama/generation.py, chat_completion",
    summary="Llama-2 chat; no default system message; the system text is folded into the first "
    "user turn",
    system_in_user="<<SYS>>\n{system}\n<</SYS>>\n\n",
    user="{bos}[INST] {user|strip} [/INST]",
    answer=" {answer|strip} ",
    alternates=True,
)

_YAYI = Template(
    name="yayi",
    source="model card of wenge-research/yayi-7b-llama2",
    summary="YaYi as its Llama-2 model card prompts it: another system message than in yayi-repo. "
    "The card shows no answer; it ends here as in the repository's training data. "
    "Turns are joined as there",
    default_system=_HONEST.format(f" named YaYi {_COMPANY[:-1]}", " ", ""),
    system="<|System|>:\n{system}\n\n",
    user="<|Human|>:\n{user}\n\n",
    cue="<|YaYi|>:\n",
    answer="{answer}\n\n",
    stop="<|End|>",
    alternates=True,
    markers=("<|System|>", "<|Human|>", "<|YaYi|>", "<|End|>"),
)

_STABLEBELUGA2 = Template(
    name="stablebeluga2",
    source="model card of stabilityai/StableBeluga2, the format that it states",
    summary="StableBeluga2 as its model card describes it; no default system message; the card's "
    f"own code writes stablebeluga2-code. The card states no stop token: EOS. {_AGAIN}",
    system="### System:\n{system}\n\n",
    user="### User:\n{user}\n\n",
    cue="### Assistant:\n",
    alternates=True,
)

_CHATML = Template(
    name="chatml",
    source="OpenAI's ChatML as unslothai/unsloth chat_templates.py writes it",
    summary="ChatML; no default system message",
    system="<|im_start|>system\n{system}<|im_end|>\n",
    user="<|im_start|>user\n{user}<|im_end|>\n",
    cue="<|im_start|>assistant\n",
    stop="<|im_end|>",
    tail="\n",
    markers=("<|im_start|>", "<|im_end|>"),
)

_LLAMA3 = Template(
    name="llama3",
    source="chat template of meta-llama/Meta-Llama-3-8B-Instruct",
    summary="Llama 3; every text is stripped; no default system message",
    start="{bos}",
    system="<|start_header_id|>system<|end_header_id|>\n\n{system|strip}<|eot_id|>",
    user="<|start_header_id|>user<|end_header_id|>\n\n{user|strip}<|eot_id|>",
    cue="<|start_header_id|>assistant<|end_header_id|>\n\n",
    answer="{answer|strip}",
    stop="<|eot_id|>",
    markers=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    bos="<|begin_of_text|>",
    eos="<|eot_id|>",
)

_MISTRAL_V3 = Template(
    name="mistral-v3",
    source="mistral_common, InstructTokenizerV3 (SentencePiece)",
    summary="Mistral v3; the system text is folded into the LAST user turn, so earlier answers do "
    "not see it; blanks behind an answer are dropped; the blanks after the tags are the ones that "
    "SentencePiece puts there",
    start="{bos}",
    system_in_user="{system}\n\n",
    system_in_last_user=True,
    user="[INST] {user}[/INST]",
    answer=" {answer|rstrip: }",
    alternates=True,
    markers=("[INST]", "[/INST]"),
    runs="spelled",
)

NAMED = (
    _ALPACA,
    dataclasses.replace(
        _ALPACA,
        name="alpaca-newline",
        source="Alpaca as torchtune, axolotl and Unsloth write it",
        summary="Alpaca with a newline between 'Response:' and the answer, as several trainers "
        f"write it; otherwise as alpaca. {_AGAIN}, without the preamble; a system message takes "
        "the preamble's place",
        cue="### Response:\n",
    ),
    _LLAMA2,
    dataclasses.replace(
        _LLAMA2,
        name="linksoul",
        source="LinkSoul-AI/Chinese-Llama-2-7b train.py",
        summary="LinkSoul's Chinese Llama-2: Llama-2's text with a default system message, every "
        "utterance encoded by itself (an answer gets SentencePiece's blank in front). Not copied: "
        "added special tokens that become padding, the system text stacked when a row is used "
        "twice, a dummy chat where nothing is left to train on",
        default_system=" " * 12 + _HONEST.format("", "  ", " " * 12),
        user="{bos}[INST] {user|strip} [/INST] ",
        answer="{answer|strip} ",
        runs="apart",
    ),
    Template(
        name="linly",
        source="model card of Linly-AI/Chinese-LLaMA-2-7B-hf",
        summary=f"Linly; no newlines, no system message. {_AGAIN}",
        user="### Instruction:{user|strip}  ",
        cue="### Response:",
        alternates=True,
    ),
    Template(
        name="nous-hermes",
        source="model card of NousResearch/Nous-Hermes-Llama2-13b",
        summary=f"Nous-Hermes: Alpaca's headings without its preamble; no system message. {_AGAIN}",
        user="### Instruction:\n{user}\n\n",
        user_with_input="### Instruction:\n{user}\n\n### Input:\n{input}\n\n",
        cue="### Response:\n",
        alternates=True,
    ),
    _YAYI,
    dataclasses.replace(
        _YAYI,
        name="yayi-repo",
        source="wenge-research/YAYI training/consts.py, trainer_multi_rounds.py",
        summary="YaYi as its repository trains it: another system message than on the model card "
        "(yayi). The repository's README prompts without the newline that its training data has "
        "behind '<|YaYi|>:'; training and inference both have it here",
        default_system="A chat between a human and an AI assistant named YaYi.\n"
        f"YaYi is a helpful and harmless language model {_COMPANY}",
    ),
    _STABLEBELUGA2,
    dataclasses.replace(
        _STABLEBELUGA2,
        name="stablebeluga2-code",
        source="model card of stabilityai/StableBeluga2, its Python code",
        summary="StableBeluga2 as the code on its model card prompts it: a blank instead of a "
        "newline behind 'User:', and a default system message; the format that the card states is "
        f"stablebeluga2. {_AGAIN}",
        default_system=_BELUGA,
        user="### User: {user}\n\n",
    ),
    Template(
        name="guanaco",
        source="artidoro/qlora examples/guanaco_generate.py; timdettmers/openassistant-guanaco",
        summary="Guanaco as qlora prompts it, with its system sentence, for training and inference "
        "alike; of its six spellings the first. Turns are joined as in its training data: EOS "
        "follows the last answer only, an earlier one has no stop token",
        default_system=_POLITE.format("human"),
        system="{system} ",
        user="### Human: {user}",
        cue="### Assistant: ",
        stop="",
        finish="{eos}",
        alternates=True,
    ),
    Template(
        name="guanaco-bloke",
        source="model card of TheBloke/guanaco-65B-GPTQ",
        summary=f"Guanaco as TheBloke's model cards prompt it; no system message. {_AGAIN}",
        user="### Human: {user}\n",
        cue="### Assistant:",
        alternates=True,
    ),
    Template(
        name="firefly",
        source="yangjianxin1/Firefly component/dataset.py, SFTDataset",
        summary="Firefly's classic form: BOS once, EOS after every utterance, each encoded by "
        "itself; no system message. Not copied: a row that is cut to nothing that trains is a "
        "reject",
        start="{bos}",
        user="{user}{eos}",
        alternates=True,
        runs="apart",
    ),
    _CHATML,
    dataclasses.replace(
        _CHATML,
        name="qwen2.5",
        source="chat template of Qwen/Qwen2.5-7B-Instruct",
        summary="Qwen 2.5: ChatML with a default system message and tools",
        default_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
        tools=_QWEN_TOOLS,
        markup=("<tool_call>", "</tool_call>"),
        eos="<|im_end|>",
    ),
    dataclasses.replace(
        _CHATML,
        name="qwen3",
        source="chat template of Qwen/Qwen3-8B",
        summary="Qwen 3: ChatML with reasoning and tools; no default system message. The last "
        "answer has a think block, if need be an empty one, that the model must write; answers "
        "before the last question are written without theirs (train_on='last' leaves them out)",
        answer_with_reasoning="<think>\n{reasoning|strip:\n}\n</think>\n\n{answer|lstrip:\n}",
        tools=_QWEN_TOOLS,
        markup=(
            *("<think>", "</think>", "<tool_call>", "</tool_call>"),
            *("<tool_response>", "</tool_response>"),
        ),
        eos="<|im_end|>",
    ),
    _LLAMA3,
    dataclasses.replace(
        _LLAMA3,
        name="llama3.1",
        source="chat template of meta-llama/Llama-3.1-8B-Instruct",
        summary="Llama 3.1: Llama 3 with a system turn that always tells the date (date_string). "
        "No tools here: use the model's own chat template for them",
        default_system="",
        system="<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December "
        "2023\nToday Date: {date_string}\n\n{system|strip}<|eot_id|>",
        system_later=_LLAMA3.system,
        variables=(("date_string", "26 Jul 2024"),),
    ),
    Template(
        name="mistral-v1",
        source="mistral_common, InstructTokenizerV1",
        summary="Mistral v1: tags are ordinary text; the system text is folded into the first user "
        "turn; the blanks are the ones that SentencePiece puts there",
        start="{bos}",
        system_in_user="{system}\n\n",
        user=" [INST] {user} [/INST]",
        answer=" {answer}",
        alternates=True,
        runs="spelled",
    ),
    _MISTRAL_V3,
    dataclasses.replace(
        _MISTRAL_V3,
        name="mistral-v7",
        source="mistral_common, InstructTokenizerV7 (SentencePiece)",
        summary="Mistral v7: as v3, with a system block of its own at the start",
        system="[SYSTEM_PROMPT] {system}[/SYSTEM_PROMPT]",
        system_in_user=None,
        system_in_last_user=False,
        markers=("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]"),
    ),
    Template(
        name="gemma",
        source="chat template of google/gemma-7b-it",
        summary="Gemma; every text is stripped; no system message",
        start="{bos}",
        user="<start_of_turn>user\n{user|strip}<end_of_turn>\n",
        cue="<start_of_turn>model\n",
        answer="{answer|strip}",
        stop="<end_of_turn>",
        tail="\n",
        alternates=True,
        markers=("<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
        eos="<eos>",
    ),
    Template(
        name="phi3",
        source="chat template of microsoft/Phi-3-mini-4k-instruct",
        summary="Phi-3; EOS closes the whole conversation, and the model never writes it; no "
        "default system message",
        system="<|system|>\n{system}<|end|>\n",
        user="<|user|>\n{user}<|end|>\n",
        cue="<|assistant|>\n",
        stop="<|end|>",
        tail="\n",
        finish="{eos}",
        markers=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        eos="<|endoftext|>",
    ),
    Template(
        name="phi4",
        source="chat template of microsoft/phi-4",
        summary="Phi-4: ChatML's tokens with a separator and no newlines; no default system "
        "message",
        system="<|im_start|>system<|im_sep|>{system}<|im_end|>",
        user="<|im_start|>user<|im_sep|>{user}<|im_end|>",
        cue="<|im_start|>assistant<|im_sep|>",
        stop="<|im_end|>",
        markers=("<|im_start|>", "<|im_sep|>", "<|im_end|>"),
        eos="<|im_end|>",
    ),
    Template(
        name="deepseek-v3",
        source="chat template of deepseek-ai/DeepSeek-V3",
        summary="DeepSeek-V3; all system messages move to the start; answers as they are, "
        "reasoning in them too; no default system message. No tools here: use the model's own "
        "chat template for them",
        start="{bos}",
        system="{system}",
        gathers_system=True,
        user="<｜User｜>{user}",
        cue="<｜Assistant｜>",
        markers=("<｜User｜>", "<｜Assistant｜>"),
        bos="<｜begin▁of▁sentence｜>",
        eos="<｜end▁of▁sentence｜>",
    ),
    Template(
        name="vicuna",
        source="lm-sys/FastChat fastchat/conversation.py, vicuna_v1.1",
        summary="Vicuna 1.1; a default system message; behind EOS a text starts anew, as with the "
        "tokenizer that it was trained with",
        default_system=_POLITE.format("user"),
        system="{system} ",
        user="USER: {user} ",
        cue="ASSISTANT:",
        answer=" {answer}",
        alternates=True,
        runs="restarted",
    ),
    Template(
        name="zephyr",
        source="huggingface/alignment-handbook; chat template of HuggingFaceH4/zephyr-7b-beta",
        summary="Zephyr; no default system message (the handbook's training puts an empty one in "
        "front: Encoder(system='') does too)",
        system="<|system|>\n{system}{eos}\n",
        user="<|user|>\n{user}{eos}\n",
        cue="<|assistant|>\n",
        tail="\n",
    ),
    Template(
        name="plain",
        source="prompt and completion, as pretraining and the OpenAI completion format have them",
        summary=f"The prompt, the completion, EOS; no system message. {_AGAIN}",
        user="{user}",
        alternates=True,
    ),
)
