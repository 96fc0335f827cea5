import numpy as np
import pytest
import torch
from torch.nn import functional

from next_sku.model import CATEGORY, COLUMNS, EVENT, PRICE, LossWeights, NextSku, Usual
from next_sku.recipe import (
    NextSkuNetwork,
    NextSkuRecipe,
    NextSkuSequences,
    Predictions,
    build_model,
    predict,
    price_scores,
    report,
    select_events,
    tokenise,
    usual_events,
)
from ubp.cli.config import composed
from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.paths import CONFIGS
from ubp.data.schema import EVENT_TYPES, FIRST_TOKEN, EventType
from ubp.io.errors import UserError
from ubp.sequences.vocabulary import event_tokens
from ubp.training.encode import encode
from ubp.training.fit import fit
from ubp.training.model import LENGTHS
from ubp.training.ranking import MODEL, POPULAR, REPEATED
from ubp.training.settings import TrainerSettings
from ubp.training.windows import AGE, LAST, Pooling, Windows, WindowSettings

CATEGORIES = FIRST_TOKEN + 3
POOLING = Pooling(LAST, 12, None)
USUAL = Usual(torch.tensor([0] * FIRST_TOKEN + [3, 2, 1]), torch.tensor([0] * FIRST_TOKEN + [3, 5]), 40.0, 20.0)


def windows(categories, events, prices, longest=12):
    """Sequences as one list per client."""
    lengths = np.array([len(sequence) for sequence in categories], np.int64)
    columns = {
        CATEGORY: np.concatenate(categories).astype(np.uint16) + FIRST_TOKEN,
        EVENT: np.concatenate(events).astype(np.uint8) + FIRST_TOKEN,
        PRICE: np.concatenate(prices).astype(np.float32),
    }
    clients = np.arange(len(lengths), dtype=np.int64)
    return Windows(clients, np.cumsum(lengths) - lengths, lengths, columns, WindowSettings(6, longest, longest, None))


