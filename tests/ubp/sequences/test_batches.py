"""Batches against a slow loop, and who is in which batch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ubp.data.schema import Token
from ubp.sequences.batches import gather, length_buckets


class TestGather:
    @given(
        st.lists(st.tuples(st.integers(0, 20), st.integers(0, 6)), max_size=8),
        st.booleans(),
        st.booleans(),
        st.integers(0, 10),
    )
    def test_is_the_slow_loop(self, ranges, start, end, pad_to):
        flat = np.arange(100, 130, dtype=np.uint16)
        columns = {"token": flat, "number": flat / 7, "codes": np.stack([flat, flat + 50], axis=1)}
        starts = np.array([first for first, _ in ranges], dtype=np.int64)
        lengths = np.array([length for _, length in ranges], dtype=np.int64)
        batch = gather(columns, starts, lengths, start=start, end=end, pad_to=pad_to)
        full = [length + start + end for _, length in ranges]
        time = max([*full, pad_to])
        assert batch.lengths.tolist() == full
        assert batch.columns["codes"].shape == (len(ranges), time, 2)
        assert batch.columns["token"].dtype == np.int64
        assert batch.columns["number"].dtype == np.float32
        for row, (first, length) in enumerate(ranges):
            middle = flat[first : first + length].tolist()
            wanted = [Token.START] * start + middle + [Token.END] * end
            padding = [Token.PADDING] * (time - len(wanted))
            assert batch.columns["token"][row].tolist() == wanted + padding
            numbers = [0.0] * start + [value / 7 for value in middle] + [0.0] * end + [0.0] * len(padding)
            np.testing.assert_allclose(batch.columns["number"][row], numbers, rtol=1e-6)
            assert batch.mask[row].tolist() == [True] * len(wanted) + [False] * len(padding)
            inner = batch.columns["codes"][row, start : start + length]
            assert inner.tolist() == [[value, value + 50] for value in middle]
        assert flat.tolist() == list(range(100, 130))

    def test_tensors_share_memory(self):
        torch = pytest.importorskip("torch")
        batch = gather({"token": np.array([5, 6, 7], dtype=np.uint8)}, np.array([0, 2]), np.array([2, 1]))
        columns, lengths = batch.tensors()
        assert columns["token"].dtype == torch.int64
        assert columns["token"].tolist() == [[5, 6], [7, 0]]
        assert lengths.tolist() == [2, 1]
        batch.columns["token"][0, 0] = 9
        assert columns["token"][0, 0] == 9


class TestBuckets:
    @given(
        st.lists(st.integers(1, 30), max_size=80),
        st.integers(1, 12),
        st.integers(1, 4),
        st.integers(0, 3),
        st.booleans(),
        st.integers(1, 5),
    )
    def test_every_client_once_over_the_ranks(self, lengths, batch_size, world, epoch, shuffle, pool):
        plans = [
            length_buckets(
                np.array(lengths, dtype=np.int64),
                batch_size,
                epoch=epoch,
                shuffle=shuffle,
                rank=rank,
                world=world,
                pool=pool,
            )
            for rank in range(world)
        ]
        batches = [batch for plan in plans for batch in plan]
        assert sorted(np.concatenate([*batches, np.zeros(0, dtype=np.int64)]).tolist()) == list(range(len(lengths)))
        sizes = [len(batch) for batch in batches]
        go_round = len(lengths) >= -(-len(lengths) // (batch_size * world)) * world
        assert max(sizes, default=0) <= batch_size + (not go_round)
        assert max(sizes, default=1) - min(sizes, default=1) <= 1
        if len(lengths) >= world:
            assert len({len(plan) for plan in plans}) == 1

    def test_seed_and_epoch_decide(self):
        lengths = np.random.default_rng(0).integers(1, 100, 1_000)

        def plan(**settings):
            return [batch.tolist() for batch in length_buckets(lengths, 32, **settings)]

        assert plan(seed=1, epoch=2) == plan(seed=1, epoch=2)
        assert plan(seed=1, epoch=2) != plan(seed=1, epoch=3)
        assert plan(seed=1, epoch=2) != plan(seed=2, epoch=2)
        assert plan(shuffle=False, seed=1) == plan(shuffle=False, seed=2)

    def test_lengths_in_a_batch_are_alike(self):
        lengths = np.random.default_rng(0).integers(1, 129, 20_000)
        plan = length_buckets(lengths, 100, seed=1)
        padded = sum(len(batch) * lengths[batch].max() for batch in plan)
        assert padded < 1.03 * lengths.sum()
        longest = [lengths[batch].max() for batch in plan]
        assert longest != sorted(longest)
        fixed = [lengths[batch].max() for batch in length_buckets(lengths, 100, shuffle=False)]
        assert fixed == sorted(fixed, reverse=True)

    def test_ranks_step_in_time(self):
        lengths = np.random.default_rng(0).integers(1, 129, 6_400)
        ranks = [length_buckets(lengths, 16, seed=1, rank=rank, world=2) for rank in range(2)]
        for left, right in zip(*ranks, strict=True):
            assert abs(lengths[left].max() - lengths[right].max()) <= 4
