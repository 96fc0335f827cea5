import time

import numpy as np
import pytest
import torch
from torch.nn import functional

from next_url.model import BATCH, CLIENT, FREQUENCY, UNIFORM, NextUrl, Sampling
from next_url.recipe import (
    NextUrlNetwork,
    NextUrlRecipe,
    NextUrlSequences,
    build_model,
    known_urls,
    report,
    select_visits,
    tokenise,
)
from ubp.cli.config import composed
from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.paths import CONFIGS
from ubp.data.schema import EVENT_TYPES, FIRST_TOKEN, EventType
from ubp.io.errors import NoUsableEvents, UserError
from ubp.training.encode import encode
from ubp.training.fit import fit
from ubp.training.ranking import MODEL, POPULAR, REPEATED
from ubp.training.settings import TrainerSettings
from ubp.training.windows import LAST, Pooling, Windows, WindowSettings

URLS = 9
POOLING = Pooling(LAST, 12, None)


def windows(urls, longest=12):
    """Sequences as one list per client."""
    lengths = np.array([len(sequence) for sequence in urls], np.int64)
    columns = {schema.URL: np.concatenate(urls).astype(np.int32) + FIRST_TOKEN}
    clients = np.arange(len(lengths), dtype=np.int64)
    return Windows(
        clients, np.cumsum(lengths) - lengths, lengths, columns, WindowSettings(longest, longest, longest, None)
    )


