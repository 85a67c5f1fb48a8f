"""What the other examples train: bins of the sample conversations, and a tiny random Llama.

For a model of your own, `turnpack prepare` makes the bins and `from_pretrained` loads the rest.
"""

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from turnpack.prepare import prepare

SAMPLE = Path(__file__).parent / "sample"


def bins(folder: Path) -> Path:
    """Prepare the sample conversations, with a tokenizer trained on them."""
    files = sorted([*SAMPLE.glob("*.json"), *SAMPLE.glob("*.jsonl")])
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    markers = ["<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(marker, special=True) for marker in markers],
    )
    tokenizer.train_from_iterator((path.read_text("utf-8") for path in files), trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    prepare(
        files,
        tokenizer=folder / "tokenizer.json",
        template="chatml",
        eos_token="<|im_end|>",
        max_length=512,
        output=folder / "bins",
        sinks=["numpy"],
    )
    return folder / "bins"


def tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The same tokenizer, as transformers has it."""
    return PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
    )


def model() -> LlamaForCausalLM:
    """A Llama of half a million random weights."""
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=1,
    )
    return LlamaForCausalLM(config)
