"""LoRA on packed bins, merged into the base model: python examples/lora_merge.py [FOLDER].

A model that has been tuned before is hurt less by an adapter that was trained on its base and
merged into it than by tuning all of it once more.
"""

import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import tiny
from turnpack.torch import Collator, PackedDataset


def main(folder: Path, epochs: int = 3) -> None:
    """Prepare the sample, train on it, and write what comes of it into the folder."""
    torch.manual_seed(0)
    data = PackedDataset(tiny.bins(folder))
    adapter = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(tiny.model(), adapter)
    model.print_trainable_parameters()
    collator = Collator()
    arguments = TrainingArguments(
        output_dir=folder / "adapter",
        remove_unused_columns=False,  # seq_lengths are used
        per_device_train_batch_size=2,
        num_train_epochs=epochs,
        learning_rate=1e-2,
        logging_steps=5,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    Trainer(model=model, args=arguments, train_dataset=data, data_collator=collator).train()

    batch = collator([data[0]])
    model.eval()
    with torch.no_grad():
        trained = model(**batch).loss
    model.merge_and_unload().save_pretrained(folder / "merged")
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged")
    with torch.no_grad():
        loss = merged(**batch).loss
    print(f"loss with the adapter {trained:.4f}, of the merged model {loss:.4f}")
    assert torch.isclose(trained, loss, atol=1e-4)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "example-output"))
