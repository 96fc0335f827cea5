"""Figures of a page: what was counted, drawn with Plotly. Text and grid take the page's colours in the browser.

Plotly was chosen because its wheel holds the whole browser library (4.8 MB, one file, no network), it is well kept, and
one description of a figure serves phone and desktop. Bokeh's scripts are smaller (1.3 MB), but a server's dependencies
come with them; Altair needs a binary of 34 MB to inline its own.

Names out of the user's log are escaped here (`text`): Plotly reads a few tags in labels.
"""

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go
import polars as pl

from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.targets import TASKS
from ubp.evaluation.ablation import Change
from ubp.evaluation.tables import short_name
from ubp.report.clients import CATEGORY, PURCHASES, SINCE, SINCE_PURCHASE, ClientView
from ubp.report.log import ANY, CLIENTS, EVENTS, HOUR, PERIOD, TYPE, WEEKDAY, LogSummary
from ubp.report.made import DRIFT_FIGURES, MERGE, REFERENCE, AblationTable, Curve, DriftDay, Line, Made, in_order

# Tol's bright scheme: told apart by the colour-blind, on white and on black.
PALETTE: Final = ("#aa3377", "#4477aa", "#ccbb44", "#ee6677", "#228833", "#66ccee", "#bb7744", "#7766cc", "#999999")
FIRST, SECOND, THIRD, GREY = "#4477aa", "#ee7733", "#aa3377", "#999999"

# From little to much; each can be seen on white and on black.
SCALE: Final = ("#5566cc", "#3399bb", "#44aa77", "#ddaa33", "#dd5533")

SUM: Final = "sum"

_WEEKDAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_POINTS: Final = 60  # of a line of a tail
_CATEGORIES: Final = 8  # with a colour of their own on the map
_GAPS: Final = (1, 2, 3, 4, 8, 15, 31, 61)  # first days of the bars
_ROW: Final = 21  # pixels of a name on an axis

JSON = dict[str, Any]


def text(value: object) -> str:
    """Text as Plotly shows it: nothing in it is a tag."""
    return html.escape(str(value), quote=False)


def colours_of(history: ChallengeData) -> dict[str, str]:
    """Of each event type, by its name: the same whichever of them the log has."""
    return {str(kind): PALETTE[kind.code % len(PALETTE)] for kind in history.event_types}


def spaced(name: str) -> str:
    """A name of files as words: ``page_visit`` as ``page visit``."""
    return text(name.replace("_", " "))


@dataclass(frozen=True)
class Choice:
    """What a figure also shows, once it is chosen.

    Attributes:
        label: in the list.
        data: changed attributes of the traces, a list with one value a trace each.
        layout: changed attributes of the layout.
        first: changed attributes of the first trace alone.
        height: of the figure in pixels; None: unchanged.
    """

    label: str
    data: JSON = field(default_factory=dict)
    layout: JSON = field(default_factory=dict)
    first: JSON = field(default_factory=dict)
    height: int | None = None


@dataclass(frozen=True)
class Drawn:
    """A figure of the page.

    Attributes:
        figure: as it is first seen.
        height: in pixels.
        choices: of which the first is what is seen at first; none: nothing to choose.
        label: of the choices.
        zooms: whether it can be zoomed, which a phone's scrolling would fight with.
    """

    figure: go.Figure
    height: int = 320
    choices: tuple[Choice, ...] = ()
    label: str = "show"
    zooms: bool = False

    def as_json(self) -> JSON:
        """For the page's script."""
        choices = [vars(each) for each in self.choices]
        return {**json.loads(self.figure.to_json()), "choices": choices, "zooms": self.zooms}


def drawn(traces: Iterable[Any], **layout: Any) -> go.Figure:  # noqa: ANN401 (Plotly's)
    """A figure without a theme of its own."""
    figure = go.Figure(list(traces), {"margin": {"l": 48, "r": 12, "t": 8, "b": 40}, **layout})
    figure.layout.template = {}
    return figure


