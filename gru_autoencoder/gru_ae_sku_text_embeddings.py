"""GRU autoencoder over the names of the skus that a client met, each sku its 16 codes.

    python gru_autoencoder/gru_ae_sku_text_embeddings.py                            -> gru_ae_sku_text
    python gru_autoencoder/gru_ae_sku_text_embeddings.py submit=False preset=demo   in about a minute

A client's vector is the encoder's state after the newest sku, or with model.profile=sum the states after all
windows added up. The command ends with how well held-out sequences come back from that state, and keeps the fitted
block.
"""

from omegaconf import DictConfig

from ubp.cli.command import command
from ubp.cli.recipe import make_block


@command("gru_autoencoder", "gru_ae_sku_text")
def main(config: DictConfig) -> None:
    make_block(config, "gru_autoencoder.recipe:AutoencoderRecipe")


if __name__ == "__main__":
    main()
