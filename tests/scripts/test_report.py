"""The command: a page whatever is there; and what a browser makes of it, among the full tests."""

import json
import re

import numpy as np
import pytest

from scripts import report
from scripts.split import split
from tests import tiny
from tests.browser import browser, chromium
from tests.ubp.blocks.toy import make_purchases
from tests.ubp.report.test_page import parsed
from ubp.blocks.entry import write_entry
from ubp.cli.config import composed
from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.paths import CONFIGS
from ubp.data.split import SplitDates
from ubp.data.targets import TASKS, TargetRules
from ubp.evaluation.ablation import Change
from ubp.evaluation.reference import REFERENCES, reference_folder
from ubp.evaluation.scores import Scores, scores_file
from ubp.io.errors import UserError
from ubp.io.rows import write_rows

WIDTHS = {"phone": 390, "desktop": 1280}


def config_of(root, *words):
    return composed(CONFIGS / "scripts", "report", [f"data_path={root}", *words])


def made(root, *words):
    """The page that the command writes."""
    return report.main(config_of(root, *words))


def values_in(file):
    return json.loads(parsed(file.read_text()).scripts[0])


def write(log, root):
    """A log, split."""
    paths = log.write(root)
    data = ChallengeData(paths, True)
    split(data, SplitDates.of(data), TargetRules(), overwrite=False)
    return paths


def score(path, total):
    tasks = {task.name: total / (place + 6) for place, task in enumerate(TASKS)}
    Scores(path.stem, 3, "quick", tasks, total, 0.0, {}).write(scores_file(path, "quick"))


def leave_everything(paths):
    """What the other commands would leave: blocks, a merge, scores, curves, an ablation, two days of drift."""
    make_purchases(paths, submit=False, name="stat_features")
    make_purchases(paths, submit=False, name="dcn", weights=(1.0, 0.0, 0.5))
    clients = ChallengeData(paths, False).clients
    vectors = np.random.default_rng(0).normal(size=(len(clients), 6)).astype(np.float32)
    folders = [paths.embeddings(submit=False) / "basics", *(reference_folder(name, paths) for name in REFERENCES)]
    for folder in folders:
        write_entry(folder, clients, vectors)
    for place, path in enumerate([*folders, paths.block("dcn", submit=False)]):
        score(path, 4.0 + place / 10)
    curve = paths.root / "logs" / "dcn" / "version_0" / "metrics.csv"
    curve.parent.mkdir(parents=True)
    curve.write_text("epoch,step,train_loss,train_loss_step,validation_loss\n0,9,,2.0,\n0,12,,,1.5\n0,12,1.75,,\n")
    tasks = [0.01 * place for place in range(6)]
    changes = [Change(kind, "dcn", 2, 6, 2, 4.0, -0.1, 0.05, *tasks) for kind in ("without", "alone")]
    write_rows(paths.ablations("basics") / "changes_quick.csv", changes, Change)
    for day in ("2023-02-01", "2023-02-02"):
        folder = paths.root / "profiles" / "basics" / f"day={day}"
        folder.mkdir(parents=True)
        report = {"clients": int(day[-1]), "canaries": {"below": 3}, "verdict": f"<{day}>"}
        (folder / "drift.json").write_text(json.dumps(report))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    paths = write(tiny.log("tiny"), tmp_path_factory.mktemp("log") / "shop")
    leave_everything(paths)
    return paths


# --- what is there ----------------------------------------------------------------------------------------


def test_a_page_of_all_there_is(whole, capsys):
    file = made(whole.root)
    assert file == whole.root / "reports" / "shop.html"
    assert re.fullmatch(r"report · [\d.]+ s · [\d,]+ MB · .*/reports/shop\.html\n", capsys.readouterr().out)
    figures = values_in(file)["figures"]
    assert list(figures) == [
        "events", "week", "gaps", "tails", "scores", "curve dcn",
        "ablation basics quick without", "ablation basics quick alone", "map", "drift",
    ]  # fmt: skip
    text = "".join(parsed(file.read_text()).text)
    assert "class" not in text
    assert "clients shown bydcn" in text  # the best by its scores
    assert not re.search(r"No .* yet", text)


@pytest.mark.parametrize("name", ["tiny", pytest.param("purchases_only", marks=pytest.mark.full)])
def test_a_page_at_every_stage_of_a_log(name, tmp_path):
    log = tiny.log(name)
    paths = log.write(tmp_path / "shop")
    assert values_in(made(paths.root))["clients"] is None
    paths = write(log, tmp_path / "shop")
    assert values_in(made(paths.root))["clients"] is None
    make_purchases(paths, submit=False)
    clients = values_in(made(paths.root))["clients"]
    present = [str(kind) for kind in schema.EVENT_TYPES if len(log.events[kind])]
    assert sorted(each["name"] for each in clients["types"]) == sorted(present)
    assert "scores" not in values_in(made(paths.root))["figures"]


