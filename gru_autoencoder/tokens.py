"""Events as tokens: which events a sequence is made of, what its tokens' features are, and their values' ids."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from gru_autoencoder.model import EVENT
from ubp.data import schema
from ubp.data.event_types import by_code, kept, require_same, restored
from ubp.data.event_types import chosen as chosen_types
from ubp.data.history import ChallengeData
from ubp.data.schema import FIRST_TOKEN, EventType, Token
from ubp.io.errors import UserError, require, require_positive
from ubp.sequences.batches import gather
from ubp.sequences.build import events_of
from ubp.sequences.layout import DAY, DAYS_A_WEEK
from ubp.sequences.selection import Selection
from ubp.sequences.vocabulary import Vocabulary, event_tokens
from ubp.training.fitted import table_of, vocabulary_of
from ubp.training.model import LENGTHS, Batch, Rows
from ubp.training.nn import Feature

Columns = dict[str, npt.NDArray[Any]]
DAY_FEATURE, WEEK_FEATURE = "day", "week"
CODES = "codes"  # the feature that stands for the 16 codes of a sku's name, side by side in one token
CODE = "code"  # the feature that makes each of the 16 codes a token of its own
ABSOLUTE, AGE = DAYS = ("absolute", "age")  # what days and weeks are counted from
_WITH_VOCABULARY: Final = (schema.CATEGORY, schema.PRICE, schema.SKU, schema.URL)
_KNOWN: Final = (DAY_FEATURE, WEEK_FEATURE, EVENT, *_WITH_VOCABULARY, CODES, CODE)


@dataclass
class AutoencoderSequences:
    """Which events a sequence is made of.

    Attributes:
        event_types: None for all.
        clients: who trains: ``relevant`` or ``all``.
        distinct: ``sku`` keeps each client's distinct skus, at their first event; None all events.
        newest: events that are encoded, at the most: the latest ones.
        window: events of a sequence, at the most: in training a random run of so many of the newest, in encoding
            all of them, so many at a time (`read_in_windows`). None, or more than there are: ``newest``.
        day: what the tokens of days and weeks count: ``absolute``: days from the log's first one on; such a model
            cannot encode a day after the last one of its fit. ``age``: whole days from an event to ``as_of``.
    """

    event_types: list[str] | None
    clients: str
    distinct: str | None
    newest: int
    window: int | None = None
    day: str = AGE

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            UserError: an unknown choice, or no events.
        """
        require(self.clients in ("relevant", "all"), "sequences.clients", self.clients, "relevant or all")
        require(self.distinct in (None, schema.SKU), "sequences.distinct", self.distinct, "sku or null")
        require_positive(self, "sequences", "newest")
        require(self.window is None or self.window >= 1, "sequences.window", self.window, "at least 1, or null")
        require(self.day in DAYS, "sequences.day", self.day, " or ".join(DAYS))

    @property
    def longest(self) -> int:
        """Events of the longest sequence that is read at a time."""
        return self.newest if self.window is None else min(self.window, self.newest)


@dataclass
class FeatureSettings:
    """A token's feature: the width of its embedding, and how many of its values have an id (None: all)."""

    width: int
    top: int | None = None


