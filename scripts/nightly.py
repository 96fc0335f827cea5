"""Every night: take in a new day, make the profiles of whoever came, and say whether the models still fit.

    python scripts/nightly.py day=2022-11-09 name=basics           raw/ has the day already
    python scripts/nightly.py day=2025-12-28 name=past_windows schema=bank source=/exports
        -> profiles/NAME/day=DAY/profiles.parquet and drift.json below the data path

With a schema the rows after the log's last event, up to the end of the day, are added to ``raw/`` as
scripts/import_log.py would have read them; ids keep their numbers, so saved models go on meaning the same. The sequence
store is continued, not built again. Profiles come from the saved models: on a model's first night of all clients, then
of those with an event since the night before (``clients=all``: of all). The report says how far clients and a fixed set
of canaries moved, which columns drifted, how the scores of a probe compare with those at training, and whether
retraining is due. After retraining the new profiles are turned onto the old ones, so that they can be compared.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date, datetime, time, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
from omegaconf import DictConfig, OmegaConf
from rich.markup import escape
from rich.table import Table

from scripts.import_log import embedder, now_in, schema_in
from ubp.blocks.embeddings import EmbeddingTable
from ubp.blocks.fitted import FittedBlock, content_digest, lineage_of, load, require_same_fit, settled
from ubp.cli.chosen import choose_fit, require_name
from ubp.cli.command import command
from ubp.cli.config import Common, parse
from ubp.cli.output import closing_line, say, show
from ubp.data import schema
from ubp.data.client_names import ClientNames
from ubp.data.growth import forget_before
from ubp.data.history import ChallengeData
from ubp.data.own_log import ImportSettings, all_files
from ubp.data.own_log_day import TakenDay, take_day
from ubp.data.paths import DataPaths
from ubp.data.reading import collect, load_clients
from ubp.data.text_codes import TextSettings
from ubp.evaluation.probes import Probe
from ubp.io.arrays import read_arrays, save_array, write_arrays
from ubp.io.errors import UserError, name_some, require, require_positive
from ubp.io.files import atomic_write, locked
from ubp.io.stage import Stage
from ubp.nightly.drift import Canaries, Columns, Drift, DriftSettings, Moved, Reference, column_names, cosines
from ubp.nightly.profiles import BEGIN_ANEW, VERSION, ProfileDays, in_space, space_of
from ubp.nightly.rotation import Rotation
from ubp.sequences.append import append_or_build, earlier_store

logger = logging.getLogger(__name__)

Ids = npt.NDArray[np.int64]

_CHANGED, _ALL = "changed", "all"
_REPORT: Final = "drift.json"
_CANARIES: Final = "canaries.npz"
_DIGITS: Final = 12  # of a version
_DAY: Final = timedelta(days=1)


@dataclass
class Order:
    """What is asked for besides the model; see the config."""

    source: str
    bad_rows: str
    clients: str
    rotate: bool
    rotation_clients: int
    probe_clients: int

    def __post_init__(self) -> None:
        """Refuse what is not known.

        Raises:
            UserError: a choice that there is not, or a number below 1.
        """
        require(self.bad_rows in ("error", "drop"), "bad_rows", self.bad_rows, "error or drop")
        require(self.clients in (_CHANGED, _ALL), "clients", self.clients, f"{_CHANGED} or {_ALL}")
        require_positive(self, "", "rotation_clients", "probe_clients")


# --- the day's events -------------------------------------------------------------------------------------------------


def taken_in(config: DictConfig, common: Common, order: Order, day: date) -> TakenDay:
    """Take the day into the log, by the schema that it was brought in by."""
    log = schema_in(config)
    settings = ImportSettings(order.bad_rows == "drop", TextSettings(), common.seed, now_in(log.zone), embedder)
    taken = take_day(log, all_files(log, Path(order.source)), common.paths, settings, day)
    sources = ", ".join(f"{each.source.name} {each.rows:,}" for each in taken.sources)
    say(f"{taken.events:,} new events ({sources}), {taken.clients:,} new clients, {taken.items:,} new items")
    return taken


def history_of(common: Common, day: date) -> ChallengeData:
    """All events before the end of a day.

    Raises:
        UserError: the log ends before it.
    """
    end = datetime.combine(day, time()) + _DAY
    history = ChallengeData(common.paths, True, common.unknown_sku, end)  # type: ignore[arg-type]
    last = history.latest
    if last < end - _DAY:
        raise UserError(
            f"day={day}: the log ends on {last.date()}; take the day in with schema=NAME, or add it to raw/"
        )
    return history


def continue_store(history: ChallengeData) -> None:
    """Have the day's events in the sequence store, where there is one: a log without needs none."""
    if earlier_store(history.whole) is not None:
        append_or_build(history)
    forget_before(history.whole)


