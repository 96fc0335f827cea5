"""A deep and cross network that has learned what comes next from the log's own past.

    python numeric_features/numeric_features.py --config-name=numeric_features_wide   first: what it reads
    python dcn/dcn_embeddings.py                                                      -> dcn

On many past days (snapshots) it reads fitted blocks as of the day and learns what clients did in the window after it:
who bought again, which categories, skus and prices, what was put into the cart. Its bottleneck as of the end is the
embedding. Validated by time: by the newest window, of which it has seen nothing.
"""

from omegaconf import DictConfig

from ubp.cli.command import command
from ubp.cli.recipe import make_block


@command("dcn", "dcn")
def main(config: DictConfig) -> None:
    make_block(config, "dcn.recipe:DcnRecipe")


if __name__ == "__main__":
    main()
