"""A command on a disk of its own: a small one in memory, or one that can only be read."""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tests.reliability.killing import LONGEST, Done, environment_of
from ubp.data.paths import REPOSITORY

# Mounts a disk where the data path is, for this process and its children alone; copies there what is to lie there;
# leaves it so much room; runs the command; copies away what then lies there; gives it room, and runs it again.
_SCRIPT = """
set -eu
mkdir -p {here} {after}
mount -t tmpfs -o size=1g none {here}
cp -a {begin}/. {here}/
mount -o remount,{limit} {here}
set +e
{command} >{log}.out 2>{log}.err
code=$?
set -e
cp -a {here}/. {after}/
mount -o remount,rw,size=1g {here}
{command} >{log}.again.out 2>{log}.again.err || exit 99
mkdir -p {again}
cp -a {here}/. {again}/
exit $code
"""


@cache
def refused() -> str:
    """Why no disk can be mounted here; nothing where one can."""
    if shutil.which("unshare") is None:
        return "there is no unshare"
    try_it = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/tmp"]  # noqa: S108
    done = subprocess.run(try_it, capture_output=True, text=True, check=False)
    return f"no disk can be mounted: {done.stderr.strip()}" if done.returncode else ""


class Disk:
    """Runs commands on small disks.

    Attributes:
        after: what lay there when the command had ended.
        again: what lay there when it had been given a second time, with room.
    """

    def __init__(self, folder: Path, here: Path) -> None:
        self._folder, self._here = folder, here
        self.after, self.again = folder / "after", folder / "again"

    def run(self, begin: Path, words: Sequence[str], limit: str) -> Done:
        """A command.

        Args:
            begin: what lies there before.
            words: script and arguments.
            limit: of the disk, as ``mount -o remount`` takes it.
        """
        for folder in (self.after, self.again):
            shutil.rmtree(folder, ignore_errors=True)
        program, *arguments = words
        parts = {
            "here": self._here,
            "begin": begin,
            "after": self.after,
            "again": self.again,
            "log": self._folder / "log",
        }
        parts = {name: shlex.quote(str(path)) for name, path in parts.items()}
        command = shlex.join([sys.executable, str(REPOSITORY / program), *arguments])
        script = _SCRIPT.format(**parts, command=command, limit=limit)
        done = subprocess.run(
            ["unshare", "-rm", "bash", "-c", script],  # noqa: S607
            cwd=REPOSITORY, env=environment_of(self._here), capture_output=True, text=True, check=False,
            timeout=2 * LONGEST,
        )  # fmt: skip
        said = [(self._folder / f"log.{name}").read_text() for name in ("out", "err")]
        assert done.returncode != 99, (self._folder / "log.again.err").read_text()
        assert not done.stderr, done.stderr
        return Done(done.returncode, *said, steps=0, seconds=0.0)


def room(begin: Path, pages: int) -> str:
    """The limit of a disk that has so many pages of 4 KiB left when a folder's files lie on it."""
    sizes = (file.stat().st_size for file in begin.rglob("*") if file.is_file() and not file.is_symlink())
    return f"size={4 * (sum(-(-size // 4096) for size in sizes) + pages)}k"
