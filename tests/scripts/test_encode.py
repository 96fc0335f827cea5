"""Any clients on any day, from what was fitted alone: the command, its refusals, and neighbours over two days."""

import re
import shutil
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from scripts import encode, merge
from stat_features import stat_features
from tests.calls import called
from tests.ubp.blocks.toy import make_purchases
from ubp.blocks import merge as merging
from ubp.blocks.embeddings import EmbeddingTable
from ubp.blocks.entry import read_entry
from ubp.blocks.fitted import load
from ubp.cli.config import composed
from ubp.data.history import ChallengeData
from ubp.data.paths import CONFIGS, DataPaths
from ubp.io.errors import UserError

BLOCKS = ("stat_features", "als_64_buy_add_categories", "als_64_visits_relevant")
NOBODY = [700_001, 700_002, 700_003]
TINY = ["--config-name=basics", "name=tiny", *(f"~blocks.als_64_{block}" for block in ("buy_add_categories", "visits_relevant"))]  # noqa: E501  # fmt: skip


@pytest.fixture(scope="module")
def fitted(make_history, tmp_path_factory) -> Path:
    """The tiny history, where every second client is relevant; the statistics and a merge of them, on all events."""
    root = tmp_path_factory.mktemp("fitted") / "data"
    paths = make_history().write(root)
    paths.input.mkdir()
    np.save(paths.relevant_clients, ChallengeData(paths, submit=True).seen()[::2])
    where = f"data_path={root}"
    stat_features.main(composed(CONFIGS / "stat_features", "stat_features", [where]))
    merge.main(composed(CONFIGS / "merge", "basics", [where, *TINY[1:]]))
    return root


@pytest.fixture
def paths(fitted, tmp_path) -> DataPaths:
    """A copy of its own for each test."""
    return DataPaths(shutil.copytree(fitted, tmp_path / "data"))


@pytest.fixture
def run(paths, monkeypatch, capsys):
    """Runs a command in this process; gives its exit code, and its lines on stdout and stderr."""
    monkeypatch.setenv("CHALLENGE_DATA_PATH", str(paths.root))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # the command sets it: put back afterwards

    def call(command, *words):
        code, out, err = called(command, words, monkeypatch, capsys)
        return code, out.splitlines(), err

    return call


@pytest.fixture
def merged(paths):
    return ChallengeData(paths, submit=True)


def refusal(result) -> str:
    code, out, err = result
    lines = [line for line in err if line.startswith("error: ")]
    assert (code, out) == (1, [])
    assert len(lines) == 1
    return lines[0]


def test_the_same_clients_and_day_give_the_entry(run, merged, paths):
    code, out, _ = run(encode, "name=tiny", f"clients={paths.relevant_clients}")
    assert code == 0
    file = paths.encoded("tiny") / "2023-02-09.parquet"
    assert re.fullmatch(rf"tiny · 30 clients × 44 columns · [\d.]+ s · [\d,]+ MB · {file}", out[-1])
    found = EmbeddingTable.read(file)
    ids, profiles = read_entry(paths.embeddings(submit=True) / "tiny")
    assert found.client_ids.tolist() == ids.tolist()
    assert found.vectors.astype(np.float16).tobytes() == profiles.tobytes()
    assert found.lineage["name"] == "tiny"
    assert found.lineage["as_of"] == "2023-02-09 00:00:00"
    assert found.lineage["fingerprint"] == merged.fingerprint
    assert found.lineage["fit"]["config"]["blocks"]["stat_features"]["scaler"]["_target_"].endswith("Transformer")


def test_a_block_encoded_on_its_own_day_is_its_commands_parquet(run, paths):
    run(encode, "name=stat_features", f"clients={paths.relevant_clients}", f"out={paths.root}/again.parquet")
    wanted, found = (
        EmbeddingTable.read(path) for path in (paths.block("stat_features", True), paths.root / "again.parquet")
    )
    assert found.client_ids.tolist() == wanted.client_ids.tolist()
    assert found.vectors.tobytes() == wanted.vectors.tobytes()


def test_unknown_clients_get_rows_and_those_without_events_are_counted(run, merged, paths):
    left_out = np.setdiff1d(merged.before(datetime(2023, 1, 20)).seen(), merged.relevant_clients)[:7]
    asked = np.concatenate([left_out[::-1], NOBODY, left_out[:2]])
    np.save(paths.root / "asked.npy", asked)
    out = paths.root / "out.parquet"
    code, lines, err = run(encode, "name=tiny", "as_of=2023-01-20", f"clients={paths.root}/asked.npy", f"out={out}")
    assert code == 0
    assert lines[-1].startswith(
        "tiny (3 of 10 asked clients have no event before 2023-01-20: no row) · 7 clients × 44 columns · "
    )
    assert lines[-1].endswith(f" · {out}")
    assert EmbeddingTable.read(out).client_ids.tolist() == left_out.tolist()
    assert any("2 of 12 ids occur before: each client once" in line for line in err)
    assert any("it has seen later ones than those before 2023-01-20" in line for line in err)


