import pickle
from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import pytest
import torch

from gru_autoencoder.model import GruAutoencoder, Reading
from gru_autoencoder.recipe import AutoencoderNetwork, build_model
from gru_autoencoder.report import free_running
from gru_autoencoder.tokens import (
    AutoencoderSequences,
    Calendar,
    FeatureSettings,
    Tokeniser,
    TokenSource,
    select_events,
)
from ubp.data.history import ChallengeData
from ubp.data.schema import EVENT_TYPES, FIRST_TOKEN, Token
from ubp.io.errors import UserError
from ubp.sequences.batches import gather
from ubp.training.kernels import limited_threads
from ubp.training.model import LENGTHS
from ubp.training.nn import Feature

PRICED = (FIRST_TOKEN, FIRST_TOKEN + 2)  # tokens of the events that have a price
FEATURES = [Feature("event", FIRST_TOKEN + 4, 6), Feature("price", FIRST_TOKEN + 9, 6, PRICED)]


def source_of(lengths, seed=0):
    rng = np.random.default_rng(seed)
    lengths = np.asarray(lengths, np.int64)
    total = int(lengths.sum())
    columns = {feature.name: rng.integers(FIRST_TOKEN, feature.ids, total) for feature in FEATURES}
    columns["price"][~np.isin(columns["event"], PRICED)] = Token.NONE
    starts = np.cumsum(lengths) - lengths
    return TokenSource(np.arange(len(lengths)), starts, lengths, columns, int(lengths.max()))


def model_of(combine="sum", layers=2, dropout=0.0, hidden=12):
    torch.manual_seed(0)
    return GruAutoencoder(FEATURES, combine, hidden, layers, dropout).eval()


@pytest.fixture(scope="module")
def source():
    return source_of([5, 1, 9, 3, 7, 2])


@pytest.mark.parametrize(("combine", "layers"), [("sum", 1), ("sum", 3), ("concat", 2)])
def test_a_vector_depends_on_its_own_sequence_alone(source, combine, layers):
    model = model_of(combine, layers, dropout=0.4)
    together = model.encode(source.batch(np.arange(6)))
    for row in range(6):
        torch.testing.assert_close(model.encode(source.batch(np.array([row])))[0], together[row])
    order = np.array([3, 5, 0])
    torch.testing.assert_close(model.encode(source.batch(order)), together[order])


def test_padding_changes_neither_vector_nor_loss(source):
    model, rows = model_of(), np.array([0, 3])
    batch = source.batch(rows)
    columns, full = gather(
        source.columns, source.starts[rows], source.lengths[rows], start=True, end=True, pad_to=40
    ).tensors()
    padded = {**columns, LENGTHS: full - 2}
    torch.testing.assert_close(model.encode(padded), model.encode(batch))
    torch.testing.assert_close(model.loss(padded), model.loss(batch))


def test_the_state_is_that_of_a_plain_recurrent_layer_at_the_last_event(source):
    model = model_of(layers=1)
    for row in range(6):
        batch = source.batch(np.array([row]))
        events = {feature.name: batch[feature.name][:, 1:-1].t() for feature in FEATURES}
        _, state = model.encoder.layers[0](model.embedding(events))
        torch.testing.assert_close(model.encode(batch)[0], state[0, 0])


def test_the_loss_is_that_of_a_loop_over_clients_and_steps(source):
    """Which knows no padding, and asks for a price only where there is one."""
    model = model_of()
    losses, positions = [], 0
    for row in range(6):
        hidden, wanted = model.decoded(source.batch(np.array([row])))
        assert len(hidden) == source.lengths[row] + 1  # the events and the end token
        positions += len(hidden)
        for head, feature in zip(model.heads, FEATURES, strict=True):
            classes = wanted[feature.name]
            assert classes[-1] == Token.END
            shares = head.layer(hidden).log_softmax(-1)
            losses += [-share[token] for share, token in zip(shares, classes, strict=True) if token != Token.NONE]
    assert len(losses) < 2 * positions
    torch.testing.assert_close(model.loss(source.batch(np.arange(6))), torch.stack(losses).sum() / positions)


def test_the_parts_of_a_batch_weigh_as_the_whole(source):
    model, halves = model_of(), [source.batch(np.array([0, 1, 2])), source.batch(np.array([3, 4, 5]))]
    whole = source.batch(np.arange(6))
    parts = sum(model.loss(half) * model.weight(half) for half in halves)
    torch.testing.assert_close(parts / model.weight(whole), model.loss(whole))


