"""The strong simple baseline: counts, rhythm, decayed amounts of single values, and what clients met by SVDs.

The groups of `ubp.blocks.wide_features` side by side, each of one length times its weight. That length belongs to the
fit: on a later day, and for other clients, a number means what it meant there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Final, Self

import numpy as np

from ubp.blocks.fitted import Clients, FittedBlock, State, Vectors, load, portions, save
from ubp.blocks.moments import Moments, put_together
from ubp.blocks.wide_features import WideFeatures, WideSettings
from ubp.blocks.wide_features_by_shards import features_by_shards
from ubp.cli.recipe import Fit, SpreadRecipe
from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.labels import most_bought, relevant_purchases
from ubp.data.lacking import no_events
from ubp.data.targets import OPEN_COLUMNS, open_targets
from ubp.io.errors import require
from ubp.io.spread import Spread

# Encoded at a time: beside them lie a matrix of their listed values, and what they met. Fewer would read the log more
# often.
_CLIENTS: Final = 200_000


@dataclass(frozen=True)
class GroupSettings:
    """The config's part `groups`.

    Attributes:
        weights: of groups that do not weigh 1, by name: ``counts``, ``listed``, or a view.
        values: categories, skus that are listed where no file of an open task lists any: those most bought.
    """

    weights: dict[str, float]
    values: int

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense.

        Raises:
            UserError: a weight is not above 0, or a negative number of values.
        """
        for name, weight in self.weights.items():
            require(weight > 0, f"groups.weights.{name}", weight, "above 0")
        require(self.values >= 0, "groups.values", self.values, "at least 0")


@dataclass(frozen=True)
class NumericFeaturesWide(FittedBlock):
    """Fitted features, and what each group is multiplied by.

    Attributes:
        features: of all groups.
        factors: by group.
    """

    features: WideFeatures
    factors: dict[str, float]

    @property
    def at_a_time(self) -> int:
        """See `ubp.blocks.fitted.FittedBlock.at_a_time`."""
        return _CLIENTS

    def vectors(self, history: ChallengeData, clients: Clients) -> tuple[Clients, Vectors]:
        """See `ubp.blocks.fitted.FittedBlock.vectors`: the clients with an event of any type."""
        known = history.seen(clients)
        vectors = np.empty((len(known), sum(self.features.widths.values())), np.float32)
        for part in portions(len(known), self.at_a_time):
            end = 0
            for name, group in self.features.each_group(history, known[part]):
                start, end = end, end + group.shape[1]
                np.multiply(group, np.float32(self.factors[name]), out=vectors[part, start:end])
        return known, vectors

    def descriptions(self) -> dict[str, str]:
        """See `ubp.blocks.fitted.FittedBlock.descriptions`."""
        features, found = self.features, dict[str, str]()
        for name in features.scales:
            found[name] = "a count, time or price of one event type: ubp.blocks.wide_features says which"
        for view, fitted in features.views.items():
            for number in range(fitted.directions.shape[1]):
                found[f"{view}_svd_{number:02d}"] = f"log(1 + how much of each {view}) on direction {number}"
        if features.listed:
            for half_life in features.settings.half_lives:
                for column, values in features.listed.items():
                    for value in values:
                        line = f"log(1 + how much of {column} {value}), half of it after {half_life:g} days"
                        found[f"{column}_{value}_{half_life:g}d"] = line
        return found

    def state(self) -> State:
        """See `ubp.blocks.fitted.FittedBlock.state`."""
        settings, arrays = self.features.state()
        return State({"features": settings, "factors": self.factors}, arrays)

    @classmethod
    def from_state(cls, state: State) -> Self:
        """See `ubp.blocks.fitted.FittedBlock.from_state`."""
        return cls(WideFeatures.from_state(state.settings["features"], state.arrays), state.settings["factors"])


def listed_values(history: ChallengeData, values: int) -> dict[str, Clients]:
    """Whose amounts are columns of their own: int64, ascending, by column of the properties.

    The categories and skus that the open tasks ask for, else those most bought; and the price buckets bought.
    """
    bought = relevant_purchases(history)
    most = {column: most_bought(bought, column, values) for column in OPEN_COLUMNS}
    prices = most_bought(bought, schema.PRICE, schema.PRICE_BUCKETS)
    return most | open_targets(history.paths) | {schema.PRICE: prices}


def factors_of(found: Mapping[str, Moments], weights: Mapping[str, float]) -> dict[str, float]:
    """What brings each group to a root mean square length about its mean of 1, times its weight.

    Args:
        found: by group.
        weights: of those that do not weigh 1.
    """
    variances = {name: float(moments.variance.sum()) for name, moments in found.items()}
    return {
        name: weights.get(name, 1.0) / np.sqrt(variance) if variance > 0 else 0.0
        for name, variance in variances.items()
    }


@dataclass(frozen=True)
class NumericFeaturesWideRecipe(SpreadRecipe):
    """Which features, and how the groups weigh."""

    features: WideSettings
    groups: GroupSettings

    def fit(self, history: ChallengeData, seed: int, folder: Path) -> Fit:  # noqa: ARG002 (for those that train)
        """See `ubp.cli.recipe.Recipe.fit`."""
        clients = history.clients
        if not len(clients):
            raise no_events(history, ())
        listed = listed_values(history, self.groups.values)
        features = WideFeatures.fit(history, clients, seed, self.features, listed)
        return Fit(self._weighed(features, _moments(features, history, clients)))

    def fit_by_shards(
        self, history: ChallengeData, views: Sequence[ChallengeData], seed: int, spread: Spread, folder: Path
    ) -> Fit:
        """See `ubp.cli.recipe.SpreadRecipe.fit_by_shards` and `ubp.blocks.wide_features_by_shards`.

        Not to the bit: scales, directions and factors are sums over shards, rounded otherwise than in one process. The
        number of shards is in the report.
        """
        work, kept = folder / f"{len(views)}_shards", folder / "features"
        listed = listed_values(history, self.groups.values)
        features = features_by_shards(history, views, seed, self.features, listed, spread, work)
        save(NumericFeaturesWide(features, {}), kept, {})  # read by the pieces: several MB, not to be sent to each
        parts = spread("weighing the groups", [partial(_moments_of_kept, kept, view) for view in views])
        found = put_together(chain.from_iterable(part.items() for part in parts))
        return Fit(self._weighed(features, found), {"shards": len(views)})

    def _weighed(self, features: WideFeatures, found: Mapping[str, Moments]) -> NumericFeaturesWide:
        return NumericFeaturesWide(features, factors_of(found, self.groups.weights))


def _moments(features: WideFeatures, history: ChallengeData, clients: Clients) -> dict[str, Moments]:
    """Of all groups of some clients."""
    parts = (features.each_group(history, clients[part]) for part in portions(len(clients), _CLIENTS))
    return put_together((name, Moments.of(group)) for name, group in chain.from_iterable(parts))


def _moments_of_kept(folder: Path, view: ChallengeData) -> dict[str, Moments]:
    """The same of a shard's relevant clients, by the features in a folder; nothing of a shard without any."""
    block = load(folder)
    if not isinstance(block, NumericFeaturesWide):
        raise TypeError(f"{folder}: {type(block).__name__} has no wide features")
    return _moments(block.features, view, view.clients) if len(view.clients) else {}
