"""The commands' bodies on a test's data path."""

from LLM.get_embeddings import main
from LLM.texts import make_texts
from ubp.cli.config import composed
from ubp.data.paths import CONFIGS


def make_text(paths, name, *overrides):
    """The body of both commands that write texts."""
    return make_texts(composed(CONFIGS / "LLM" / "text", name, [f"data_path={paths.root}", *overrides]))


def embedding_config(paths, model, *overrides):
    """Of the command that reads the texts: small shards and batches, no GPU."""
    known = [f"data_path={paths.root}", f"model={model}", "shard_size=7", "token_budget=400", "cuda_visible_devices=''"]
    return composed(CONFIGS / "LLM", "get_embeddings", [*known, *overrides])


def embed(paths, model, *overrides):
    """The body of the command that reads the texts."""
    main.__wrapped__(embedding_config(paths, model, *overrides))
