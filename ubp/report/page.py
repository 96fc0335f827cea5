"""The page: one HTML file that holds its figures, their library, its style and its script, and loads nothing.

All text out of the log is escaped (`escaped`, and ``textContent`` in the script). A policy in the page's head forbids
the browser to fetch anything.
"""

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import polars as pl
from plotly.offline import get_plotlyjs

from ubp.data import schema
from ubp.data.targets import TASKS
from ubp.evaluation.ablation import ALONE, GREEDY, WHOLE, WITHOUT
from ubp.evaluation.tables import short_name
from ubp.report import figures
from ubp.report.clients import CATEGORY, PURCHASES, SINCE, ClientView
from ubp.report.figures import JSON, Drawn, shortened
from ubp.report.log import ANY, EVENTS, LogSummary
from ubp.report.made import REFERENCE, AblationTable, Curve, DriftDay, Made, in_order
from ubp.report.rests import Rests

_HERE: Final = Path(__file__).parent
_POLICY: Final = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
_UNKNOWN: Final = "–"
_MINUTE, _HOUR = 60, 3600
_ALL: Final = 0.995  # of the clients are as good as all
_MOST_DAYS: Final = 31  # rows of the table of drift
_MOST_FIGURES: Final = 8  # its columns
_KINDS: Final = {
    WITHOUT: "without the block",
    ALONE: "the block alone",
    GREEDY: "the block and those above it",
}


@dataclass(frozen=True)
class Content:
    """What the page shows.

    Attributes:
        title: of the page: the log's name.
        log: what it is.
        made: blocks, merges and reference rows; none of those that are not there.
        curves: of training.
        ablations: that there are.
        view: of clients; None where there is no profile.
        drift: by profile and day.
        colours: of the event types, by name.
        notes: lines below the title, about what the reader should know of the whole.
        rests: by their ids what the profiles of some shown clients rest on.
    """

    title: str
    log: LogSummary
    made: Sequence[Made]
    curves: Sequence[Curve]
    ablations: Sequence[AblationTable]
    view: ClientView | None
    drift: Sequence[DriftDay]
    colours: Mapping[str, str]
    notes: Sequence[str] = ()
    rests: Mapping[int, Rests] = field(default_factory=dict)


