"""Numbers of a client's history in five windows before the day, and by what it met lately; standardised.

    python numeric_features/numeric_features.py                  -> numeric_features
    python numeric_features/numeric_features.py submit=False     of the history before the train window

Writes a column for each that is declared (`numeric_features.aggregates`; docs/numeric_features.md lists them) and keeps
the fitted block. The parquet's metadata have the columns' names and what each is. Which recipe learns, the config says.
"""

from omegaconf import DictConfig

from ubp.cli.command import command
from ubp.cli.recipe import make_block


@command("numeric_features", "numeric_features")
def main(config: DictConfig) -> None:
    make_block(config, config.recipe)


if __name__ == "__main__":
    main()
