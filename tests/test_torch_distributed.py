"""Two real processes in step to the end of a set whose size nothing divides."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

RANKS = 2


def run(*how):
    """What each rank was given, epoch by epoch."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(RANKS):
        given = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": RANKS}
        given |= {"RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": RANKS, "OMP_NUM_THREADS": 1}
        processes.append(
            subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("in_step.py")), *how],
                env={**os.environ, **{name: str(value) for name, value in given.items()}},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        said = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, error) in zip(processes, said, strict=True):
        assert process.returncode == 0, error
    return [
        json.loads(line.removeprefix("seen "))
        for out, _ in said
        for line in out.splitlines()
        if line.startswith("seen ")
    ]


@pytest.mark.parametrize("how", ["torch", "accelerate"])
def test_ranks_are_in_step_and_every_document_comes_once(how):
    ranks = run(how)
    assert len(ranks) == RANKS
    for epoch in range(2):
        batches = [rank["epochs"][epoch] for rank in ranks]
        assert {len(each) for each in batches} == {ranks[0]["length"]}
        assert sorted(row for each in batches for batch in each for row in batch) == list(range(53))
    assert ranks[0]["epochs"][0] != ranks[0]["epochs"][1]


@pytest.mark.thorough
def test_trainer_resumes_where_its_ranks_were(tmp_path):
    pytest.importorskip("transformers")
    for seen in (ranks := run("trainer", str(tmp_path))):
        assert seen["rest"] == seen["whole"][seen["step"] :]
    size = len(ranks[0]["whole"]) // 3
    for epoch in range(3):
        batches = [each["whole"][epoch * size : (epoch + 1) * size] for each in ranks]
        assert sorted(row for each in batches for batch in each for row in batch) == list(range(53))
