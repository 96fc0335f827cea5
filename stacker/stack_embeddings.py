"""Few columns that a short training can read: what other blocks' columns say of the window that comes.

    python dcn/dcn_embeddings.py              first: what it reads
    python stacker/stack_embeddings.py        -> stacker

On many past days (snapshots) it reads fitted blocks as of the day, and learns in closed form what their columns say of
the window after it. Its columns are the answer to whether a client goes, and the main directions of the answers to what
it buys, each of one length.
"""

from omegaconf import DictConfig

from ubp.cli.command import command
from ubp.cli.recipe import make_block


@command("stacker", "stacker")
def main(config: DictConfig) -> None:
    make_block(config, "stacker.recipe:StackerRecipe")


if __name__ == "__main__":
    main()