def test_written_events_have_no_values_that_their_type_has_not(source):
    model = model_of()
    with torch.no_grad():  # an untrained model would write one event type alone
        model.heads[0].layer.weight *= 100
    written = model.write(source.batch(np.arange(6)), 9)
    having = torch.isin(written["event"], torch.tensor([*PRICED, Token.END]))
    assert (written["price"][~having] == Token.NONE).all()
    assert (~having).any()


@pytest.fixture
def one_thread():
    """So small products are shared at a loss (`ubp.training.kernels.threads_for`)."""
    with limited_threads(1):
        yield


@pytest.mark.usefixtures("one_thread")
def test_ten_sequences_are_learnt_by_heart():
    """They come back from the state alone, the decoder reading its own words."""
    source = source_of([6, 4, 8, 5, 7, 3, 6, 8, 1, 5], seed=1)
    model = model_of(layers=1, hidden=64).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    batch = source.batch(np.arange(10))
    for _ in range(120):
        optimizer.zero_grad()
        model.loss(batch).backward()
        optimizer.step()
    model.eval()
    with torch.inference_mode():
        written = model.write(batch, int(batch[LENGTHS].max()) + 1)
        forced = model.teacher_forced_hits(batch)
    assert min(float(hits.float().mean()) for hits in forced.values()) > 0.99
    assert min(free_running(batch, written).values()) > 0.99


def settings(**changes):
    base = {"event_types": None, "clients": "relevant", "distinct": None, "newest": 10}
    return AutoencoderSequences(**(base | changes))


def test_the_vector_is_the_only_way_from_the_encoder_to_the_decoder(source):
    """What the decoder predicts is a function of the last layer's state; with the published start it is not."""
    batch = source.batch(np.arange(6))
    for initial_states, same in (("profile", True), ("layers", False)):
        torch.manual_seed(0)
        model = GruAutoencoder(FEATURES, "sum", 12, 3, 0.0, initial_states=initial_states).eval()
        states = model.states(batch)
        hidden, _ = model.decoded(batch)
        model.states = lambda _, states=states: [torch.randn_like(states[0]), torch.randn_like(states[1]), states[2]]
        assert torch.equal(model.decoded(batch)[0], hidden) == same


def test_the_decoder_reads_the_vector_at_each_token(source):
    """Not only at its start: whatever its layers forget, it can read again."""
    model, batch = model_of(layers=1), source.batch(np.array([0]))
    hidden, _ = model.decoded(batch)
    vector = model.encode(batch)
    tokens = model.embedding({feature.name: batch[feature.name][:, :-1].t() for feature in FEATURES})
    output, _ = model.decoder.layers[0](tokens + model.to_tokens(vector), vector[None])
    torch.testing.assert_close(hidden, output[:, 0])


def test_the_free_running_loss_is_that_of_a_decoder_that_reads_its_own_predictions(source):
    """Against a loop over clients: the true tokens only show where a sequence ends and what was to be predicted."""
    model, rows = model_of(), np.arange(6)
    total, positions = 0.0, 0
    for row in rows:
        batch = source.batch(np.array([row]))
        added = model.to_tokens(model.encode(batch))
        states = [model.encode(batch)] * 2
        token = {feature.name: batch[feature.name][:, 0] for feature in FEATURES}
        for step in range(int(source.lengths[row]) + 1):
            outputs = model.decoder((model.embedding(token) + added)[None], states)
            states = [output[0] for output in outputs]
            token = model._predict(states[-1])
            for head, feature in zip(model.heads, FEATURES, strict=True):
                true = int(batch[feature.name][0, step + 1])
                if true != Token.NONE:
                    total = total - head.layer(states[-1]).log_softmax(-1)[0, true]
            positions += 1
    torch.testing.assert_close(model.free_running_loss(source.batch(rows)), total / positions)


def test_early_stopping_goes_by_the_loss_that_the_config_names(source):
    batch = source.batch(np.arange(6))
    assert model_of().validation_scores(batch) == {}
    model = GruAutoencoder(FEATURES, "sum", 12, 1, 0.0, monitor="free_running").eval()
    (name,) = model.validation_scores(batch)
    assert model.monitor == (name, "min")