def drawn(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return windows([rng.integers(0, URLS, length) for length in lengths])


def model_of(sampling, counts=(9, 8, 7, 6, 5, 4, 3, 2, 1), dropout=0.0, training=False, window=12):
    torch.manual_seed(0)
    return NextUrl(torch.as_tensor(counts), 16, 1, 2, window, dropout, dropout, sampling, POOLING).train(training)


FULL = Sampling(URLS, BATCH, UNIFORM, log_q=True)


@pytest.fixture(scope="module")
def source():
    return drawn([5, 2, 9, 3, 12, 2])


def full_loss(model, batch):
    hidden, wanted = model._hidden(batch)
    return functional.cross_entropy(hidden @ model.url.weight[FIRST_TOKEN:].t(), wanted - FIRST_TOKEN)


@pytest.mark.parametrize("window", [12, 5])
@pytest.mark.parametrize("profile", ["last", "sum"])
def test_a_vector_depends_on_its_own_sequence_alone(source, profile, window):
    model = model_of(FULL, dropout=0.3, window=window)
    model.pooling = Pooling(profile, 12, None)
    together = model.encode(source.batch(np.arange(6)))
    for row in range(6):  # no neighbours, no padding
        torch.testing.assert_close(model.encode(source.batch(np.array([row])))[0], together[row])


def test_a_later_visit_changes_no_hidden_state_before_it(source):
    model = model_of(FULL)
    batch = source.batch(np.array([4]))
    before = model._hidden(batch)[0]
    for place in range(11):
        changed = {name: values.clone() for name, values in batch.items()}
        changed[schema.URL][0, place] = FIRST_TOKEN + (changed[schema.URL][0, place] - FIRST_TOKEN + 1) % URLS
        after = model._hidden(changed)[0]
        torch.testing.assert_close(after[:place], before[:place])
        assert (after[place] - before[place]).abs().max() > 1e-3


def test_where_no_more_urls_than_negatives_the_softmax_is_full(source):
    model, batch = model_of(FULL), source.batch(np.arange(6))
    assert not model.sampled
    torch.testing.assert_close(model.loss(batch), full_loss(model, batch))
    assert model.weight(batch) == sum(length - 1 for length in (5, 2, 9, 3, 12, 2))
    (one,) = model.optimizers(0.1)
    assert isinstance(one, torch.optim.Adam)


@pytest.mark.parametrize("by", [UNIFORM, FREQUENCY])
def test_the_sampled_loss_is_the_full_one_on_average(source, by, monkeypatch):
    """With its logarithm of expected counts; one drawn batch of negatives alone is off."""
    model, batch = model_of(Sampling(8, BATCH, by, log_q=True)), source.batch(np.arange(6))
    assert model.sampled
    few = torch.stack([model.loss(batch) for _ in range(20)]).detach()
    assert few.std() > 0.01
    monkeypatch.setattr(model, "sampling", Sampling(100_000, BATCH, by, log_q=True))
    torch.testing.assert_close(model.loss(batch), full_loss(model, batch), rtol=0.01, atol=0.01)
    monkeypatch.setattr(model, "sampling", Sampling(100_000, BATCH, by, log_q=False))
    assert model.loss(batch) > full_loss(model, batch) + 5


@pytest.mark.parametrize("log_q", [True, False])
def test_negatives_of_a_clients_own_against_a_loop(source, log_q, monkeypatch):
    model, rows = model_of(Sampling(4, CLIENT, FREQUENCY, log_q)), np.arange(6)
    draws = [model.draw() for _ in rows]
    losses = []
    for row, (negatives, log_counts) in zip(rows, draws, strict=True):
        hidden, wanted = model._hidden(source.batch(np.array([row])))
        for state, target in zip(hidden, wanted, strict=True):
            others = negatives + FIRST_TOKEN != target
            logits = model.url.weight[negatives[others] + FIRST_TOKEN] @ state - log_counts[others]
            logits = torch.cat([model.url.weight[target, None] @ state, logits])
            losses.append(-logits.log_softmax(0)[0])
    upcoming = iter(draws)
    monkeypatch.setattr(model, "draw", lambda: next(upcoming))
    torch.testing.assert_close(model.loss(source.batch(rows)), torch.stack(losses).mean())
    assert next(upcoming, None) is None


@pytest.mark.parametrize("by", [UNIFORM, FREQUENCY])
def test_urls_are_drawn_by_their_shares(by):
    model = model_of(Sampling(200_000, BATCH, by, log_q=True), counts=(50, 30, 15, 5))
    negatives, log_counts = model.draw()
    found = torch.bincount(negatives, minlength=4) / 200_000
    wanted = torch.tensor([0.5, 0.3, 0.15, 0.05] if by == FREQUENCY else [0.25] * 4)
    torch.testing.assert_close(found, wanted, rtol=0.03, atol=0)
    torch.testing.assert_close(log_counts, (wanted[negatives] * 200_000).log())
    torch.manual_seed(3)
    one = model.draw()[0]
    torch.manual_seed(3)
    assert (model.draw()[0] == one).all()


def test_ranks_are_against_all_urls(source):
    model, batch = model_of(Sampling(3, BATCH, UNIFORM, log_q=True)), source.batch(np.arange(6))
    hidden, wanted = model._hidden(batch)
    logits = hidden @ model.url.weight[FIRST_TOKEN:].t()
    for row, rank in enumerate(model.ranks(batch).tolist()):
        assert logits[row].argsort(descending=True)[rank - 1] == wanted[row] - FIRST_TOKEN


def test_a_step_moves_only_the_rows_that_it_read(source):
    model = model_of(Sampling(2, BATCH, UNIFORM, log_q=True), counts=[1] * 500)
    before = model.url.weight.detach().clone()
    optimizers = model.optimizers(0.1)
    model.loss(source.batch(np.arange(6))).backward()
    for optimizer in optimizers:
        optimizer.step()
    moved = (model.url.weight != before).any(dim=1)
    assert URLS <= moved.sum() <= URLS + 2
    assert sum(len(group["params"]) for one in optimizers for group in one.param_groups) == len(
        list(model.parameters())
    )


def test_with_dense_gradients_one_adam_steps_all_and_the_loss_is_the_same(source):
    """What several devices exchange, see `SequenceModel.use_dense_gradients`."""
    losses, grads = [], []
    for dense in (False, True):
        model = model_of(Sampling(5, BATCH, UNIFORM, log_q=True))
        if dense:
            model.use_dense_gradients()
        torch.manual_seed(1)
        loss = model.loss(source.batch(np.arange(6)))
        loss.backward()
        losses.append(loss)
        assert model.url.weight.grad.is_sparse != dense
        grads.append(model.url.weight.grad.to_dense())
        assert len(model.optimizers(0.1)) == (1 if dense else 2)
    assert losses[0] == losses[1]
    torch.testing.assert_close(*grads)
    (adam,) = model.optimizers(0.1)
    assert len(adam.param_groups[0]["params"]) == len(list(model.parameters()))
    adam.step()


def test_a_steps_time_does_not_grow_with_the_table(source):
    """A hundred times the urls; dense gradients and Adam would take a hundred times the table's time."""
    seconds = []
    for urls in (5_000, 500_000):
        model = model_of(Sampling(50, BATCH, FREQUENCY, log_q=True), counts=torch.ones(urls, dtype=torch.int64))
        optimizers, batch, times = model.optimizers(0.001), source.batch(np.arange(6)), []
        for _ in range(8):
            started = time.process_time()
            for optimizer in optimizers:
                optimizer.zero_grad()
            model.loss(batch).backward()
            for optimizer in optimizers:
                optimizer.step()
            times.append(time.process_time() - started)
        seconds.append(min(times))
    assert seconds[1] < 20 * seconds[0]  # a busy neighbour takes the caches


def cycles(clients=40):
    """A → B → C → A …, and urls that nobody visits."""
    return windows([(client + np.arange(20)) % 3 for client in range(clients)])


@pytest.mark.parametrize(
    "sampling",
    [
        FULL,
        *(
            pytest.param(sampling, marks=pytest.mark.full)
            for sampling in (
                Sampling(4, BATCH, UNIFORM, log_q=True),
                Sampling(4, BATCH, FREQUENCY, log_q=True),
                Sampling(4, BATCH, UNIFORM, False),
                Sampling(4, CLIENT, UNIFORM, False),
            )
        ),
    ],
)
def test_a_cycle_is_learnt_and_the_best_epoch_encodes(tmp_path, sampling):
    source, counts = cycles(), (100, 100, 100, 1, 1, 1, 1, 1, 1)
    settings = TrainerSettings(
        max_epochs=8, patience=8, batch_size=8, learning_rate=0.02, accelerator="cpu", held_out=0.2, validation=0.2
    )
    trained = fit(model_of(sampling, counts, training=True), source, settings, tmp_path, seed=0)
    scores = report(trained, source, URLS)
    assert scores["mrr@10"][MODEL] > 0.99
    assert scores["mrr@10"][REPEATED] < 0.4
    assert scores["mrr@10"][POPULAR] < 0.8
    assert trained.model.headline in scores
    assert trained.best_score > 0.99  # NDCG, not a loss
    best = torch.load(trained.best_checkpoint, weights_only=False)["state_dict"]
    assert not any("cumulative" in name for name in best)
    other = model_of(sampling, counts)
    other.load_state_dict({name.removeprefix("model."): values for name, values in best.items()})
    vectors = encode(trained.model, source, trained.runtime)
    with torch.inference_mode():
        np.testing.assert_allclose(vectors, other.encode(source.batch(np.arange(40))).numpy(), atol=1e-5)


class TestRecipe:
    @pytest.fixture(scope="class")
    @staticmethod
    def data(make_history, tmp_path_factory):
        data = ChallengeData(make_history().write(tmp_path_factory.mktemp("url")), submit=True, unknown_sku="drop")
        clients = np.unique(np.concatenate([data.events(e).collect()["client_id"].to_numpy() for e in EVENT_TYPES]))
        data.paths.relevant_clients.parent.mkdir(parents=True, exist_ok=True)
        np.save(data.paths.relevant_clients, clients[::2])
        return data

    @pytest.mark.parametrize("min_count", [1, 18])
    def test_visits_to_urls_that_have_enough(self, data, min_count):
        chosen = select_visits(data, data.relevant_clients)
        urls = known_urls(chosen, min_count)
        source, counts = tokenise(chosen, urls, data, NextUrlSequences(6, 6, 6, None, min_count)), urls.counts
        visits = (
            data.events(EventType.PAGE_VISIT)
            .collect()
            .filter(data.events(EventType.PAGE_VISIT).collect()["client_id"].is_in(data.relevant_clients.tolist()))
        )
        by_url = visits.group_by("url").len()
        wanted = by_url.filter(by_url["len"] >= min_count)
        assert sorted(counts.tolist()) == sorted(wanted["len"].to_list())
        kept = visits.filter(visits["url"].is_in(wanted["url"].to_list()))
        assert source.events.sum() == len(kept) == counts.sum()
        assert source.clients.tolist() == sorted(set(kept["client_id"].to_list()))
        tokens = source.columns[schema.URL]
        assert tokens.min() >= FIRST_TOKEN  # never the padding's id
        assert np.bincount(tokens - FIRST_TOKEN).tolist() == counts.tolist()

    def test_no_visits_at_all_are_said_so(self, make_history, tmp_path):
        paths = make_history(empty=[EventType.PAGE_VISIT]).write(tmp_path)
        paths.input.mkdir()
        np.save(paths.relevant_clients, np.array([1]))
        recipe = NextUrlRecipe.of(composed(CONFIGS / "next_url", "next_url", ["logger=none"]))
        with pytest.raises(
            NoUsableEvents, match=r"no usable events: 0 events of page_visit before .*; leave the block out"
        ):
            recipe.prepare(ChallengeData(paths, submit=True), 0)

    def test_visits_of_too_few_clients_are_counted(self, make_history, tmp_path):
        history = make_history()
        paths = history.write(tmp_path)
        paths.input.mkdir()
        visits = history.events[EventType.PAGE_VISIT]
        np.save(paths.relevant_clients, visits["client_id"].mode()[:1].to_numpy())
        words = ["logger=none", "preset=demo", "sequences.min_count=1", "model.layers=1"]
        recipe = NextUrlRecipe.of(composed(CONFIGS / "next_url", "next_url", words))
        with pytest.raises(NoUsableEvents) as raised:
            recipe.fit(ChallengeData(paths, submit=True), 0, tmp_path / "fit")
        (line,) = raised.value.messages
        assert "clients with events to learn from: 1; training needs at least 3: " in line
        assert f": {len(visits):,} events of page_visit before " in line

    def test_wrong_settings_say_what_is_right(self, data):
        visits = select_visits(data, data.relevant_clients)
        most = visits.vocabulary(schema.URL).counts[0]
        says = f"min_count=99999: no url has so many .*: {len(visits):,} events .*, {most} at most .*; choose {most} or"
        with pytest.raises(NoUsableEvents, match=says):
            known_urls(visits, 99_999)
        right = {
            "width": 8,
            "layers": 1,
            "heads": 2,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "profile": "last",
            "half_life": None,
            "negatives": 5,
            "negatives_for": "batch",
            "sampling": "uniform",
        }
        with pytest.raises(UserError, match="uniform or frequency"):
            NextUrlNetwork(**(right | {"sampling": "popular"}), log_q=True)
        with pytest.raises(UserError, match="negatives_for=step: must be batch or client"):
            NextUrlNetwork(**(right | {"negatives_for": "step"}), log_q=True)
        with pytest.raises(UserError, match="negatives=0: must be at least 1"):
            NextUrlNetwork(**(right | {"negatives": 0}), log_q=True)
        with pytest.raises(UserError, match=r"model\.attention_dropout=1\.0: must be from 0 to below 1"):
            NextUrlNetwork(**(right | {"attention_dropout": 1.0}), log_q=True)
        with pytest.raises(UserError, match=r"model\.heads: 3 heads do not divide a width of 8"):
            build_model(
                np.ones(9, np.int64),
                NextUrlSequences(6, 6, 6, None, 1),
                NextUrlNetwork(**(right | {"heads": 3}), log_q=True),
            )
