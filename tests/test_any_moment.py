"""What has a state goes on from any moment as if nothing had happened: `Planner`, and the sampler
and the stream of turnpack.torch. hypothesis looks for the moments."""

import json
import pickle

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import agree
from turnpack import kernels, reference
from turnpack.torch import PackingBatchSampler, PackingIterableDataset

FEW = settings(max_examples=40, stateful_step_count=30, deadline=None)


class Planners(RuleBasedStateMachine):
    """The core and the reference side by side, each at times replaced by one that loads."""

    @initialize(
        capacity=st.integers(1, 40),
        window=st.integers(1, 6),
        align=st.integers(1, 4),
        max_rows=st.none() | st.integers(1, 4),
    )
    def make(self, capacity, window, align, max_rows):
        self.capacity = capacity
        self.arguments = (capacity, window), {"align": align, "max_rows": max_rows}
        self.core, self.reference = self.new(kernels), self.new(reference)

    def new(self, module):
        arguments, options = self.arguments
        return module.Planner(*arguments, **options)

    # Many that fill a bin, so that one that does not waits until it is due.
    @rule(shares=st.lists(st.sampled_from([0, 1, 1, 1]) | st.floats(0, 1), max_size=30))
    def add(self, shares):
        lengths = [1 + int(share * (self.capacity - 1)) for share in shares]
        self.same("add", lengths)

    @rule(lengths=st.lists(st.integers(-1, 50) | st.integers(2**63 - 4, 2**63 - 1), max_size=4))
    def add_anything(self, lengths):
        self.same("add", lengths)

    @rule()
    def flush(self):
        self.same("flush")

    @rule()
    def go_on_elsewhere(self):
        state = json.loads(json.dumps(self.core.state_dict()))
        self.core, self.reference = self.new(kernels), self.new(reference)
        self.same("load_state_dict", state)

    @rule(rows=st.integers(-2, 2**63 - 1), row=st.integers(-2, 60), length=st.integers(-1, 41))
    def load_anything(self, rows, row, length):
        state = {**self.core.state_dict(), "rows": rows}
        self.same("load_state_dict", state)
        state = self.core.state_dict()
        state["waiting"].append(row)
        state["lengths"].append(length)
        self.same("load_state_dict", state)

    def same(self, verb, *arguments):
        found, wanted = (
            agree.outcome(getattr(planner, verb), *arguments)
            for planner in (self.core, self.reference)
        )
        assert agree.equal(found, wanted), f"{verb}{arguments}: {found} instead of {wanted}"

    @invariant()
    def stand_at_one_place(self):
        if hasattr(self, "core"):
            assert self.core.state_dict() == self.reference.state_dict()


class Epochs(RuleBasedStateMachine):
    """Items one at a time, epoch after epoch; at any moment another object goes on.

    `make` says what is iterated over and `wanted` what an epoch of it is without interruption.
    """

    @initialize(seed=st.integers(0, 3), rank=st.integers(0, 1), size=st.integers(2, 12))
    def start(self, seed, rank, size):
        self.settings = seed, rank, size
        self.running = self.make()
        self.items = None
        self.epoch = self.done = 0
        self.epochs = {}

    def wanted(self):
        if self.epoch not in self.epochs:
            whole = self.make()
            whole.set_epoch(self.epoch)
            self.epochs[self.epoch] = list(whole)
        return self.epochs[self.epoch]

    @rule(count=st.integers(1, 4))
    def take(self, count):
        for _ in range(count):
            if self.items is None:
                self.items = iter(self.running)
            wanted = self.wanted()[self.done : self.done + 1]
            found = next(self.items, None)
            assert plain([] if found is None else [found]) == plain(wanted)
            self.done += 1
            if found is None:
                self.items = None
                self.epoch, self.done = self.epoch + 1, 0

    @rule()
    def go_on_elsewhere(self):
        state = pickle.loads(pickle.dumps(self.running.state_dict()))
        self.running = self.make()
        self.running.load_state_dict(state)
        self.items = None


def plain(items):
    """With lists for arrays, so that they compare."""
    return [
        {key: value.tolist() for key, value in item.items()} if isinstance(item, dict) else item
        for item in items
    ]


class Samplers(Epochs):
    def make(self):
        seed, rank, size = self.settings
        lengths = np.random.default_rng(size).integers(1, 20, 4 * size)
        return PackingBatchSampler(lengths, 20, num_replicas=2, rank=rank, seed=seed)


class Streams(Epochs):
    def make(self):
        _, rank, size = self.settings
        documents = [
            {"input_ids": list(range(n, n + 1 + n * 7 % 9)), "labels": [-100] * (1 + n * 7 % 9)}
            for n in range(4 * size)
        ]
        return PackingIterableDataset(documents, 16, size, num_replicas=2, rank=rank)


for machine in (Planners, Samplers, Streams):
    machine.TestCase.settings = FEW
TestPlanners, TestSamplers, TestStreams = (
    machine.TestCase for machine in (Planners, Samplers, Streams)
)