def test_positions_that_are_found_before_the_step_are_those_of_the_step(source):
    """In another process, so that a GPU need not wait for their number."""
    model, batch = model_of(), source.batch(np.array([0, 3, 5]))
    placed = pickle.loads(pickle.dumps(model.on_host))(batch)  # noqa: S301
    assert torch.equal(model.loss(placed), model.loss(batch))
    real = [(step, row) for step in range(6) for row, length in enumerate([5, 3, 2]) if step <= length]
    assert placed["real"].tolist() == [step * 3 + row for step, row in real]
    priced = [batch["price"][row, step + 1] != Token.NONE for step, row in real]
    assert placed["having_price"].tolist() == np.flatnonzero(priced).tolist()


@pytest.mark.parametrize("window", [1, 4, 9, 20])
def test_a_vector_of_windows_is_the_sum_of_states_of_each_window_alone(source, window):
    """Against a loop over clients and windows, cut from the newest event backwards."""
    model = model_of(layers=2)
    model.reading = Reading(window, 9, "sum")
    found = model.encode(source.batch(np.arange(6)))
    for row in range(6):
        tokens = {f.name: source.batch(np.array([row]))[f.name][0, 1:-1] for f in FEATURES}
        total, end = torch.zeros(12), int(source.lengths[row])
        while end > 0:
            begin = max(end - window, 0)
            events = {name: ids[begin:end, None] for name, ids in tokens.items()}
            total += (end - begin) * model.encoder(model.embedding(events))[-1][-1, 0]
            end = begin
        torch.testing.assert_close(found[row], total / 9)


def test_the_last_state_is_that_after_the_newest_window(source):
    model, batch = model_of(), source.batch(np.arange(6))
    before = model.encode(batch)
    model.reading = Reading(9, 9)
    torch.testing.assert_close(model.encode(batch), before)
    model.reading = Reading(3, 9)
    newest = replace(source, longest=3).batch(np.arange(6))
    assert newest[LENGTHS].tolist() == [min(length, 3) for length in source.lengths]
    torch.testing.assert_close(model.encode(batch), model.states(newest)[-1])


def test_training_reads_windows_from_anywhere_and_encoding_all_events():
    whole = source_of([50, 3, 20])
    train = replace(whole, longest=5)
    rows = np.arange(3)
    assert list(train.lengths) == [5, 3, 5]
    newest = train.batch(rows)["event"][0, 1:-1].tolist()
    assert newest == whole.columns["event"][45:50].tolist()
    drawn = [train.batch(rows, np.random.default_rng(seed))["event"] for seed in range(60)]
    first = {tuple(batch[0, 1:-1].tolist()) for batch in drawn}
    runs = {tuple(whole.columns["event"][begin : begin + 5].tolist()) for begin in range(46)}
    assert first <= runs
    assert len(first) > 25
    assert {tuple(batch[1, 1:4].tolist()) for batch in drawn} == {tuple(whole.columns["event"][50:53].tolist())}
    again = train.batch(rows, np.random.default_rng(0))["event"]
    assert torch.equal(again, drawn[0])


ALL_FEATURES = {
    name: FeatureSettings(4) for name in ("day", "week", "event", "category", "price", "sku", "url", "codes")
}