@dataclass(frozen=True)
class TokenSource:
    """Sequences of tokens, gathered by row with start and end tokens.

    Attributes:
        clients: int64 [rows].
        starts: int64 [rows], each client's first token in the columns.
        tokens: int64 [rows], how many it has there.
        columns: feature to ids, integers [tokens].
        longest: tokens of a sequence, at the most.
    """

    clients: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
    columns: Columns
    longest: int

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each sequence: int64 [rows]."""
        return np.minimum(self.tokens, self.longest)

    def batch(self, rows: Rows, generator: np.random.Generator | None = None) -> Batch:
        """For each feature int64 [rows, 1 + time + 1], and ``lengths``: see `GruAutoencoder`.

        The newest tokens of each client; with a generator as many that follow on from a random one.
        """
        lengths = self.lengths[rows]
        spare = self.tokens[rows] - lengths
        begin = spare if generator is None else generator.integers(0, spare, endpoint=True)
        columns, full = gather(self.columns, self.starts[rows] + begin, lengths, start=True, end=True).tensors()
        return {**columns, LENGTHS: full - 2}


def select_events(
    history: ChallengeData, settings: AutoencoderSequences, clients: npt.NDArray[np.int64] | None
) -> Selection:
    """The events that the sequences of some clients are made of, None for all; clients without any are left out.

    Raises:
        UserError: the log has no event type that the settings name.
    """
    names = settings.event_types
    event_types = None if names is None else chosen_types("sequences.event_types", names, history.event_types)
    chosen = events_of(history, event_types, clients)
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


@dataclass(frozen=True)
class Calendar:
    """Days as tokens.

    Attributes:
        counted: ``absolute`` or ``age``.
        first_day: midnight of the first day of the fit's history, for absolute days.
        as_of: of the fit.
        days: how many have a token, from day or age 0 on.
    """

    counted: str
    first_day: datetime
    as_of: datetime
    days: int

    @classmethod
    def learn(cls, chosen: Selection, history: ChallengeData, counted: str) -> Self:
        """From the events to train on: absolute days up to the fit's ``as_of``, or ages up to the oldest event's."""
        if counted == ABSOLUTE:
            days = -(-(history.as_of - history.start) // timedelta(days=1))
        else:
            days = int(chosen.ages(history.as_of).max(initial=0)) + 1
        return cls(counted, history.start, history.as_of, days)

    @property
    def weeks(self) -> int:
        """Weeks of seven days that have a token, the last one perhaps not full."""
        return -(-self.days // DAYS_A_WEEK)

    def require_known(self, as_of: datetime, name: str) -> None:
        """Refuse a later day than the fit's where days are counted from the first one: it has no token.

        Raises:
            UserError: it is later.
        """
        if self.counted == ABSOLUTE and as_of > self.as_of:
            raise UserError(
                f"{name}: cannot encode as_of={as_of}: its tokens are days from {self.first_day:%Y-%m-%d} to its fit's "
                f"as_of={self.as_of}; fit it again as of that day, or once with sequences.day={AGE}"
            )

    def day_tokens(self, chosen: Selection, as_of: datetime) -> npt.NDArray[np.uint16]:
        """Days or ages as tokens, ``Token.OTHER`` for one that the fit had none of: uint16 [events]."""
        return self._tokens(self._days(chosen, as_of), self.days)

    def week_tokens(self, chosen: Selection, as_of: datetime) -> npt.NDArray[np.uint16]:
        """The same of weeks."""
        return self._tokens(self._days(chosen, as_of) // DAYS_A_WEEK, self.weeks)

    def _days(self, chosen: Selection, as_of: datetime) -> npt.NDArray[np.int32]:
        if self.counted == AGE:
            return chosen.ages(as_of)
        return (chosen.time + int((chosen.sequences.start - self.first_day).total_seconds())) // DAY

    @staticmethod
    def _tokens(numbers: npt.NDArray[np.int32], count: int) -> npt.NDArray[np.uint16]:
        known = (numbers >= 0) & (numbers < count)
        return np.where(known, numbers + FIRST_TOKEN, Token.OTHER).astype(np.uint16)


@dataclass(frozen=True)
class Tokeniser:
    """How events become tokens, as learned from the events of the fit.

    Attributes:
        settings: of the features, by name.
        calendar: days.
        vocabularies: of the features that have one.
        event_types: of the fit's log, in the order of their codes.
    """

    settings: Mapping[str, FeatureSettings]
    calendar: Calendar
    vocabularies: Mapping[str, Vocabulary]
    event_types: tuple[EventType, ...]

    @classmethod
    def learn(
        cls, chosen: Selection, settings: Mapping[str, FeatureSettings], history: ChallengeData, counted: str
    ) -> Self:
        """From the events to train on.

        Args:
            chosen: the events.
            settings: of the features.
            history: of the events.
            counted: `AutoencoderSequences.day`.

        Raises:
            UserError: an unknown feature, or single codes beside another feature.
        """
        if unknown := [name for name in settings if name not in _KNOWN]:
            raise UserError(f"model.features.{unknown[0]}: no such feature; known: {', '.join(_KNOWN)}")
        if CODE in settings:
            require(len(settings) == 1, "model.features", ", ".join(settings), f"{CODE} alone, or without it")
        vocabularies = {
            name: chosen.vocabulary(name, top=settings[name].top) for name in settings if name in _WITH_VOCABULARY
        }
        return cls(settings, Calendar.learn(chosen, history, counted), vocabularies, chosen.sequences.event_types)

    @property
    def tokens_per_event(self) -> int:
        return schema.CODES if CODE in self.settings else 1

    @cached_property
    def features(self) -> list[Feature]:
        """What a token is made of, in the order of the settings."""
        return [feature for name in self.settings for feature in self._features(name)]

    def _features(self, name: str) -> list[Feature]:
        width = self.settings[name].width
        if name == EVENT:
            return [Feature(name, event_tokens(self.event_types), width)]
        if name in (DAY_FEATURE, WEEK_FEATURE):
            count = self.calendar.days if name == DAY_FEATURE else self.calendar.weeks
            return [Feature(name, FIRST_TOKEN + count, width)]
        if name == CODE:
            return [Feature(name, FIRST_TOKEN + schema.CODE_BOOK, width)]
        # Where the event type is predicted, the other features follow from it.
        events = self._having(schema.URL if name == schema.URL else schema.SKU) if EVENT in self.settings else None
        if name == CODES:
            ids = FIRST_TOKEN + schema.CODE_BOOK
            return [Feature(f"code_{place}", ids, width, events) for place in range(schema.CODES)]
        return [Feature(name, self.vocabularies[name].size, width, events)]

    def _having(self, subject: str) -> tuple[int, ...]:
        """The tokens of the events that are about such a subject."""
        about = (event_type for event_type in self.event_types if event_type.subject == subject)
        return tuple(sorted(FIRST_TOKEN + event_type.code for event_type in about))

    @cached_property
    def labels(self) -> dict[str, TokenLabel]:
        """By feature, what its tokens are called."""
        values = {name: vocabulary.values for name, vocabulary in self.vocabularies.items()}
        labels = {name: TokenLabel(name, values.get(name)) for name in self.settings}
        codes = {feature.name: TokenLabel("") for feature in self.features if feature.name not in labels}
        return {**labels, **codes, EVENT: TokenLabel("", self.event_types)}

    def source(self, chosen: Selection, as_of: datetime, longest: int, name: str) -> TokenSource:
        """The events' tokens, one sequence per client.

        Args:
            chosen: the events.
            as_of: the moment that ages are counted to.
            longest: events of a sequence that are read.
            name: of the block, for messages.

        Raises:
            UserError: see `Calendar.require_known`; or the log's event types are not those of the fit.
        """
        require_same(name, self.event_types, chosen.sequences.event_types)
        columns: Columns = {}
        for feature in self.settings:
            if feature in (DAY_FEATURE, WEEK_FEATURE):
                self.calendar.require_known(as_of, name)
            columns |= self._columns(feature, chosen, as_of)
        each = self.tokens_per_event
        return TokenSource(chosen.clients, chosen.starts * each, chosen.lengths * each, columns, longest * each)

    def _columns(self, name: str, chosen: Selection, as_of: datetime) -> Columns:
        if name == EVENT:
            return {name: chosen.event_tokens()}
        if name == DAY_FEATURE:
            return {name: self.calendar.day_tokens(chosen, as_of)}
        if name == WEEK_FEATURE:
            return {name: self.calendar.week_tokens(chosen, as_of)}
        if name in self.vocabularies:
            return {name: chosen.tokens(name, self.vocabularies[name])}
        codes = chosen.sequences.names[chosen.references(schema.SKU)].astype(np.uint16) + np.uint16(FIRST_TOKEN)
        if name == CODE:  # sixteen tokens per sku, its codes in their order; one table for all positions
            return {name: codes.reshape(-1)}
        return {f"code_{place}": np.ascontiguousarray(codes[:, place]) for place in range(schema.CODES)}

    def as_json(self) -> dict[str, Any]:
        """What `restored` needs beside `tables`; whatever JSON holds."""
        calendar = asdict(self.calendar)
        calendar |= {name: calendar[name].isoformat() for name in ("first_day", "as_of")}
        features = {name: asdict(feature) for name, feature in self.settings.items()}
        return {"features": features, "calendar": calendar, **kept(self.event_types)}

    def tables(self) -> dict[str, pl.DataFrame]:
        """The vocabularies, by feature."""
        return {name: table_of(vocabulary) for name, vocabulary in self.vocabularies.items()}

    @classmethod
    def restored(cls, settings: Mapping[str, Any], tables: Mapping[str, pl.DataFrame]) -> Self:
        """The tokeniser that gave `as_json` and `tables`."""
        features = {name: FeatureSettings(**feature) for name, feature in settings["features"].items()}
        calendar = dict(settings["calendar"])
        calendar |= {name: datetime.fromisoformat(calendar[name]) for name in ("first_day", "as_of")}
        vocabularies = {name: vocabulary_of(table) for name, table in tables.items()}
        return cls(features, Calendar(**calendar), vocabularies, tuple(by_code(restored(settings))))
