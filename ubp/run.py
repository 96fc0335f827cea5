"""What each command shares: config in, embedding out, skip if done, lineage, logging, the closing line."""

import functools
import importlib.metadata
import json
import logging
import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import numpy.typing as npt
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table

from ubp.config import Common, explain, resolved
from ubp.data import ChallengeData
from ubp.embeddings import EmbeddingTable, read_lineage
from ubp.errors import UserError
from ubp.files import digest_of, locked, stamp
from ubp.health import health_of
from ubp.paths import CONFIGS

logger = logging.getLogger(__name__)


def _process_started() -> float:
    """When this process began, on `time.time`'s clock; imports come before any line of ours."""
    try:
        # Field 22 of proc(5)'s stat: ticks from the machine's start to the process's.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return time.time() - (uptime - ticks / os.sysconf("SC_CLK_TCK"))
    except OSError:  # no Linux: the time from here on
        return time.time()


_STARTED = _process_started()

# Settings that change where or how a command runs, never what comes out.
_NOT_IN_LINEAGE = (
    *("data_path", "submit", "overwrite", "cuda_visible_devices", "logger", "report", "demo"),
    *("name", "seed", "as_of", "unknown_sku"),  # these have a place of their own in the lineage
)
# Libraries whose version can change a profile, noted where they were used.
_NOTED_VERSIONS = (
    *("implicit", "lightfm-next", "lightning", "numpy", "polars", "scikit-learn", "torch", "transformers", "vllm"),
)
_MODULES = {"lightfm-next": "lightfm", "scikit-learn": "sklearn"}  # where the package's name is another


COLLAPSED = "COLLAPSED"  # in the closing line of a block whose vectors hardly tell clients apart


class AlreadyDone(Exception):
    """The result is there, made from the same history with the same settings; nothing is left to do."""


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


def say(line: str) -> None:
    """A line of the command's own on stdout, apart from the log."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def closing_line(what: str, path: Path, clients: int | None = None, columns: int | None = None) -> None:
    """Print a command's last line: what, clients × columns, seconds, peak memory, where it lies."""
    size = f" · {clients:,} clients × {columns:,} columns" if clients is not None else ""
    seconds = time.time() - _STARTED
    say(f"{what}{size} · {seconds:.1f} s · {peak_megabytes():,.0f} MB · {path}")


def show(table: Table) -> None:
    """Print a table on stdout, as wide as it needs to be where nobody's screen limits it."""
    console = Console()
    (console if console.is_terminal else Console(width=140)).print(table)


def peak_megabytes() -> float:
    """The most memory that this process held so far, in MB (10^6 bytes)."""
    try:
        # Not getrusage: on Linux a process begins with the peak of the one that started it.
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


