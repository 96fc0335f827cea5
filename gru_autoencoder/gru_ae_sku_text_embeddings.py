"""GRU autoencoder over the names of the skus that a client met, each sku its 16 codes.

    python gru_autoencoder/gru_ae_sku_text_embeddings.py      -> gru_ae_sku_text

The profile is the encoder's state after the newest sku, or with model.profile=sum the states after all
windows added up. The command ends with how well held-out sequences
come back from that state.
"""

from omegaconf import DictConfig

from ubp.cli.command import command
from ubp.cli.run import embedding_run


@command("gru_autoencoder", "gru_ae_sku_text")
def main(config: DictConfig) -> None:
    with embedding_run(config) as run:
        # Imported where something is to be made: torch takes seconds.
        from gru_autoencoder.recipe import AutoencoderRecipe
        from ubp.cli.recipe import make_profiles

        make_profiles(run, config, AutoencoderRecipe)


if __name__ == "__main__":
    main()
