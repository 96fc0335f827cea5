"""The settings of a language model block; without torch, which takes seconds to import."""

from dataclasses import dataclass
from typing import Final

from omegaconf import DictConfig

from ubp.cli.config import parse
from ubp.io.errors import require, require_positive

POOLINGS: Final = ("mean", "last")
BACKENDS: Final = ("transformers", "vllm")
DTYPES: Final = ("float32", "bfloat16", "float16")
# Settings that divide the work, or that name models for short: they are no reason to make a block again, and a
# killed run can be resumed with other values.
NOT_IN_LINEAGE: Final = ("token_budget", "shard_size", "models")


@dataclass(frozen=True)
class LanguageModelSettings:
    """Which texts are read, by which model, and how.

    Attributes:
        data_files: file of the texts.
        save_dir_name: the embedding's name.
        n_components: columns that a PCA leaves; None for the model's own width.
        pca_clients: the PCA is fitted on at most so many clients, drawn by seed.
        model: see `LLM.models.find_model`.
        models: short names of models.
        backend: ``transformers`` or ``vllm``.
        pooling: ``mean`` or ``last``: see `LLM.backends`.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        max_tokens: per text at most, the last ones; a model with a smaller window reads what it can.
        token_budget: tokens per batch, padding counted.
        shard_size: texts per shard: how much a killed run loses at most.
    """

    data_files: str
    save_dir_name: str
    n_components: int | None
    pca_clients: int
    model: str
    models: dict[str, str]
    backend: str
    pooling: str
    dtype: str
    max_tokens: int
    token_budget: int
    shard_size: int

    def __post_init__(self) -> None:
        """Refuse settings that make no sense.

        Raises:
            UserError: a number out of its range or an unknown choice.
        """
        require_positive(self, "", "pca_clients", "token_budget", "shard_size")
        require(self.max_tokens >= 8, "max_tokens", self.max_tokens, "at least 8")
        require(self.n_components is None or self.n_components >= 1, "n_components", self.n_components, "at least 1")
        choices = {"backend": BACKENDS, "pooling": POOLINGS, "dtype": ("auto", *DTYPES)}
        for name, known in choices.items():
            require(getattr(self, name) in known, name, getattr(self, name), f"one of {', '.join(known)}")

    @classmethod
    def of(cls, config: DictConfig) -> "LanguageModelSettings":
        """From a command's config, where they are top-level keys.

        Raises:
            UserError: a setting that makes no sense.
        """
        return parse(cls, config, tuple(cls.__dataclass_fields__))
