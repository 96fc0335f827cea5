"""What the model may see, and what each of its losses says."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import norm

from sequential_encoder.flat import AMOUNTS, CATEGORIES, CATEGORY_ROW, flat
from sequential_encoder.model import LOSSES, SequentialEncoder, censored_normal
from tests.sequential_encoder.small_log import (
    ALL,
    DAYS,
    ROWS,
    SETTINGS,
    SKUS,
    URLS,
    model,
    samplers,
    source,
    span,
    store,
)
from ubp.data import schema
from ubp.data.schema import EventType
from ubp.sequences.layout import DAY
from ubp.sequences.store import Sequences
from ubp.training.content import hashed
from ubp.training.encode import Runtime, encode
from ubp.training.model import Batch
from ubp.training.nn import sampled_cross_entropy_of
from ubp.training.snapshot_source import BASKETS, CENSORED, CHURN, LABELS
from ubp.training.snapshot_source import DAYS as WAITED

END, DAY_ASKED = DAYS * DAY, 25 * DAY
ITEM_CODES = [event_type.code for event_type in schema.ITEM_EVENTS]
CPU = Runtime(batch_size=3, accelerator="cpu")


class Labels:
    """In place of a `SnapshotSource`."""

    def batch(self, rows: np.ndarray) -> Batch:
        rng = np.random.default_rng(len(rows))
        labels = torch.from_numpy(rng.integers(0, 2, (len(rows), 5)).astype(np.uint8))
        ones = {name: torch.from_numpy(rng.integers(0, 2, len(rows)).astype(np.float32)) for name in (CHURN, BASKETS)}
        rest = {name: torch.ones(len(rows)) for name in ("bought", "added", WAITED, CENSORED)}
        return {LABELS: labels, **ones, **rest}


def learning(days: tuple[int, ...] = (DAY_ASKED, END), seed: int = 1, since: int = 0) -> Batch:
    """A batch with everything to learn from."""
    whole = span(store(most=200), days=days, since=since)
    made = replace(source(whole), asked=Labels(), samplers=samplers(whole), negatives=4)
    return flat(made.batch(np.arange(7), np.random.default_rng(seed)))


@pytest.mark.parametrize("pooling", ["learned", "last"])
def test_a_profile_within_a_longer_history_is_that_of_the_history_cut_there(pooling: str) -> None:
    """So neither it, nor a loss that is read from it, sees an event after its day."""
    sequences, made = store(), model(pooling=pooling)
    longer = flat(source(span(sequences, days=(DAY_ASKED, END))).batch(np.arange(7)))
    cut = span(sequences, end=DAY_ASKED)
    with torch.inference_mode():
        profiles = made.profiles(made.states(longer, made.contents(longer)), longer)
        alone = made.encode(flat(source(cut).batch(np.arange(len(cut)))))
    rows = np.flatnonzero(np.isin(sequences.clients, cut.chosen.clients))
    torch.testing.assert_close(profiles[rows, 0], alone, atol=2e-5, rtol=1e-4)
    assert (profiles[:, 0] - profiles[:, 1]).abs().max() > 0.01


@pytest.mark.parametrize("training", [False, True])
def test_a_batch_of_visits_alone_has_no_categories_and_says_nothing_of_amounts(training: bool) -> None:
    sequences = store()
    visits = replace(
        sequences,
        event=np.full_like(sequences.event, EventType.PAGE_VISIT.code),
        subject=(sequences.subject % URLS).astype(np.int32),
    )
    made, batch = model().train(training), flat(source(span(visits)).batch(np.arange(7)))
    assert len(batch[CATEGORY_ROW]) == 0
    values = made.values(batch, made.contents(batch))
    assert not made.reading.amounts[CATEGORIES](CATEGORIES, values[CATEGORIES], batch).any()
    assert made.encode(batch).isfinite().all()


@pytest.mark.parametrize("name", AMOUNTS)
def test_amounts_are_those_of_each_value_before_the_day(name: str) -> None:
    """Against plain Python: the mean of the values' vectors, weighed by log(1 + decayed amount)."""
    made, days = model(), (DAY_ASKED, END)
    of, half_life = span(store(), days=days), 5.0
    batch = flat(source(of, replace(SETTINGS, merge=0)).batch(np.arange(7)))
    chosen, sequences = of.chosen, of.chosen.sequences
    with torch.inference_mode():
        contents = made.contents(batch)
        values = made.values(batch, contents)[name]
        found = made.reading.amounts[name](name, values, batch)
        for row, (day, end) in product(range(7), enumerate(days)):
            met: dict[tuple[int, ...], float] = {}
            whole: dict[tuple[int, ...], float] = {}
            for event in range(chosen.offsets[row], chosen.offsets[row + 1]):
                kind, subject = int(sequences.event[event]), int(sequences.subject[event])
                about = schema.EVENT_ORDER[kind].subject
                if sequences.time[event] >= end or (name == CATEGORIES and about != schema.SKU):
                    continue
                value = int(sequences.categories[subject]) if name == CATEGORIES else subject
                since = (end - sequences.time[event]) / DAY
                met[kind, value] = met.get((kind, value), 0) + 2 ** (-since / half_life)
                whole[kind, value] = whole.get((kind, value), 0) + 1
            for part, amounts in ((found[row, day, 8:], met), (found[row, day, :8], whole)):
                total = torch.zeros(8)
                for (kind, value), amount in amounts.items():
                    total += math.log1p(amount) * vector_of(made, name, kind, value, sequences)
                wanted = total / (1 + sum(map(math.log1p, amounts.values())))
                torch.testing.assert_close(part, wanted, atol=1e-5, rtol=1e-4)


