"""GRU autoencoder over event type, category, price, sku and url of a client's last events, with or without the week.

    python gru_autoencoder/gru_ae_embeddings.py --config-name=gru_ae_event_cat_price_sku_url
    python gru_autoencoder/gru_ae_embeddings.py --config-name=gru_ae_week_event_cat_price_sku_url

A client's vector is the encoder's state after the last event, or with model.profile=sum the states after all
windows added up. The command ends with how well held-out sequences come back from that state, and keeps the fitted
block.
"""

from omegaconf import DictConfig

from ubp.cli.command import command
from ubp.cli.recipe import make_block


@command("gru_autoencoder", "gru_ae_event_cat_price_sku_url")
def main(config: DictConfig) -> None:
    make_block(config, "gru_autoencoder.recipe:AutoencoderRecipe")


if __name__ == "__main__":
    main()
