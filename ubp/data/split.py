"""History and targets by date: the split for local validation."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

import polars as pl

from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.reading import within
from ubp.data.schema import EventType
from ubp.io.errors import UserError
from ubp.io.together import replaced_together

DAYS_IN_TARGET = 14


@dataclass(frozen=True)
class SplitDates:
    """The borders of the split.

    Attributes:
        train_start: the history ends before it; the train window starts at it.
        validation_start: the train window ends before it; the validation window starts at it.
        end: the last purchase; the validation window ends with it.
    """

    train_start: datetime
    validation_start: datetime
    end: datetime

    @classmethod
    def from_end(cls, end: datetime) -> "SplitDates":
        """Two windows of whole days back from the last purchase's day: docs/data.md, The split."""
        first_day = end - timedelta(days=2 * DAYS_IN_TARGET - 1)
        train_start = first_day.replace(hour=0, minute=0, second=0, microsecond=0)
        return cls(train_start, train_start + timedelta(days=DAYS_IN_TARGET), end)

    @classmethod
    def of(cls, data: ChallengeData) -> "SplitDates":
        """The dates for all events of ``data``.

        Raises:
            UserError: nothing lies before the train-target start, so that no history would be left.
        """
        first, dates = data.first(EventType.PRODUCT_BUY), cls.from_end(data.last(EventType.PRODUCT_BUY))
        if first >= dates.train_start:
            raise UserError(
                f"{data.file(EventType.PRODUCT_BUY)}: purchases from {first} to {dates.end} "
                f"leave no history before the train window ({dates.train_start}); the log must reach further back "
                f"than {2 * DAYS_IN_TARGET} days"
            )
        return dates

    def in_history(self) -> pl.Expr:
        return pl.col(schema.TIMESTAMP) < self.train_start

    def in_train_window(self) -> pl.Expr:
        return within(self.train_start, self.validation_start)

    def in_validation_window(self) -> pl.Expr:
        return pl.col(schema.TIMESTAMP).is_between(self.validation_start, self.end, closed="both")


def split_files(data: ChallengeData) -> list[Path]:
    """The files that `write_split` writes."""
    inputs = [data.paths.input / event_type.file_name for event_type in data.event_types]
    return [*inputs, data.paths.target / schema.TRAIN_TARGET, data.paths.target / schema.VALIDATION_TARGET]


def write_split(data: ChallengeData, dates: SplitDates) -> dict[Path, int]:
    """Write the history and the two target windows of all events; all files change, or none.

    Args:
        data: all events (``submit=True``).
        dates: the borders.

    Returns:
        Rows of each file written.
    """
    *inputs, train, validation = split_files(data)
    frames: dict[Path, pl.LazyFrame] = {}
    for path, event_type in zip(inputs, data.event_types, strict=True):
        frames[path] = data.as_filed(event_type).filter(dates.in_history())
    # A shop's own columns of the same names must not stand in for the properties.
    bought = data.as_filed(EventType.PRODUCT_BUY).select(schema.event_columns(EventType.PRODUCT_BUY))
    # Events of unknown skus are only here if they are to be dropped: an inner join does so.
    how: Literal["inner", "left"] = "inner" if data.unknown_sku == "drop" else "left"
    properties = data.properties_as_filed().select(schema.PROPERTY_COLUMNS)
    for path, window in ((train, dates.in_train_window()), (validation, dates.in_validation_window())):
        frames[path] = bought.filter(window).join(properties, on=schema.SKU, how=how, maintain_order="left")
    with replaced_together(list(frames), data.paths.new_files[1]) as asides:
        for path, frame in frames.items():
            frame.sink_parquet(asides[path])
        return {path: _rows(aside) for path, aside in asides.items()}


def _rows(path: Path) -> int:
    return int(pl.scan_parquet(path, glob=False).select(pl.len()).collect().item())
