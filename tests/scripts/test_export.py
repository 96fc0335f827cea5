"""The command: what it writes is read by onnxruntime alone, and its JSON suffices to make the inputs from events."""

import json
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest

import ubp
from scripts import export
from tests import tiny
from tests.conftest import synthetic
from tests.ubp.blocks.toy import make_purchases
from ubp.blocks import registry
from ubp.blocks.fitted import lineage_of
from ubp.cli.config import composed
from ubp.cli.run import COST
from ubp.data.history import ChallengeData
from ubp.data.paths import CONFIGS, DataPaths
from ubp.io.errors import UserError
from ubp.io.stage import AlreadyDone

AS_OF = datetime(2023, 2, 9)


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> DataPaths:
    """The tiny history; every client is relevant."""
    paths = synthetic().write(tmp_path_factory.mktemp("export") / "data")
    paths.input.mkdir()
    np.save(paths.relevant_clients, ChallengeData(paths, submit=True).seen())
    return paths


@pytest.fixture(scope="module")
def fitted(paths):
    """Fits a block, small, and keeps it where its command would."""

    def fit(name, *words):
        history = ubp.open_history(paths.root)
        block = ubp.fit(name, history, *tiny.overrides(registry.block(name)), *words)
        lineage = {"name": name, "fingerprint": history.fingerprint, "as_of": history.as_of.isoformat(sep=" ")}
        ubp.save(block, paths.model(name, True), lineage)
        return block

    return fit


def run(paths, *words):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -e .[export]")
    export.main(composed(CONFIGS / "scripts", "export", [f"data_path={paths.root}", *map(str, words)]))


# --- a service of its own: nothing of this library below ----------------------------------------------


def events_as_filed(folder, names):
    """All events of some types: client, time, type, subject and the properties of a sku."""
    properties = pl.read_parquet(folder / "product_properties.parquet")
    parts = []
    for name in names:
        table = pl.read_parquet(folder / f"{name}.parquet").with_columns(
            pl.col("timestamp").str.to_datetime("%Y-%m-%d %H:%M:%S"), event=pl.lit(name)
        )
        if "sku" in table.columns:
            table = table.join(properties, on="sku", how="left")
        parts.append(table)
    return pl.concat(parts, how="diagonal")