def page(content: Content) -> str:
    """The whole file."""
    body = _Body()
    sections = {
        "log": ("The log", log_section(content, body)),
        "blocks": ("Blocks and merges", blocks_section(content, body)),
        "scores": ("Scores", scores_section(content, body)),
        "training": ("Training", training_section(content, body)),
        "ablation": ("What each block is worth", ablation_section(content, body)),
        "clients": ("Clients", clients_section(content, body)),
        "drift": ("From day to day", drift_section(content, body)),
    }
    links = "".join(f'<li><a href="#{name}">{escaped(title)}</a></li>' for name, (title, _) in sections.items())
    main = "".join(
        f'<section id="{name}"><h2>{escaped(title)}</h2>{inside}</section>'
        for name, (title, inside) in sections.items()
    )
    values = {
        "figures": body.figures,
        "clients": content.view and client_values(content.view, present(content), content.rests),
    }
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escaped(content.title)}: log and profiles</title>
<style>{(_HERE / "page.css").read_text()}</style>
</head>
<body>
<header>
<h1>{escaped(content.title)}: the log and its profiles</h1>
{paragraphs(content.notes)}
{facts_list(content)}
<noscript>{missing("The figures are drawn by a script that is part of this page; scripts are off.")}</noscript>
</header>
<nav aria-label="sections"><ul>{links}</ul></nav>
<main>{main}</main>
<footer>Made by scripts/report.py. This file holds all that it shows and loads nothing.</footer>
<script type="application/json" id="values">{as_script(values)}</script>
<script>{get_plotlyjs()}</script>
<script>{(_HERE / "page.js").read_text()}</script>
</body>
</html>
"""


# --- parts --------------------------------------------------------------------------------------------


def escaped(value: object) -> str:
    """Text for the body or an attribute."""
    return html.escape(str(value))


def as_script(values: JSON) -> str:
    """JSON that ends no script tag, whatever text is in it."""
    found = json.dumps(values, allow_nan=False, separators=(",", ":"))
    return found.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@dataclass
class _Body:
    """The figures of a page so far, by name."""

    figures: dict[str, JSON] = field(default_factory=dict)

    def figure(self, name: str, drawn: Drawn, caption: str) -> str:
        """The place of a figure, with what can be chosen; the script draws it."""
        self.figures[name] = drawn.as_json()
        options = "".join(f"<option>{choice.label}</option>" for choice in drawn.choices)  # labels are escaped
        select = f'<div class="controls"><label>{escaped(drawn.label)} <select>{options}</select></label></div>'
        return (
            f'<figure data-figure="{escaped(name)}">{select if drawn.choices else ""}'
            f'<div class="canvas" style="height:{drawn.height}px"></div>'
            f"<figcaption>{escaped(caption)}</figcaption></figure>"
        )


def missing(line: str) -> str:
    """What is said in the place of something that is not there."""
    return f'<p class="missing">{escaped(line)}</p>'


def paragraphs(lines: Iterable[str]) -> str:
    return "".join(f"<p>{escaped(line)}</p>" for line in lines)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: int, classes: Sequence[str] = ()) -> str:
    """An HTML table.

    Args:
        head: of the columns, plain text.
        rows: cells as HTML.
        numbers: how many columns at the left are words; the others are numbers.
        classes: of the rows; none: all without.
    """
    align = ["" if place < numbers else ' class="number"' for place in range(len(head))]
    top = "".join(f'<th scope="col"{how}>{escaped(name)}</th>' for name, how in zip(head, align, strict=True))
    lines = []
    for place, row in enumerate(rows):
        cells = "".join(f"<td{how}>{cell}</td>" for cell, how in zip(row, align, strict=True))
        kind = f' class="{classes[place]}"' if classes and classes[place] else ""
        lines.append(f"<tr{kind}>{cells}</tr>")
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def duration(seconds: float | None) -> str:
    """``3.4 s``, ``2 min 5 s``, ``1 h 20 min``."""
    if seconds is None:
        return _UNKNOWN
    if seconds < _MINUTE:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s"
    return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"


def memory(megabytes: float | None) -> str:
    """``310 MB``, ``1.4 GB``."""
    if megabytes is None:
        return _UNKNOWN
    return f"{megabytes:,.0f} MB" if megabytes < 1000 else f"{megabytes / 1000:,.1f} GB"


def facts_list(content: Content) -> str:
    """The figures at the top."""
    log, view = content.log, content.view
    facts = {"events": f"{log.events:,}", "clients": f"{log.clients:,}", "days": f"{log.days:,}"}
    facts |= {"different skus": f"{log.skus:,}", "categories": f"{log.categories:,}"}
    blocks = sum(row.kind != REFERENCE for row in content.made)
    facts |= {"blocks and merges": f"{blocks:,}"} | ({"clients shown by": view.profiles.name} if view else {})
    cards = "".join(f"<div><dt>{escaped(name)}</dt><dd>{escaped(fact)}</dd></div>" for name, fact in facts.items())
    return f'<dl class="facts">{cards}</dl>'


# --- sections -----------------------------------------------------------------------------------------


def log_section(content: Content, body: _Body) -> str:
    """What the log is: events by day and hour, of clients, gaps."""
    log, view = content.log, content.view
    relevant = f" {log.relevant:,} of them are to get a profile." if log.relevant is not None else ""
    text = (
        f"Events of {log.days:,} days, from {log.start:%Y-%m-%d} to {log.types and max(t.last for t in log.types)}, by "
        f"{log.clients:,} clients.{relevant}"
    )
    types = table(
        ("event", "events", "clients", "different", "first", "last"),
        [
            (
                f'<span class="dot" style="background:{content.colours[about.event_type]}"></span>'
                f"{escaped(words(about.event_type))}",
                f"{about.events:,}",
                f"{about.clients:,}",
                _UNKNOWN if about.subjects is None else f"{about.subjects:,} {escaped(about.subject)}s",
                str(about.first),
                str(about.last),
            )
            for about in log.types
        ],
        1,
    )
    tails = table(
        (
            "events of a client",
            "median",
            "90 % have at most",
            "99 % have at most",
            "largest",
            "share of the busiest 1 %",
        ),
        [
            (
                escaped(tail.event_type if tail.event_type == ANY else words(tail.event_type)),
                *(f"{number:,}" for number in (tail.median, tail.p90, tail.p99, tail.largest)),
                f"{100 * tail.busiest:.1f} %",
            )
            for tail in log.tails
        ],
        1,
    )
    parts = [
        paragraphs([text]),
        types,
        body.figure("events", figures.by_period(log, content.colours), f"Events a {log.period}, by type."),
        '<div class="columns"><div>',
        body.figure("week", figures.week(log), "When in the week events happen, in per cent of all."),
        "</div><div>",
        body.figure("gaps", figures.gaps(view.gaps), gaps_caption(view))
        if view is not None and len(view.gaps)
        else missing("Gaps between a client's days need a profile, and a client with two days of events."),
        "</div></div>",
        "<h3>How many events clients have</h3>",
        tails,
        body.figure(
            "tails",
            figures.tails(log, content.colours),
            "Of the clients with an event of a type, how many have at least so many. Both axes are logarithmic; a line "
            "that reaches far to the right is a log with a few very busy clients.",
        ),
    ]
    return "".join(parts)


def gaps_caption(view: ClientView) -> str:
    """Below the gaps."""
    return (
        f"How long clients stay away: days from one day with events to the next, of {len(view.client_ids):,} clients "
        f"before {view.history.as_of:%Y-%m-%d}."
    )


def words(name: str) -> str:
    """A name of files as words."""
    return name.replace("_", " ")


def blocks_section(content: Content, body: _Body) -> str:  # noqa: ARG001 (sections are called alike)
    """The table of what was made."""
    rows = [row for row in content.made if row.kind != REFERENCE]
    if not rows:
        return missing(
            "No block was made yet. The first, in seconds: python stat_features/stat_features.py submit=False; "
            "python scripts/recommend.py says which others suit this log."
        )
    probes = in_order({probe for row in content.made for probe in row.scores})
    tasks = [task.name for task in TASKS] if probes else []
    first = probes[0] if probes else ""
    main = max(probes, key=lambda probe: (sum(probe in row.scores for row in content.made), probe == first), default="")
    sums = [f"sum, {probe}" for probe in probes]
    head = ("block or merge", *sums, "columns", "clients", "time", "memory", *map(short_name, tasks))
    cells = [
        (
            f"{escaped(row.name)}<small>{escaped(_remarks(row))}</small>",
            *(_score(row, probe, figures.SUM) for probe in probes),
            f"{row.columns:,}",
            _clients(row, content.log.relevant),
            duration(row.seconds),
            memory(row.megabytes),
            *(_score(row, main, task) for task in tasks),
        )
        for row in content.made
    ]
    classes = ["reference" if row.kind == REFERENCE else "" for row in content.made]
    lines = ["Time and memory are those of the command that made it, on the machine where it ran."]
    if any(row.seconds is None for row in rows):
        lines.append(f"{_UNKNOWN}: nobody noted it; the command notes it when it makes the block again.")
    if probes:
        lines.append(f"The tasks' scores are by the {main} probe; a reference row is made from the history in seconds.")
    return paragraphs([" ".join(lines)]) + table(head, cells, 1, classes)


def _remarks(row: Made) -> str:
    what = row.kind if row.kind == REFERENCE else row.what
    return "; ".join([*([what] if what else []), *row.warnings])


def _clients(row: Made, relevant: int | None) -> str:
    share = f" ({100 * row.clients / relevant:.0f} %)" if relevant and row.clients < _ALL * relevant else ""
    return f"{row.clients:,}{share}"


def _score(row: Made, probe: str, task: str) -> str:
    found = figures.score_of(row, probe, task) if probe in row.scores else None
    return _UNKNOWN if found is None else f"{found:.4f}"


def scores_section(content: Content, body: _Body) -> str:
    """The scores against the reference rows."""
    drawn = figures.scores(content.made)
    if drawn is None:
        return missing(
            "Nothing was scored yet: python scripts/evaluate.py embeddings=NAME probe=quick, of what was made with "
            "submit=False."
        )
    there = any(row.kind == REFERENCE for row in content.made)
    lines = (
        "The lines are the two reference rows: what lies left of one is not worth its training by itself."
        if there
        else "No reference row was scored: python scripts/evaluate.py scores them beside what it is asked for."
    )
    return body.figure("scores", drawn, f"Scores on the last weeks of the log; further right is better. {lines}")


def training_section(content: Content, body: _Body) -> str:
    """A small figure for each block that was trained with a logger."""
    if not content.curves:
        return missing("No training curves: no block here was trained, or with another logger than csv.")
    parts = [
        f"<div><h3>{escaped(curve.name)}</h3>"
        + body.figure(f"curve {curve.name}", figures.curve(curve), _curve_caption(curve))
        + "</div>"
        for curve in content.curves
    ]
    text = (
        "The loss of each block's latest training by its steps. Blue: training (thin at single steps, thick the mean "
        "of an epoch); orange: clients that were held out. Losses of different blocks cannot be compared."
    )
    return paragraphs([text]) + f'<div class="many">{"".join(parts)}</div>'


def _curve_caption(curve: Curve) -> str:
    lines = curve.validation or curve.train
    epochs = " and ".join(str(len(line)) for line in lines)
    times = f"{len(lines)} trainings of {epochs} epochs" if len(lines) > 1 else f"{epochs or 0} epochs"
    best = min((loss for line in curve.validation for _, loss in line), default=None)
    return times if best is None else f"{times}; held out {best:.4g} at best"


def ablation_section(content: Content, body: _Body) -> str:
    """Bars for each ablation and each kind of change."""
    if not content.ablations:
        return missing("No ablation yet: python scripts/ablate.py ensemble=NAME, of a merge.")
    parts = []
    for found in content.ablations:
        whole = next((change for change in found.changes if change.kind == WHOLE), None)
        beside = f" ({whole.total:.4f})" if whole else ""
        for kind in dict.fromkeys(change.kind for change in found.changes if change.kind in _KINDS):
            seeds = max(change.seeds for change in found.changes)
            several = f"the mean of {seeds} seeds, with its standard deviation" if seeds > 1 else "one seed"
            parts.append(
                f"<div><h3>{escaped(found.ensemble)}: {_KINDS[kind]}</h3>"
                + body.figure(
                    f"ablation {found.ensemble} {found.probe} {kind}",
                    figures.ablation(found, kind),
                    f"Change against all blocks{beside}, by the {found.probe} probe, {several}.",
                )
                + "</div>"
            )
    text = "Left out, a block that is needed costs score: its bar goes to the left."
    return paragraphs([text]) + f'<div class="columns">{"".join(parts)}</div>'


def clients_section(content: Content, body: _Body) -> str:
    """The map, and a client beside its neighbours."""
    view = content.view
    if view is None:
        return missing("A map of clients needs a block or a merge; see above.")
    sample, every = len(view.client_ids), len(view.profiles.client_ids)
    of_all = f"{sample:,} of {every:,}" if sample < every else f"All {every:,}"
    if view.shares is None:
        how = "t-SNE: near points are near profiles, distances between groups mean little"
    else:
        first, second = (f"{100 * share:.0f}" for share in view.shares)
        how = f"the two main directions, which hold {first} and {second} % of the variance"
    caption = (
        f"{of_all} clients by their profile {view.profiles.name}, {how}. Colours are logarithmic. The outermost half "
        "per cent on each side lies outside the frame."
    )
    names = [f'<option value="{id_}">{escaped(shortened(view.client_names[id_]))}</option>' for id_ in view.drawn]
    legend = "".join(
        f'<span><span class="dot" style="background:{colour}"></span>{escaped(words(name))}</span>'
        for name, colour in present(content).items()
    )
    histories = view.histories
    each = "a day" if histories.width == 1 else f"{histories.width} days"
    return f"""{body.figure("map", figures.client_map(view), caption)}