def vector_of(made: SequentialEncoder, name: str, kind: int, value: int, sequences: Sequences) -> torch.Tensor:
    """Of an event type and what an event is about, as amounts are read by."""
    catalogue = source(span(sequences)).catalogue
    if name == CATEGORIES:
        ids = torch.from_numpy(hashed(schema.CATEGORY, np.array([value]), ROWS))
        content = made.category(made.content.ids(ids).flatten(1))
    else:
        place = [schema.SKU, schema.URL, schema.QUERY].index(schema.EVENT_ORDER[kind].subject)
        contents = catalogue.kinds[place].take(np.array([value])).tensors()
        content = (made.content.items, made.content.urls, made.content.queries)[place](contents)
    event = torch.tensor([kind])
    return made.reading.amounts[name].out(content * made.gain(event) + made.kind(event))[0]


def test_what_is_not_read_is_not_in_the_profile() -> None:
    """Each view of amounts has columns of what is read, and without any there are none."""
    widths = [model(amounts=names).reading.deep[0].in_features for names in ((), AMOUNTS[:1], AMOUNTS)]
    assert widths[1] - widths[0] == widths[2] - widths[1] == 2 * 8
    batch = flat(source(span(store())).batch(np.arange(7)), amounts=())
    assert not any(name.startswith(AMOUNTS) for name in batch)
    assert model(amounts=()).encode(batch).shape == (7, 16)