def test_all_clients_and_a_moment_where_none_are_named(run, merged, paths):
    code, _, _ = run(encode, "name=tiny", "as_of='2023-01-20 12:30:00'")
    assert code == 0
    found = EmbeddingTable.read(paths.encoded("tiny") / "2023-01-20T12-30-00.parquet")
    assert found.client_ids.tolist() == merged.before(datetime(2023, 1, 20, 12, 30)).seen().tolist()


def test_a_day_after_the_logs_end(run, merged, paths):
    run(encode, "name=stat_features", "as_of=2023-03-01")
    later = EmbeddingTable.read(paths.encoded("stat_features") / "2023-03-01.parquet")
    assert later.client_ids.tolist() == merged.seen().tolist()
    assert not np.array_equal(later.vectors[::2], EmbeddingTable.read(paths.block("stat_features", True)).vectors)


def test_clients_from_a_parquet(run, merged, paths):
    pl.DataFrame({"x": [1, 2], "client_id": merged.clients[:2]}).write_parquet(paths.root / "some.parquet")
    assert run(encode, "name=tiny", f"clients={paths.root}/some.parquet", f"out={paths.root}/o.parquet")[0] == 0
    assert EmbeddingTable.read(paths.root / "o.parquet").client_ids.tolist() == merged.clients[:2].tolist()


def test_done_before_unless_something_changed(run, paths):
    assert "done before" not in run(encode, "name=tiny")[1][-1]
    again = run(encode, "name=tiny")
    assert again[0] == 0
    assert "done before" in again[1][-1]
    assert "overwrite=True" in again[1][-1]
    assert "done before" not in run(encode, "name=tiny", "overwrite=True")[1][-1]
    assert "done before" not in run(encode, "name=tiny", f"clients={paths.relevant_clients}")[1][-1]


def test_a_client_without_what_a_block_reads(run, paths):
    make_purchases(paths)
    data = ChallengeData(paths, submit=True)
    buys = load(paths.model("purchases", True)).encode(data).client_ids
    without = np.setdiff1d(data.seen(), buys)
    assert len(without) > 0
    lines = run(encode, "name=purchases")[1]
    assert f"({len(without)} of {len(data.seen())} have none that purchases reads: no row)" in lines[-1]
    np.save(paths.root / "asked.npy", without)
    line = refusal(run(encode, "name=purchases", f"clients={paths.root}/asked.npy", f"out={paths.root}/o.parquet"))
    assert line.endswith("have none that purchases reads: no row; nothing is written")
    assert not (paths.root / "o.parquet").exists()


# --- which fit ---------------------------------------------------------------------------------------


def test_the_fit_on_all_events_comes_first(paths, caplog):
    shutil.rmtree(paths.models(""))
    caplog.set_level("INFO")
    with pytest.raises(UserError, match="name=purchases: neither a fitted block nor a fitted merge; there are: none"):
        encode.choose_fit(paths, "purchases", None)
    for file in paths.raw.glob("*.parquet"):
        (paths.input / file.name).write_bytes(file.read_bytes())
    make_purchases(paths, submit=False)
    local, whole = (paths.model("purchases", submit) for submit in (False, True))
    assert encode.choose_fit(paths, "purchases", None) == local
    assert f"purchases: the fit on the local history, {local}" in caplog.text
    with pytest.raises(UserError, match="submit=True: not fitted so; there is the fit of submit=False"):
        encode.choose_fit(paths, "purchases", True)
    make_purchases(paths, submit=True)
    assert encode.choose_fit(paths, "purchases", None) == whole
    assert f"purchases: the fit on all events, {whole}" in caplog.text
    assert encode.choose_fit(paths, "purchases", False) == local


def test_an_unknown_name_lists_those_there_are(run):
    assert "there are: stat_features, tiny; make it" in refusal(run(encode, "name=basics"))
    assert refusal(run(encode)).endswith("name=NAME; there are: stat_features, tiny")


