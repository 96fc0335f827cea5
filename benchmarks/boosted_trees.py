"""Gradient-boosted trees on the snapshots' features themselves: what `benchmarks/standings.py` holds profiles against.

A profile is fixed at the history's end, and a network learns from it what comes next. Trees (scikit-learn's
histograms, after Ke et al. 2017, "LightGBM") are free of both limits: they read the features that profiles are made
of, as they are, and learn from every past day at once. Two models:

- churn and conversion: a row is a client on a day, its numbers those of `numeric_features_wide` but the single values;
- each propensity task: a row is a pair of a client and a target on a day. Its numbers say how much the client had to do
  with the target, its category and its price, how much it should by the SVDs, how well the target sold of late, and how
  often the client buys at all. One model for all targets learns from a hundred times as many rows as one for each.

What is known on a day ends before it; the windows after it end, at the latest, with the judge's train window.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, Final, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl

from ubp.blocks.wide_features import (
    COUNTS,
    RECENT,
    ClientItems,
    Ids,
    Matrix,
    WideFeatures,
    WideSettings,
    item_values,
    places_among,
)
from ubp.data import schema
from ubp.data.history import ChallengeData, of_clients
from ubp.data.reading import collect
from ubp.data.schema import EventType
from ubp.data.snapshots import FirstEvents
from ubp.data.targets import TASKS, Targets, Task
from ubp.evaluation.tasks import GroundTruth, labels
from ubp.io.errors import UserError, require, require_positive

logger = logging.getLogger(__name__)

Labels: TypeAlias = npt.NDArray[np.uint8]
Probabilities: TypeAlias = npt.NDArray[np.float64]

_DAY: Final = timedelta(days=1)
_HORIZON: Final = 14 * _DAY  # of a target window
_SOLD_WITHIN: Final = (14, 28, 112)  # days before a day in which a target's buyers are counted
_LEAST_SHARE: Final = 1e-5  # of buyers, below which its logarithm says no more
_PURCHASES: Final = f"{EventType.PRODUCT_BUY}_"  # before the names of counts of purchases


@dataclass(frozen=True)
class TreeSettings:
    """How the trees learn.

    Attributes:
        days: past days that they learn from, at most, two weeks from one to the next.
        gap: days between a day and the window whose labels are learned after it: 0, as the judge's model learns; 14, as
            far ahead as it is scored.
        least_history: days of history before the earliest day.
        pairs: of client and target that a propensity task is learned from, at most; all that were bought, if they are
            not more than half, and some of the others, which weigh more.
        rounds: trees, one after the other.
        rate: what each new tree counts.
        leaves: of a tree, at most.
        least_rows: of a leaf.
        ridge: on the leaves' values.
        columns: share of the columns that a split may choose from.
    """

    days: int = 12
    gap: int = 0
    least_history: int = 28
    pairs: int = 200_000
    rounds: int = 120
    rate: float = 0.05
    leaves: int = 12
    least_rows: int = 50
    ridge: float = 10.0
    columns: float = 0.3

    def __post_init__(self) -> None:
        """Refuse settings that make no sense.

        Raises:
            UserError: a number out of its range.
        """
        require_positive(self, "trees", "days", "least_history", "pairs", "rounds", "least_rows")
        require(self.gap in (0, _HORIZON.days), "trees.gap", self.gap, f"0 or {_HORIZON.days}")
        require(self.leaves > 1, "trees.leaves", self.leaves, "at least 2")
        require(self.rate > 0, "trees.rate", self.rate, "above 0")
        require(self.ridge >= 0, "trees.ridge", self.ridge, "at least 0")
        require(0 < self.columns <= 1, "trees.columns", self.columns, "above 0, at most 1")

    def model(self, seed: int) -> Any:  # noqa: ANN401 (scikit-learn has no types)
        """An untrained model; the seed chooses each split's columns."""
        from sklearn.ensemble import HistGradientBoostingClassifier

        return HistGradientBoostingClassifier(
            max_iter=self.rounds,
            learning_rate=self.rate,
            max_leaf_nodes=self.leaves,
            min_samples_leaf=self.least_rows,
            l2_regularization=self.ridge,
            max_features=self.columns,
            early_stopping=False,
            random_state=seed,
        )


# --- what was known on a day, and what came after ----------------------------------------------------------------


