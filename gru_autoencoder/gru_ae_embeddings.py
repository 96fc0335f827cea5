"""GRU autoencoder over event type, category, price, sku and url of a client's last events, with or without the week.

    python gru_autoencoder/gru_ae_embeddings.py --config-name=gru_ae_event_cat_price_sku_url
    python gru_autoencoder/gru_ae_embeddings.py --config-name=gru_ae_week_event_cat_price_sku_url

The profile is the encoder's state after the last event, or with model.profile=sum the states after all
windows added up. The command ends with how well held-out sequences
come back from that state.
"""

from omegaconf import DictConfig

from ubp.cli.command import command
from ubp.cli.run import embedding_run


@command("gru_autoencoder", "gru_ae_event_cat_price_sku_url")
def main(config: DictConfig) -> None:
    with embedding_run(config) as run:
        # Imported where something is to be made: torch takes seconds.
        from gru_autoencoder.recipe import AutoencoderRecipe
        from ubp.cli.recipe import make_profiles

        make_profiles(run, config, AutoencoderRecipe)


if __name__ == "__main__":
    main()
