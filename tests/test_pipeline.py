"""What runs in which thread: chunks come back in order, and a bounded number waits."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnpack import pipeline
from turnpack.pipeline import Chunk, encoded


class Counting:
    """Work that counts the chunks and the text between its first step and its last."""

    def __init__(self, gate=None):
        self.chunks = self.size = self.most_chunks = self.most_size = 0
        self.gate = gate

    def begin(self, chunk):
        self.chunks += 1
        self.size += chunk.size
        self.most_chunks = max(self.most_chunks, self.chunks)
        self.most_size = max(self.most_size, self.size)
        return SimpleNamespace(chunk=chunk)

    def tokenize(self, parsed):
        assert threading.current_thread() is not threading.main_thread()
        if self.gate is not None:
            assert self.gate.wait(60)
        return SimpleNamespace(parsed=parsed)

    def finish(self, tokenized):
        chunk = tokenized.parsed.chunk
        self.chunks -= 1
        self.size -= chunk.size
        return chunk


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), max_size=40), st.integers(0, 5), st.integers(0, 30))
def test_chunks_come_in_order_and_few_wait(sizes, ahead, ahead_size):
    chunks = [Chunk(0, [], size, 0) for size in sizes]
    work = Counting()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "AHEAD", ahead)
        patch.setattr(pipeline, "AHEAD_SIZE", ahead_size)
        assert list(encoded(work, iter(chunks), 1)) == chunks
    assert work.most_chunks <= ahead + 1
    assert work.most_size <= ahead_size + max(sizes, default=0)
    assert (work.chunks, work.size) == (0, 0)


def test_rendering_goes_ahead_of_a_slow_tokenizer():
    gate = threading.Event()
    work = Counting(gate)

    def chunks():
        for number in range(pipeline.AHEAD):
            yield Chunk(0, [], number, 0)
        gate.set()

    assert [chunk.size for chunk in encoded(work, chunks(), 1)] == [*range(pipeline.AHEAD)]
    assert work.most_chunks == pipeline.AHEAD


def test_what_is_done_is_passed_on_after_a_while(monkeypatch):
    monkeypatch.setattr(pipeline, "PATIENCE", 0)
    read, tokenized = [], threading.Semaphore(0)

    class Telling(Counting):
        def tokenize(self, parsed):
            tokenized.release()
            return super().tokenize(parsed)

    def chunks():
        for number in range(pipeline.AHEAD):
            read.append(number)
            yield Chunk(0, [], number, 0)
            assert tokenized.acquire(timeout=60)
            time.sleep(0.01)  # until its future is done

    next(encoded(Telling(), chunks(), 1))
    assert len(read) < pipeline.AHEAD