@dataclass(frozen=True)
class Day:
    """What was known on a day, and what came in the window that is learned or predicted.

    Attributes:
        day: the first moment that is not known.
        clients: int64 [clients], ascending: the relevant clients with an event before the day.
        active: bool [clients]: with a purchase before the day.
        groups: counts and views by name: float32 [clients, columns].
        items: what each client met.
        sold: the relevant clients' purchases before the day: ``client_id``, ``sku``, ``category``, ``price``,
            ``timestamp``.
        window: purchases of the window after the day, as `ubp.evaluation.tasks.load_window` gives them.
    """

    day: datetime
    clients: Ids
    active: npt.NDArray[np.bool_]
    groups: dict[str, Matrix]
    items: ClientItems
    sold: pl.DataFrame
    window: pl.DataFrame

    @cached_property
    def numbers(self) -> Matrix:
        """All groups side by side: float32 [clients, columns]."""
        return np.concatenate(list(self.groups.values()), axis=1)


@dataclass(frozen=True)
class Past:
    """The past days of a history, and its end.

    Attributes:
        features: fitted on the history.
        days: from the newest to the oldest, their windows before the validation window.
        end: the history's end; its window is the judge's validation window.
    """

    features: WideFeatures
    days: list[Day]
    end: Day

    @property
    def all_active(self) -> bool:
        """Whether all clients had bought on each day: churn and conversion are then one question."""
        return all(day.active.all() for day in [*self.days, self.end])

    @classmethod
    def of(cls, history: ChallengeData, truth: GroundTruth, settings: TreeSettings) -> Self:
        """Read each day.

        Args:
            history: as of the judge's train window's first moment.
            truth: the purchases of its windows.
            settings: which days.

        Raises:
            UserError: the history is too short for one day.
        """
        features = WideFeatures.fit(history, history.clients, 0, WideSettings(rhythm=True), listed={})
        purchases = of_clients(history.with_properties(EventType.PRODUCT_BUY), history.relevant_clients)
        bought = collect(
            purchases.select(schema.CLIENT_ID, schema.SKU, schema.CATEGORY, schema.PRICE, schema.TIMESTAMP)
        )
        first, found = FirstEvents(history), list[Day]()
        for day in days_of(history, settings):
            start = day + settings.gap * _DAY
            window = truth.train if start == history.as_of else between(bought, start, start + _HORIZON)
            known = history if day == history.as_of else history.before(day)
            found.append(day_of(features, known, first, bought, window))
            logger.info("%s: %s clients", f"{day:%Y-%m-%d}", f"{len(found[-1].clients):,}")
        if found[0].day == history.as_of:
            return cls(features, found, replace(found[0], window=truth.validation))
        return cls(features, found, day_of(features, history, first, bought, truth.validation))


def days_of(history: ChallengeData, settings: TreeSettings) -> list[datetime]:
    """The days to learn from, the newest first: the window of the newest is the judge's train window.

    Raises:
        UserError: there is none with enough history before it.
    """
    newest, earliest = history.as_of - settings.gap * _DAY, history.start + settings.least_history * _DAY
    days = [newest - number * _HORIZON for number in range(settings.days)]
    if not (found := [day for day in days if day >= earliest]):
        raise UserError(
            f"trees.least_history={settings.least_history}: {history.folder} has no day with so many days before it"
        )
    return found


def day_of(
    features: WideFeatures, known: ChallengeData, first: FirstEvents, bought: pl.DataFrame, window: pl.DataFrame
) -> Day:
    """What the history says that ends with a day; ``bought`` may go on after it."""
    clients, day = first.clients(known.as_of), known.as_of
    active = np.isin(clients, first.buyers(day))
    groups = features.groups(known, clients)
    items = ClientItems.of(known, clients, features.settings)
    return Day(day, clients, active, groups, items, bought.filter(pl.col(schema.TIMESTAMP) < day), window)


def between(bought: pl.DataFrame, start: datetime, end: datetime) -> pl.DataFrame:
    """Purchases from a moment on and before another."""
    return bought.filter(pl.col(schema.TIMESTAMP).is_between(start, end, closed="left"))


# --- churn and conversion ----------------------------------------------------------------------------------------