_LEGEND: Final = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}


# --- the log ------------------------------------------------------------------------------------------


def by_period(log: LogSummary, colours: Mapping[str, str]) -> Drawn:
    """Bars of events, a colour for each type; the choice takes one type alone."""
    names = [about.event_type for about in log.types]
    traces = []
    for name in names:
        rows = log.by_period.filter(pl.col(TYPE) == name)
        traces.append(
            go.Bar(
                x=rows[PERIOD].to_list(), y=rows[EVENTS].to_numpy(), name=spaced(name), marker_color=colours[name],
                hovertemplate="%{x|%Y-%m-%d}: %{y:,}<extra>" + spaced(name) + "</extra>",
            )
        )  # fmt: skip
    figure = drawn(
        traces, barmode="stack", bargap=0, legend=_LEGEND,
        yaxis={"title": {"text": f"events a {log.period}"}, "rangemode": "tozero"},
    )  # fmt: skip
    return Drawn(figure, choices=_one_of(names), label="events")


def _one_of(names: Sequence[str]) -> tuple[Choice, ...]:
    """All traces, or one of them; nothing to choose where there is one."""
    if len(names) < 2:
        return ()
    alone = [Choice(spaced(name), {"visible": [name == other for other in names]}) for name in names]
    return Choice("all types", {"visible": [True] * len(names)}), *alone


def week(log: LogSummary) -> Drawn:
    """A square for each hour of the week: its share of all events."""
    names = [about.event_type for about in log.types]
    tables = {ANY: log.rhythm, **{name: log.rhythm.filter(pl.col(TYPE) == name) for name in names}}
    shares = {name: week_shares(table) for name, table in tables.items()}
    trace = go.Heatmap(
        z=shares[ANY], x=list(range(24)), y=list(_WEEKDAYS), colorscale="Viridis", xgap=1, ygap=1, zmin=0,
        hovertemplate="%{y}, %{x}:00 to %{x}:59: %{z:.2f} % of the events<extra></extra>",
        colorbar={"thickness": 10, "ticksuffix": " %"},
    )  # fmt: skip
    figure = drawn([trace], xaxis={"title": {"text": "hour of the day"}, "dtick": 3}, yaxis={"autorange": "reversed"})
    choices = [Choice(name if name == ANY else spaced(name), {"z": [shares[name].tolist()]}) for name in tables]
    return Drawn(figure, 260, tuple(choices) if len(names) > 1 else (), "events")


def week_shares(rhythm: pl.DataFrame) -> npt.NDArray[np.float64]:
    """Per cent of the events in each hour of the week, float64 [7, 24].

    Args:
        rhythm: ``weekday`` (1 is Monday), ``hour``, ``events``; an hour may have several rows or none.
    """
    found = np.zeros((7, 24))
    places = rhythm[WEEKDAY].to_numpy().astype(int) - 1, rhythm[HOUR].to_numpy().astype(int)
    np.add.at(found, places, rhythm[EVENTS].to_numpy())
    shares: npt.NDArray[np.float64] = np.round(100 * found / max(found.sum(), 1), 4)
    return shares


def tails(log: LogSummary, colours: Mapping[str, str]) -> Drawn:
    """Lines: which share of the clients has at least so many events, of those with one."""
    traces = []
    for tail in log.tails:
        at_least = survival(log.counts[tail.event_type], _POINTS)
        label = ANY if tail.event_type == ANY else spaced(tail.event_type)
        traces.append(
            go.Scatter(
                x=[number for number, _ in at_least], y=[100 * share for _, share in at_least],
                mode="lines", name=label,
                line={"color": colours.get(tail.event_type, GREY), "dash": "dot" if label == ANY else "solid"},
                hovertemplate="%{x:,} or more: %{y:.3g} %<extra>" + label + "</extra>",
            )
        )  # fmt: skip
    figure = drawn(
        traces, legend=_LEGEND,
        xaxis={"type": "log", "title": {"text": "events of a client, at least"}, "dtick": 1},
        yaxis={"type": "log", "title": {"text": "clients"}, "ticksuffix": " %", "dtick": 1},
    )  # fmt: skip
    return Drawn(figure)