def clients_since(history: ChallengeData, moment: datetime) -> Ids:
    """Those with an event at or after a moment: int64, ascending."""
    is_new = pl.col(schema.TIMESTAMP) >= moment
    frames = [history.events(each).filter(is_new).select(schema.CLIENT_ID) for each in history.event_types]
    return collect(pl.concat(frames).unique())[schema.CLIENT_ID].sort().to_numpy()


# --- one night --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Night:
    """What is to be done.

    Attributes:
        name: of the block or merge.
        day: at whose end.
        model: the folder of the fit.
        history: the events before the day's end.
        order: what is asked for.
        probe: that scores; None for none.
        drift: what is looked at.
        seed: of samples.
    """

    name: str
    day: date
    model: Path
    history: ChallengeData
    order: Order
    probe: Probe | None
    drift: DriftSettings
    seed: int

    @cached_property
    def profiles(self) -> ProfileDays:
        return ProfileDays(self.history.paths.profiles(self.name))

    @cached_property
    def before(self) -> list[date]:
        """The days before that have profiles, the latest first.

        Raises:
            UserError: a later day has.
        """
        days = self.profiles.days()
        if days and days[0] > self.day:
            raise UserError(
                f"day={self.day}: there are profiles of {days[0]} already, and a night compares with the one before; "
                f"remove those of later days, {self.profiles.folder}/day=..., to begin again from here"
            )
        return [each for each in days if each < self.day]

    @cached_property
    def version(self) -> str:
        """Of the model, with the space that its profiles are turned onto where it was retrained."""
        own = content_digest(self.model)[:_DIGITS]
        last = str(self.profiles.lineage(self.before[0])[VERSION]) if self.before else own
        if own == space_of(last) or not self.order.rotate:
            return own
        return in_space(own, space_of(last))

    @cached_property
    def same_version(self) -> list[date]:
        """The days before with profiles of this version, the latest first; none on its first night."""
        return [each for each in self.before if self.profiles.lineage(each)[VERSION] == self.version]

    @cached_property
    def today(self) -> Ids:
        """Clients with an event on the day."""
        return clients_since(self.history, datetime.combine(self.day, time()))

    @cached_property
    def changed(self) -> Ids:
        """Clients with an event since the night before."""
        since = self.same_version[0] + _DAY if self.same_version else self.day
        return clients_since(self.history, datetime.combine(since, time()))

    @property
    def writes_all(self) -> bool:
        return not self.same_version or self.order.clients == _ALL

    def lineage(self) -> dict[str, Any]:
        """Of the night: what another result would come from."""
        return {
            "name": self.name,
            "as_of": self.history.as_of.isoformat(sep=" "),
            "fingerprint": self.history.fingerprint,
            "fit": settled(lineage_of(self.model)),
            "fit_digest": content_digest(self.model),
            "clients": self.order.clients,
            "order": {key: value for key, value in asdict(self.order).items() if key not in ("source", "bad_rows")},
            "probe": self.probe and asdict(self.probe),
            "drift": asdict(self.drift),
            "night_before": str(self.before[0]) if self.before else None,
        }


