"""The page on the columns, docs/numeric_features.md, made from their declaration.

    python -m numeric_features.page     writes it anew

A test compares the two.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from numeric_features.aggregates import AGGREGATES, Column, Over, group_columns, window_columns
from ubp.data import schema

PAGE: Final = Path(__file__).parents[1] / "docs" / "numeric_features.md"

_PAGE: Final = """# The numeric features

The {total} columns of `numeric_features`, as declared in \
[numeric_features/aggregates.py](../numeric_features/aggregates.py). This page is made from the declaration: \
`python -m numeric_features.page`.

A column's name is the event type, the aggregate and the window: `{example}` is "{example_says}". The windows are the \
last 7, 14, 28 and 60 days before `as_of`, and `all`. A day is 24 hours, counted back from `as_of`; where that is \
midnight, a day of the calendar.

| aggregate | what it is | of | columns | log(1 + x) | where there is none |
|---|---|---|--:|---|---|
{rows}

After these {windowed} stand {grouped}: for each of {items} {clusters} clusters of item names, then {groups} groups of \
prices (`{first}` … `{last}`). A column is the sum of exp(−days ago / {decay:g}) over the client's events of that type \
with such a sku, and then log(1 + x). The clusters are a k-means over the names' 16 codes, one-hot by position, of the \
skus with the most events; cluster 0 has the most names. The price groups have about as many events each. What has \
fewer names or prices than there are clusters or groups leaves the last columns at 0.

Then each column is standardised by the mean and the standard deviation that it had over relevant clients when the \
block was fitted, and cut at {limit:g} deviations. A column that was constant then (of an event type that the log \
lacks, say) is 0, then and on later days. So every log has all {total} columns.

Names and descriptions of all columns are in the parquet's metadata:

```python
from pathlib import Path
from ubp.blocks.embeddings import read_lineage

for name, says in read_lineage(Path("data/embeddings_local/numeric_features.parquet"))["columns"].items():
    ...
```
"""


def page(clusters: int, price_groups: int, decay: float, limit: float) -> str:
    """The page's text, for the numbers of the config."""
    names = list(group_columns(clusters, price_groups, decay))
    columns = window_columns()
    example = columns[0]
    return _PAGE.format(
        total=len(columns) + len(names), windowed=len(columns), grouped=len(names), example=example.name,
        example_says=example.says, rows="\n".join(_rows()), items=" and ".join(_quoted(schema.ITEM_EVENTS)),
        clusters=clusters, groups=price_groups, first=names[0], last=names[-1], decay=decay, limit=limit,
    )  # fmt: skip


def _rows() -> list[str]:
    rows = []
    for aggregate in AGGREGATES:
        own: list[Column] = [column for column in window_columns() if column.aggregate is aggregate]
        words = {"events": "any type" if aggregate.over is Over.ALL else "such", "subjects": "skus, urls or queries"}
        logarithm = "yes" if aggregate.logarithm else "no"
        cells = (
            f"`{aggregate.name}`",
            aggregate.says.format(**words),
            aggregate.over.value,
            str(len(own)),
            logarithm,
            aggregate.absent.value,
        )
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _quoted(event_types: Iterable[str]) -> list[str]:
    return [f"`{event_type}`" for event_type in event_types]


def page_of_config() -> str:
    """The page's text, for the config as it is."""
    from numeric_features.recipe import FeatureSettings
    from ubp.cli.config import composed, parse
    from ubp.data.paths import CONFIGS

    config = composed(CONFIGS / "numeric_features", "numeric_features")
    settings = parse(FeatureSettings, config, at="features")
    return page(settings.clusters, settings.price_groups, settings.decay, settings.limit)


if __name__ == "__main__":
    PAGE.write_text(page_of_config())
