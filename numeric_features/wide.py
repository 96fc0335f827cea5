"""The strong simple baseline: counts, rhythm, decayed amounts of single values, and what clients met by SVDs.

The groups of `ubp.blocks.wide_features` side by side, each of one length times its weight. That length belongs to the
fit: on a later day, and for other clients, a number means what it meant there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from ubp.blocks.fitted import Clients, FittedBlock, State, Vectors
from ubp.blocks.wide_features import Matrix, WideFeatures, WideSettings
from ubp.cli.recipe import Fit, Recipe
from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.labels import most_bought, relevant_purchases
from ubp.data.lacking import no_events
from ubp.data.schema import EventType
from ubp.data.targets import OPEN_COLUMNS, open_targets
from ubp.io.errors import require


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

    def vectors(self, history: ChallengeData, clients: Clients) -> tuple[Clients, Vectors]:
        """See `ubp.blocks.fitted.FittedBlock.vectors`: the clients with an event of any type."""
        known = history.seen(clients)
        groups = self.features.groups(history, known)
        vectors = np.empty((len(known), sum(group.shape[1] for group in groups.values())), np.float32)
        start = 0
        for name, group in groups.items():
            np.multiply(group, np.float32(self.factors[name]), out=vectors[:, start : start + group.shape[1]])
            start += group.shape[1]
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


def factors_of(groups: Mapping[str, Matrix], weights: Mapping[str, float]) -> dict[str, float]:
    """What brings each group to a root mean square length about its mean of 1, times its weight.

    Args:
        groups: float32 [clients, columns] by name.
        weights: of those that do not weigh 1.
    """
    variances = {name: float(group.var(axis=0, dtype=np.float64).sum()) for name, group in groups.items()}
    return {
        name: weights.get(name, 1.0) / np.sqrt(variance) if variance > 0 else 0.0
        for name, variance in variances.items()
    }


@dataclass(frozen=True)
class NumericFeaturesWideRecipe(Recipe):
    """Which features, and how the groups weigh."""

    features: WideSettings
    groups: GroupSettings

    def fit(self, history: ChallengeData, seed: int, folder: Path) -> Fit:  # noqa: ARG002 (for those that train)
        """See `ubp.cli.recipe.Recipe.fit`."""
        clients = history.clients
        if not len(clients):
            raise no_events(history, EventType)
        listed = listed_values(history, self.groups.values)
        features = WideFeatures.fit(history, clients, seed, self.features, listed)
        groups = features.groups(history, clients)
        return Fit(NumericFeaturesWide(features, factors_of(groups, self.groups.weights)))
