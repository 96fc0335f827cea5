"""What the GRU autoencoders' commands have in common: read, prepare, learn, report, save."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from rich.table import Table
from torch import Tensor

from gru_autoencoder.model import EVENT, INITIAL_STATES, MONITORS, PROFILE, TEACHER_FORCED, GruAutoencoder, Reading
from ubp.cli.output import show
from ubp.cli.recipe import Prepared, Recipe
from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.schema import FIRST_TOKEN, EventType, Token
from ubp.io.errors import UserError, require, require_positive
from ubp.sequences.batches import gather
from ubp.sequences.build import build_or_open
from ubp.sequences.store import Selection
from ubp.sequences.vocabulary import EVENT_TOKENS
from ubp.training.encode import device_batches, held_out_batches
from ubp.training.fit import Trained
from ubp.training.model import LENGTHS, Batch, Rows
from ubp.training.nn import Feature
from ubp.training.windows import LAST, require_pooling

logger = logging.getLogger(__name__)

Columns = dict[str, npt.NDArray[Any]]
CODES = "codes"  # the feature that stands for the 16 codes of a sku's name, side by side in one token
CODE = "code"  # the feature that makes each of the 16 codes a token of its own


@dataclass
class SequenceSettings:
    """Which events a sequence is made of.

    Attributes:
        event_types: None for all five.
        clients: who trains: ``relevant`` or ``all``.
        distinct: ``sku`` keeps each client's distinct skus, at their first event; None all events.
        newest: events that make the profile, at the most: the latest ones.
        window: events of a sequence, at the most: in training a random run of so many of the newest, in encoding
            all of them, so many at a time (`read_in_windows`). None, or more than there are: ``newest``.
    """

    event_types: list[str] | None
    clients: str
    distinct: str | None
    newest: int
    window: int | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense.

        Raises:
            UserError: no events.
        """
        require_positive(self, "sequences", "newest")
        require(self.window is None or self.window >= 1, "sequences.window", self.window, "at least 1, or null")

    @property
    def longest(self) -> int:
        """Events of the longest sequence that is read at a time."""
        return self.newest if self.window is None else min(self.window, self.newest)


@dataclass
class FeatureSettings:
    """A token's feature: the width of its embedding, and how many of its values have an id (None: all)."""

    width: int
    top: int | None = None


@dataclass
class ModelSettings:
    """Numbers of `GruAutoencoder`; features by name: day, week, event, category, price, sku, url, codes."""

    combine: str
    hidden: int
    layers: int
    dropout: float
    word_dropout: float
    initial_states: str = PROFILE
    monitor: str = TEACHER_FORCED
    profile: str = LAST
    features: dict[str, FeatureSettings] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense.

        Raises:
            UserError: a number out of its range.
        """
        require_positive(self, "model", "hidden", "layers")
        for name in ("dropout", "word_dropout"):
            require(0 <= getattr(self, name) < 1, f"model.{name}", getattr(self, name), "from 0 to below 1")
        require_pooling(self.profile, half_life=None)
        for name, known in {"initial_states": INITIAL_STATES, "monitor": MONITORS}.items():
            require(getattr(self, name) in known, f"model.{name}", getattr(self, name), " or ".join(known))


@dataclass
class ReportSettings:
    """How many held-out sequences are written without teacher forcing, and how many of them are shown."""

    written: int
    shown: int

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense.

        Raises:
            UserError: nothing to write.
        """
        require_positive(self, "report", "written")


