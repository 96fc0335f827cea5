import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ubp.training.host_reads import host_reads
from ubp.io.errors import UserError
from ubp.training.model import LENGTHS
from ubp.training.windows import (
    AGE,
    FIRST,
    REAL,
    Pooling,
    Windows,
    WindowSettings,
    at_targets,
    read_in_windows,
    real_targets,
    require_pooling,
    trimmed,
    with_targets,
)


def windows(lengths, shortest=3, longest=6, newest=6, window=None):
    """Client i's events are i·100, i·100 + 1, …; some events of nobody lie between."""
    lengths = np.asarray(lengths, np.int64)
    starts = np.cumsum(lengths + 2) - lengths
    column = np.full(int(lengths.sum() + 2 * len(lengths)), 7, np.int32)
    for client, (start, length) in enumerate(zip(starts, lengths, strict=True), start=1):
        column[start : start + length] = client * 100 + np.arange(length)
    clients = np.arange(1, len(lengths) + 1) * 10
    columns = {"sku": column, "price": column.astype(np.float32)}
    return Windows(clients, starts, lengths, columns, WindowSettings(shortest, longest, newest, window))


def test_without_a_generator_the_newest_events_are_given():
    source = windows([2, 20, 6])
    batch = source.batch(np.array([1, 0, 2]))
    assert batch["sku"].tolist() == [[214, 215, 216, 217, 218, 219], [100, 101, 0, 0, 0, 0], [*range(300, 306)]]
    assert batch["price"].dtype.is_floating_point
    assert batch[LENGTHS].tolist() == [6, 2, 6]
    assert batch[FIRST].tolist() == [0, 0, 0]
    assert source.lengths.tolist() == [2, 6, 6]


def test_real_places_are_those_of_the_mask_and_read_nothing_on_the_device():
    batch = windows([2, 20, 9]).batch(np.arange(3), np.random.default_rng(1))
    micro_batch = {name: values[:1] for name, values in batch.items()}
    placed = with_targets(micro_batch)
    assert placed["sku"].shape == (1, 2)  # cut to what the micro-batch needs
    batch = with_targets(batch)
    wanted = batch["sku"][:, 1:][real_targets(batch)]
    with host_reads() as reads:
        found = at_targets(batch["sku"][:, 1:], batch)
        assert with_targets(batch)[REAL] is batch[REAL]
    assert found.tolist() == wanted.tolist()
    assert reads == []


def test_in_training_windows_are_random_and_hold_the_event_that_follows():
    source = windows([2, 20, 9])
    rows = np.arange(3)
    drawn = [source.batch(rows, np.random.default_rng(seed)) for seed in range(300)]
    lengths = {int(batch["sku"].shape[1]) for batch in drawn}
    assert lengths == {4, 5, 6, 7}  # 3 to 6 events that are read, and one that is to be predicted
    begins = set()
    for batch in drawn:
        assert batch[LENGTHS].tolist() == [2, batch["sku"].shape[1], min(batch["sku"].shape[1], 9)]
        for client, (row, length) in enumerate(zip(batch["sku"].tolist(), batch[LENGTHS].tolist(), strict=True), 1):
            assert row[:length] == list(range(row[0], row[0] + length))
            assert row[0] // 100 == row[length - 1] // 100 == client
            assert row[length:] == [0] * (len(row) - length)
        begins.add(batch["sku"][1, 0].item())
    assert begins == set(range(200, 217))  # the oldest and the newest event both come up


@pytest.mark.parametrize(("window", "last"), [(None, 6), (9, 9)])
def test_every_position_is_trained_and_none_beyond_the_windows_last(window, last):
    source = windows([20, 20], newest=12, window=window)
    firsts, ends = set(), set()
    for seed in range(200):
        batch = source.batch(np.arange(2), np.random.default_rng(seed))
        read = batch[LENGTHS] - 1  # the last event is only to be predicted
        firsts |= set(batch[FIRST].tolist())
        ends |= set((batch[FIRST] + read).tolist())
    assert firsts == set(range(last - 2))
    assert ends == set(range(3, last + 1))


def test_the_same_generator_gives_the_same_windows():
    source = windows([20, 20])
    one, other = (source.batch(np.arange(2), np.random.default_rng(4)) for _ in range(2))
    assert all((one[name] == other[name]).all() for name in one)


def test_some_clients_alone():
    source = windows([2, 20, 1, 6])
    assert source.at_least(2).clients.tolist() == [10, 20, 40]
    chosen = source.of_clients(np.array([40, 20, 999]))
    assert chosen.clients.tolist() == [20, 40]
    assert chosen.batch(np.array([1]))["sku"].tolist() == [[*range(400, 406)]]


def test_the_events_of_some_clients():
    source = windows([2, 4, 1])
    inside = source.events_of(np.array([0, 2]))
    assert source.columns["sku"][inside].tolist() == [100, 101, 300]
    touching = Windows(np.arange(3), np.array([0, 2, 5]), np.array([2, 3, 1]), {"a": np.arange(6)}, source.settings)
    assert touching.events_of(np.array([0, 1])).tolist() == [True] * 5 + [False]
    assert touching.events_of(np.arange(3)).all()


