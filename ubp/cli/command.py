"""A function of a config as a command: errors to lines and exit codes, Hydra's among them."""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ubp.cli.config import Common, explain
from ubp.cli.output import say
from ubp.data.paths import CONFIGS
from ubp.io.errors import UserError
from ubp.io.stage import AlreadyDone


def command(folder: str, config_name: str) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Turn a function of a config into a command.

    A `UserError` becomes its lines on stderr and exit code 1; `AlreadyDone` a line and exit code 0; what
    Hydra refuses one line that names what is known.

    Args:
        folder: of the command's configs, below ``configs/``.
        config_name: the config without ``--config-name``.
    """

    def decorate(body: Callable[[DictConfig], None]) -> Callable[[], None]:
        @functools.wraps(body)
        def run_body(config: DictConfig) -> None:
            try:
                _choose_gpus(Common.of(config))
                body(config)
            except AlreadyDone as done:
                say(str(done))
            except UserError as error:
                _fail(error.messages)

        @functools.wraps(body)
        def main() -> None:
            _leave_out_script_folder()
            # Hydra then raises what it would otherwise print in its own words.
            os.environ["HYDRA_FULL_ERROR"] = "1"
            try:
                hydra.main(version_base=None, config_path=str(CONFIGS / folder), config_name=config_name)(run_body)()
            except (HydraException, OmegaConfBaseException) as error:
                _fail([explain(error, CONFIGS / folder, _asked_config(config_name)) or str(error)])
            except KeyboardInterrupt:
                _fail(["interrupted; what was finished before is kept"], code=130)

        return main

    return decorate


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


def _asked_config(default: str) -> str:
    """The config name on the command line."""
    arguments = sys.argv[1:]
    for position, argument in enumerate(arguments):
        if argument.startswith("--config-name="):
            return argument.partition("=")[2].removesuffix(".yaml")
        if argument in ("--config-name", "-cn") and position + 1 < len(arguments):
            return arguments[position + 1].removesuffix(".yaml")
    return default


def _fail(messages: list[str], code: int = 1) -> None:
    for message in messages:
        sys.stderr.write(f"error: {message}\n")
    raise SystemExit(code)
