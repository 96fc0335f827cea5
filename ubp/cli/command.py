"""A function of a config as a command: errors to lines and exit codes, Hydra's among them."""

import functools
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Generic, TypeVar, overload

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ubp.blocks.registry import entries
from ubp.cli.config import RAY, Common, config_names, explain, hydra_errors, hydra_put_back, value_at
from ubp.cli.help import help_of
from ubp.cli.jobs import JobFailed
from ubp.cli.object_store import asked_data_path, at_hand, require_no_address, shown
from ubp.cli.output import say
from ubp.data.paths import CONFIGS, REPOSITORY
from ubp.io.errors import UserError
from ubp.io.faults import KEPT, refusal
from ubp.io.stage import AlreadyDone

Spreads = bool | Callable[[DictConfig], bool]
Made = TypeVar("Made")

_CONFIG_NAME = ("--config-name", "-cn")
_NO_MEMORY = ("can't allocate memory", "out of memory", "Storage size calculation overflowed")


class Command(Generic[Made]):
    """A function of a config, and the command made of it.

    Called with a config it is that function: what the function returns is returned, and its errors are raised. Called
    without one it takes its config from the command line: a `UserError` becomes its lines on stderr and its exit code;
    `AlreadyDone` a line and exit code 0; what Hydra refuses one line that names what is known. ``--help`` prints what
    `ubp.cli.help` makes of the docstring and the config.
    """

    __wrapped__: Callable[[DictConfig], Made]

    def __init__(
        self, body: Callable[[DictConfig], Made], folder: str, config_name: str | None, spreads: Spreads
    ) -> None:
        self.folder, self.config_name, self.spreads = CONFIGS / folder, config_name, spreads
        functools.update_wrapper(self, body)

    @overload
    def __call__(self, config: DictConfig) -> Made: ...

    @overload
    def __call__(self) -> None: ...

    def __call__(self, config: DictConfig | None = None) -> Made | None:
        if config is not None:
            return self.__wrapped__(config)
        if self.__module__ == "__main__":
            _leave_out_script_folder()
        config_name = _asked_config(sys.argv[1:]) or self.config_name
        with _process_put_back("HYDRA_FULL_ERROR", "CUDA_VISIBLE_DEVICES"), hydra_put_back():
            # Hydra then raises what it would otherwise print in its own words.
            os.environ["HYDRA_FULL_ERROR"] = "1"
            logging.raiseExceptions = False  # a line that the log's disk has no room for is no fault of the command
            try:
                self._run(config_name)
            except (HydraException, OmegaConfBaseException) as error:
                _fail([explain(error, self.folder, config_name or "") or str(error)])
            except KeyboardInterrupt:
                _fail([f"interrupted; {KEPT}"], code=130)
            except UserError as error:
                _fail(error.messages, error.exit_code)
            except Exception as error:
                if (refused := refusal(error, Path(asked_data_path(sys.argv[1:])))) is None:
                    raise
                _fail(refused.messages)
        return None

    def _run(self, config_name: str | None) -> None:
        """What the command line asks for: help or a run."""
        if {"--help", "-h"} & set(sys.argv[1:]):
            text = sys.modules[self.__module__].__doc__ or ""
            say(help_of(text, self.folder, config_name, _overrides(sys.argv[1:])))
        elif config_name is None and not {"--hydra-help", "--version"} & set(sys.argv[1:]):
            script = f"{Path(sys.argv[0]).parent.name}/{Path(sys.argv[0]).name}"
            names = ", ".join(config_names(self.folder))
            _fail([f"which one? python {script} --config-name=NAME, with one of these as NAME: {names}"])
        else:
            decorated = hydra.main(version_base=None, config_path=str(self.folder), config_name=config_name)
            with at_hand(sys.argv, say) as words, hydra_errors():
                sys.argv = words
                decorated(_reporting(self.__wrapped__, self.spreads))()


def command(
    folder: str, config_name: str | None = None, spreads: Spreads = False
) -> Callable[[Callable[[DictConfig], Made]], Command[Made]]:
    """Turn a function of a config into a `Command`.

    Args:
        folder: of the command's configs, below ``configs/``.
        config_name: the config without ``--config-name``; None: one must be named.
        spreads: with ``engine=ray`` it hands its work to the cluster by itself; else the whole command runs there. A
            function says so of a config.
    """

    def decorate(body: Callable[[DictConfig], Made]) -> Command[Made]:
        return Command(body, folder, config_name, spreads)

    return decorate