def drawn(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return windows(
        [rng.integers(0, 3, length) for length in lengths],
        [rng.integers(0, 2, length) for length in lengths],
        [rng.integers(0, 100, length) for length in lengths],
    )


def model_of(losses=(1.0, 1.0, 1.0), dropout=0.2, layers=2, training=False, window=12):
    torch.manual_seed(0)
    return NextSku(USUAL, 12, 3, layers, 4, window, dropout, dropout, LossWeights(*losses), POOLING).train(training)


@pytest.fixture(scope="module")
def source():
    return drawn([5, 2, 9, 3, 12, 2])


@pytest.mark.parametrize("window", [12, 5])
@pytest.mark.parametrize("profile", ["last", "sum"])
def test_a_vector_depends_on_its_own_sequence_alone(source, profile, window):
    model = model_of(window=window)
    model.pooling = Pooling(profile, 12, None)
    together = model.encode(source.batch(np.arange(6)))
    assert together.shape == (6, model.width) == (6, 16)
    for row in range(6):  # no neighbours, no padding
        torch.testing.assert_close(model.encode(source.batch(np.array([row])))[0], together[row])


def test_the_newest_window_is_read_as_if_nothing_were_before_it(source):
    model = model_of(window=5)
    whole = source.batch(np.array([4]))
    assert whole[LENGTHS] == 12
    newest = {name: values[:, -5:] if values.dim() > 1 else values for name, values in whole.items()}
    newest[LENGTHS] = torch.tensor([5])
    torch.testing.assert_close(model.encode(whole), model.encode(newest))


@pytest.mark.parametrize("column", COLUMNS)
def test_a_later_event_changes_no_prediction_before_it(source, column):
    model = model_of()
    batch = source.batch(np.array([4]))
    before = model.predict(batch)[PRICE]
    for place in range(12):
        changed = {name: values.clone() for name, values in batch.items()}
        changed[column][0, place] = 50.0 if column == PRICE else FIRST_TOKEN
        changed[column][0, place] += (batch[column][0, place] == changed[column][0, place]).to(changed[column].dtype)
        after = model.predict(changed)[PRICE]
        torch.testing.assert_close(after[:place], before[:place])
        if place < 11:
            assert (after[place:] - before[place:]).abs().max() > 1e-6


@pytest.mark.parametrize("losses", [(1.0, 1.0, 1.0), (0.5, 2.0, 0.0)])
def test_the_loss_against_a_loop_over_clients_and_places(source, losses):
    model = model_of(losses)
    parts = {name: [] for name in COLUMNS}
    for row in range(6):
        batch = source.batch(np.array([row]))
        time = int(batch[LENGTHS][0])
        states = model.outputs(batch)[0]
        for place in range(time - 1):
            category, event, price = states[place].split([12, 3, 1])
            wanted = {name: batch[name][0, place + 1] for name in COLUMNS}
            category = model.category_head.weight @ category + model.category_head.bias
            event = model.event_head.weight @ event + model.event_head.bias
            price = 40 + 20 * (model.price_head.weight[0] * price + model.price_head.bias)
            logits = category @ model.category.weight.t() + model.category_bias
            event_logits = event @ model.event.weight.t() + model.event_bias
            parts[CATEGORY].append(functional.cross_entropy(logits, wanted[CATEGORY]))
            parts[EVENT].append(functional.cross_entropy(event_logits, wanted[EVENT]))
            parts[PRICE].append((price[0] - wanted[PRICE]).abs())
    wanted_loss = sum(weight * torch.stack(parts[name]).mean() for weight, name in zip(losses, COLUMNS, strict=True))
    batch = source.batch(np.arange(6))
    torch.testing.assert_close(model.loss(batch), wanted_loss)
    assert model.weight(batch) == len(parts[PRICE]) == 4 + 1 + 8 + 2 + 11 + 1


def test_it_begins_by_predicting_what_is_usual():
    model = model_of()
    shares = torch.softmax(model.category_bias, 0)[FIRST_TOKEN:]
    torch.testing.assert_close(shares / shares.sum(), torch.tensor([4.0, 3.0, 2.0]) / 9)  # each once more
    # The last layer norm gives numbers of size 1: about a mean deviation around the median.
    prices = model.predict(drawn([12] * 50).batch(np.arange(50)))[PRICE].detach()
    assert prices.mean() == pytest.approx(40, abs=15)
    assert 5 < prices.std() < 40


def test_the_price_counts_in_buckets(source):
    """Its part of the loss is some 25 buckets beside cross-entropies of 1, and it moves the model."""
    batch = source.batch(np.arange(6))
    alone = model_of((0.0, 0.0, 1.0))
    predictions, targets = alone._predictions(batch)
    error = (predictions[PRICE][:, 0] - targets[PRICE]).abs().mean()
    torch.testing.assert_close(alone.loss(batch), error)
    assert error > 10
    norms = []
    for losses in [(1.0, 1.0, 0.0), (0.0, 0.0, 1.0)]:
        model = model_of(losses)
        model.loss(batch).backward()
        norms.append(sum(float((weight.grad**2).sum()) for weight in model.transformer.parameters()) ** 0.5)
    assert norms[1] > norms[0]


def test_prices_drown_nothing_beside_them(source):
    """As buckets they would be fifty times as large as the rest of an event's vector."""
    model, seen = model_of(), []
    model.transformer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.encode(source.batch(np.arange(6)))
    assert seen[0][:, :, -1].std() < 2 * seen[0][:, :, :-1].std()


def test_a_client_with_one_event_has_a_vector_and_no_part_in_the_loss():
    model, source = model_of(), drawn([1, 4])
    alone = source.batch(np.array([0]))
    assert model.weight(alone) == 0
    assert model.encode(alone).isfinite().all()
    torch.testing.assert_close(model.loss(source.batch(np.arange(2))), model.loss(source.batch(np.array([1]))))


def cycles(clients=40):
    """A → B → C → A …, one event type after the other, the price that of the category."""
    starts = np.arange(clients) % 3
    return windows(
        [(start + np.arange(20)) % 3 for start in starts],
        [(start + np.arange(20)) % 2 for start in starts],
        [((start + np.arange(20)) % 3) * 25 for start in starts],
    )


def test_a_cycle_is_learnt(tmp_path):
    source, model = cycles(), model_of((1.0, 1.0, 0.05), dropout=0.0, layers=1, training=True)
    settings = TrainerSettings(
        max_epochs=15, patience=15, batch_size=8, learning_rate=0.01, accelerator="cpu", held_out=0.2
    )
    trained = fit(model, source, settings, tmp_path, seed=0)
    scores = report(trained, source, CATEGORIES, event_tokens(EVENT_TYPES))
    assert scores["category mrr@10"][MODEL] > 0.99
    assert scores["event hit_rate@1"][MODEL] > 0.99
    assert scores["price MAE, buckets"][MODEL] < 5
    assert scores["price Spearman"][MODEL] > 0.85
    assert trained.model.headline in scores
    # Of three categories the next one is the one that was met longest ago.
    assert scores["category mrr@10"][REPEATED] < 0.4
    assert scores["category mrr@10"][POPULAR] < 0.8
    assert POPULAR not in scores["price Spearman"]
    # The best epoch's weights encode.
    best = torch.load(trained.best_checkpoint, weights_only=False)["state_dict"]
    other = model_of(dropout=0.0, layers=1)
    other.load_state_dict({name.removeprefix("model."): values for name, values in best.items()})
    vectors = encode(trained.model, source, trained.runtime)
    with torch.inference_mode():
        np.testing.assert_allclose(vectors, other.encode(source.batch(np.arange(40))).numpy(), atol=1e-5)


def test_predictions_stand_beside_their_targets(tmp_path):
    source = cycles()
    settings = TrainerSettings(max_epochs=1, patience=1, batch_size=4, accelerator="cpu", held_out=0.2)
    trained = fit(model_of(layers=1, training=True), source, settings, tmp_path, seed=0)
    predicted = predict(trained, source)
    assert len(predicted.targets[EVENT]) == 8 * 11  # held-out clients × the newest twelve events' successors
    assert ((predicted.targets[CATEGORY] - FIRST_TOKEN) == (predicted.before[CATEGORY] - FIRST_TOKEN + 1) % 3).all()
    assert {name: len(values) for name, values in predicted.by_model.items()} == dict.fromkeys(COLUMNS, 88)


def test_price_scores_by_hand():
    targets, predicted, before = torch.tensor([[0.0, 50, 100], [10, 40, 30], [20, 20, 20]])
    scores = price_scores(Predictions({PRICE: targets}, {PRICE: before}, {PRICE: predicted}, {}), usual=50)
    errors = scores["price MAE, buckets"]
    assert errors[MODEL] == pytest.approx(30)
    assert errors[POPULAR] == pytest.approx(100 / 3)
    assert errors[REPEATED] == pytest.approx(130 / 3)
    assert scores["price Spearman"] == {MODEL: pytest.approx(0.5)}  # the others predict the same everywhere


class TestRecipe:
    @pytest.fixture(scope="class")
    @staticmethod
    def data(make_history, tmp_path_factory):
        data = ChallengeData(make_history().write(tmp_path_factory.mktemp("sku")), submit=True, unknown_sku="drop")
        clients = np.unique(np.concatenate([data.events(e).collect()["client_id"].to_numpy() for e in EVENT_TYPES]))
        data.paths.relevant_clients.parent.mkdir(parents=True, exist_ok=True)
        np.save(data.paths.relevant_clients, clients[::2])
        return data

    @staticmethod
    def settings(**changes):
        base = {"shortest": 3, "longest": 6, "newest": 6, "window": None, "clients": "relevant", "min_count": 1}
        return NextSkuSequences(**(base | changes))

    @staticmethod
    def tokenised(data, clients, min_count=1):
        chosen = select_events(data, clients)
        categories = chosen.vocabulary(schema.CATEGORY, min_count=min_count)
        return tokenise(chosen, categories, data.as_of, TestRecipe.settings()), categories.size

    def test_a_sequence_is_the_clients_item_events_in_order(self, data):
        source, categories = self.tokenised(data, data.relevant_clients)
        properties = {row[0]: row[1:] for row in data.properties().select("sku", "category", "price").collect().rows()}
        events = [
            (client, time, -schema.EVENT_ORDER.index(event_type), sku)
            for event_type in schema.ITEM_EVENTS
            for client, time, sku in data.events(event_type).select("client_id", "timestamp", "sku").collect().rows()
        ]
        assert set(source.clients.tolist()) <= set(data.relevant_clients.tolist())
        assert categories == FIRST_TOKEN + len(
            {properties[event[3]][0] for event in events if event[0] in set(source.clients.tolist())}
        )
        for row, client in enumerate(source.clients.tolist()):
            own = sorted(event for event in events if event[0] == client)
            places = slice(source.starts[row], source.starts[row] + source.events[row])
            assert source.events[row] == len(own)
            prices = sorted(properties[sku][1] for *_, sku in own)
            np.testing.assert_allclose(sorted(source.columns[PRICE][places]), prices, rtol=1e-6)
            by_category = source.columns[CATEGORY][places]
            assert len(set(by_category.tolist())) == len({properties[sku][0] for *_, sku in own})
            ages = [(data.as_of - time).total_seconds() / 86_400 for _, time, *_ in own]
            np.testing.assert_allclose(source.columns[AGE][places], ages, rtol=1e-6, atol=1e-5)

    def test_what_is_usual(self, data):
        source, categories = self.tokenised(data, None)
        usual = usual_events(source, categories, event_tokens(EVENT_TYPES))
        assert len(usual.categories) == categories
        assert usual.categories.sum() == usual.events.sum() == source.events.sum()
        bought = FIRST_TOKEN + EventType.PRODUCT_BUY.code
        assert usual.events[bought] == data.rows(EventType.PRODUCT_BUY)
        assert usual.price == np.median(source.columns[PRICE])
        assert usual.deviation == pytest.approx(np.abs(source.columns[PRICE] - usual.price).mean())
        source.columns[PRICE][:] = 7
        assert usual_events(source, categories, event_tokens(EVENT_TYPES)).deviation == 1

    def test_by_the_config_all_clients_with_two_events_train_and_the_relevant_ones_are_encoded(self, data):
        config = composed(CONFIGS / "next_sku", "next_sku", ["sequences.longest=32", "sequences.newest=32"])
        prepared = NextSkuRecipe.of(config).prepare(data, seed=0)
        everyone = select_events(data, None)
        np.testing.assert_array_equal(prepared.train_source.clients, everyone.clients[everyone.lengths >= 2])
        assert not set(prepared.train_source.clients.tolist()) <= set(data.relevant_clients.tolist())
        found = prepared.block.encode(data, data.relevant_clients)
        np.testing.assert_array_equal(found.client_ids, np.intersect1d(everyone.clients, data.relevant_clients))

    def test_only_the_relevant_ones_train_if_asked(self, data):
        overrides = ["sequences.longest=32", "sequences.newest=32", "sequences.clients=relevant"]
        recipe = NextSkuRecipe.of(composed(CONFIGS / "next_sku", "next_sku", overrides))
        assert set(recipe.prepare(data, seed=0).train_source.clients) <= set(data.relevant_clients)

    def test_rare_categories_share_a_token(self, data):
        source, categories = self.tokenised(data, data.relevant_clients, min_count=10_000)
        assert categories == FIRST_TOKEN
        assert set(source.columns[CATEGORY].tolist()) == {schema.Token.OTHER}

    def test_wrong_choices_say_what_is_right(self):
        with pytest.raises(UserError, match="relevant or all"):
            self.settings(clients="some")
        right = {
            "category_width": 12,
            "event_width": 3,
            "layers": 1,
            "heads": 4,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "profile": "last",
            "half_life": None,
        }
        with pytest.raises(UserError, match="last or sum"):
            NextSkuNetwork(**(right | {"profile": "first"}))
        with pytest.raises(UserError, match=r"model\.dropout=1\.0"):
            NextSkuNetwork(**(right | {"dropout": 1.0}))
        with pytest.raises(UserError, match=r"model\.attention_dropout=1\.5"):
            NextSkuNetwork(**(right | {"attention_dropout": 1.5}))
        with pytest.raises(UserError, match=r"model\.event_width=0: must be at least 1"):
            NextSkuNetwork(**(right | {"event_width": 0}))
        with pytest.raises(UserError, match=r"model\.layers=0: must be at least 1"):
            NextSkuNetwork(**(right | {"layers": 0}))
        with pytest.raises(UserError, match="5 heads do not divide a width of 16; the width is category_width"):
            build_model(USUAL, self.settings(), NextSkuNetwork(**(right | {"heads": 5})))
