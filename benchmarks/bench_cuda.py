"""The kernels of the GPU: GB/s against a copy on the device, times against torch's own operators.

`python benchmarks/bench_cuda.py` prints a table and writes results/cuda.json; without a GPU it says
why and measures nothing. Rounds of all forms take turns, times are medians by CUDA's events. Bytes
are the floor: what has to be read and written once (csrc/pack.cuh, concat.cuh, mask.cuh).
"""

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch

import turnpack.torch
from turnpack import Tokens, cuda_available, kernels
from turnpack.torch import _ops

RESULTS = Path(__file__).parent / "results" / "cuda.json"
TOKENS = 64_000_000
ROUNDS = 20


def rows_of(size, capacity):
    """Rows of `size` tokens: lognormal lengths, median 350, sigma 0.9, from 8 to the capacity."""
    rng = np.random.default_rng(0)
    drawn = np.clip(rng.lognormal(np.log(350), 0.9, size // 300), 8, capacity).astype(np.int64)
    lengths = drawn[: np.searchsorted(np.cumsum(drawn), size)]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    n = int(offsets[-1])
    loss_mask = rng.integers(0, 2, n, np.uint8)
    loss_mask[offsets[:-1]] = 0
    return Tokens(rng.integers(0, 150_000, n, np.int32), loss_mask, offsets)


def pack_by_torch(ids, mask, starts, sources, numbers, shape, pad_id, dtype, by="repeat"):
    """What one writes in torch; `by` is how the piece of each cell is found."""
    cells = int(np.prod(shape))
    at = torch.arange(cells, device=ids.device)
    if by == "repeat":
        every = torch.arange(len(numbers), device=ids.device)
        piece = torch.repeat_interleave(every, starts.diff(), output_size=cells)
    else:
        piece = torch.searchsorted(starts, at, right=True) - 1
    position = at - starts[piece]
    source = sources[piece]
    padding = source < 0
    token = torch.where(padding, 0, source + position)
    id_of = ids[token].to(dtype)
    target = (mask[token] != 0) & (position > 0) & ~padding
    made = (
        torch.where(padding, pad_id, id_of),
        torch.where(target, id_of, -100),
        position.to(dtype),
        numbers[piece].to(dtype),
    )
    return [cells_of.view(shape) for cells_of in made]


def medians(forms):
    """Milliseconds of each form on the current stream."""
    times = {name: [] for name in forms}
    for _ in range(3):
        for run in forms.values():
            run()
    for _ in range(ROUNDS):
        for name, run in forms.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            end.synchronize()
            times[name].append(begin.elapsed_time(end))
    return {name: float(np.median(found)) for name, found in times.items()}


def copy_of(gigabytes):
    """A copy on the device that reads half of these bytes and writes the other half."""
    source = torch.ones(int(gigabytes * 1e9) // 2, dtype=torch.uint8, device="cuda")
    return partial(torch.empty_like(source).copy_, source)


def equal(made, expected):
    assert all(map(torch.equal, made, expected))


def bench_pack(capacity, dtype):
    tokens = rows_of(TOKENS, capacity)
    plan = kernels.plan(tokens.lengths, capacity)
    staged = turnpack.torch.stage(tokens, plan).to("cuda")
    names = ("input_ids", "loss_mask", "starts", "sources", "numbers")
    ids, mask, *tables = (staged.arrays()[name] for name in names)
    rest = [plan.num_bins, capacity], 0, dtype
    ours = partial(_ops.pack, ids, mask, None, *tables, *rest)
    forms = {"ours": ours}
    for by in ("repeat", "search"):
        forms[f"torch, {by}"] = partial(pack_by_torch, ids, mask, *tables, *rest, by=by)
        equal(forms[f"torch, {by}"](), ours())
    cells = plan.num_bins * capacity
    moved = 5 * len(ids) + 4 * dtype.itemsize * cells + 28 * len(tables[2])
    yield f"pack to {dtype} at {capacity:,}", moved, forms


def bench_from_host(capacity):
    """Arrays of the CPU in, int64 bins on the device out."""
    tokens = rows_of(TOKENS // 4, capacity)
    plan = kernels.plan(tokens.lengths, capacity)

    def by_cpu():
        made = kernels.pack(tokens, plan, dtype=np.int64, threads=torch.get_num_threads())
        cells = made.input_ids, made.labels, made.position_ids, made.segment_ids
        return [torch.from_numpy(each).to("cuda") for each in cells]

    def ours():
        made = turnpack.torch.pack(tokens, plan)
        return made.input_ids, made.labels, made.position_ids, made.segment_ids

    equal(ours(), by_cpu())
    moved = 5 * len(tokens.input_ids) + 32 * plan.num_bins * capacity
    yield "pack from the CPU", moved, {"ours": ours, "built by the CPU": by_cpu}


def bench_others(capacity):
    tokens = rows_of(TOKENS, capacity)
    plan = kernels.plan(tokens.lengths, capacity)
    packed = turnpack.torch.pack(tokens, plan)
    offsets, sources, _ = _ops.module().unpack_pieces(
        packed.rows, packed.bin_offsets, packed.boundaries, packed.input_ids.numel(), capacity
    )
    n = len(tokens.input_ids)
    given = [torch.from_numpy(each).cuda() for each in (offsets, sources)]
    unpack = partial(_ops.unpack, packed.input_ids, packed.labels, None, *given, n)
    equal(
        unpack(), [torch.from_numpy(each).cuda() for each in (tokens.input_ids, tokens.loss_mask)]
    )
    yield "unpack from int64", (16 + 5) * n, {"ours": unpack}

    ids = torch.from_numpy(tokens.input_ids).cuda()
    patterns = kernels.flatten([[1, 2], [3]]), kernels.flatten([[4], [5, 6, 7]])
    *tables, states = _ops.module().mask_pieces(tokens.offsets, n, *patterns[0], *patterns[1])
    given = [torch.from_numpy(each).cuda() for each in tables]
    yield "mask_markers", 5 * n, {"ours": partial(_ops.mask_markers, ids, *given, True, states)}

    roles = np.arange(len(tokens)) % 2
    rows = np.append(np.arange(0, len(tokens), 2), len(tokens))
    around, ends = kernels.flatten([[1, 2, 3], [4], [1, 5, 3], [4]])
    flags = np.array([0, 1], np.uint8)
    *tables, offsets = _ops.module().concat_pieces(
        n, tokens.offsets, roles, rows, ends, flags, flags, 0, 0
    )
    size = int(offsets[-1])
    given = [torch.from_numpy(each).cuda() for each in (around, *tables)]
    moved = 9 * size + 17 * len(tables[2])
    yield "concat", moved, {"ours": partial(_ops.concat, ids, *given, size)}


def main():
    found = cuda_available()
    if not found:
        print(f"Not measured: {found.reason}.")
        return 0
    results = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "groups": {}}
    print("| what | form | median | GB/s | of a copy |\n| --- | --- | ---: | ---: | ---: |")
    benches = [bench_pack(size, torch.int64) for size in (4096, 32_768)]
    benches += [bench_pack(4096, torch.int32), bench_from_host(4096), bench_others(4096)]
    for bench in benches:
        for what, moved, forms in bench:
            forms["copy"] = copy_of(moved / 1e9)
            times = medians(forms)
            results["groups"][what] = {"bytes": moved, "median_ms": times}
            for form, time in times.items():
                speed, share = moved / time / 1e6, times["copy"] / time
                print(f"| {what} | {form} | {time:.3f} ms | {speed:,.0f} | {share:.0%} |")
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
