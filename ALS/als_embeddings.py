"""Implicit ALS over client × category or client × url.

    python ALS/als_embeddings.py --config-name=als_buy_add_categories     -> als_64_buy_add_categories
    python ALS/als_embeddings.py --config-name=als_visits_relevant        -> als_64_visits_relevant

A client's vector is its factor in the weighted factorisation of Hu, Koren and Volinsky, "Collaborative
Filtering for Implicit Feedback Datasets" (2008), as the library implicit computes it: fitted on the GPU where its
libraries are (`ALS.implicit_gpu`), else on the CPU. The clients' factors are then recalculated on the CPU against the
fitted items (`ALS.recipe`). On a CPU the same seed gives the same bits.
"""

from omegaconf import DictConfig

from ubp.cli.command import command
from ubp.cli.recipe import make_block


@command("ALS", "als_buy_add_categories")
def main(config: DictConfig) -> None:
    make_block(config, "ALS.recipe:AlsRecipe")


if __name__ == "__main__":
    main()