def test_targets_are_where_an_event_follows_whatever_the_padding():
    batch = windows([2, 4, 1]).batch(np.arange(3))
    assert real_targets(batch).tolist() == [[True, False, False], [True, True, True], [False, False, False]]
    part = {name: values[[0, 2]] for name, values in batch.items()}
    short = trimmed(part)
    assert short["sku"].tolist() == [[100, 101], [300, 0]]
    assert real_targets(short).tolist() == [[True], [False]]


def test_more_events_may_be_encoded_than_a_window_has():
    source = windows([20, 5], newest=9)
    assert source.lengths.tolist() == [9, 5]
    assert source.batch(np.arange(2))["sku"][0].tolist() == list(range(111, 120))
    drawn = [source.batch(np.array([0]), np.random.default_rng(seed)) for seed in range(200)]
    assert max(int(batch[LENGTHS]) for batch in drawn) == 7


def running(vectors, first):
    """A causal model: the sum of the vectors so far, each weighed by its position."""
    places = first[:, None] + torch.arange(1, vectors.shape[1] + 1)
    return (vectors * places[:, :, None]).cumsum(dim=1)


def windows_by_hand(vectors, lengths, window):
    """One window after the other, each as a batch of its own; nothing behind a sequence's end."""
    outputs = torch.full_like(vectors, torch.nan)
    for row, length in enumerate(lengths.tolist()):
        end = length
        while end > 0:
            begin = max(end - window, 0)
            outputs[row, begin:end] = running(vectors[None, row, begin:end], torch.zeros(1))[0]
            end = begin
    return outputs


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(0, 23), min_size=1, max_size=6),
    window=st.integers(1, 25),
    padding=st.integers(0, 5),
)
def test_windows_against_a_loop(lengths, window, padding):
    lengths = torch.tensor(lengths)
    vectors = torch.randn(
        len(lengths), max(int(lengths.max()) + padding, 1), 2, generator=torch.Generator().manual_seed(0)
    )
    real = torch.arange(vectors.shape[1]) < lengths[:, None]
    vectors[~real] = torch.nan  # whatever stands at padding must not be seen
    outputs = read_in_windows(running, vectors, lengths, torch.zeros_like(lengths), window)
    assert outputs.shape == vectors.shape
    torch.testing.assert_close(outputs[real], windows_by_hand(vectors, lengths, window)[real])


def test_no_more_than_a_window_is_read_at_a_time():
    spans = []

    def watched(vectors, first):
        spans.append(vectors.shape[:2])
        return running(vectors, first)

    read_in_windows(watched, torch.zeros(3, 20, 2), torch.tensor([20, 5, 8]), torch.zeros(3), window=8)
    assert spans == [(3 + 1 + 1, 8)]


def test_what_fits_into_a_window_begins_at_its_own_position():
    vectors, first = torch.randn(2, 5, 2), torch.tensor([3, 0])
    outputs = read_in_windows(running, vectors, torch.tensor([5, 4]), first, window=5)
    assert (outputs == running(vectors, first)).all()


def test_pooled_vectors_against_a_loop():
    torch.manual_seed(0)
    outputs, lengths, ages = torch.randn(4, 5, 3), torch.tensor([5, 1, 3, 2]), torch.rand(4, 5) * 30
    batch = {LENGTHS: lengths, AGE: ages}
    last, total, recent = (
        Pooling(*how)(outputs, batch) for how in [("last", 8, None), ("sum", 8, None), ("sum", 8, 7)]
    )
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(last[row], outputs[row, length - 1])
        torch.testing.assert_close(total[row], outputs[row, :length].sum(dim=0) / 8)
        weighted = [0.5 ** (ages[row, place] / 7) * outputs[row, place] for place in range(length)]
        torch.testing.assert_close(recent[row], torch.stack(weighted).sum(dim=0) / 7)


@pytest.mark.parametrize(
    ("how", "line"),
    [
        (("first", None), "profile=first: must be last or sum"),
        (("sum", 0.0), r"half_life=0\.0: must be above 0, or null"),
        (("last", 7.0), r"half_life=7\.0: must be null where model\.profile is not sum"),
    ],
)
def test_poolings_that_make_no_sense(how, line):
    with pytest.raises(UserError, match=line):
        require_pooling(*how)
    require_pooling("sum", 7.0)
    require_pooling("last", None)


@pytest.mark.parametrize("lengths", [(0, 5, 5), (4, 3, 4), (3, 5, 4)])
def test_lengths_that_make_no_sense(lengths):
    with pytest.raises(UserError, match="must be at least"):
        WindowSettings(*lengths, window=None)


@pytest.mark.parametrize("window", [4, 9])
def test_windows_that_make_no_sense(window):
    with pytest.raises(UserError, match=r"window=.: must be from sequences.longest to sequences.newest, or null"):
        WindowSettings(3, 5, 8, window)
    assert WindowSettings(3, 5, 8, 7).positions == 7
    assert WindowSettings(3, 5, 8, None).positions == 5
