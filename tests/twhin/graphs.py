"""Small graphs of clients and items, and content encoders of a few numbers."""

import numpy as np
import torch

from twhin.content import ItemContent
from twhin.edges import EdgeSource, Graph
from twhin.model import ModelSettings, Twhin
from ubp.training.content import ContentEncoder, Contents, ContentSettings

CONTENT = ContentSettings(width=8, rows=64, id_width=4, token_width=4, id_dropout=0.0)


def settings(**changed) -> ModelSettings:
    given = {
        "width": 6,
        "temperature": 0.2,
        "learn_temperature": True,
        "offset": True,
        "in_batch": 64,
        "negatives": 1.0,
        "client_vectors": "learned",
        "others": 3,
        "client_rate": 1.0,
        "start": "random",
    }
    return ModelSettings(**(given | changed))


def graph(edges: list[tuple[int, int, int]], clients: int, items: int, weights: list[float] | None = None) -> Graph:
    """Of (client, item, relation) by their numbers, in any order."""
    rows, columns, relations = np.array(sorted(edges)).reshape(-1, 3).T
    return Graph(
        np.arange(clients, dtype=np.int64),
        np.arange(items, dtype=np.int64),
        rows.astype(np.int32),
        columns.astype(np.int32),
        relations.astype(np.uint8),
        np.array(weights or [1.0] * len(edges), np.float32),
    )


def contents(items: int, seed: int = 0) -> Contents:
    rng = np.random.default_rng(seed)
    names = rng.integers(0, 256, (items, 16)).astype(np.uint8)
    return Contents.of_items(np.arange(items), np.arange(items) % 3, np.arange(items) % 100, names, CONTENT.rows)


def content(items: int, seed: int = 0, frozen: bool = False) -> ItemContent:
    torch.manual_seed(seed)
    return ItemContent(ContentEncoder(CONTENT), contents(items, seed), frozen)


def model(clients: int, items: int, seed: int = 0, relations: int = 2, frozen: bool = False, **changed) -> Twhin:
    return Twhin(clients, relations, content(items, seed, frozen), settings(**changed))


def source(whole: Graph, known: Graph | None = None, negatives: int = 64, others: int = 0) -> EdgeSource:
    return EdgeSource(whole, whole if known is None else known, negatives, others)