def encoded(night: Night, fitted: FittedBlock) -> EmbeddingTable:
    """The profiles of tonight's clients and of the canaries, in the model's own space.

    Raises:
        UserError: nobody has one.
    """
    file = night.profiles.folder / "canaries.npy"
    # The canaries are made although they may not have changed.
    asked = night.history.seen() if night.writes_all else np.union1d(night.changed, load_clients(file))
    table = fitted.encode(night.history, asked)
    if not len(table):
        raise UserError(f"{night.name}: none of {len(asked):,} clients has events that it reads; nothing is written")
    if not file.exists():
        count = min(night.drift.canaries, len(table))
        drawn = np.random.default_rng(night.drift.seed).choice(table.client_ids, count, replace=False)
        with atomic_write(file) as aside:
            save_array(aside, np.sort(drawn))
    return table


def rotation_of(night: Night, fitted: FittedBlock) -> Rotation | None:
    """How profiles are turned: learned on a version's first night, then read; None for a version that is not turned.

    Learned from clients whose last old profiles are of the last old night: the new model makes them as of that day.
    """
    if space_of(night.version) == night.version:
        return None
    file = night.profiles.of_version(night.version, "rotation.npz")
    if night.same_version and file.exists():
        return Rotation.read(file)
    last = night.before[0]
    old = night.profiles.read(last).sort(schema.CLIENT_ID)
    count = min(night.order.rotation_clients, len(old))
    places = np.sort(np.random.default_rng(night.seed).choice(len(old), count, replace=False))
    old = old[places]
    new = fitted.encode(night.history, old[schema.CLIENT_ID].to_numpy(), datetime.combine(last, time()) + _DAY)
    known = old.join(pl.DataFrame({schema.CLIENT_ID: new.client_ids}), on=schema.CLIENT_ID, how="semi")
    if known.is_empty():
        raise UserError(f"rotate=True: no client has an old profile of {last} and a new one; rotate=False begins anew")
    rotation = Rotation.fit(new.vectors, known[schema.EMBEDDING].to_numpy())
    rotation.write(file)
    say(
        f"retrained: turned onto the space of {space_of(night.version)} by {rotation.clients:,} clients' profiles of "
        f"{last}; residual {rotation.residual:.3f} of their length (0: the same, 1.4: nothing in common)"
    )
    return rotation


def made(night: Night, fitted: FittedBlock) -> tuple[Drift, EmbeddingTable]:
    """Make and write the night's profiles and look at them.

    Returns:
        What was found, and the profiles that were written.
    """
    table = encoded(night, fitted)
    rotation = rotation_of(night, fitted)
    file = night.profiles.of_version(night.version, "reference.npz")
    rows = np.isin(table.client_ids, night.today)
    columns = None
    if night.same_version:
        reference = Reference.read(file)
        names = column_names(fitted, night.name, table.columns)
        columns = Columns.compared(reference, table.vectors[rows], names, night.drift)
    else:
        reference = Reference.of(table.vectors, table.vectors[rows if rows.any() else slice(None)])
        reference.write(file)
    mean = reference.mean
    if rotation is not None:
        mean = rotation.apply(mean[None].astype(np.float32))[0].astype(np.float64)
        table = EmbeddingTable(table.client_ids, rotation.apply(table.vectors), table.lineage)
    moved, canaries = compared(night, table, mean)
    found = Drift(moved, canaries, columns, *probed(night, fitted, columns))
    if not night.writes_all:
        wanted = np.isin(table.client_ids, night.changed)
        table = EmbeddingTable(table.client_ids[wanted], table.vectors[wanted], table.lineage)
    return found, table


def compared(
    night: Night, table: EmbeddingTable, mean: npt.NDArray[np.float64]
) -> tuple[Moved | None, Canaries | None]:
    """How far clients and canaries moved since their last profiles; tonight's of the canaries are kept."""
    asked = load_clients(night.profiles.folder / "canaries.npy")
    rows = np.isin(table.client_ids, asked)
    tonight = EmbeddingTable(table.client_ids[rows], table.vectors[rows], {})
    kept = {"ids": tonight.client_ids, "vectors": tonight.vectors}
    write_arrays(night.profiles.of_day(night.day) / _CANARIES, kept)
    if not night.same_version:
        return None, None
    last = night.same_version[0]
    arrays = read_arrays(night.profiles.of_day(last) / _CANARIES, tuple(kept), BEGIN_ANEW)
    before = EmbeddingTable(arrays["ids"], arrays["vectors"], {})
    canaries = Canaries.of(*cosines(before, tonight, mean), night.changed, night.drift.canary_cosine)
    earlier = night.profiles.newest(np.intersect1d(table.client_ids, night.changed), night.day, night.version)
    moved = Moved.of(cosines(earlier, table, mean)[1] if earlier else np.zeros(0))
    return moved, canaries