class TestRecipe:
    @pytest.fixture(scope="class")
    @staticmethod
    def data(make_history, tmp_path_factory):
        return ChallengeData(make_history().write(tmp_path_factory.mktemp("gru")), submit=True, unknown_sku="drop")

    @pytest.fixture(autouse=True, scope="class")
    @staticmethod
    def relevant(data):
        clients = np.unique(np.concatenate([data.events(e).collect()["client_id"].to_numpy() for e in EVENT_TYPES]))
        data.paths.relevant_clients.parent.mkdir(parents=True, exist_ok=True)
        np.save(data.paths.relevant_clients, clients[::2])

    @staticmethod
    def tokenised(data, features, clients=None, **changes):
        """The tokeniser and what it makes of the events that it learned from."""
        chosen = select_events(data, settings(**changes), data.relevant_clients if clients is None else clients)
        tokeniser = Tokeniser.learn(chosen, features, data, settings(**changes).day)
        return tokeniser, tokeniser.source(chosen, data.as_of, settings(**changes).newest, "gru")

    def test_the_newest_events_are_kept(self, data):
        chosen = select_events(data, settings(newest=3), data.relevant_clients)
        assert chosen.lengths.max() == 3
        times = {}
        for event_type in EVENT_TYPES:
            for client, time in data.events(event_type).select("client_id", "timestamp").collect().iter_rows():
                times.setdefault(client, []).append(int((time - data.start).total_seconds()))
        for client, start, length in zip(chosen.clients, chosen.starts, chosen.lengths, strict=True):
            assert list(chosen.time[start : start + length]) == sorted(times[client])[-3:]

    def test_only_relevant_clients_or_all(self, data):
        assert set(select_events(data, settings(), data.relevant_clients).clients) <= set(data.relevant_clients)
        assert len(select_events(data, settings(), None).clients) > len(data.relevant_clients)

    def test_weeks_go_on_over_new_year(self, data):
        features = {"week": FeatureSettings(4), "day": FeatureSettings(4)}
        tokeniser, source = self.tokenised(data, features, newest=1000, day="absolute")
        weeks, days = source.columns["week"].astype(int), source.columns["day"].astype(int)
        np.testing.assert_array_equal(weeks - FIRST_TOKEN, (days - FIRST_TOKEN) // 7)
        assert weeks.max() - FIRST_TOKEN >= 9  # seventy days
        assert [feature.ids for feature in tokeniser.features] == [FIRST_TOKEN + 10, FIRST_TOKEN + 70]

    def test_ages_are_whole_days_before_the_day_that_is_encoded(self, data):
        """Against Python's own dates; the moment need not be a midnight."""
        features = {"week": FeatureSettings(4), "day": FeatureSettings(4)}
        tokeniser, _ = self.tokenised(data, features, newest=1000)
        for as_of in (data.as_of, datetime(2023, 1, 20, 13, 30)):
            known = data.before(as_of)
            chosen = select_events(known, settings(newest=1000), data.relevant_clients)
            source = tokeniser.source(chosen, as_of, 1000, "gru")
            times = [chosen.sequences.start + timedelta(seconds=int(second)) for second in chosen.time]
            ages = np.array([(as_of - time - timedelta(seconds=1)) // timedelta(days=1) for time in times])
            np.testing.assert_array_equal(source.columns["day"].astype(int) - FIRST_TOKEN, ages)
            np.testing.assert_array_equal(source.columns["week"].astype(int) - FIRST_TOKEN, ages // 7)
            assert ages.min() == 0

    def test_an_age_beyond_those_of_the_fit_is_other(self, data):
        features, early = {"week": FeatureSettings(4), "day": FeatureSettings(4)}, datetime(2022, 12, 20)
        tokeniser, before = self.tokenised(data.before(early), features, data.seen(), newest=1000)
        assert Token.OTHER not in before.columns["day"]
        chosen = select_events(data, settings(newest=1000), data.seen())
        source, ages = tokeniser.source(chosen, data.as_of, 1000, "gru"), chosen.ages(data.as_of)
        assert tokeniser.calendar.days == 19
        np.testing.assert_array_equal(source.columns["day"] == Token.OTHER, ages >= 19)
        np.testing.assert_array_equal(source.columns["week"] == Token.OTHER, ages >= 21)

    @pytest.mark.parametrize("feature", ["day", "week"])
    def test_days_from_the_first_one_have_no_token_for_a_later_day(self, data, feature):
        early = datetime(2022, 12, 20)
        tokeniser, _ = self.tokenised(data.before(early), {feature: FeatureSettings(4)}, day="absolute")
        chosen = select_events(data, settings(), data.relevant_clients)
        line = r"^gru_x: cannot encode as_of=2023-02-09 00:00:00: .* as_of=2022-12-20 00:00:00; fit it again .*day=age$"
        with pytest.raises(UserError, match=line):
            tokeniser.source(chosen, data.as_of, 10, "gru_x")
        tokeniser.source(chosen, early, 10, "gru_x")
        tokeniser.source(chosen, early - timedelta(days=3), 10, "gru_x")

    def test_without_days_any_day_is_encoded(self, data):
        tokeniser, _ = self.tokenised(
            data.before(datetime(2022, 12, 20)), {"event": FeatureSettings(4)}, day="absolute"
        )
        tokeniser.source(select_events(data, settings(), None), data.as_of, 10, "gru")

    def test_absolute_days_are_the_same_in_a_log_that_begins_earlier(self, data):
        """They count from the fit's first day; what lies before it has no token."""
        chosen = select_events(data, settings(), None)
        later = Calendar("absolute", data.start + timedelta(days=10), data.as_of, 60)
        tokens = later.day_tokens(chosen, data.as_of).astype(int)
        days = chosen.time // 86_400
        np.testing.assert_array_equal(tokens, np.where(days < 10, Token.OTHER, days - 10 + FIRST_TOKEN))

    def test_a_sku_is_its_sixteen_codes(self, data):
        chosen = select_events(data, settings(event_types=["product_buy"], distinct="sku"), data.relevant_clients)
        tokeniser = Tokeniser.learn(chosen, {"codes": FeatureSettings(2)}, data, "age")
        source = tokeniser.source(chosen, data.as_of, 10, "gru")
        assert [feature.name for feature in tokeniser.features] == [f"code_{n}" for n in range(16)]
        names = dict(data.properties().select("sku", "name").collect().iter_rows())
        skus = chosen.sequences.skus[chosen.references("sku")]
        codes = np.stack([source.columns[f"code_{n}"] for n in range(16)], axis=1) - FIRST_TOKEN
        np.testing.assert_array_equal(codes, [list(names[sku]) for sku in skus])
        for start, length in zip(chosen.starts, chosen.lengths, strict=True):
            assert len(set(skus[start : start + length])) == length

    def test_a_code_is_a_token(self, data):
        """The published form: sixteen tokens per sku, in the order of its codes."""
        chosen = select_events(
            data, settings(event_types=["product_buy"], distinct="sku", newest=4), data.relevant_clients
        )
        tokeniser = Tokeniser.learn(chosen, {"code": FeatureSettings(8)}, data, "age")
        source = tokeniser.source(chosen, data.as_of, 4, "gru")
        assert [feature.name for feature in tokeniser.features] == ["code"]
        names = dict(data.properties().select("sku", "name").collect().iter_rows())
        skus = chosen.sequences.skus[chosen.references("sku")]
        wanted = np.concatenate([np.asarray(names[sku]) for sku in skus])
        np.testing.assert_array_equal(source.columns["code"].astype(int) - FIRST_TOKEN, wanted)
        np.testing.assert_array_equal(source.lengths, 16 * chosen.lengths)
        last = source.batch(np.array([1]))["code"][0, 1:-1].numpy() - FIRST_TOKEN
        start, length = chosen.starts[1], chosen.lengths[1]
        np.testing.assert_array_equal(last, wanted[16 * start : 16 * (start + length)])
        with pytest.raises(UserError, match="code alone"):
            Tokeniser.learn(chosen, {"code": FeatureSettings(8), "event": FeatureSettings(8)}, data, "age")

    def test_a_source_can_be_sent_to_another_process(self, data):
        _, source = self.tokenised(data, ALL_FEATURES)
        again = pickle.loads(pickle.dumps(source))  # noqa: S301
        rows = np.arange(5)
        for name, tokens in source.batch(rows).items():
            assert torch.equal(again.batch(rows)[name], tokens)

    def test_tokens_have_labels(self, data):
        tokeniser, source = self.tokenised(data, ALL_FEATURES)
        labels = tokeniser.labels
        assert labels.keys() >= source.columns.keys()
        assert labels["event"].of(FIRST_TOKEN) == "search_query"
        assert labels["category"].of(FIRST_TOKEN).startswith("category 50")
        assert labels["day"].of(FIRST_TOKEN + 3) == "day 3"
        assert labels["day"].of(Token.OTHER) == "other"
        assert labels["code_4"].of(FIRST_TOKEN + 3) == "3"

    @pytest.mark.parametrize(
        ("change", "line"),
        [
            ({"clients": "some"}, "clients=some: must be relevant or all"),
            ({"distinct": "url"}, "distinct=url: must be sku or null"),
            ({"day": "month"}, "day=month: must be absolute or age"),
            ({"newest": 0}, "newest=0: must be at least 1"),
        ],
    )
    def test_wrong_choices_say_what_is_right(self, change, line):
        with pytest.raises(UserError, match=line):
            settings(**change)

    def test_an_event_type_that_the_log_has_not(self, data):
        with pytest.raises(UserError, match="event_types: no event type buy; known: product_buy"):
            select_events(data, settings(event_types=["buy"]), None)

    def test_wrong_features_say_what_is_right(self, data):
        with pytest.raises(UserError, match="no such feature; known: day, week"):
            self.tokenised(data, {"colour": FeatureSettings(4)})
        tokeniser, _ = self.tokenised(data, {"event": FeatureSettings(4), "day": FeatureSettings(5)})
        with pytest.raises(UserError, match="one width"):
            build_model(tokeniser, settings(), AutoencoderNetwork("sum", 4, 1, 0.0, 0.0))
        with pytest.raises(UserError, match="concat or sum"):
            build_model(tokeniser, settings(), AutoencoderNetwork("mean", 4, 1, 0.0, 0.0))
