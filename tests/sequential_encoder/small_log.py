"""A small store of events, made by hand, and a source and a model over it."""

from datetime import datetime

import numpy as np
import torch

from sequential_encoder.events import ITEM, URL, Catalogue, EventSource, Sampler, SequenceSettings, Span
from sequential_encoder.flat import CATEGORIES, SUBJECTS
from sequential_encoder.model import EncoderSettings, LossSettings, SequentialEncoder
from ubp.data import schema
from ubp.data.schema import CODE_BOOK, CODES, EVENT_TYPES
from ubp.sequences.arrays import offsets_of
from ubp.sequences.layout import DAY
from ubp.sequences.selection import select
from ubp.sequences.store import Sequences
from ubp.training.content import ContentSettings

DAYS, SKUS, URLS, QUERIES = 40, 30, 9, 5
ROWS = 400  # of the hashed table


def store(clients: int = 7, most: int = 60, seed: int = 0) -> Sequences:
    """Events at random times, several of them in the same minute."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, most, clients)
    time = [np.sort(rng.integers(0, DAYS * DAY // 600, length)) * 600 + rng.integers(0, 30) for length in lengths]
    event = rng.integers(0, len(EVENT_TYPES), lengths.sum()).astype(np.uint8)
    tables = {schema.SKU: SKUS, schema.URL: URLS, schema.QUERY: QUERIES}
    sizes = np.array([tables[event_type.subject] for event_type in schema.EVENT_ORDER])
    return Sequences(
        start=datetime(2022, 6, 1),  # a Wednesday
        last=DAYS * DAY,
        event_types=schema.EVENT_ORDER,
        clients=np.arange(clients, dtype=np.int64) * 3,
        offsets=offsets_of(lengths),
        time=np.concatenate(time).astype(np.int32),
        event=event,
        subject=(rng.random(len(event)) * sizes[event]).astype(np.int32),
        skus=np.arange(SKUS, dtype=np.int64) * 11,
        categories=rng.integers(0, 4, SKUS),
        prices=rng.integers(0, 100, SKUS),
        names=rng.integers(0, CODE_BOOK, (SKUS, CODES)).astype(np.uint8),
        urls=np.arange(URLS, dtype=np.int64),
        queries=rng.integers(0, CODE_BOOK, (QUERIES, CODES)).astype(np.uint8),
    )


def span(sequences: Sequences, end: int = DAYS * DAY, days: tuple[int, ...] = (), since: int = 0) -> Span:
    """Of all clients; asked about on some days, by default at the end."""
    from datetime import timedelta

    chosen = select(sequences, sequences.start + timedelta(seconds=end))
    asked = np.array(days or (end,), np.int64)
    return Span(chosen, end, since, asked, np.zeros((len(chosen.clients), len(asked)), np.int64))


SETTINGS = SequenceSettings(merge=3600, tokens=1000, events=1000, targets=3, days=100)


def source(of: Span, settings: SequenceSettings = SETTINGS) -> EventSource:
    """Without labels: to be encoded."""
    return EventSource((of,), Catalogue.of(of.chosen, ROWS), settings)


def samplers(of: Span) -> dict[str, Sampler]:
    return {name: Sampler.of(of.chosen, column, 1.0) for name, column in ((ITEM, schema.SKU), (URL, schema.URL))}


CONTENT = ContentSettings(width=8, rows=ROWS, id_width=4, token_width=4, id_dropout=0.0)
ALL = {"next_event": 1.0, "next_time": 1.0, "next_item": 1.0, "next_url": 1.0, "windows": 1.0}


def model(
    weights: dict[str, float] | None = None,
    pooling: str = "learned",
    seed: int = 3,
    amounts: tuple[str, ...] = (SUBJECTS, CATEGORIES),
    popularity: float = 0.0,
) -> SequentialEncoder:
    """A small one, ready to encode."""
    settings = EncoderSettings(
        width=16, layers=2, heads=2, dropout=0.0, event_dropout=0.0, profile=16, pooling=pooling,
        half_lives=[5.0], hidden=0, read_dropout=0.0, amounts=list(amounts), amount_width=8, amount_dropout=0.0,
        content=CONTENT,
    )  # fmt: skip
    torch.manual_seed(seed)
    losses = LossSettings(ALL if weights is None else weights, {}, 0.0, 4, 1.0, popularity)
    shares = {"bought_sku": np.full(3, 0.2, np.float32), "price": np.full(2, 0.4, np.float32)}
    return SequentialEncoder(settings, losses, shares, ["churn", "baskets", "days_to_purchase"]).eval()
