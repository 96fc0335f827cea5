"""Numbers of a client's history: in windows before the day, of what it met lately, and by SVDs.

    python numeric_features/numeric_features.py                                        -> numeric_features
    python numeric_features/numeric_features.py --config-name=numeric_features_wide    -> numeric_features_wide
    python numeric_features/numeric_features.py engine=ray      either by shards of clients (docs/cluster.md)

The first writes 346 standardised columns, declared in `numeric_features.aggregates` (docs/numeric_features.md has all).
The second is the strong simple baseline: counts and rhythm, decayed amounts of single categories, skus and prices, SVDs
of what clients met. The parquet's metadata have the columns' names and what each is.
"""

from omegaconf import DictConfig

from ubp.cli.command import command
from ubp.cli.recipe import learns_by_shards, make_block


@command("numeric_features", "numeric_features", spreads=learns_by_shards)
def main(config: DictConfig) -> None:
    make_block(config, config.recipe)


if __name__ == "__main__":
    main()