def test_a_local_fit_encodes_with_all_events(run, merged, paths):
    for file in paths.raw.glob("*.parquet"):
        table = pl.read_parquet(file)
        kept = table.filter(pl.col("timestamp") < "2023-01-20") if "timestamp" in table.columns else table
        kept.write_parquet(paths.input / file.name)
    assert run(stat_features, "submit=False")[0] == 0
    assert run(merge, *TINY, "submit=False")[0] == 0
    assert run(encode, "name=tiny", "submit=False", "as_of=2023-01-20", f"clients={paths.relevant_clients}")[0] == 0
    at_its_end = EmbeddingTable.read(paths.encoded("tiny") / "2023-01-20.parquet")
    ids, profiles = read_entry(paths.embeddings(submit=False) / "tiny")
    assert at_its_end.client_ids.tolist() == ids.tolist()
    assert at_its_end.vectors.astype(np.float16).tobytes() == profiles.tobytes()
    assert run(encode, "name=tiny", "submit=False", "as_of=2023-02-05")[0] == 0
    later = EmbeddingTable.read(paths.encoded("tiny") / "2023-02-05.parquet")
    assert later.client_ids.tolist() == merged.before(datetime(2023, 2, 5)).seen().tolist()


def test_a_merge_of_the_name_of_a_block_is_refused(run):
    line = refusal(run(merge, *TINY, "name=stat_features"))
    assert "name=stat_features: a block has this name; give the merge another" in line


@pytest.mark.full
def test_a_merge_is_made_again_when_its_fit_is_gone(run, paths):
    assert "done before" in run(merge, *TINY)[1][-1]
    (paths.model("tiny", submit=True) / "block.json").unlink()
    assert "done before" not in run(merge, *TINY)[1][-1]
    assert (paths.model("tiny", submit=True) / "block.json").exists()


# --- faults ------------------------------------------------------------------------------------------

CLIENT_FILES = {
    "int32": (np.array([1, 2], np.int32), "int32 with 1 dimensions; must be int64 with one dimension"),
    "two dimensions": (np.ones((2, 2), np.int64), "int64 with 2 dimensions; must be"),
    "floats": (np.array([1.0]), "float64 with 1 dimensions"),
    "empty": (np.zeros(0, np.int64), "no clients in it"),
    "text": ("1 2 3", "not a readable .npy file"),
    "other parquet": (pl.DataFrame({"id": [1]}), "no column client_id; it has id"),
    "floats in a parquet": (pl.DataFrame({"client_id": [1.0]}), "column client_id is Float64; must be Int64"),
    "nulls": (pl.DataFrame({"client_id": [1, None]}), "1 values of client_id are null"),
    "no clients": (pl.DataFrame({"client_id": pl.Series([], dtype=pl.Int64)}), "no clients in it"),
}


@pytest.mark.parametrize(("content", "says"), CLIENT_FILES.values(), ids=CLIENT_FILES.keys())
def test_a_file_of_clients_that_is_none(tmp_path, content, says):
    file = tmp_path / ("a.parquet" if isinstance(content, pl.DataFrame) else "a.npy")
    if isinstance(content, pl.DataFrame):
        content.write_parquet(file)
    elif isinstance(content, str):
        file.write_text(content)
    else:
        np.save(file, content)
    with pytest.raises(UserError) as caught:
        encode.read_clients(file)
    (message,) = caught.value.messages
    assert message.startswith(f"clients={file}: ")
    assert says in message
    assert "\n" not in message


