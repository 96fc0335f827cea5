"""Nights one after another on a small log: what is written, what is said, and what is refused."""

import json
import re
import sys
from datetime import date, datetime

import numpy as np
import polars as pl
import pytest

from scripts import import_log, nightly
from tests.calls import called
from tests.ubp.blocks.toy import Purchases, make_purchases
from tests.ubp.data.test_own_log import FILES, SCHEMA
from ubp.blocks.fitted import load, save
from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.own_log import outputs
from ubp.data.paths import DataPaths
from ubp.nightly.profiles import ProfileDays
from ubp.sequences import build as building
from ubp.sequences.build import build_or_open

NIGHT = "2023-02-05"
NEXT = "2023-02-06"


@pytest.fixture
def paths(history) -> DataPaths:
    """The tiny history and a block fitted on all of it."""
    history.input.mkdir()
    np.save(history.relevant_clients, ChallengeData(history, submit=True).seen())
    make_purchases(history)
    return history


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a command in this process; gives its exit code, its stdout, and its lines on stderr."""

    def call(command, root, *words):
        monkeypatch.setenv("CHALLENGE_DATA_PATH", str(root))
        return called(command, words, monkeypatch, capsys)

    return call


@pytest.fixture
def night(run, paths):
    """Runs a night without the probe; gives what it said."""

    def call(day, *words, code=0):
        done = run(nightly, paths.root, f"day={day}", "name=purchases", "probe=none", *words)
        assert done[0] == code, done
        return done[1] if code == 0 else "\n".join(line for line in done[2] if line.startswith("error: "))

    return call


def day_of(paths, day) -> pl.DataFrame:
    return pl.read_parquet(ProfileDays(paths.profiles("purchases")).file(date.fromisoformat(day))).sort("client_id")


def found(paths, day) -> dict:
    return json.loads((paths.profiles("purchases") / f"day={day}" / "drift.json").read_text())


def with_events(paths, day) -> list[int]:
    data = ChallengeData(paths, submit=True)
    start = datetime.fromisoformat(day)
    frames = [data.events(kind).filter(pl.col("timestamp").dt.date() == start.date()) for kind in data.event_types]
    return (
        pl.concat(frame.select("client_id") for frame in frames)
        .unique()
        .sort("client_id")
        .collect()["client_id"]
        .to_list()
    )


def test_all_on_the_first_night_then_those_with_an_event(night, paths):
    said = night(NIGHT)
    encoded = load(paths.model("purchases", True)).encode(ChallengeData(paths, True), as_of=datetime(2023, 2, 6))
    first = day_of(paths, NIGHT)
    assert first["client_id"].to_list() == encoded.client_ids.tolist()
    assert first["embedding"].to_numpy().tobytes() == encoded.vectors.tobytes()
    assert first["version"].n_unique() == 1
    assert "this is the model's first night" in said
    assert re.search(
        rf"\npurchases, night of {NIGHT} · \d+ clients × 3 columns · .*/day={NIGHT}/profiles.parquet\n$", said
    )
    night(NEXT)
    second = day_of(paths, NEXT)
    bought_before = set(first["client_id"]) | set(with_events(paths, NEXT))
    wanted = [client for client in with_events(paths, NEXT) if client in bought_before]
    buyers = (
        load(paths.model("purchases", True)).encode(ChallengeData(paths, True), as_of=datetime(2023, 2, 7)).client_ids
    )
    assert second["client_id"].to_list() == sorted(set(wanted) & set(buyers.tolist()))
    assert 0 < len(second) < len(first)
    report = found(paths, NEXT)
    assert report["moved"]["clients"] == len(second.join(first, on="client_id", how="semi"))
    assert report["canaries"]["clients"] == len(first)
    assert report["canaries"]["quiet_below"] == 0  # nothing but a purchase moves these profiles
    assert report["columns"]["of"] == 3
    assert report["verdict"] == "retraining is not due"
    files = f"{paths.profiles('purchases')}/**/*.parquet"
    assert pl.scan_parquet(files, hive_partitioning=True).collect()["day"].n_unique() == 2


def test_all_clients_every_night(night, paths):
    night(NIGHT)
    night(NEXT, "clients=all")
    assert set(day_of(paths, NEXT)["client_id"]) >= set(day_of(paths, NIGHT)["client_id"])


@pytest.mark.full
def test_nights_that_were_left_out_are_made_up_for(night, paths):
    night("2023-02-03")
    night(NEXT)
    days = [with_events(paths, day) for day in ("2023-02-04", NIGHT, NEXT)]
    buyers = (
        load(paths.model("purchases", True)).encode(ChallengeData(paths, True), as_of=datetime(2023, 2, 7)).client_ids
    )
    assert day_of(paths, NEXT)["client_id"].to_list() == sorted(set().union(*days) & set(buyers.tolist()))


def test_the_same_night_again_changes_nothing(night, paths):
    night(NIGHT)
    night(NEXT)
    files = sorted(file for file in paths.profiles("purchases").rglob("*") if file.is_file())
    before = {file: file.stat().st_mtime_ns for file in files}
    assert "done before" in night(NEXT)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    content = day_of(paths, NEXT)
    night(NEXT, "overwrite=True")
    assert day_of(paths, NEXT).equals(content)


@pytest.mark.full
def test_a_night_before_the_last_one_and_one_after_the_log(night):
    night(NEXT)
    assert f"day={NIGHT}: there are profiles of {NEXT} already" in night(NIGHT, code=1)
    assert "day=2023-03-05: the log ends on 2023-02-08; take the day in with schema=NAME" in night("2023-03-05", code=1)
    assert "day=soon: name a day" in night("soon", code=1)


def test_drifted_columns_make_retraining_due(night, paths):
    night(NIGHT)
    bought = pl.read_parquet(paths.raw / "product_buy.parquet")
    new = pl.DataFrame(
        {"client_id": bought["client_id"].unique().sort(), "timestamp": "2023-02-10 10:00:00"},
    ).join(pl.DataFrame({"sku": bought["sku"].unique().sort()}), how="cross")
    pl.concat([bought, new.select(bought.columns)]).write_parquet(paths.raw / "product_buy.parquet")
    said = night("2023-02-10")
    assert "retraining is due: 3 of 3 columns drifted, 100%, more than 20%" in said
    assert found(paths, "2023-02-10")["due"] == ["3 of 3 columns drifted, 100%, more than 20%"]


def test_a_fault_that_moves_quiet_clients_is_said(night, paths, monkeypatch):
    night(NIGHT)
    vectors = Purchases.vectors

    def other(self, history, clients):
        ids, values = vectors(self, history, clients)
        return ids, np.ascontiguousarray(values[::-1])

    monkeypatch.setattr(Purchases, "vectors", other)
    said = night(NEXT)
    assert found(paths, NEXT)["canaries"]["quiet_below"] > 10
    assert "of them without a new event" in said


def turned_model(paths, turn, shift):
    """What a retraining leaves that finds the same but for a rotation."""
    save(Turned(turn, shift), paths.model("purchases", True), {"name": "purchases", "as_of": "2023-02-09 00:00:00"})


class Turned(Purchases):
    """Purchases, turned and shifted."""

    def __init__(self, turn, shift):
        super().__init__(np.array((1.0, 0.1, 2.0), np.float32))
        object.__setattr__(self, "turn", turn)
        object.__setattr__(self, "shift", shift)

    def vectors(self, history, clients):
        ids, values = super().vectors(history, clients)
        return ids, (values @ self.turn + self.shift).astype(np.float32)

    def state(self):
        state = super().state()
        return type(state)({}, {"turn": self.turn, "shift": self.shift})

    @classmethod
    def from_state(cls, state):
        return cls(state.arrays["turn"], state.arrays["shift"])


@pytest.mark.full
def test_a_retrained_space_is_turned_onto_the_old_one(night, paths):
    night(NIGHT)
    old = load(paths.model("purchases", True))
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    turned_model(paths, turn, np.array([7.0, -3.0, 50.0]))
    said = night(NEXT)
    assert "retrained: turned onto the space of " in said
    assert "residual 0.000 of their length" in said
    wanted = old.encode(ChallengeData(paths, True), as_of=datetime(2023, 2, 7))
    second = day_of(paths, NEXT)
    assert second["client_id"].to_list() == wanted.client_ids.tolist()
    np.testing.assert_allclose(second["embedding"].to_numpy(), wanted.vectors, rtol=1e-3, atol=0.05)
    first, version = day_of(paths, NIGHT)["version"][0], second["version"][0]
    assert version == f"{version[:12]}@{first}"
    third = night("2023-02-07")
    assert "retrained: " not in third
    assert day_of(paths, "2023-02-07")["version"].unique().to_list() == [version]
    assert found(paths, "2023-02-07")["canaries"]["quiet_below"] == 0


@pytest.mark.full
def test_a_new_space_where_nothing_is_to_be_turned(night, paths):
    night(NIGHT)
    turned_model(paths, np.eye(3)[:, ::-1].copy(), np.zeros(3))
    night(NEXT, "rotate=False")
    assert "@" not in day_of(paths, NEXT)["version"][0]
    assert len(day_of(paths, NEXT)) >= len(day_of(paths, NIGHT))


def test_the_store_is_continued_and_not_built(paths, monkeypatch, night):
    last = ChallengeData(paths, True).as_of
    for kind in schema.EVENT_TYPES:
        table = pl.read_parquet(paths.raw / kind.file_name)
        table.filter(pl.col("timestamp") < NEXT).write_parquet(paths.raw / kind.file_name)
        table.write_parquet(paths.root / kind.file_name)
    build_or_open(ChallengeData(paths, True))
    for kind in schema.EVENT_TYPES:
        (paths.root / kind.file_name).replace(paths.raw / kind.file_name)
    monkeypatch.setattr(building, "build", lambda *_: pytest.fail("built anew"))
    night(NEXT)
    whole = ChallengeData(paths, True)
    assert whole.as_of == last
    assert len(build_or_open(whole).time) == sum(whole.rows(kind) for kind in schema.EVENT_TYPES)


@pytest.mark.full
def test_the_probe_begins_a_fortnight_after_the_model(run, paths):
    for file in paths.raw.glob("*.parquet"):
        table = pl.read_parquet(file)
        kept = table.filter(pl.col("timestamp") < "2023-01-15") if "timestamp" in table.columns else table
        kept.write_parquet(paths.input / file.name)
    make_purchases(paths, submit=False, name="local")
    words = ["name=local", "probe_clients=50"]
    code, said, _ = run(nightly, paths.root, "day=2023-01-20", *words)
    assert code == 0
    assert "from 2023-01-29 on, a fortnight after the model's day" in said
    code, said, _ = run(nightly, paths.root, "day=2023-02-03", *words)
    assert code == 0
    report = json.loads((paths.profiles("local") / "day=2023-02-03" / "drift.json").read_text())
    assert report["probe"]["training"]["start"] == "2023-01-15 00:00:00"
    assert report["probe"]["now"]["start"] == "2023-01-21 00:00:00"
    scored = {task for task, score in report["probe"]["now"]["tasks"].items() if score is not None}
    assert scored == {"churn", "conversion"}  # there are no lists of targets
    assert 0 < report["probe"]["now"]["mean"] < 1


# --- a log of one's own ----------------------------------------------------------------------------------------------


SALES = ["ann", "bob", "cid", "dan"]


@pytest.fixture
def own(tmp_path, run):
    """A log that was brought in by a schema, ten days of sales, and a block fitted on it."""
    folder = tmp_path / "mine"
    (folder / "schema").mkdir(parents=True)
    text = {"schema": {"events": {"sales": {**SCHEMA["events"]["sales"]}}}}
    (folder / "schema" / "mine.yaml").write_text(json.dumps(text["schema"]))
    write_sales(folder, 10)
    root = tmp_path / "data"
    assert run(import_log, root, f"--config-dir={folder}", "schema=mine", f"source={folder}")[0] == 0
    paths = DataPaths(root)
    paths.input.mkdir()
    np.save(paths.relevant_clients, ChallengeData(paths, True).seen())
    make_purchases(paths)
    return folder, paths


def write_sales(folder, days, more=()):
    rows = [f"{who},2025-01-{day:02} 10:00:00,{what},2.50,sale" for day in range(1, days + 1) for who, what in zip(SALES, ("soup", "pan", "pot", "cup"), strict=True)]  # noqa: E501  # fmt: skip
    (folder / "sales.csv").write_text("\n".join([FILES["sales.csv"].splitlines()[0], *rows, *more, ""]))


def own_night(run, own, day):
    folder, paths = own
    words = ["schema=mine", f"source={folder}", "name=purchases", "probe=none", f"day={day}"]
    return run(nightly, paths.root, f"--config-dir={folder}", *words)


def test_a_day_is_taken_in_and_its_clients_have_their_own_names(run, own):
    folder, paths = own
    assert own_night(run, own, "2025-01-10")[0] == 0
    write_sales(folder, 10, ["aaa,2025-01-11 09:00:00,hat,9,sale", "bob,2025-01-11 09:30:00,pan,9,sale"])
    code, said, _ = own_night(run, own, "2025-01-11")
    assert code == 0
    assert "2 new events (sales 2), 1 new clients, 1 new items" in said
    assert sorted(day_of(paths, "2025-01-11")["original"]) == ["aaa", "bob"]
    before = {path: path.read_bytes() for path in outputs(paths, schema.EVENT_TYPES)}
    code, said, _ = own_night(run, own, "2025-01-11")
    assert code == 0
    assert "0 new events" in said
    assert "done before" in said
    assert {path: path.read_bytes() for path in outputs(paths, schema.EVENT_TYPES)} == before
    code, _, err = own_night(run, own, "2025-01-10")
    assert code == 1
    assert any("day=2025-01-10: the log goes on until 2025-01-11 already" in line for line in err)


def test_a_store_is_continued_from_what_was_taken_in(run, own, monkeypatch):
    folder, paths = own
    before = ChallengeData(paths, True)
    build_or_open(before)
    monkeypatch.setattr(building, "build", lambda *_: pytest.fail("built anew"))
    write_sales(folder, 11)
    assert own_night(run, own, "2025-01-11")[0] == 0
    now = ChallengeData(paths, True)
    assert len(build_or_open(now).time) == 44
    assert not paths.sequences(before.events_fingerprint).exists()  # nobody will ask for it again


@pytest.mark.full
def test_the_stores_before_a_night_that_was_not_given_again_are_removed_by_the_next(run, own, monkeypatch):
    folder, paths = own
    before = ChallengeData(paths, True)
    build_or_open(before)
    write_sales(folder, 11)
    with monkeypatch.context() as patch:
        patch.setattr(nightly, "_one_night", lambda *_: sys.exit("killed"))  # the day is in the log, and nothing else
        own_night(run, own, "2025-01-11")
    write_sales(folder, 12)
    assert own_night(run, own, "2025-01-12")[0] == 0
    now = ChallengeData(paths, True)
    assert [folder.name for folder in paths.sequences("").iterdir() if folder.is_dir() and folder.name != ".done"] == [
        now.events_fingerprint
    ]
    assert len(build_or_open(now).time) == 48
