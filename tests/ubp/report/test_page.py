"""The page as text: it loads nothing, is a tree of tags that are closed, and says what is not there."""

import json
import re
from dataclasses import replace
from datetime import timedelta
from html.parser import HTMLParser

import polars as pl
import pytest
from plotly.offline import get_plotlyjs

from tests.ubp.blocks.toy import make_purchases
from tests.ubp.data import small_logs
from ubp.data.history import ChallengeData
from ubp.report.clients import ClientSettings, ClientView
from ubp.report.figures import colours_of
from ubp.report.log import LogSummary
from ubp.report.made import made_of
from ubp.report.page import Content, as_script, client_values, duration, memory, page
from ubp.report.profiles import ProfileFile
from ubp.report.rests import Rests

HOSTILE = "</script><img src=https://example.com/x onerror=alert(1)>"
EMPTY = {"meta", "link", "br", "img", "input"}
LOADS = {"src", "href", "srcset", "action", "data", "poster"}


class Tree(HTMLParser):
    """What tags a page has, and what they would load."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.loads, self.ids, self.scripts, self.text = [], [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in LOADS]
        self.ids += [value for name, value in attrs if name == "id"]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.scripts if self.open and self.open[-1] == "script" else self.text).append(data)


def parsed(text):
    tree, library = Tree(), get_plotlyjs()
    assert text.count(library) == 1
    tree.feed(text.replace(library, ""))  # seconds of parsing
    tree.close()
    assert tree.open == []
    assert len(set(tree.ids)) == len(tree.ids)
    return tree


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """A log whose own names are hostile, and a block."""
    paths = small_logs.write(small_logs.random_log(5), tmp_path_factory.mktemp("log") / "data")
    make_purchases(paths, submit=True)
    for kind, ids in {"client": range(12), "item": range(100, 109), "url": range(9), "category": range(5)}.items():
        table = {"id": list(ids), "original": [f"{kind}{id_}{HOSTILE}" for id_ in ids]}
        pl.DataFrame(table).write_parquet(paths.raw / f"ids_{kind}.parquet")
    return paths


@pytest.fixture(scope="module")
def content(paths):
    history = ChallengeData(paths, True)
    rows = made_of(paths, submit=True)
    view = ClientView.of(ProfileFile.open(rows[0].path), history, ClientSettings(drawn=3), None, seed=0)
    return Content(f"log {HOSTILE}", LogSummary.of(history), rows, [], [], view, [], colours_of(history), [HOSTILE])


@pytest.fixture(scope="module")
def nothing(paths):
    history = ChallengeData(paths, True)
    return Content("log", LogSummary.of(history), [], [], [], None, [], colours_of(history))


def test_the_page_loads_nothing(content):
    tree = parsed(page(content))
    assert all(load.startswith("#") for load in tree.loads)
    assert not {"link", "img", "iframe", "object", "embed", "form", "base"} & set(tree.tags)
    assert "default-src 'none'" in page(content)
    assert "url(" not in re.search(r"<style>(.*?)</style>", page(content), flags=re.DOTALL)[1]


def test_names_out_of_the_log_end_no_tag(content):
    text = page(content)
    assert "<img src=https" not in text
    tree = parsed(text)
    values = json.loads(tree.scripts[0])
    assert HOSTILE in str(values["clients"])  # to be shown by textContent
    assert HOSTILE not in str(values["figures"])  # Plotly reads tags
    assert f"log {HOSTILE}" in "".join(tree.text)


def test_every_section_and_link_is_there(content):
    tree = parsed(page(content))
    sections = ["log", "blocks", "scores", "training", "ablation", "clients", "drift"]
    assert [load.removeprefix("#") for load in tree.loads] == sections
    assert set(sections) <= set(tree.ids)
    values = json.loads(tree.scripts[0])
    assert list(values["figures"]) == ["events", "week", "gaps", "tails", "map"]


def test_what_the_script_shows_of_clients_is_there_for_each(content):
    clients = json.loads(parsed(page(content)).scripts[0])["clients"]
    shown = {str(id_) for id_ in content.view.shown}
    for part in ("names", "about", "points", "histories"):
        assert set(clients[part]) == shown
    assert set(clients["neighbours"]) == {str(id_) for id_ in clients["drawn"]}
    types = [each["name"] for each in clients["types"]]
    for record in clients["histories"].values():
        assert set(record["counts"]) <= set(types)
        assert all(0 <= place < clients["bins"] for points in record["counts"].values() for place, _ in points)


def test_what_is_not_there_is_said(nothing):
    tree = parsed(page(nothing))
    text = "".join(tree.text)
    for line in (
        "No block was made yet", "Nothing was scored yet", "No training curves", "No ablation yet",
        "A map of clients needs a block", "No nightly run yet",
    ):  # fmt: skip
        assert line in text
    values = json.loads(tree.scripts[0])
    assert list(values["figures"]) == ["events", "week", "tails"]
    assert values["clients"] is None


def test_a_page_is_no_larger_for_a_longer_log(nothing, content):
    assert len(page(content)) - len(page(nothing)) < 200_000


def test_json_in_a_script_has_no_tags_and_comes_back():
    values = {"<!--": ["</script>", "a & b", "\u2028", "ü"]}
    text = as_script(values)
    assert not set("<>&") & set(text)
    assert json.loads(text) == values


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(None, "–"), (3.42, "3.4 s"), (59.99, "60.0 s"), (60, "1 min 0 s"), (125.4, "2 min 5 s"), (4800, "1 h 20 min")],
)
def test_durations(seconds, said):
    assert duration(seconds) == said


@pytest.mark.parametrize(("megabytes", "said"), [(None, "–"), (310, "310 MB"), (1449, "1.4 GB"), (12_000, "12.0 GB")])
def test_memory(megabytes, said):
    assert memory(megabytes) == said


def test_what_a_profile_rests_on_stands_by_the_client_and_a_command_by_the_others(content):
    view = content.view
    first, *others = view.drawn
    day = view.history.start.date() + timedelta(days=3)
    rests = {first: Rests([("page_visit", 1_234, 0.456)], [(day, 5, 0.12345)])}
    found = client_values(view, {}, rests)["rests"]
    assert "1 being the median distance to other clients: page visit (1,234 events) 0.46." in found["lines"][first]
    assert found["days"] == {first: [(3 // view.histories.width, 0.1235, f"without {day}, 5 events: 0.123")]}
    assert others
    for id_ in others:
        assert f"scripts/explain.py name={view.profiles.name} client={view.client_names[id_]}" in found["lines"][id_]
    parsed(page(replace(content, rests=rests)))