@dataclass(frozen=True)
class EmbeddingRun:
    """One run of an embedding command.

    Attributes:
        name: of the embedding.
        data: the history, checked.
        seed: for everything random.
        path: the parquet to write.
        folder: for what a run keeps to be taken up again (checkpoints); one for each lineage.
        lineage: settings, seed and history; `save` adds the versions.
    """

    name: str
    data: ChallengeData
    seed: int
    path: Path
    folder: Path
    lineage: dict[str, Any]

    def save(
        self,
        client_ids: npt.NDArray[np.int64],
        vectors: npt.NDArray[np.float32],
        report: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the embedding and print the closing line, which says where its vectors have collapsed.

        Args:
            client_ids: int64 [clients], each once.
            vectors: float32 [clients, columns], finite.
            report: what the run says of its quality, kept in the lineage beside the vectors' health
                (`ubp.health.Health`).
        """
        report = dict(report or {})
        table = EmbeddingTable(client_ids, vectors, self.lineage | {"versions": _versions(), "report": report})
        health = health_of(vectors, self.seed)
        report["health"] = health.as_dict()
        logger.info(
            "effective rank %.1f of %d columns (%.1f with columns of equal variance), median norm %.3g",
            health.effective_rank, health.columns, health.scaled_rank, health.median_norm,
        )  # fmt: skip
        if health.collapsed:
            logger.warning(
                "%s has collapsed: %s; its vectors hardly tell clients apart", self.name, ", ".join(health.collapsed)
            )
        table.write(self.path)
        closing_line(f"{self.name}{_collapsed(report)}", self.path, *vectors.shape)


@contextmanager
def embedding_run(config: DictConfig) -> Iterator[EmbeddingRun]:
    """Open the history that the config names, for making its embedding.

    Raises:
        UserError: a fault in config or data.
        AlreadyDone: the embedding is there, from the same history and settings; see `made_once`.
    """
    common = Common.of(config)
    data = common.data()
    path = common.paths.block(config.name, common.submit)
    settings = {key: value for key, value in resolved(config).items() if key not in _NOT_IN_LINEAGE}
    for name in ("progress", "workers"):
        settings.get("trainer", {}).pop(name, None)
    lineage = {
        "name": config.name,
        "config": settings,
        "seed": common.seed,
        "fingerprint": data.fingerprint,
        "as_of": data.as_of.isoformat(sep=" "),
    }
    folder = common.paths.cache / "runs" / f"{config.name}-{digest_of(json.dumps(lineage, sort_keys=True))}"
    run = EmbeddingRun(config.name, data, common.seed, path, folder, lineage)

    def remark() -> str:
        return _collapsed(read_lineage(path).get("report", {}))

    with made_once(common, data, config.name, path, lambda: _same(path, lineage), remark):
        if common.overwrite and _is_first_process():
            shutil.rmtree(folder, ignore_errors=True)  # otherwise a run that ended would be taken up at its end
        logger.info("%s: events before %s in %s", config.name, data.as_of, data.folder)
        yield run


@contextmanager
def made_once(
    common: Common,
    data: ChallengeData,
    name: str,
    path: Path,
    done: Callable[[], bool],
    remark: Callable[[], str] = lambda: "",
) -> Iterator[None]:
    """Hold the lock of what a command makes, unless it is done: nothing is made by two processes at a time.

    The second process waits. It then finds done what the first one made, even with ``overwrite``; where the first
    one failed or was killed, it takes over.

    Args:
        common: of the command's config.
        data: the history that it is made of.
        name: of the block, the entry or the texts.
        path: where they come to lie.
        done: says whether what lies there is what is asked for.
        remark: what is to be said behind the name of one that is done.

    Raises:
        AlreadyDone: it is, and ``overwrite`` is off or it was made meanwhile.
        UserError: the history changed while this process waited.
    """
    before = stamp(path)

    def already() -> AlreadyDone:
        return AlreadyDone(f"{name}{remark()} · done before · {path} (overwrite=True makes it again)")

    if before is not None and not common.overwrite and done():
        raise already()
    if not _is_first_process():
        yield  # the first one holds the lock, and waits for this one
        return
    with locked(common.paths.lock(path), name) as waited:
        if waited:
            data.require_unchanged()
        if stamp(path) not in (None, before) and done():
            raise already()
        yield


def _is_first_process() -> bool:
    """False in the processes that Lightning starts for further devices."""
    ranks = ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "RANK", "SLURM_PROCID")
    return all(os.environ.get(rank, "0") == "0" for rank in ranks)


def _same(path: Path, lineage: dict[str, Any]) -> bool:
    """Whether the block at ``path`` was made from the same history with the same settings."""
    try:
        existing = read_lineage(path)
    except UserError as error:
        logger.warning("%s", error)
        return False
    changed = [key for key in lineage if existing.get(key) != lineage[key]]
    if changed:
        logger.info("%s was made with another %s: making it again", path, " and ".join(changed))
    return not changed


def _collapsed(report: Mapping[str, Any]) -> str:
    """What a closing line says of a block by its report: nothing, or that it has collapsed and how."""
    found = report.get("health", {}).get("collapsed", [])
    return f" ({COLLAPSED}: {', '.join(found)})" if found else ""


def _versions() -> dict[str, str]:
    used = [name for name in _NOTED_VERSIONS if _MODULES.get(name, name) in sys.modules]
    return {"python": platform.python_version()} | {name: _version(name) for name in used}


def _version(package: str) -> str:
    """Its version, or that it is another package with the same module (a run must not fail at its end for that)."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
