"""Stages of work: whatever is made once is skipped when it is done, and made by one process at a time.

One rule for all of them. A stage is done if its note says that its outputs, as they are now, were made from what
they would be made from now. ``overwrite=True`` makes it again all the same.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from ubp.io.files import (
    atomic_write,
    digest_of_files,
    fingerprint,
    forget_killed_holder,
    locked,
    read_whole,
    remove_abandoned,
    stamp,
)

logger = logging.getLogger(__name__)

_NOTES: Final = ".done"  # the folder of notes and locks, beside the outputs
_MADE_FROM, _OUTPUTS = "made_from", "outputs"  # keys of a note


class AlreadyDone(Exception):
    """The result is there, made from the same history with the same settings; nothing is left to do."""


@dataclass(frozen=True)
class Stage:
    """Something that is made once.

    Attributes:
        name: of what is made, as lines say it.
        outputs: files or folders, at least one.
        made_from: what the outputs are made from, by what it is (``seed``, ``config``, ``history``): JSON values that
            change whenever something else would come out. Asked anew each time.
        of: note and lock lie beside this path, and closing lines name it; None for the first output. For outputs in
            a folder that is replaced as a whole: the folder.
    """

    name: str
    outputs: tuple[Path, ...]
    made_from: Callable[[], Mapping[str, Any]]
    of: Path | None = None

    @property
    def path(self) -> Path:
        """Where the note and the lock lie, without their endings."""
        first = self.of or self.outputs[0]
        return first.parent / _NOTES / first.name

    def is_done(self) -> bool:
        """Whether the outputs are there, unchanged, and made from the same; a line says why not."""
        reason = self._reason(self.made_from())
        if reason is None:
            return True
        if self._note() or any(output.exists() for output in self.outputs):
            logger.info("%s: %s: making it again", self.name, reason)
        return False

    def is_begun(self) -> bool:
        """Whether this stage made, or began to make, what lies at its outputs."""
        return self._note() is not None

    def has_finished(self) -> bool:
        """Whether this stage was finished when it last ran."""
        return bool(self._note())

    def is_finished(self) -> bool:
        """Whether the outputs are what this stage last made, whatever from."""
        note = self._note()
        return self._changed_output(note) is None if note else False

    def begin(self) -> None:
        """Note that the outputs are this stage's, and not ready."""
        self._write({})

    def finish(self, made_from: Mapping[str, Any] | None = None) -> None:
        """Note that the outputs are ready.

        Args:
            made_from: from this; None for what they would be made from now.
        """
        made = _as_json(self.made_from() if made_from is None else made_from)
        self._write({_MADE_FROM: made, _OUTPUTS: {output.name: content_of(output) for output in self.outputs}})

    @contextmanager
    def once(
        self,
        overwrite: bool,
        remark: Callable[[], str] = lambda: "",
        waited: Callable[[], None] = lambda: None,
    ) -> Iterator[None]:
        """Hold the stage's lock while the outputs are made, unless they are done; afterwards note that they are.

        A second process waits. It then finds done what the first one made, even with ``overwrite``; where the first
        one failed or was killed, it takes over. Processes for further devices neither wait nor note.

        Args:
            overwrite: make them although they are done.
            remark: what stands behind the name of a stage that is done.
            waited: called when another process was waited for, to look whether the sources are what they were.

        Raises:
            AlreadyDone: they are, and ``overwrite`` is off or they were made meanwhile.
        """
        before = self._stamps()
        lock = self.path.with_name(f"{self.path.name}.lock")
        if not overwrite and self.is_done():
            forget_killed_holder(lock)
            raise self.done(remark())
        if not is_first_process():
            yield  # the first one holds the lock, and waits for this one
            return
        with locked(lock, self.name) as had_to_wait:
            for path in (*self.outputs, self._note_file):
                remove_abandoned(path)
            if had_to_wait:
                waited()
            if self._stamps() != before and self._reason(self.made_from()) is None:
                raise self.done(remark())
            made_from = _as_json(self.made_from())  # now: when they are made, the sources may have changed
            yield
            self.finish(made_from)

    def done(self, remark: str = "") -> AlreadyDone:
        """What is raised where nothing is left to do."""
        return AlreadyDone(
            f"{self.name}{remark} · done before · {self.of or self.outputs[0]} (overwrite=True makes it again)"
        )

    def _reason(self, made_from: Mapping[str, Any]) -> str | None:
        """Why the stage is not done; None where it is."""
        note = self._note()
        if not note:
            return "not finished" if note is not None else "no note of how it was made"
        wanted, had = _as_json(made_from), note[_MADE_FROM]
        if changed := [key for key in {**wanted, **had} if wanted.get(key) != had.get(key)]:
            return f"made with another {' and '.join(changed)}"
        return self._changed_output(note)

    def _changed_output(self, note: Mapping[str, Any]) -> str | None:
        for output in self.outputs:
            if not output.exists():
                return f"{output} is not there"
            if content_of(output) != note[_OUTPUTS].get(output.name):
                return f"{output} changed since"
        return None

    def _note(self) -> dict[str, Any] | None:
        """The note; empty for a stage that was begun, None where there is none that can be read."""
        try:
            note = json.loads(self._note_file.read_text())
        except (OSError, ValueError, RecursionError):
            return None
        is_note = isinstance(note, dict) and all(isinstance(note.get(key, {}), dict) for key in (_MADE_FROM, _OUTPUTS))
        return note if is_note and len(note.keys() & {_MADE_FROM, _OUTPUTS}) in (0, 2) else None

    @property
    def _note_file(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    def _write(self, note: Mapping[str, Any]) -> None:
        with atomic_write(self._note_file) as aside:
            aside.write_text(json.dumps(note, indent=2) + "\n")

    def _stamps(self) -> list[tuple[int, int] | None]:
        return [stamp(path) for path in (*self.outputs, self._note_file)]


def _as_json(made_from: Mapping[str, Any]) -> dict[str, Any]:
    """As it comes back from a note: tuples as lists, keys as text."""
    values: dict[str, Any] = json.loads(json.dumps(made_from, sort_keys=True))
    return values


def content_of(output: Path) -> str:
    """Tells one content of a file, or of a folder's files, from another; notes apart."""
    if not output.is_dir():
        return fingerprint(output)

    def of_folder() -> str:
        files = sorted(
            file for file in output.rglob("*") if file.is_file() and _NOTES not in file.relative_to(output).parts
        )
        return _content_of_all(output, tuple((file, *(stamp(file) or ()), file.stat().st_size) for file in files))

    return read_whole(output, of_folder)


@lru_cache(maxsize=256)
def _content_of_all(folder: Path, stamped: tuple[tuple[Path | int, ...], ...]) -> str:
    """The same of some of its files, read once as long as they are not replaced: a process may ask for every day."""
    return digest_of_files((Path(str(file)) for file, *_ in stamped), folder)


def is_first_process() -> bool:
    """False in the processes that Lightning starts for further devices."""
    ranks = ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "RANK", "SLURM_PROCID")
    return all(os.environ.get(rank, "0") == "0" for rank in ranks)
