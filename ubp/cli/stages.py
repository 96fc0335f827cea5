"""Commands one after the other, each printed as one would type it, its output below."""

import logging
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence

from ubp.cli.object_store import address_of, refresh
from ubp.cli.output import say
from ubp.data.paths import DATA_PATH, REPOSITORY
from ubp.io.errors import UserError

logger = logging.getLogger(__name__)


def run_stage(words: Sequence[str], data_path: str) -> None:
    """Run one command of the repository.

    Args:
        words: the command line, ``python`` or ``sh`` first, then a script from the repository's root.
        data_path: that it works on.

    Raises:
        UserError: it failed.
    """
    line = shlex.join(words)
    say(f"\n$ {line}")
    program, script, *arguments = words
    started = time.perf_counter()
    environment = os.environ | {DATA_PATH: address_of(data_path), "PYTHON": sys.executable}
    runs = sys.executable if program == "python" else program
    with subprocess.Popen([runs, str(REPOSITORY / script), *arguments], env=environment) as process:  # noqa: S603
        try:
            code = process.wait()
        except KeyboardInterrupt:
            # It was interrupted too. subprocess.run would kill it before it has ended what it began itself.
            process.wait()
            raise
    if code:
        raise UserError(
            f"{line}: failed with exit code {code}, see above; fix it and start again: what is done is skipped"
        )
    refresh()
    logger.info("%.1f s", time.perf_counter() - started)