def served(folder, note_file, clients):
    """Vectors of some clients by onnxruntime, from the events' files and what the JSON says."""
    import onnxruntime

    note = json.loads(note_file.read_text())
    vocabularies = {
        name: dict(pl.read_parquet(note_file.with_name(file)).iter_rows()) for name, file in note["tables"].items()
    }
    other, none = note["special_tokens"]["other"], note["special_tokens"]["none"]
    names = note["events"][0].partition("before as_of: ")[2].split(", ")
    names = ["page_visit"] if names == ["all about urls"] else names
    newest = int(note["events"][-1].removeprefix("the newest ").removesuffix(" of them"))
    order = vocabularies.get("event", {"page_visit": 0})
    events = events_as_filed(folder, names)
    session = onnxruntime.InferenceSession(str(note_file.with_name(note["graph"])))
    found = {}
    for client in clients:
        own = [
            row
            for row in events.filter(pl.col("client_id") == client, pl.col("timestamp") < AS_OF).iter_rows(named=True)
            if note["name"] != "next_url_192_6_4" or row["url"] in vocabularies["url"]
        ]
        subject = {"page_visit": "url", "search_query": "query"}
        own.sort(key=lambda row: (row["timestamp"], order[row["event"]], row[subject.get(row["event"], "sku")]))
        own = own[-newest:]
        if not own:
            continue
        inputs = {}
        for given in note["inputs"]:
            name = given["name"]
            if name == "lengths":
                values = [len(own)]
            elif name == "age":
                values = [[(AS_OF - row["timestamp"]) / timedelta(days=1) for row in own]]
            elif name == "week":
                values = [[5 + (AS_OF - row["timestamp"]) // timedelta(days=1) // 7 for row in own]]
            elif "vocabulary" in given:
                known = vocabularies[name]
                values = [[none if row.get(name) is None else known.get(row[name], other) for row in own]]
            else:
                values = [[row[name] for row in own]]
            inputs[name] = np.array(values, given["dtype"])
        found[client] = session.run(["vectors"], inputs)[0][0]
    return found


# ---------------------------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "words"),
    [
        pytest.param("next_url_192_6_4", [], marks=pytest.mark.long),
        ("next_sku_128_4_4", ["model.profile=last", "model.half_life=null"]),
        ("gru_ae_week_event_cat_price_sku_url", []),
    ],
)
def test_the_json_suffices_to_make_the_inputs_from_events(paths, fitted, name, words):
    """By a loop over files, JSON and onnxruntime; beside what the block encodes."""
    block = fitted(name, *words)
    run(paths, f"name={name}")
    folder = paths.exported(name)
    wanted = block.encode(ChallengeData(paths, submit=True), as_of=AS_OF)
    found = served(paths.raw, folder / f"{name}.json", wanted.client_ids.tolist())
    assert list(found) == wanted.client_ids.tolist()
    np.testing.assert_allclose(np.stack(list(found.values())), wanted.vectors, rtol=2e-3, atol=2e-5)


@pytest.mark.full
@pytest.mark.parametrize("name", ["gru_ae_day_event", pytest.param("gru_ae_sku_text", marks=pytest.mark.long), "dcn"])
def test_the_other_neural_blocks_are_measured(paths, fitted, name, capsys):
    if name == "dcn":
        fitted("numeric_features_wide")
    fitted(name)
    run(paths, f"name={name}", "tolerance=1e-5")
    note = json.loads((paths.exported(name) / f"{name}.json").read_text())
    assert note["opset"] == 20
    assert note["measured"]["largest_over_rms"] <= 1e-5 == note["tolerance"]
    assert note["measured"]["clients"] > 30
    assert all((paths.exported(name) / file).exists() for file in note["tables"].values())
    assert "onnxruntime beside torch: " in capsys.readouterr().out


@pytest.mark.full
def test_an_export_is_noted_and_nothing_is_written_where_the_vectors_differ(paths, fitted, monkeypatch):
    name = "next_url_192_6_4"
    fitted(name)
    run(paths, f"name={name}", "clients=5")
    graph = paths.exported(name) / f"{name}.onnx"
    assert graph.exists()
    with pytest.raises(AlreadyDone):
        run(paths, f"name={name}", "clients=5")
    before = graph.read_bytes()
    monkeypatch.setattr("ubp.training.export.write_onnx", lambda _, file: file.write_bytes(before))
    with pytest.raises(UserError, match=r"onnxruntime's vectors are up to .* from torch's, more than tolerance=1e-12"):
        run(paths, f"name={name}", "tolerance=1e-12")
    assert graph.read_bytes() == before
    assert [path.name for path in paths.exported(name).parent.glob(".*")] == [".done"]  # nothing half made


@pytest.mark.full
def test_the_same_fit_made_again_needs_no_other_export(paths, fitted):
    name = "gru_ae_day_event"
    block = fitted(name)
    run(paths, f"name={name}", "clients=5")
    lineage = lineage_of(paths.model(name, True))
    ubp.save(block, paths.model(name, True), lineage | {"report": {COST: {"seconds": 7.0}}})
    with pytest.raises(AlreadyDone):
        run(paths, f"name={name}", "clients=5")
    ubp.save(block, paths.model(name, True), lineage | {"seed": 1})
    run(paths, f"name={name}", "clients=5")


def test_refusals(paths):
    make_purchases(paths)
    for words, line in [
        ([], "name: say which fitted block: name=NAME; there are: "),
        (["name=other"], "name=other: neither a fitted block nor a fitted merge"),
        (["name=purchases"], "name=purchases: cannot be exported: its vectors are worked out from tables"),
        (["name=purchases", "clients=0"], "clients=0: must be at least 1"),
        (["name=purchases", "tolerance=0"], "tolerance=0.0: must be above 0"),
    ]:
        with pytest.raises(UserError) as caught:
            run(paths, *words)
        assert caught.value.messages[0].startswith(line)


def test_another_folder_is_not_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("x")
    for there in (tmp_path / "mine", tmp_path / "mine" / "a.txt"):
        with pytest.raises(UserError, match="something else lies there"):
            export.require_own(there)
    export.require_own(tmp_path / "new")
    (tmp_path / "mine" / "a.onnx").write_text("x")
    export.require_own(tmp_path / "mine")
