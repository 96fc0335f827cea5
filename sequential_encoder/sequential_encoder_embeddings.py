"""A causal transformer over events of every type, which has learned what comes next, and in the weeks after a day.

    python sequential_encoder/sequential_encoder_embeddings.py                 -> sequential_encoder
    python sequential_encoder/sequential_encoder_embeddings.py preset=demo     a small one: minutes on two cores

Skus, categories and urls are known by hashed ids, and by prices and codes: also those that were never seen. It learns
the next moment's event types, time, items and urls, and on many past days what clients did in the window after it.
What it reads as of the end is the embedding. Validated by time: by the newest window, of which it has seen nothing.
"""

from omegaconf import DictConfig

from ubp.cli.command import command
from ubp.cli.recipe import make_block


@command("sequential_encoder", "sequential_encoder")
def main(config: DictConfig) -> None:
    make_block(config, "sequential_encoder.recipe:SequentialEncoderRecipe")


if __name__ == "__main__":
    main()
