"""A log as it was on an earlier day, as a data path of its own: to be split, learned from and scored like any other."""

import shutil

import polars as pl

from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.paths import DataPaths
from ubp.data.schema import EventType
from ubp.io.arrays import save_array
from ubp.io.errors import UserError
from ubp.io.stage import Stage
from ubp.io.together import replaced_together


def cut_log(data: ChallengeData, out: DataPaths, overwrite: bool) -> None:
    """Write the events of a history, and what is known of items and ids, as the log of another data path.

    The relevant clients with an event in it are its relevant clients, where the log says which are. Nothing else is
    taken over: the split, the lists of the tasks and all that is learned are made anew from the events that are there.

    Args:
        data: the history, up to its ``as_of``.
        out: where to.
        overwrite: write it although it is there.

    Raises:
        AlreadyDone: it is there.
        UserError: there is another log.
    """
    if out.raw.resolve() in (data.folder.resolve(), data.paths.raw.resolve()):
        raise UserError(f"out={out.root}: the log itself lies there; name another folder")
    events = {out.raw / event_type.file_name: event_type for event_type in data.event_types}
    known = [data.paths.properties, data.paths.event_types, *data.paths.id_tables]
    copies = {out.raw / file.name: file for file in known if file.exists()}
    relevant = [out.relevant_clients] if data.paths.relevant_clients.exists() else []
    files = (*events, *copies, *relevant)
    made_from = {"files": data.files_fingerprint, "unknown_sku": data.unknown_sku, "as_of": str(data.day)}
    if relevant:
        made_from["history"] = data.fingerprint
    stage = Stage("cut", files, lambda: made_from, of=out.raw / EventType.PRODUCT_BUY.file_name)
    if not stage.is_begun() and any(file.exists() for file in files):
        raise UserError(f"{out.raw}: there is a log that was not cut from another; name a folder without one")
    with stage.once(overwrite, waited=data.require_unchanged), replaced_together(files, out.new_files[0]) as asides:
        for file, event_type in events.items():
            data.as_filed(event_type).filter(pl.col(schema.TIMESTAMP) < data.as_of).sink_parquet(asides[file])
        for file, source in copies.items():
            shutil.copyfile(source, asides[file])
        for file in relevant:
            save_array(asides[file], data.clients)
        data.require_unchanged()
