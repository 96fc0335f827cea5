"""Statistics of a client's history: how much, how often, how lately, of what.

    python stat_features/stat_features.py                  -> stat_features
    python stat_features/stat_features.py submit=False     of the history before the train window
    python stat_features/stat_features.py engine=ray       by shards of clients on a Ray cluster (docs/cluster.md)

Writes 43 columns per client (`stat_features.recipe.COLUMNS`) and keeps the fitted block.
"""

from omegaconf import DictConfig

from ubp.cli.command import command
from ubp.cli.recipe import has_shared_folder, make_block


@command("stat_features", "stat_features", spreads=has_shared_folder)
def main(config: DictConfig) -> None:
    make_block(config, "stat_features.recipe:StatFeaturesRecipe")


if __name__ == "__main__":
    main()