<h3>A client and its nearest</h3>
{paragraphs([_how_near(view)])}
<div id="client">
<div class="controls"><label>client <select>{"".join(names)}</select></label>
<button type="button" id="another">another one</button></div>
<p id="about-client"></p>
<p id="rests"></p>
<div class="legend">{legend}</div>
<figure><div class="canvas" style="height:{60 + 74 * (2 + min(map(len, view.neighbours.values())))}px"></div>
<figcaption>A mark stands for all events of a type in {each}; larger ones for more events. In the row above the \
client, where there is one, a mark stands for what its profile rests on: the larger, the further it moves without that \
day.</figcaption></figure>
<div class="columns"><div><h3>Its newest events</h3><div id="newest"></div></div>
<div><h3>Its nearest</h3><div id="neighbours"></div></div></div>
</div>"""


def _how_near(view: ClientView) -> str:
    """What the nearest are."""
    scaled = "" if view.profiles.is_merge else " and over its deviation"
    return (
        f"Drawn at random. The nearest are those with the largest cosine of {view.profiles.name}, each column less its "
        f"mean{scaled}. Histories end before {view.history.as_of:%Y-%m-%d}, as what the profile was made from."
    )


def present(content: Content) -> dict[str, str]:
    """The colours of the event types that the log has."""
    names = {about.event_type for about in content.log.types}
    return {name: colour for name, colour in content.colours.items() if name in names}


def _rests_values(view: ClientView, rests: Mapping[int, Rests]) -> JSON:
    """What profiles rest on, a line for each client and a mark for each day."""
    start, lines, days = view.history.start.date(), dict[int, str](), dict[int, list[tuple[int, float, str]]]()
    for id_ in view.drawn:
        if id_ not in rests:
            lines[id_] = (
                f"What its profile rests on: python scripts/explain.py name={view.profiles.name} "
                f"client={view.client_names[id_]}"
            )
            continue
        moves = [f"{words(name)} ({events:,} events) {move:.2f}" for name, events, move in rests[id_].types]
        lines[id_] = (
            f"How far its profile {view.profiles.name} moves without its events of a type, 1 being the median distance "
            f"to other clients: {', '.join(moves)}."
        )
        width = view.histories.width
        days[id_] = [
            ((day - start).days // width, round(move, 4), f"without {day}, {events:,} events: {move:.3f}")
            for day, events, move in rests[id_].days
        ]
    return {"lines": lines, "days": days}


def client_values(view: ClientView, colours: Mapping[str, str], rests: Mapping[int, Rests]) -> JSON:
    """What the script needs to show clients."""
    places = {id_: place for place, id_ in enumerate(view.client_ids.tolist())}
    rows = view.facts.filter(pl.col(schema.CLIENT_ID).is_in(view.shown))
    return {
        "types": [{"name": name, "label": words(name), "colour": colour} for name, colour in colours.items()],
        "start": f"{view.history.start:%Y-%m-%d}",
        "width": view.histories.width,
        "bins": view.histories.bins,
        "drawn": view.drawn,
        "neighbours": {id_: [(other, round(near, 4)) for other, near in rows] for id_, rows in view.neighbours.items()},
        "names": {id_: view.client_names[id_] for id_ in view.shown},
        "about": {row[schema.CLIENT_ID]: _about(row, view) for row in rows.iter_rows(named=True)},
        "points": {id_: [round(float(value), 5) for value in view.points[places[id_]]] for id_ in view.shown},
        "histories": view.as_records(),
        "rests": _rests_values(view, rests),
    }


def _about(row: Mapping[str, Any], view: ClientView) -> str:
    """A client in a few words."""
    parts = [f"{row[EVENTS]:,} events, {row[PURCHASES]:,} purchases"]
    if row[SINCE] is not None:
        days = int(row[SINCE])
        when = "on the last day" if days == 0 else f"{days:,} day{'s' if days > 1 else ''} before the end"
        parts.append(f"last event {when}")
    if row[CATEGORY] is not None:
        parts.append(f"mostly category {shortened(view.category_names[row[CATEGORY]])}")
    return ", ".join(parts)


def drift_section(content: Content, body: _Body) -> str:
    """The figures of a nightly run's days."""
    if not content.drift:
        return missing("No nightly run yet: python scripts/nightly.py says each night how far profiles moved.")
    names = figures.common_figures(content.drift, _MOST_FIGURES)
    newest = sorted(content.drift, key=lambda day: (day.day, day.name), reverse=True)[:_MOST_DAYS]
    rows = [
        (
            escaped(day.day),
            escaped(day.name),
            escaped(day.verdict),
            *(_UNKNOWN if name not in day.figures else f"{day.figures[name]:,.4g}" for name in names),
        )
        for day in newest
    ]
    drawn = figures.drift(content.drift)
    plot = (
        body.figure("drift", drawn, "What scripts/nightly.py found each night.")
        if drawn
        else missing("One night alone: no line to draw.")
    )
    return plot + table(("day", "profile", "verdict", *names), rows, 3)
