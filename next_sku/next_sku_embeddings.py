"""Next item event: a causal transformer over a client's cart additions, removals and purchases.

    python next_sku/next_sku_embeddings.py                            -> next_sku_128_4_4
    python next_sku/next_sku_embeddings.py submit=False preset=demo   in under a minute and a half

It learns to predict the next event's category, type and price. A client's vector is the hidden state after the newest
event, or with model.profile=sum those of all the newest events added up, recent ones with more weight where
model.half_life is set. Events are read in windows of the trained length. The command ends with how well it
predicts held-out clients' events, beside two baselines, and keeps the fitted block.
"""

from omegaconf import DictConfig

from ubp.cli.command import command
from ubp.cli.recipe import make_block


@command("next_sku", "next_sku")
def main(config: DictConfig) -> None:
    make_block(config, "next_sku.recipe:NextSkuRecipe")


if __name__ == "__main__":
    main()