def survival(counts: pl.DataFrame, most: int) -> list[tuple[int, float]]:
    """At some numbers of events, the share of the clients that have at least so many.

    Args:
        counts: ``events``, ascending, and ``clients``.
        most: so many numbers, about evenly spaced on a logarithmic axis, the first and the last among them.
    """
    numbers = counts[EVENTS].to_numpy().astype(np.int64)
    clients = counts[CLIENTS].to_numpy().astype(np.int64)
    at_least = clients[::-1].cumsum()[::-1]
    wanted = np.geomspace(numbers[0], numbers[-1], most)
    places = np.unique(np.minimum(np.searchsorted(numbers, wanted * (1 - 1e-9)), len(numbers) - 1))
    return [(int(numbers[place]), float(at_least[place] / at_least[0])) for place in places]


def gaps(found: pl.DataFrame) -> Drawn:
    """Bars: how many days lie between one day with events of a client and the next."""
    labels, shares = gap_shares(found)
    bars = go.Bar(x=labels, y=shares, marker_color=FIRST, hovertemplate="%{x} days: %{y:.1f} %<extra></extra>")
    figure = drawn(
        [bars], xaxis={"type": "category", "tickangle": 0, "tickfont": {"size": 11}},
        yaxis={"ticksuffix": " %"}, bargap=0.15,
    )  # fmt: skip
    return Drawn(figure, 260)


def gap_shares(found: pl.DataFrame) -> tuple[list[str], list[float]]:
    """Labels of stretches of days, and per cent of the gaps in each.

    Args:
        found: ``days``, one at least, and ``times``.
    """
    place = np.searchsorted(_GAPS, found["days"].to_numpy(), side="right") - 1
    times = np.bincount(place, found["times"].to_numpy(), minlength=len(_GAPS))
    ends = [*(first - 1 for first in _GAPS[1:]), None]
    labels = [
        f"{first}+" if end is None else str(first) if end == first else f"{first}–{end}"
        for first, end in zip(_GAPS, ends, strict=True)
    ]
    return labels, (100 * times / max(times.sum(), 1)).round(3).tolist()


# --- blocks and merges --------------------------------------------------------------------------------


def scores(rows: Sequence[Made]) -> Drawn | None:
    """A dot for each block and merge, a line for each reference row, task by task and probe by probe.

    None where nothing was scored.
    """
    tasks = [SUM, *(task.name for task in TASKS)]
    choices = []
    probes = in_order({probe for row in rows for probe in row.scores})
    for probe in sorted(probes, key=lambda probe: -sum(probe in row.scores for row in rows)):
        scored = [row for row in rows if probe in row.scores]
        for task in tasks:
            values = {row.name: value for row in scored if (value := score_of(row, probe, task)) is not None}
            if any(row.kind != REFERENCE for row in scored if row.name in values):
                choices.append(_scores_choice(rows, values, f"{short_name(task)}, {probe}"))
    if not choices:
        return None
    first = choices[0]
    looks: dict[str, JSON] = {
        "block": {"mode": "markers", "marker": {"color": FIRST, "size": 9}},
        "merge": {"mode": "markers", "marker": {"color": SECOND, "size": 9, "symbol": "diamond"}},
    }
    references = [row.name for row in rows if row.kind == REFERENCE]
    for name, dash, colour in zip(references, ("dot", "dash"), (GREY, THIRD), strict=False):
        mark = {"symbol": "line-ns-open", "size": 12, "color": colour}
        looks[text(name)] = {"mode": "lines+markers", "line": {"color": colour, "dash": dash}, "marker": mark}
    traces = [
        go.Scatter(
            x=first.data["x"][place], y=first.data["y"][place], name=name,
            hovertemplate="%{y}: %{x:.4f}<extra></extra>" if place < 2 else name + ": %{x:.4f}<extra></extra>", **look,
        )
        for place, (name, look) in enumerate(looks.items())
    ]  # fmt: skip
    margins = {"l": 8, "r": 12, "t": 30, "b": 40}
    figure = drawn(traces, legend=_LEGEND, showlegend=True, margin=margins, **_nested(first.layout))
    figure.update_yaxes(automargin=True, type="category", categoryorder="array")
    return Drawn(figure, first.height or 0, tuple(choices), "score")