@pytest.mark.full
def test_the_same_log_gives_the_same_page(whole, tmp_path):
    one, other = (made(whole.root, f"out={tmp_path / name}.html").read_bytes() for name in "ab")
    assert one == other


def test_nothing_at_or_after_a_day_is_shown(whole, tmp_path):
    values = values_in(made(whole.root, "as_of=2023-01-10", f"out={tmp_path / 'page.html'}"))
    said = [row for record in values["clients"]["histories"].values() for row in record["newest"]]
    assert said
    assert max(row[0] for row in said) < "2023-01-10"
    assert max(day for trace in values["figures"]["events"]["data"] for day in trace["x"]) < "2023-01-10"
    assert "made from another history" in (tmp_path / "page.html").read_text()


@pytest.mark.full
def test_profiles_of_all_events_are_shown_where_there_are_no_others(tmp_path):
    paths = write(tiny.log("tiny"), tmp_path / "shop")
    make_purchases(paths, submit=True)
    assert "made from all events" in made(paths.root).read_text()
    make_purchases(paths, submit=False)
    assert "before the last four weeks" in made(paths.root).read_text()
    assert "made from all events" in made(paths.root, "submit=True").read_text()


def test_the_settings_are_heard(whole, tmp_path):
    client = int(ChallengeData(whole, False).clients[3])
    words = [f"client={client}", "name=basics", "title=My shop", "view.drawn=2", "view.neighbours=3", "view.sample=10"]
    file = made(whole.root, *words, "view.map=tsne", "view.newest=1", f"out={tmp_path / 'page.html'}")
    clients = values_in(file)["clients"]
    assert clients["drawn"][0] == client
    assert len(clients["drawn"]) == 2
    assert {len(near) for near in clients["neighbours"].values()} == {3}
    assert all(len(record["newest"]) == 1 for record in clients["histories"].values())
    text = file.read_text()
    assert "<h1>My shop: the log and its profiles</h1>" in text
    assert "by their profile basics, t-SNE" in text


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("name=basic", "name=basic: no such block or merge; there are: stat_features, dcn, basics"),
        ("client=987654", "client=987654: has no vector"),
        ("client=me", "client=me: not an integer"),
        ("view.map=umap", "view.map=umap: must be pca or tsne"),
        ("view.sample=0", "view.sample=0"),
    ],
)
def test_what_is_not_there_is_refused_and_the_page_stays(whole, tmp_path, word, message):
    out = tmp_path / "page.html"
    out.write_text("mine")
    with pytest.raises(UserError, match=re.escape(message)):
        made(whole.root, word, f"out={out}")
    assert out.read_text() == "mine"


def test_a_folder_is_no_page(whole, tmp_path):
    with pytest.raises(UserError, match="a folder; name a file"):
        made(whole.root, f"out={tmp_path}")


# --- in a browser -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    if (program := chromium()) is None:
        pytest.skip("no chromium here (Debian: apt-get install chromium): the page is not tried in a browser")
    with browser(program, tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.mark.full
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_a_browser_draws_every_figure_without_an_error(page, whole, width, dark):
    file = made(whole.root)
    page.open(file, width, dark=dark)
    drawn = page.ask("[...document.querySelectorAll('.canvas')].map(c => !!c.querySelector('.main-svg'))")
    assert len(drawn) == len(values_in(file)["figures"]) + 1  # and the client's history
    assert all(drawn)
    assert page.ask("document.documentElement.scrollWidth") <= width
    ink, paper = (page.ask(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
    assert (sum(map(int, re.findall(r"\d+", ink))) > sum(map(int, re.findall(r"\d+", paper)))) == dark
    assert page.errors == []
    assert page.requests == []


@pytest.mark.full
def test_what_is_picked_is_shown(page, whole):
    page.open(made(whole.root), WIDTHS["desktop"])
    picked = """(async () => {
        const same = [];
        for (const select of document.querySelectorAll('figure select')) {
            const canvas = select.closest('figure').querySelector('.canvas');
            for (let place = select.options.length - 1; place >= 0; place--) {
                const before = canvas.innerHTML;
                select.selectedIndex = place;
                select.dispatchEvent(new Event('change'));
                for (let wait = 0; wait < 50 && canvas.innerHTML === before; wait++) {
                    await new Promise(done => setTimeout(done, 20));
                }
                if (canvas.innerHTML === before) same.push(select.options[place].text);
            }
        }
        return same;
    })()"""
    assert page.ask(picked) == []
    for _ in range(3):
        before = page.ask("document.getElementById('about-client').textContent")
        page.ask("document.getElementById('another').click()")
        page.wait(f"document.getElementById('about-client').textContent !== {json.dumps(before)}")
    details = page.ask("document.querySelectorAll('#neighbours details').length")
    assert details == 5
    assert page.errors == []
    assert page.requests == []
