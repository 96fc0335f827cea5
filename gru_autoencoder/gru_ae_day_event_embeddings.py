"""GRU autoencoder over day and event type of a client's last events.

    python gru_autoencoder/gru_ae_day_event_embeddings.py      -> gru_ae_day_event

The profile is the encoder's state after the last event, or with model.profile=sum the states after all
windows added up. The command ends with how well held-out sequences
come back from that state.
"""

from omegaconf import DictConfig

from ubp.cli.command import command
from ubp.cli.run import embedding_run


@command("gru_autoencoder", "gru_ae_day_event")
def main(config: DictConfig) -> None:
    with embedding_run(config) as run:
        # Imported where something is to be made: torch takes seconds.
        from gru_autoencoder.recipe import AutoencoderRecipe
        from ubp.cli.recipe import make_profiles

        make_profiles(run, config, AutoencoderRecipe)


if __name__ == "__main__":
    main()