def predicted_inactivity(past: Past, task: Task, settings: TreeSettings, seed: int) -> Probabilities:
    """How likely each of the end's clients is to buy nothing: float64 [clients, 1]."""
    rows, wanted = [], []
    for day in past.days:
        part = day.active if task.active_only else np.ones(len(day.clients), bool)
        rows.append(day.numbers[part])
        wanted.append(labels(task, day.clients[part], day.window, None)[:, 0])
    found: Probabilities = fitted(rows, wanted, None, settings, seed).predict_proba(past.end.numbers)[:, 1:]
    return found


def fitted(
    rows: Sequence[Matrix],
    wanted: Sequence[Labels],
    weights: Sequence[Probabilities] | None,
    settings: TreeSettings,
    seed: int,
) -> Any:  # noqa: ANN401 (scikit-learn has no types)
    """A trained model.

    Args:
        rows: of each day, float32 [rows, columns].
        wanted: their labels, uint8 [rows].
        weights: of the rows; None: 1 each.
        settings: how.
        seed: of the columns' draw.

    Raises:
        UserError: all labels are alike.
    """
    known = np.concatenate(wanted)
    if not 0 < known.sum() < len(known):
        raise UserError(f"trees: all of the {len(known):,} labels of the past days are alike; nothing can be learned")
    weight = None if weights is None else np.concatenate(weights)
    return settings.model(seed).fit(np.concatenate(rows), known, weight)


# --- propensity --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """The targets of a propensity task, and what is known of them.

    Attributes:
        column: of the properties, whose values they are.
        targets: int64 [targets].
        properties: by column of the properties, its values: int64 [targets]; of targets that are no skus their own
            column alone.
        codes: of the skus' names, by position: int64 [targets, 16]; None for others.
    """

    column: str
    targets: Ids
    properties: dict[str, Ids]
    codes: Ids | None

    @classmethod
    def of(cls, history: ChallengeData, column: str, targets: Ids) -> Self:
        """Of some targets; the properties of skus are read."""
        if column != schema.SKU:
            return cls(column, targets, {column: targets}, None)
        columns = (schema.CATEGORY, schema.PRICE, schema.NAME)
        items = history.properties_of(pl.Series(np.unique(targets)), *columns)
        items = pl.DataFrame({schema.SKU: targets}).join(items, on=schema.SKU, how="left", maintain_order="left")
        properties = {name: items[name].to_numpy() for name in (schema.SKU, schema.CATEGORY, schema.PRICE)}
        return cls(column, targets, properties, item_values(items, schema.NAME))


def pairs_of(day: Day, asked: Asked, features: WideFeatures) -> Iterator[Matrix]:
    """The numbers of each pair, one column after the other: float32 [clients, targets] each.

    - log(1 + how much of it) the client had to do with the target and with each of its properties, by half-life;
    - the same by the SVD of each view, which knows what similar clients met, the names of skus included;
    - the logarithm of the share of clients that bought it in the last 14, 28 and 112 days;
    - of a sku, log(1 + days since its first sale);
    - how often, how lately and for how much the client bought.
    """
    for column, values in asked.properties.items():
        ascending, places = np.unique(values, return_inverse=True)
        for half_life in day.items.amounts:
            yield np.log1p(day.items.by(column, half_life, ascending).toarray())[:, places]
    views = {**asked.properties, **({} if asked.codes is None else {schema.NAME: asked.codes})}
    for column, values in views.items():
        for view in (column, f"{RECENT}{column}"):
            if view in day.groups:
                yield day.groups[view] @ directions_of(features, view, values).T
    shape = (len(day.clients), len(asked.targets))
    for by_target in sales(day, asked):
        yield np.broadcast_to(by_target, shape)
    purchases = [number for number, name in enumerate(features.scales) if name.startswith(_PURCHASES)]
    for number in purchases:
        yield np.broadcast_to(day.groups[COUNTS][:, [number]], shape)


def directions_of(features: WideFeatures, view: str, values: Ids) -> Matrix:
    """The rows of a view's directions for some values, of several values their mean; zeros for unknown ones.

    Args:
        features: fitted.
        view: its name.
        values: int64 [targets] or [targets, several].
    """
    fitted_view, asked = features.views[view], values.reshape(len(values), -1)
    places, known = places_among(fitted_view.values, asked.ravel())
    found = np.zeros((asked.size, fitted_view.directions.shape[1]), np.float32)
    found[known] = fitted_view.directions[places]
    mean: Matrix = found.reshape(*asked.shape, -1).mean(axis=1)
    return mean


def sales(day: Day, asked: Asked) -> Iterator[Matrix]:
    """How well the targets sold before a day, and how old the skus are: float32 [targets] each."""
    sold = day.sold.filter(pl.col(asked.column).is_in(asked.targets.tolist()))
    for days in _SOLD_WITHIN:
        recent = sold.filter(pl.col(schema.TIMESTAMP) >= day.day - days * _DAY)
        buyers = recent.group_by(asked.column).agg(number=pl.col(schema.CLIENT_ID).n_unique())
        share = by_target(asked, buyers, 0.0) / max(1, len(day.clients))
        yield np.log(np.maximum(share, _LEAST_SHARE)).astype(np.float32)
    if asked.column == schema.SKU:
        since = (day.day - pl.col(schema.TIMESTAMP).min()).dt.total_days()
        first = sold.group_by(asked.column).agg(number=since)
        yield np.log1p(by_target(asked, first, 0.0)).astype(np.float32)


def by_target(asked: Asked, table: pl.DataFrame, absent: float) -> Probabilities:
    """The column ``number`` of a table by the targets' column, in their order: float64 [targets]."""
    wanted = pl.DataFrame({asked.column: asked.targets})
    joined = wanted.join(table, on=asked.column, how="left", maintain_order="left")
    return joined["number"].cast(pl.Float64).fill_null(absent).to_numpy()