def _reporting(body: Callable[[DictConfig], object], spreads: Spreads) -> Callable[[DictConfig], None]:
    """The body with its errors as lines and exit codes."""

    @functools.wraps(body)
    def run(config: DictConfig) -> None:
        try:
            common = Common.of(config)
            if common.engine == RAY and not (spreads(config) if callable(spreads) else spreads):
                _run_on_cluster(common, config, _ray_workers(config))
                return
            _choose_gpus(common)
            body(config)
        except AlreadyDone as done:
            say(str(done))
        except JobFailed as failed:
            _fail(failed.messages() or [str(failed)], failed.code)
        except UserError as error:
            _fail(error.messages, error.exit_code)
        except (MemoryError, RuntimeError) as error:
            if not _is_of_memory(error):
                raise
            _fail([f"not enough memory ({str(error).splitlines()[0]}); choose smaller settings, or a larger machine"])

    return run


def _run_on_cluster(common: Common, config: DictConfig, workers: int) -> None:
    """Let this very command run on a node of the cluster, or on several workers that train together.

    See `ubp.cli.ray_tasks.run_alone` and `ubp.cli.ray_train.run_together`.
    """
    script = Path(sys.argv[0]).resolve()
    own = [entry for entry in entries() if REPOSITORY / entry.command == script]
    gpu = any(entry.gpu for entry in own)
    where = common.paths.root, Path(HydraConfig.get().runtime.output_dir)
    if workers > 1:
        require_no_address(common.data_path)
        from ubp.cli.ray_train import run_together

        run_together(script, sys.argv[1:], *where, workers, gpu)
    else:
        from ubp.cli.ray_tasks import run_alone
        from ubp.cli.recipe import need_of

        need = next((need_of(entry, config) for entry in own if entry.in_memory), None)
        run_alone(script, sys.argv[1:], *where, gpu, need)


def _ray_workers(config: DictConfig) -> int:
    """How many workers of the cluster train a command's model together; 1 where it trains none."""
    return value_at(config.trainer, "ray_workers", int) if isinstance(config.get("trainer"), DictConfig) else 1


def _is_of_memory(error: Exception) -> bool:
    """Whether something was refused that asked for too much memory; torch says so in words."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY)


@contextmanager
def _process_put_back(*names: str) -> Iterator[None]:
    """Leave these variables of the environment, the command line and the log's handlers as they were."""
    root, before, words = logging.getLogger(), {name: os.environ.get(name) for name in names}, sys.argv
    handlers, level, raising = [*root.handlers], root.level, logging.raiseExceptions
    try:
        yield
    finally:
        sys.argv = words
        for handler in [handler for handler in root.handlers if handler not in handlers]:
            with suppress(OSError):  # the log's last lines, on a full disk
                handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.raiseExceptions = raising
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _leave_out_script_folder() -> None:
    """Take a script's folder off the import path, where Python puts it first: its files would hide packages.

    In ``stat_features/`` the module ``stat_features`` is the script, not the package that holds it.
    """
    folder = Path(sys.argv[0]).resolve().parent
    if sys.path and sys.path[0] and Path(sys.path[0]).resolve() == folder:
        del sys.path[0]


def _choose_gpus(common: Common) -> None:
    """The GPUs that the config names are all there is; where it names none, a scheduler's choice or the user's stays.

    Before anything looks for GPUs.
    """
    if common.cuda_visible_devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = common.cuda_visible_devices


def _asked_config(words: list[str]) -> str | None:
    """The config name on the command line."""
    for word, following in pairwise([*words, ""]):
        if word.startswith("--config-name="):
            return word.partition("=")[2].removesuffix(".yaml")
        if word in _CONFIG_NAME and following:
            return following.removesuffix(".yaml")
    return None


def _overrides(words: list[str]) -> list[str]:
    """The overrides on the command line."""
    return [word for before, word in pairwise(["", *words]) if not word.startswith("-") and before not in _CONFIG_NAME]


def _fail(messages: list[str], code: int = 1) -> None:
    for message in messages:
        sys.stderr.write(f"error: {shown(message)}\n")
    raise SystemExit(code)
