"""GRU autoencoder over day and event type of a client's last events.

    python gru_autoencoder/gru_ae_day_event_embeddings.py      -> gru_ae_day_event

The profile is the encoder's state after the last event. The command ends with how well held-out sequences
come back from that state.
"""

from omegaconf import DictConfig

from gru_autoencoder.recipe import make_embedding
from ubp.run import command


@command("gru_autoencoder", "gru_ae_day_event")
def main(config: DictConfig) -> None:
    make_embedding(config)


if __name__ == "__main__":
    main()