# --- is retraining due? -----------------------------------------------------------------------------------------------


def probed(night: Night, fitted: FittedBlock, columns: Columns | None) -> tuple[dict[str, Any] | None, list[str]]:
    """What the probe says, and the reasons why retraining is due."""
    due = list[str]()
    if columns is not None and columns.share > night.drift.columns:
        most = f"more than {night.drift.columns:.0%}"
        due.append(f"{columns.drifted:,} of {columns.of:,} columns drifted, {columns.share:.0%}, {most}")
    probe = night.probe
    if probe is None:
        return None, due
    from ubp.nightly.probe import WINDOW, WindowScores, score_window

    fitted_on, end = datetime.fromisoformat(lineage_of(night.model)["as_of"]), night.history.as_of
    if fitted_on + WINDOW > end:
        return {"from": str((fitted_on + WINDOW).date())}, due

    def scored(start: datetime) -> WindowScores:
        return score_window(fitted, night.history, start, probe, night.order.probe_clients, night.seed)

    file = night.profiles.of_version(content_digest(night.model)[:_DIGITS], "probe.json")
    asked = {"probe": asdict(probe) | {"seeds": list(probe.seeds)}, "clients": night.order.probe_clients}
    kept = json.loads(file.read_text()) if file.exists() else {}
    if kept.get("asked") == asked:
        training = WindowScores(**kept["scores"])
    else:
        training = scored(fitted_on)
        with atomic_write(file) as aside:
            aside.write_text(json.dumps({"asked": asked, "scores": asdict(training)}, indent=2) + "\n")
    now = training if end - WINDOW == fitted_on else scored(end - WINDOW)
    fell = training.fell_to(now)
    if fell > night.drift.probe_drop:
        due.append(f"the probe's mean score fell by {fell:.3f}, more than {night.drift.probe_drop:g}")
    return {"training": asdict(training), "now": asdict(now), "fell": round(fell, 4)}, due


def verdict(found: Drift) -> str:
    """The last line of the report."""
    if found.due:
        return f"retraining is due: {'; '.join(found.due)}"
    if found.columns is None and (found.probe is None or "now" not in found.probe):
        return "retraining is not due: this is the model's first night"
    return "retraining is not due"


def report(night: Night, found: Drift, written: int) -> Table:
    """What was found, as a table."""
    table = Table(title=f"{night.name}, version {night.version}, night of {night.day}", title_justify="left")
    for column in ("what", "found"):
        table.add_column(column)
    for row in _rows(night, found, written):
        table.add_row(*map(escape, row))
    return table


def _rows(night: Night, found: Drift, written: int) -> Iterator[tuple[str, str]]:
    who = "all with an event" if night.writes_all else "those with an event since the night before"
    yield "clients written", f"{written:,}: {who}"
    if found.moved is not None:
        values = ", ".join(f"{value:.3f} ({float(at):.0%})" for at, value in found.moved.quantiles.items())
        yield "moved since their last profile", f"{found.moved.clients:,} clients; cosine {values or '–'}"
    if (seen := found.canaries) is not None:
        below = f"{seen.below:,} below {night.drift.canary_cosine:g}, {seen.quiet_below:,} of them without a new event"
        lines = [f"{seen.clients:,} clients; least cosine {seen.least:.3f}", below]
        lines += [name_some(_own_names(night.history.paths, seen.named), 3)] if seen.named else []
        yield "canaries", "\n".join(lines)
    if (drifted := found.columns) is not None:
        yield (
            "columns that drifted",
            f"{drifted.drifted:,} of {drifted.of:,}, by {drifted.clients:,} clients of the day",
        )
        yield "the worst", "\n".join(f"{name}: {index:.2f}" for name, index in drifted.worst.items())
    if found.probe is not None and "now" not in found.probe:
        yield "probe", f"from {found.probe['from']} on, a fortnight after the model's day"
    elif found.probe is not None:
        for when, each in (("at training", found.probe["training"]), ("now", found.probe["now"])):
            of = sum(score is not None for score in each["tasks"].values())
            who = f"mean of {of} tasks, the fortnight from {each['start'][:10]}"
            yield f"probe, {when}", f"{each['mean']:.4f}: {who}, {each['clients']:,} clients, {each['seconds']:.0f} s"
        yield "probe, task by task", "\n".join(_tasks(found.probe["training"]["tasks"], found.probe["now"]["tasks"]))