def score_of(row: Made, probe: str, task: str) -> float | None:
    """A score, or the sum, by a probe that scored the row."""
    found = row.scores[probe]
    return found.total if task == SUM else found.tasks[task]


def _scores_choice(rows: Sequence[Made], values: Mapping[str, float], label: str) -> Choice:
    own = sorted(
        (row for row in rows if row.kind != REFERENCE and row.name in values), key=lambda row: values[row.name]
    )
    names = [text(row.name) for row in own]
    groups = [[row.name for row in own if (row.kind == MERGE) == is_merge] for is_merge in (False, True)]
    lines = [values.get(row.name) for row in rows if row.kind == REFERENCE]
    data = {
        "x": [*([values[name] for name in group] for group in groups), *([at, at] for at in lines)],
        "y": [*([text(name) for name in group] for group in groups), *([names[0], names[-1]] for _ in lines)],
    }
    return Choice(label, data, {"yaxis.categoryarray": names}, height=170 + _ROW * len(names))


def _nested(flat: Mapping[str, Any]) -> JSON:
    """``{"yaxis.categoryarray": x}`` as ``{"yaxis": {"categoryarray": x}}``."""
    found: JSON = {}
    for key, value in flat.items():
        *parents, last = key.split(".")
        level = found
        for parent in parents:
            level = level.setdefault(parent, {})
        level[last] = value
    return found


def curve(found: Curve) -> Drawn:
    """The loss of training at its steps, and of held-out clients at the ends of epochs."""
    parts: list[tuple[Sequence[Line], str, JSON]] = [
        (found.steps, "training, at steps", {"mode": "lines", "line": {"color": FIRST, "width": 1}, "opacity": 0.5}),
        (found.train, "training, mean of an epoch", {"mode": "lines+markers", "line": {"color": FIRST}}),
        (found.validation, "held out", {"mode": "lines+markers", "line": {"color": SECOND}}),
    ]
    traces = [
        go.Scatter(
            x=[step for step, _ in line], y=[loss for _, loss in line], name=name,
            hovertemplate="step %{x:,}: %{y:.4g}<extra>" + name + "</extra>", **look,
        )
        for lines, name, look in parts
        for line in lines
    ]  # fmt: skip
    margins = {"l": 44, "r": 8, "t": 6, "b": 24}
    figure = drawn(traces, showlegend=False, margin=margins, xaxis={"nticks": 4}, yaxis={"nticks": 5})
    return Drawn(figure, 190)


# --- ablations ----------------------------------------------------------------------------------------


def ablation(table: AblationTable, kind: str) -> Drawn:
    """Bars: the change of the sum, or of a task's score, for each block, with its spread over seeds."""
    rows = [change for change in table.changes if change.kind == kind]
    names = [text(change.block or "(none)") for change in rows]
    tasks = [task.name for task in TASKS if any(change.of(task.name) is not None for change in rows)]
    values = {SUM: [change.change for change in rows], **{task: _changes(rows, task) for task in tasks}}
    spreads = [change.spread or 0.0 for change in rows]
    bars = go.Bar(
        x=values[SUM], y=names, orientation="h", marker_color=_signs(values[SUM]),
        error_x={"type": "data", "array": spreads, "visible": any(spreads), "thickness": 1, "color": GREY},
        hovertemplate="%{y}: %{x:+.4f}<extra></extra>",
    )  # fmt: skip
    figure = drawn(
        [bars], margin={"l": 8, "r": 12, "t": 8, "b": 40}, bargap=0.3,
        xaxis={"title": {"text": "change"}, "zeroline": True, "nticks": 6},
        yaxis={"autorange": "reversed", "automargin": True, "type": "category"},
    )  # fmt: skip
    choices = [
        Choice(
            short_name(task),
            {
                "x": [found],
                "marker.color": [_signs(found)],
                "error_x.visible": [task == SUM and any(spreads)],
            },
        )
        for task, found in values.items()
    ]
    return Drawn(figure, 80 + _ROW * len(rows), tuple(choices), "change of")


