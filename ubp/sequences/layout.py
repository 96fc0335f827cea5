"""How the sequence store lies on disk."""

import json
from pathlib import Path

import numpy as np

from ubp.data import schema

DAY = 86_400  # seconds
DAYS_A_WEEK = 7

VERSION = 1  # of the files' layout; another one makes the store again
NOTE = "store.json"
COLUMNS = {"time": np.int32, "event": np.uint8, "subject": np.int32}
TABLE_OF = {schema.SKU: "skus", schema.URL: "urls", schema.QUERY: "queries"}


# Building ---------------------------------------------------------------------------------------------------


def is_built(folder: Path) -> bool:
    note = folder / NOTE
    return note.exists() and json.loads(note.read_text())["version"] == VERSION