def _tasks(training: dict[str, float | None], now: dict[str, float | None]) -> Iterator[str]:
    for task, score in training.items():
        if score is not None and (other := now[task]) is not None:
            yield f"{task}: {score:.3f} → {other:.3f}"


# --- the command ------------------------------------------------------------------------------------------------------


def _day(config: DictConfig) -> date:
    """The day that is asked for.

    Raises:
        UserError: there is none, or it is no day.
    """
    asked = "" if OmegaConf.is_missing(config, "day") else str(config.day)
    try:
        return date.fromisoformat(asked)
    except ValueError as error:
        raise UserError(f"day={asked}: name a day, as day=2022-11-09") from error


def _night(config: DictConfig, common: Common, order: Order, day: date, model: Path) -> Night:
    settings = parse(DriftSettings, config, at="drift")
    probe = parse(Probe, config, at="probe") if config.probe else None
    return Night(config.name, day, model, history_of(common, day), order, probe, settings, common.seed)


def _own_names(paths: DataPaths, clients: list[int]) -> list[object]:
    """What the log's owner calls some clients, in their order; one without a name as the log does."""
    names = ClientNames.of(paths).names(np.array(clients))
    return [client if name is None else name for client, name in zip(clients, names, strict=True)]


@command("scripts", "nightly")
def main(config: DictConfig) -> Drift:
    common, day = Common.of(config), _day(config)
    if common.as_of:
        raise UserError(f"as_of={common.as_of}: leave it out; day= says it")
    require_name(config, common.paths)
    order = parse(Order, config, list(Order.__dataclass_fields__))
    model = choose_fit(common.paths, config.name, None if config.submit is None else common.submit)
    # One after the other: each compares with the one before.
    with locked(common.paths.profiles(config.name) / ".done" / "nights.lock", f"a night of {config.name}"):
        if config.schema:
            taken_in(config, common, order, day)
        return _one_night(_night(config, common, order, day, model), common)


def _one_night(night: Night, common: Common) -> Drift:
    """Make the night, unless it was made before."""
    day, model = night.day, night.model
    lineage, out = night.lineage(), night.profiles.file(day)
    drift_file = night.profiles.of_day(day) / _REPORT
    stage = Stage(f"{night.name}, night of {day}", (out, drift_file), lambda: lineage, of=night.profiles.of_day(day))
    with stage.once(common.overwrite, waited=night.history.require_unchanged):
        continue_store(night.history)
        fitted = load(model)
        require_same_fit(model, lineage["fit_digest"])
        with night.history.unchanged():
            found, table = made(night, fitted)
        night.history.require_unchanged()
        table = EmbeddingTable(table.client_ids, table.vectors, table.lineage | lineage)
        night.profiles.write(day, table, night.version, ClientNames.of(common.paths).table)
        with atomic_write(drift_file) as aside:
            text = {"day": str(day), VERSION: night.version, "clients": len(table), **found.as_dict()}
            aside.write_text(json.dumps(text | {"verdict": verdict(found)}, indent=2) + "\n")
    show(report(night, found, len(table)))
    say(verdict(found))
    closing_line(f"{night.name}, night of {day}", out, *table.vectors.shape)
    return found


if __name__ == "__main__":
    main()
