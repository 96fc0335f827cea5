"""Numbers of a client's history in five windows before the day, and by what it met lately; standardised.

python numeric_features/numeric_features.py --config-name=numeric_features_wide     -> numeric_features_wide
"""

from omegaconf import DictConfig

from ubp.cli.command import command
from ubp.cli.recipe import make_block


@command("numeric_features", "numeric_features_wide")
def main(config: DictConfig) -> None:
    make_block(config, config.recipe)


if __name__ == "__main__":
    main()
