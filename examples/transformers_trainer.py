"""transformers' Trainer on packed bins: python examples/transformers_trainer.py [FOLDER]."""

import sys
from pathlib import Path

import torch
from transformers import Trainer, TrainingArguments

import tiny
from turnpack.torch import Collator, PackedDataset, isolation


def main(folder: Path, epochs: int = 10) -> None:
    """Prepare the sample, train on it, and write what comes of it into the folder."""
    torch.manual_seed(0)
    data = PackedDataset(tiny.bins(folder))
    model = tiny.model()
    collator = Collator()
    # Before any training: does this model keep the conversations of a bin apart?
    found = isolation(model, collator([data[0], data[1]]))
    print(found)
    assert found
    arguments = TrainingArguments(
        output_dir=folder / "trained",
        remove_unused_columns=False,  # seq_lengths are used
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        num_train_epochs=epochs,
        learning_rate=3e-3,
        logging_steps=5,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=data, data_collator=collator)
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "example-output"))