def test_a_profile_depends_on_no_other_client_and_on_no_padding() -> None:
    made, whole = model(), source(span(store()))
    together = encode(made, whole, Runtime(batch_size=7, accelerator="cpu"))
    for row in range(7):
        with torch.inference_mode():
            alone = made.encode(flat(whole.batch(np.array([row])))).numpy()
        np.testing.assert_allclose(alone[0], together[row], atol=2e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_that_weighs_nothing_is_off(name: str) -> None:
    batch = learning()
    on = model(ALL).loss_parts(batch)
    off = model(ALL | {name: 0.0}).loss_parts(batch)
    assert set(on) == set(LOSSES)
    assert set(off) == set(LOSSES) - {name}
    alone = model({name: 2.0})
    assert set(alone.loss_parts(batch)) == {name}
    assert float(alone.loss(batch)) == pytest.approx(2 * float(alone.loss_parts(batch)[name]))


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_reaches_the_content_encoder_and_is_finite(name: str) -> None:
    made = model({name: 1.0})
    made.loss(learning()).backward()
    slopes = made.content.item.weight.grad
    assert slopes is not None
    assert torch.isfinite(slopes).all()
    assert slopes.abs().max() > 0


def test_event_losses_ask_about_nothing_before_their_moment() -> None:
    made, weights = model(ALL), {}
    for since in (0, 20 * DAY, END):
        batch = learning(since=since)
        weights[since] = len(batch["next_at"])
        ages = batch["age"].flatten()[batch["next_at"] + 1]
        assert (ages <= (END - since) / DAY + 1e-4).all()
        assert torch.isfinite(made.loss(batch))
    assert weights[0] > weights[20 * DAY] > weights[END] == 0


def test_the_last_token_is_censored_at_the_end() -> None:
    batch = learning()
    waits = batch["wait"].flatten()[batch["last_at"]]
    ages = batch["age"].flatten()[batch["last_at"]]
    torch.testing.assert_close(waits, ages * 24)  # all that is known: nothing came until the end
    assert not set(batch["last_at"].tolist()) & set(batch["next_at"].tolist())


def test_the_time_loss_is_that_of_a_normal_density_with_survival() -> None:
    rng = np.random.default_rng(0)
    mean, spread, seen, more_mean, more_spread, longer = (rng.normal(size=6) for _ in range(6))
    wanted = -norm.logpdf(seen, mean, np.exp(spread)).sum() - norm.logsf(longer, more_mean, np.exp(more_spread)).sum()
    found = censored_normal(*(torch.from_numpy(v) for v in (mean, spread, seen, more_mean, more_spread, longer)))
    assert float(found) == pytest.approx(wanted / 12)


def test_a_value_known_to_be_larger_pulls_the_mean_up_only_while_it_is_below() -> None:
    mean = torch.tensor([0.0, 8.0], requires_grad=True)
    empty = torch.empty(0)
    censored_normal(empty, empty, empty, mean, torch.zeros(2), torch.tensor([4.0, 4.0])).backward()
    below, above = mean.grad.tolist()
    assert below < -1
    assert abs(above) < 1e-3


@pytest.mark.full
def test_log_q_recovers_the_true_ranking_under_a_skewed_sampler() -> None:
    """The last classes are wanted most, the first drawn most as negatives: without the correction these sink."""
    rng, classes = np.random.default_rng(0), 8
    truth = np.arange(1, classes + 1) / np.arange(1, classes + 1).sum()
    drawn_by = truth[::-1]

    def learned(corrected: bool) -> np.ndarray:
        table = torch.zeros(classes, 1, requires_grad=True)
        optimizer = torch.optim.Adam([table], lr=0.03)
        for _ in range(400):
            wanted = torch.from_numpy(rng.choice(classes, 256, p=truth))
            negatives = torch.from_numpy(rng.choice(classes, 200, p=drawn_by))
            logs = torch.log(torch.from_numpy(drawn_by.copy() * 200).float())[negatives] * corrected
            optimizer.zero_grad()
            ones = torch.ones(256, 1)
            sampled_cross_entropy_of(ones, table[wanted], table[negatives], wanted, negatives, logs).backward()
            optimizer.step()
        return table.detach().softmax(dim=0).numpy()[:, 0]

    np.testing.assert_allclose(learned(corrected=True), truth, atol=0.05)
    assert np.abs(learned(corrected=False) - truth).max() > 0.1


@pytest.mark.parametrize("popularity", [0.0, 0.7])
def test_next_items_are_scored_by_the_vectors_of_the_content_encoder(popularity: float) -> None:
    """An item that a batch is not about has a vector too: the loss is a softmax over the batch's negatives."""
    made, batch = model({"next_item": 1.0}, popularity=popularity), learning()
    counts = 1 + np.bincount(store(most=200).subject[np.isin(store(most=200).event, ITEM_CODES)], minlength=SKUS)
    names = {tuple(ids.tolist()): log for ids, log in zip(sku_ids(), np.log(counts / counts.sum()), strict=True)}
    begin = {place: popularity * names.get(tuple(ids.tolist()), 0) for place, ids in enumerate(batch["sku:ids"])}
    with torch.no_grad():
        contents = made.contents(batch)
        states = made.states(batch, contents).states.flatten(0, 1)
        asked = made.next["next_item"](states)[batch["item:at"]] / math.sqrt(8)
        total = 0.0
        for query, own in zip(asked, batch["item:own"], strict=True):
            logit = query @ contents[own] + begin[int(own)]
            others = [
                query @ contents[drawn] + begin[int(drawn)] - log_share - math.log(len(batch["item:drawn"]))
                for drawn, log_share in zip(batch["item:drawn"], batch["item:log_share"], strict=True)
                if drawn != own
            ]
            total += float(torch.stack([logit, *others]).logsumexp(0) - logit)
        assert float(made.loss(batch)) == pytest.approx(total / len(asked), rel=1e-4)


def sku_ids() -> np.ndarray:
    """Of all skus of the store: int32 [skus, hashes of both]."""
    return source(span(store(most=200))).catalogue.kinds[0].ids


def test_equal_subjects_share_a_vector_and_pairs_are_each_once() -> None:
    batch = learning()
    pairs = set(zip(batch["pair_event"].tolist(), batch["pair_subject"].tolist(), strict=True))
    assert len(pairs) == len(batch["pair_event"])
    assert len(torch.unique(batch["sku:ids"][1:], dim=0)) == len(batch["sku:ids"]) - 1
    assert int(batch["offsets"][-1]) < len(batch["bag"])
    assert len(batch["offsets"]) == int(batch["lengths"].sum())
    assert SETTINGS.merge > 0
