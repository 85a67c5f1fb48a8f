"""One rank of test_torch_distributed: trains to the end of an epoch and prints what it was given.

Run by torch.distributed's own launcher or as a plain process with its environment variables.
"""

import json
import os
import sys

import numpy as np
import torch
from torch import distributed
from torch.utils.data import DataLoader

from turnpack.torch import Collator, PackingBatchSampler

LENGTHS = np.clip(np.random.default_rng(0).lognormal(2, 1, 53), 1, 40).astype(int)


class Documents:
    """Document n is n, as often as it is long."""

    def __len__(self):
        return len(LENGTHS)

    def __getitem__(self, row):
        return {"input_ids": [row] * int(LENGTHS[row]), "labels": [row] * int(LENGTHS[row])}


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, input_ids, **batch):
        return (self.weight * input_ids).mean()


def train(folder, resume=None):
    """The documents of three epochs under Trainer, batch by batch, set up as the README says."""
    import transformers

    seen = []

    class Packing(transformers.Trainer):
        def get_train_dataloader(self):
            ranks = self.accelerator.num_processes
            self.sampler = PackingBatchSampler(LENGTHS, 64, 1, 0, multiple_of=ranks)
            loader = DataLoader(Documents(), batch_sampler=self.sampler, collate_fn=Collator())
            return self.accelerator.prepare(loader)

        def compute_loss(self, model, inputs, **given):
            starts = inputs["cu_seq_lens_q"][:-1].long()
            seen.append(inputs["input_ids"][0, starts].tolist())
            return model(**inputs)

    class Telling(transformers.TrainerCallback):
        def on_train_begin(self, arguments, state, control, **given):
            trainer.sampler.set_epoch(int(state.epoch or 0))

    arguments = transformers.TrainingArguments(
        output_dir=folder,
        num_train_epochs=3,
        save_steps=1,
        save_strategy="steps",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
    )
    trainer = Packing(Model(), arguments, train_dataset=Documents(), callbacks=[Telling()])
    trainer.train(resume_from_checkpoint=resume)
    return seen


def resumed(folder):
    """Of a whole run and of one that goes on within its second epoch."""
    whole = train(f"{folder}/whole")
    step = len(whole) // 3 + 2
    rest = train(f"{folder}/rest", f"{folder}/whole/checkpoint-{step}")
    print("seen", json.dumps({"whole": whole, "rest": rest, "step": step}), flush=True)


def main(how):
    torch.set_num_threads(1)
    collator = Collator()
    seen = []
    if how == "torch":
        distributed.init_process_group("gloo")
        sampler = PackingBatchSampler(LENGTHS, 64, batch_size=2)
        loader = DataLoader(Documents(), batch_sampler=sampler, collate_fn=collator)
        model = torch.nn.parallel.DistributedDataParallel(Model())
        backward = torch.Tensor.backward
    else:
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=True)
        sampler = PackingBatchSampler(
            LENGTHS, 64, 1, 0, batch_size=2, multiple_of=accelerator.num_processes
        )
        loader = DataLoader(Documents(), batch_sampler=sampler, collate_fn=collator)
        model, loader = accelerator.prepare(Model(), loader)
        backward = accelerator.backward
    for _ in range(2):
        rows = []
        for batch in loader:
            backward(model(**batch))  # a rank that had no partner would wait here for ever
            starts = batch["cu_seq_lens_q"][:-1].long()
            rows.append(batch["input_ids"][0, starts].tolist())
        seen.append(rows)
    print("seen", json.dumps({"length": len(loader), "epochs": seen}), flush=True)
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()
        # All is said. On a busy machine a thread of gloo's may still be there, and C++ ends the
        # interpreter's last moments by an abort.
        os._exit(0)


if __name__ == "__main__":
    resumed(sys.argv[2]) if sys.argv[1] == "trainer" else main(sys.argv[1])
