"""GRU autoencoder over day and event type of a client's last events.

    python gru_autoencoder/gru_ae_day_event_embeddings.py                            -> gru_ae_day_event
    python gru_autoencoder/gru_ae_day_event_embeddings.py submit=False preset=demo   in about a minute

A client's vector is the encoder's state after the last event, or with model.profile=sum the states after all
windows added up. The command ends with how well held-out sequences come back from that state, and keeps the fitted
block.
"""

from omegaconf import DictConfig

from ubp.cli.command import command
from ubp.cli.recipe import make_block


@command("gru_autoencoder", "gru_ae_day_event")
def main(config: DictConfig) -> None:
    make_block(config, "gru_autoencoder.recipe:AutoencoderRecipe")


if __name__ == "__main__":
    main()