def _changes(rows: Sequence[Change], task: str) -> list[float]:
    return [change.of(task) or 0.0 for change in rows]


def _signs(values: Sequence[float]) -> list[str]:
    return [FIRST if value < 0 else SECOND for value in values]


# --- clients ------------------------------------------------------------------------------------------


def client_map(view: ClientView) -> Drawn:
    """A point for each client of the sample; the choice is what colours them.

    Two last traces are empty: the page's script marks the client that is looked at, and its neighbours.
    """
    numbers = {
        "days since the last event": view.facts[SINCE],
        "number of events": view.facts[EVENTS],
        "purchases": view.facts[PURCHASES],
        "days since the last purchase": view.facts[SINCE_PURCHASE],
    }
    hover, colours = hover_texts(view), {label: by_number(values) for label, values in numbers.items()}
    x, y = view.points[:, 0], view.points[:, 1]
    marker = {
        "size": 5,
        "opacity": 0.75,
        "colorscale": SCALE,
        "showscale": True,
        "colorbar": {"thickness": 10, "len": 0.8},
    }
    traces = [go.Scatter(x=x, y=y, mode="markers", marker=marker, hovertext=hover, hoverinfo="text", showlegend=False)]
    traces[0].update(next(iter(colours.values())))
    for place, (category, rows) in enumerate(top_groups(view.facts[CATEGORY], _CATEGORIES)):
        if category is None or category < 0:
            name, look = "none" if category is None else "others", {"opacity": 0.35, "color": GREY}
        else:
            name, look = f"category {view.category_names[category]}", {"opacity": 0.85, "color": PALETTE[place]}
        look |= {"size": 5}
        traces.append(
            go.Scatter(
                x=x[rows], y=y[rows], mode="markers", name=text(shortened(name)), visible=False, marker=look,
                hovertext=[hover[row] for row in rows], hoverinfo="text",
            )
        )  # fmt: skip
    groups = len(traces) - 1
    choices = [
        Choice(label, {"visible": [True, *[False] * groups, True, True]}, first=_flat(look))
        for label, look in colours.items()
    ]
    choices.append(Choice("most frequent category", {"visible": [False, *[True] * groups, True, True]}))
    figure = drawn(
        [*traces, *_marks()], legend={**_LEGEND, "y": 1.0}, hovermode="closest",
        margin={"l": 8, "r": 8, "t": 8, "b": 8}, xaxis=_axis(x), yaxis=_axis(y), showlegend=True,
    )  # fmt: skip
    return Drawn(figure, 520, tuple(choices), "coloured by", zooms=True)


def _marks() -> list[go.Scatter]:
    looks = {
        "its nearest": {"size": 11, "symbol": "circle-open", "line": {"width": 2}, "color": SECOND},
        "the client below": {"size": 16, "symbol": "star", "color": SECOND, "line": {"width": 1, "color": "#000"}},
    }
    return [
        go.Scatter(x=[], y=[], mode="markers", name=name, marker=look, hoverinfo="skip") for name, look in looks.items()
    ]


def _axis(values: npt.NDArray[np.float32]) -> JSON:
    """An axis without numbers, over all but the outermost half per cent on each side, with some room."""
    low, high = np.quantile(values, [0.005, 0.995]).tolist()
    room = 0.08 * (high - low) or 1.0
    return {"range": [low - room, high + room], "showticklabels": False, "zeroline": False, "title": None}