@dataclass(frozen=True)
class TokenSource:
    """Sequences of tokens, gathered by row with start and end tokens.

    Attributes:
        clients: int64 [rows].
        starts: int64 [rows], each client's first event in the columns.
        events: int64 [rows], how many it has there.
        columns: feature to tokens, integers [events].
        features: what the tokens' columns are.
        labels: by feature, what its tokens are called.
        longest: events of a sequence, at the most.
    """

    clients: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    events: npt.NDArray[np.int64]
    columns: Columns
    features: list[Feature]
    labels: dict[str, "TokenLabel"]
    longest: int

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Events of each sequence: int64 [rows]."""
        return np.minimum(self.events, self.longest)

    def batch(self, rows: Rows, generator: np.random.Generator | None = None) -> Batch:
        """For each feature int64 [rows, 1 + time + 1], and ``lengths``: see `GruAutoencoder`.

        The newest events of each client; with a generator as many that follow on from a random one.
        """
        lengths = self.lengths[rows]
        spare = self.events[rows] - lengths
        begin = spare if generator is None else generator.integers(0, spare, endpoint=True)
        columns, full = gather(self.columns, self.starts[rows] + begin, lengths, start=True, end=True).tensors()
        return {**columns, LENGTHS: full - 2}

    def of_clients(self, clients: npt.NDArray[np.int64]) -> "TokenSource":
        """The rows of some clients."""
        keep = np.isin(self.clients, clients)
        return replace(self, clients=self.clients[keep], starts=self.starts[keep], events=self.events[keep])


def select_events(data: ChallengeData, settings: SequenceSettings) -> Selection:
    """The events that the sequences are made of; clients without any are left out.

    Raises:
        UserError: an unknown event type or choice.
    """
    known = [event_type.value for event_type in EventType]
    if unknown := [name for name in settings.event_types or [] if name not in known]:
        raise UserError(f"sequences.event_types: no event type {unknown[0]}; known: {', '.join(known)}")
    if settings.clients not in ("relevant", "all") or settings.distinct not in (None, schema.SKU):
        raise UserError("sequences: clients must be relevant or all, distinct sku or null")
    event_types = None if settings.event_types is None else [EventType(name) for name in settings.event_types]
    clients = data.relevant_clients if settings.clients == "relevant" else None
    chosen = build_or_open(data).select(event_types, clients=clients)
    if settings.distinct:
        chosen = chosen.distinct(chosen.subject)
    return chosen.newest(settings.newest).at_least(1)


@dataclass(frozen=True)
class TokenLabel:
    """What a feature's tokens are called in the report's examples.

    Attributes:
        prefix: before the value.
        values: by token, from `FIRST_TOKEN` on; None: the token's own number, from 0 on.
    """

    prefix: str
    values: Sequence[Any] | npt.NDArray[np.int64] | None = None

    def of(self, token: int) -> str:
        """The label of one token."""
        if token < FIRST_TOKEN:
            return Token(token).name.lower()
        place = token - FIRST_TOKEN
        return f"{self.prefix} {place if self.values is None else self.values[place]}".strip()


def tokenise(chosen: Selection, features: Mapping[str, FeatureSettings]) -> TokenSource:
    """The events' tokens, all of a client's in one sequence.

    Raises:
        UserError: an unknown feature, or single codes beside another feature.
    """
    if CODE in features:
        return _tokenise_codes(chosen, features)
    longest = int(chosen.lengths.max(initial=1))
    source = TokenSource(chosen.clients, chosen.starts, chosen.lengths, {}, [], {}, longest)
    for name, settings in features.items():
        _add_feature(source, chosen, name, settings, predicts_type=EVENT in features)
    return source


def _tokenise_codes(chosen: Selection, features: Mapping[str, FeatureSettings]) -> TokenSource:
    """Sixteen tokens a sku, its codes in their order; one table for all positions."""
    require(len(features) == 1, "model.features", ", ".join(features), f"{CODE} alone, or without it")
    codes = chosen.sequences.names[chosen.references(schema.SKU)]
    feature = Feature(CODE, FIRST_TOKEN + schema.CODE_BOOK, features[CODE].width)
    column = codes.reshape(-1).astype(np.uint16) + np.uint16(FIRST_TOKEN)
    starts, lengths = chosen.starts * schema.CODES, chosen.lengths * schema.CODES
    labels = {CODE: TokenLabel("code")}
    return TokenSource(chosen.clients, starts, lengths, {CODE: column}, [feature], labels, int(lengths.max(initial=1)))


def _having(subject: str) -> tuple[int, ...]:
    """The tokens of the events that are about such a subject."""
    return tuple(FIRST_TOKEN + event_type.code for event_type in EventType if event_type.subject == subject)


def _add_feature(
    source: TokenSource, chosen: Selection, name: str, settings: FeatureSettings, *, predicts_type: bool
) -> None:
    def add(feature: str, ids: int, column: npt.NDArray[Any], label: TokenLabel, subject: str | None = None) -> None:
        source.columns[feature] = column
        events = _having(subject) if subject and predicts_type else None
        source.features.append(Feature(feature, ids, settings.width, events))
        source.labels[feature] = label

    sequences = chosen.sequences
    if name == EVENT:
        add(name, EVENT_TOKENS, chosen.event_tokens(), TokenLabel("", schema.EVENT_ORDER))
    elif name == "day":
        add(name, FIRST_TOKEN + sequences.days, chosen.day_tokens(), TokenLabel(name))
    elif name == "week":
        add(name, FIRST_TOKEN + sequences.weeks, chosen.week_tokens(), TokenLabel(name))
    elif name == CODES:
        codes = sequences.names[chosen.references(schema.SKU)]
        for position in range(schema.CODES):
            column = codes[:, position].astype(np.uint16) + FIRST_TOKEN
            add(f"code_{position}", FIRST_TOKEN + schema.CODE_BOOK, column, TokenLabel(""), schema.SKU)
    elif name in (schema.CATEGORY, schema.PRICE, schema.SKU, schema.URL):
        vocabulary = chosen.vocabulary(name, top=settings.top)
        about = schema.URL if name == schema.URL else schema.SKU
        label = TokenLabel(name, vocabulary.values)
        add(name, vocabulary.size, chosen.tokens(name, vocabulary), label, about)
    else:
        known = ("day", "week", "event", schema.CATEGORY, schema.PRICE, schema.SKU, schema.URL, CODES, CODE)
        raise UserError(f"model.features.{name}: no such feature; known: {', '.join(known)}")


def build_model(source: TokenSource, window: int, settings: ModelSettings, seed: int) -> GruAutoencoder:
    """The autoencoder with its first weights.

    Args:
        source: what gets a profile.
        window: tokens that are read at a time.
        settings: numbers.
        seed: of the weights.

    Raises:
        UserError: features that cannot be combined so.
    """
    torch.manual_seed(seed)
    s = settings
    if s.combine not in ("concat", "sum"):
        raise UserError(f"model.combine={s.combine}: must be concat or sum")
    combine = cast("Literal['concat', 'sum']", s.combine)
    reading = Reading(window, source.longest, s.profile)
    shape = (s.hidden, s.layers, s.dropout, s.word_dropout)
    try:
        return GruAutoencoder(source.features, combine, *shape, s.initial_states, s.monitor, reading)
    except ValueError as error:
        raise UserError(f"model.features: {error}") from error


def teacher_forced(trained: Trained[GruAutoencoder], source: TokenSource) -> dict[str, float]:
    """The share of held-out tokens that come back, the decoder seeing the true ones before them."""
    hits: dict[str, list[Tensor]] = {feature.name: [] for feature in source.features}
    for batch in held_out_batches(trained, source):
        for name, right in trained.model.teacher_forced_hits(batch).items():
            hits[name].append(right.float().cpu())
    return {name: float(torch.cat(rights).mean()) for name, rights in hits.items()}


def written_back(trained: Trained[GruAutoencoder], source: TokenSource, rows: Rows) -> tuple[Batch, dict[str, Tensor]]:
    """True sequences and what the decoder writes from their states alone: int64 [rows, time] a feature."""
    ((true, written),) = [
        (batch, trained.model.write(batch, int(batch[LENGTHS].max()) + 1))
        for _, batch in device_batches(trained, source, [rows])
    ]
    return {name: ids.cpu() for name, ids in true.items()}, {name: ids.cpu() for name, ids in written.items()}


def free_running(batch: Batch, written: Mapping[str, Tensor]) -> dict[str, float]:
    """The share of true tokens that come back where there is one, the decoder reading its own words."""
    steps = next(iter(written.values())).shape[1]
    real = torch.arange(steps) <= batch[LENGTHS][:, None]  # the events and the end token
    shares = {}
    for name, ids in written.items():
        true = batch[name][:, 1:]
        shares[name] = float((ids == true)[real & (true != Token.NONE)].float().mean())
    return shares


def report(
    trained: Trained[GruAutoencoder], source: TokenSource, settings: ReportSettings
) -> dict[str, dict[str, float]]:
    """Print how well held-out sequences come back, some of them in words; return the accuracies."""
    rows = trained.parts.held_out
    forced = teacher_forced(trained, source)
    batch, written = written_back(trained, source, np.random.default_rng(0).permutation(rows)[: settings.written])
    free = free_running(batch, written)
    table = Table("feature", "teacher-forced", "free-running", title=f"accuracy on {len(rows):,} held-out clients")
    for name in forced:
        table.add_row(name, f"{forced[name]:.3f}", f"{free[name]:.3f}")
    show(table)
    show(_examples(batch, written, source, settings.shown))
    return {"teacher_forced": forced, "free_running": free}


_WORDS = 6  # tokens of a sequence that are shown, and features of a token


def _examples(batch: Batch, written: Mapping[str, Tensor], source: TokenSource, shown: int) -> Table:
    table = Table("", "first events", "last events", title="held-out sequences, true and written back")
    for row in range(min(shown, len(batch[LENGTHS]))):
        length = int(batch[LENGTHS][row])
        true = {name: batch[name][row, 1 : length + 1] for name in written}
        back = {name: ids[row, :length] for name, ids in written.items()}
        for what, tokens in (("true", true), ("written", back)):
            words = _words(tokens, source)
            table.add_row(what, "\n".join(words[: _WORDS // 2]), "\n".join(words[-_WORDS // 2 :]))
        table.add_section()
    return table


def _words(tokens: Mapping[str, Tensor], source: TokenSource) -> list[str]:
    """Each token in words, its first features."""
    names = list(tokens)[:_WORDS]
    columns = [[source.labels[name].of(int(token)) for token in tokens[name]] for name in names]
    return [", ".join(words) for words in zip(*columns, strict=True)]


@dataclass(frozen=True)
class AutoencoderRecipe(Recipe[GruAutoencoder]):
    """Sequences of tokens in, the encoder's last states out."""

    sequences: SequenceSettings
    model: ModelSettings
    report: ReportSettings

    def prepare(self, data: ChallengeData, seed: int) -> Prepared[GruAutoencoder]:
        """See `ubp.cli.recipe.Recipe`."""
        source = tokenise(select_events(data, self.sequences), self.model.features)
        logger.info("%s clients, %s tokens", f"{len(source.events):,}", f"{source.events.sum():,}")
        tokens_per_event = schema.CODES if CODE in self.model.features else 1
        window = self.sequences.longest * tokens_per_event
        train = replace(source, longest=window)
        reporting = partial(report, source=train, settings=self.report)
        encoded = replace(source, longest=self.sequences.newest * tokens_per_event).of_clients(data.relevant_clients)
        return Prepared(build_model(encoded, window, self.model, seed), train, encoded, reporting)
