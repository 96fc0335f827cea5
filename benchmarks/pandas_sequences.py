"""Every client's events in order the straightforward way, in pandas: what scale.py compares with.

    pip install -r benchmarks/requirements.txt
    python benchmarks/pandas_sequences.py      -> cache/pandas_sequences/*.npy

Reads the history of ``submit=False`` whole, puts the five tables below one another, sorts by client and time
and saves what the sequence store has: clients, offsets, time, event and subject as flat columns. A subject is
its place among the distinct skus, urls or queries. The test holds them against the store's.
"""

import numpy as np
from omegaconf import DictConfig

from benchmarks.pandas_stat_features import Frame, pandas, read
from ubp.cli.command import command
from ubp.cli.config import Common
from ubp.cli.output import closing_line
from ubp.data import schema
from ubp.data.paths import DataPaths
from ubp.data.schema import EventType
from ubp.io.files import atomic_write


def sequences(paths: DataPaths) -> Frame:
    """All events: ``client_id``, ``timestamp``, ``event`` and ``subject``, in the store's order."""
    pd = pandas()
    skus = np.sort(pd.read_parquet(paths.properties, columns=[schema.SKU])[schema.SKU].to_numpy())
    parts = []
    for event_type in schema.EVENT_TYPES:
        events = read(paths, event_type)
        subject = events[event_type.subject]
        if event_type.has_sku:
            codes = np.searchsorted(skus, subject)
        elif event_type == EventType.SEARCH_QUERY:
            # Each code as three digits: then the texts sort as the codes do.
            numbers = subject.str.findall(r"\d+").map(lambda codes: " ".join(code.zfill(3) for code in codes))
            codes, _ = pd.factorize(numbers, sort=True)
        else:
            codes, _ = pd.factorize(subject, sort=True)
        columns = {schema.CLIENT_ID: events[schema.CLIENT_ID], schema.TIMESTAMP: events[schema.TIMESTAMP]}
        parts.append(pd.DataFrame(columns | {"event": np.uint8(event_type.code), "subject": codes.astype(np.int32)}))
    everything = pd.concat(parts, ignore_index=True)
    return everything.sort_values([schema.CLIENT_ID, schema.TIMESTAMP, "event", "subject"], ignore_index=True)


@command("scripts", "make_demo_data")
def main(config: DictConfig) -> None:
    paths = Common.of(config).paths
    events = sequences(paths)
    clients, offsets = np.unique(events[schema.CLIENT_ID].to_numpy(), return_index=True)
    start = events[schema.TIMESTAMP].min().normalize()
    folder = paths.cache / "pandas_sequences"
    with atomic_write(folder) as aside:
        aside.mkdir()
        np.save(aside / "clients.npy", clients)
        np.save(aside / "offsets.npy", np.append(offsets, len(events)))
        seconds = (events[schema.TIMESTAMP] - start).dt.total_seconds()
        np.save(aside / "time.npy", seconds.to_numpy().astype(np.int32))
        np.save(aside / "event.npy", events["event"].to_numpy())
        np.save(aside / "subject.npy", events["subject"].to_numpy())
    closing_line("pandas_sequences", folder)


if __name__ == "__main__":
    main()