def by_number(values: pl.Series) -> JSON:
    """How points are coloured by a number on a logarithmic scale; those without one have no colour.

    Args:
        values: 0 or above, or null.
    """
    shown = (values.cast(pl.Float64) + 1).log10().round(3)
    top = float(shown.drop_nulls().max() or 0.0)  # type: ignore[arg-type]
    ticks = [10**power for power in range(math.ceil(top) + 1) if math.log10(10**power + 1) <= top]
    bar = {
        "tickvals": [0.0, *(math.log10(number + 1) for number in ticks)],
        "ticktext": ["0", *(f"{number:,}" for number in ticks)],
    }
    return {"marker": {"color": shown.to_list(), "cmin": 0.0, "cmax": max(top, 0.001), "colorbar": bar}}


def _flat(look: JSON) -> JSON:
    """How a trace's points are coloured, as Plotly changes it: each attribute by its dotted path, in a list."""
    marker = look["marker"]
    bar = {f"marker.colorbar.{key}": [value] for key, value in marker["colorbar"].items()}
    return {f"marker.{key}": [marker[key]] for key in ("color", "cmin", "cmax")} | bar


def hover_texts(view: ClientView) -> list[str]:
    """What is said of each client under the pointer."""
    found = []
    for row in view.facts.iter_rows(named=True):
        lines = [f"client {text(shortened(view.client_names[row[schema.CLIENT_ID]]))}"]
        lines.append(f"{row[EVENTS]:,} events, {row[PURCHASES]:,} purchases")
        if row[SINCE] is not None:
            lines.append(f"last event {row[SINCE]:,.0f} days before the end")
        if row[CATEGORY] is not None:
            lines.append(f"most often category {text(shortened(view.category_names[row[CATEGORY]]))}")
        found.append("<br>".join(lines))
    return found


def top_groups(categories: pl.Series, most: int) -> list[tuple[int | None, list[int]]]:
    """The places of the most frequent categories, of the others (-1) and of none (None), those without places left out.

    Args:
        categories: Int64, null for none.
        most: categories by themselves; the smaller id where several are as frequent.
    """
    table = pl.DataFrame({"category": categories}).with_row_index("place")
    counted = table.drop_nulls().group_by("category").len().sort(["len", "category"], descending=[True, False])
    top = counted["category"].head(most).to_list()
    groups: dict[int | None, list[int]] = {category: [] for category in [*top, -1, None]}
    for place, category in table.iter_rows():
        groups[category if category is None or category in groups else -1].append(place)
    return [(category, rows) for category, rows in groups.items() if rows]


def shortened(name: str, most: int = 28) -> str:
    """A name of the user's where there is little room."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


# --- drift --------------------------------------------------------------------------------------------


def drift(days: Sequence[DriftDay]) -> Drawn | None:
    """A line for each profile over its days; the choice is which figure. None where no figure has two days."""
    figures = [name for name in common_figures(days) if len(days) > 1]
    if not figures:
        return None
    names = list(dict.fromkeys(day.name for day in days))
    rows = {name: [day for day in days if day.name == name] for name in names}

    def values(figure: str) -> list[list[float | None]]:
        return [[day.figures.get(figure) for day in rows[name]] for name in names]

    traces = [
        go.Scatter(
            x=[day.day for day in rows[name]], y=found, mode="lines+markers", name=text(name), marker_color=colour
        )
        for name, found, colour in zip(names, values(figures[0]), PALETTE[1:] * len(names), strict=False)
    ]
    choices = tuple(Choice(text(figure), {"y": values(figure)}) for figure in figures)
    return Drawn(drawn(traces, legend=_LEGEND, xaxis={"type": "category"}), 280, choices, "figure")


def common_figures(days: Sequence[DriftDay], most: int = 24) -> list[str]:
    """The names of figures, those that are known first and in their order; so many at the most."""
    known = list(DRIFT_FIGURES.values())
    found = dict.fromkeys(name for day in days for name in day.figures)
    return sorted(found, key=lambda name: known.index(name) if name in known else len(known))[:most]