def test_a_file_of_clients_that_is_missing_or_of_another_kind(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        encode.read_clients(tmp_path / "a.npy")
    (tmp_path / "a.csv").write_text("client_id\n1\n")
    with pytest.raises(UserError, match=r"neither a \.npy file nor a readable parquet"):
        encode.read_clients(tmp_path / "a.csv")


def test_nothing_else_is_overwritten(run, paths):
    log = paths.raw / "page_visit.parquet"
    before = log.read_bytes()
    assert f"out={log}: another file lies there" in refusal(run(encode, "name=tiny", f"out={log}"))
    assert log.read_bytes() == before
    assert f"out={paths.raw}: a folder; name a file" in refusal(
        run(encode, "name=tiny", f"out={paths.raw}", "overwrite=True")
    )
    assert log.exists()


def test_a_day_without_events_and_one_that_is_none(run):
    assert "as_of=2020-01-01 00:00:00" in refusal(run(encode, "name=tiny", "as_of=2020-01-01"))
    assert "as_of=soon: not a day or time" in refusal(run(encode, "name=tiny", "as_of=soon"))


# --- two days ----------------------------------------------------------------------------------------


def nearest(queries, among):
    """For each row of one matrix the rows of the other, nearest first."""
    distances = ((queries[:, None, :].astype(np.float64) - among[None, :, :]) ** 2).sum(axis=2)
    return distances.argsort(axis=1, kind="stable")


@pytest.mark.full
def test_a_neighbour_of_yesterday_is_still_one_today(run, paths):
    """Two days' profiles lie in one space: the merge is not fitted anew, so they can be compared."""
    for day in ("2023-02-05", "2023-02-06"):
        assert run(encode, "name=tiny", f"as_of={day}")[0] == 0
    yesterday, today = (
        EmbeddingTable.read(paths.encoded("tiny") / f"{day}.parquet") for day in ("2023-02-05", "2023-02-06")
    )
    assert set(yesterday.client_ids) <= set(today.client_ids)
    rows = np.searchsorted(today.client_ids, yesterday.client_ids)
    now = today.vectors[rows]
    assert not np.array_equal(now, yesterday.vectors)
    own = np.arange(len(now))
    found_again = nearest(yesterday.vectors, now)[:, 0] == own
    assert found_again.mean() > 0.9
    neighbours = nearest(yesterday.vectors, yesterday.vectors)[:, 1]  # 0 is the client itself
    five_of_today = nearest(now, now)[:, 1:6]
    still = (five_of_today == neighbours[:, None]).any(axis=1)
    assert still.mean() > 0.8  # by chance: five of 59


# --- what changes meanwhile -------------------------------------------------------------------------------------------


def doing(monkeypatch, module, name, meanwhile):
    """Have something done after a function of a command, once."""
    function, left = getattr(module, name), [meanwhile]

    def called_once(*arguments, **settings):
        found = function(*arguments, **settings)
        if left:
            left.pop()()
        return found

    monkeypatch.setattr(module, name, called_once)


@pytest.mark.full
@pytest.mark.usefixtures("merged")
def test_a_fit_made_anew_while_it_is_read_is_said(run, paths, monkeypatch):
    make_purchases(paths)
    doing(monkeypatch, encode, "load", lambda: make_purchases(paths, weights=(9.0, 9.0, 9.0)))
    assert refusal(run(encode, "name=purchases")) == (
        f"error: {paths.model('purchases', True)}: fitted anew while it was read; give the command again"
    )
    assert not paths.encoded("purchases").exists() or not list(paths.encoded("purchases").glob("*.parquet"))
    assert run(encode, "name=purchases")[0] == 0


@pytest.mark.usefixtures("merged")
def test_a_merge_whose_block_is_made_anew_while_it_is_read_is_said(run, paths, monkeypatch):
    make_purchases(paths)
    words = ("--config-name=basics", "name=bought", *(f"~blocks.{name}" for name in BLOCKS), "+blocks.purchases={}")
    assert run(merge, *words)[0] == 0
    doing(monkeypatch, merging, "load", lambda: make_purchases(paths, weights=(9.0, 9.0, 9.0)))
    assert "block purchases: fitted anew since the merge" in refusal(run(encode, "name=bought"))


@pytest.mark.usefixtures("merged")
def test_events_that_change_while_they_are_read_are_said(run, paths, monkeypatch):
    make_purchases(paths)
    file = paths.raw / "page_visit.parquet"
    doing(monkeypatch, encode, "load", lambda: pl.read_parquet(file)[1:].write_parquet(file))
    assert "changed while they were read; give the command again" in refusal(run(encode, "name=purchases"))


@pytest.mark.usefixtures("merged")
def test_an_error_of_events_that_change_is_said_as_that(run, paths, monkeypatch):
    make_purchases(paths)
    doing(monkeypatch, encode, "load", (paths.raw / "product_buy.parquet").unlink)
    monkeypatch.setattr(ChallengeData, "require_unchanged", changed)
    assert refusal(run(encode, "name=purchases")) == "error: they changed"


def changed(_):
    raise UserError("they changed")


@pytest.mark.full
def test_a_merge_of_a_block_that_is_made_anew_is_refused(run, paths, monkeypatch):
    make_purchases(paths)
    words = ("--config-name=basics", "name=bought", *(f"~blocks.{name}" for name in BLOCKS), "+blocks.purchases={}")
    doing(monkeypatch, merge, "fit_merge", lambda: make_purchases(paths, weights=(9.0, 9.0, 9.0)))
    assert refusal(run(merge, *words)) == (
        "error: block purchases, fit of purchases made anew while they were merged; merge again, alone"
    )
    assert not (paths.embeddings(submit=True) / "bought").exists()
    assert run(merge, *words)[0] == 0


@pytest.mark.parametrize("word", ["parts.threads=0", "parts.shards=0", "parts.gpus=-1", "parts.memory=-0.5"])
def test_parts_that_make_no_sense_are_refused_before_a_cluster_is_asked(run, word):
    assert refusal(run(encode, "name=stat_features", "engine=ray", word)).startswith(f"error: {word}: must be at least")
