"""A plain PyTorch loop with a model of its own: python examples/plain_loop.py [FOLDER].

Documents are packed anew every epoch, and the run can be resumed at any step. On a GPU attention is
`torch.nn.attention.varlen`, which takes the boundaries as the collator makes them; on a CPU, where
that is not to be had, each document attends by itself.
"""

import sys
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.data import DataLoader

import tiny
from turnpack.torch import Collator, PackedDataset, PackingBatchSampler, weighted_loss

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def attend(query, key, value, boundaries, longest):
    """Causal attention within each document; `[tokens, heads, size]`."""
    if query.is_cuda:
        from torch.nn.attention.varlen import varlen_attn

        return varlen_attn(
            query, key, value, boundaries, boundaries, longest, longest, window_size=(-1, 0)
        )
    ends = boundaries.tolist()
    parts = [
        scaled_dot_product_attention(
            *(each[a:b].transpose(0, 1) for each in (query, key, value)), is_causal=True
        ).transpose(0, 1)
        for a, b in pairwise(ends)
    ]
    return torch.cat(parts)


class Block(nn.Module):
    """Attention and a feed-forward layer."""

    def __init__(self, size, heads):
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(size), nn.LayerNorm(size)
        self.project, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.feed = nn.Sequential(nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size))

    def forward(self, x, boundaries, longest):
        mixed = self.project(self.before(x)).unflatten(-1, (3, self.heads, -1))
        x = x + self.out(attend(*mixed.unbind(1), boundaries, longest).flatten(1))
        return x + self.feed(self.between(x))


class Model(nn.Module):
    """A small language model over all tokens of a batch, back to back."""

    def __init__(self, vocabulary=1000, size=128, heads=4, layers=2, longest=1024):
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, size), nn.Embedding(longest, size)
        self.blocks = nn.ModuleList(Block(size, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(size), nn.Linear(size, vocabulary, bias=False)

    def forward(self, batch):
        x = self.tokens(batch["input_ids"][0]) + self.places(batch["position_ids"][0])
        for block in self.blocks:
            x = block(x, batch["cu_seq_lens_q"], batch["max_length_q"])
        return self.head(self.norm(x))[None]


def main(folder: Path, epochs: int = 10) -> None:
    """Prepare the sample, train on it, and write what comes of it into the folder."""
    torch.manual_seed(0)
    data = PackedDataset(tiny.bins(folder), documents=True)
    sampler = PackingBatchSampler(data.lengths, capacity=512, batch_size=2, cost="attention")
    # Every document counts alike, however many targets it has.
    loader = DataLoader(data, batch_sampler=sampler, collate_fn=Collator(normalize="sequence"))
    model = Model().to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for epoch in range(epochs):
        losses = []
        for batch in loader:
            batch = {k: v.to(DEVICE) if torch.is_tensor(v) else v for k, v in batch.items()}
            with torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda"):
                logits = model(batch)
            loss = weighted_loss(logits, batch["labels"], batch["loss_weights"])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        print(f"epoch {epoch}: {len(losses)} batches, loss {sum(losses) / len(losses):.3f}")
    torch.save({"model": model.state_dict(), "sampler": sampler.state_dict()}, folder / "last.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "example-output"))
