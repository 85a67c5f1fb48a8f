"""TRL's SFTTrainer on packed bins: python examples/trl_sft.py [FOLDER]."""

import sys
from pathlib import Path

import torch
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

import tiny


def main(folder: Path, epochs: int = 10) -> None:
    """Prepare the sample, train on it, and write what comes of it into the folder."""
    torch.manual_seed(0)
    data = tiny.bins(folder) / "data"
    bins = load_dataset(
        "parquet",
        data_files=str(data / "train-*.parquet"),
        split="train",
        cache_dir=folder / "cache",
    )
    config = SFTConfig(
        output_dir=folder / "trained",
        packing=False,  # they are packed already
        padding_free=True,  # this is what keeps the conversations of a bin apart
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        per_device_train_batch_size=2,
        num_train_epochs=epochs,
        learning_rate=3e-3,
        logging_steps=5,
        save_strategy="no",
        bf16=False,
        report_to=[],
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        tiny.model(),
        args=config,
        train_dataset=bins.remove_columns("source"),
        processing_class=tiny.tokenizer(folder),
    )
    trainer.train()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "example-output"))