def drawn(wanted: Labels, most: int, random: np.random.Generator) -> tuple[Ids, Probabilities]:
    """Some pairs of a day and what each weighs, so that a class weighs as much as all of it.

    Args:
        wanted: [pairs] of 0 and 1.
        most: pairs to draw; those that were bought are at most half of them.
        random: draws.

    Returns:
        int64, ascending: which pairs; float64: how many pairs of its class each stands for.
    """
    if len(wanted) <= most:
        return np.arange(len(wanted)), np.ones(len(wanted))
    bought, others = np.flatnonzero(wanted == 1), np.flatnonzero(wanted == 0)
    weights, positives = np.zeros(len(wanted)), min(len(bought), most // 2)
    for pairs, count in ((bought, positives), (others, min(len(others), most - positives))):
        weights[random.choice(pairs, count, replace=False)] = len(pairs) / max(1, count)
    places = np.flatnonzero(weights)
    return places, weights[places]


def predicted_propensity(
    past: Past, history: ChallengeData, task: Task, targets: Targets, settings: TreeSettings, seed: int
) -> Probabilities:
    """How likely each of the end's clients is to buy each target: float64 [clients, targets]."""
    asked, random = Asked.of(history, str(task.column), targets.values), np.random.default_rng(seed)
    rows, wanted, weights = [], [], []
    for day in past.days:
        label = labels(task, day.clients, day.window, targets).ravel()
        places, weight = drawn(label, settings.pairs // len(past.days), random)
        columns = [column.ravel()[places] for column in pairs_of(day, asked, past.features)]
        rows.append(np.stack(columns, axis=1))
        wanted.append(label[places])
        weights.append(weight)
    model = fitted(rows, wanted, weights, settings, seed)
    shape = (len(past.end.clients), len(targets.values))
    numbers = np.stack([column.ravel() for column in pairs_of(past.end, asked, past.features)], axis=1)
    found: Probabilities = model.predict_proba(numbers)[:, 1].reshape(shape)
    return found


def predictions(
    past: Past, history: ChallengeData, targets: Mapping[str, Targets], settings: TreeSettings, seed: int
) -> Iterator[tuple[Task, Probabilities]]:
    """Of each task that has targets, the probability of each label: float64 [clients, targets].

    The clients are those of the history, in ascending order, for churn too. Conversion is the same question where all
    clients had bought on each day.
    """
    churn = None
    for task in TASKS:
        if not task.is_propensity:
            if churn is None or not past.all_active:
                churn = predicted_inactivity(past, task, settings, seed)
            yield task, churn
        elif len(targets[task.name].values):
            yield task, predicted_propensity(past, history, task, targets[task.name], settings, seed)
