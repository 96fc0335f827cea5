"""Clients and items in one space, learned from what was put into the cart and what was bought.

    python sequential_encoder/sequential_encoder_embeddings.py      first: its content encoder is read
    python twhin/twhin_embeddings.py                                -> twhin
    python twhin/twhin_embeddings.py '~inputs.sequential_encoder'   with a content encoder of its own: stands alone

A bipartite graph of clients and items with an edge type for cart additions and one for purchases; the vector of a
client is near those of its items. Clients without an edge are left out. Any client is encoded on any day by its edges
before it. Edges that were kept apart are predicted, beside popularity and ALS.
"""

from omegaconf import DictConfig

from ubp.cli.command import command
from ubp.cli.recipe import make_block


@command("twhin", "twhin")
def main(config: DictConfig) -> None:
    make_block(config, "twhin.recipe:TwhinRecipe")


if __name__ == "__main__":
    main()
