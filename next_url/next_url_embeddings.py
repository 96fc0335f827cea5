"""Next url: a causal transformer over the relevant clients' page visits.

    python next_url/next_url_embeddings.py                            -> next_url_192_6_4
    python next_url/next_url_embeddings.py submit=False preset=demo   in under a minute and a half

It learns to predict the next url out of all that are visited often enough; visits to others are left out, and
clients without any other are not in the block. A client's vector is the hidden state after the newest visit, or
with model.profile=sum those of all the newest visits added up, recent ones with more weight where
model.half_life is set. Visits are read in windows of the trained length. The command ends with how well it
predicts held-out clients' visits, beside two baselines, and keeps the fitted block.
"""

from omegaconf import DictConfig

from ubp.cli.command import command
from ubp.cli.recipe import make_block


@command("next_url", "next_url")
def main(config: DictConfig) -> None:
    make_block(config, "next_url.recipe:NextUrlRecipe")


if __name__ == "__main__":
    main()
