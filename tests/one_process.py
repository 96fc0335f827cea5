"""Commands one after the other in one process, which is not the test's: what they import is imported once.

Called by `run_in_one_process`; as a module it reads the command lines from its input, as JSON.
"""

import importlib
import io
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path

from ubp.data.paths import REPOSITORY


@dataclass(frozen=True)
class Done:
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        return self.out.splitlines()[-1] if self.out else ""


def run_in_one_process(
    root: Path, lines: Mapping[str, Sequence[str]], timeout: float = 900, **environment: str
) -> dict[str, Done]:
    """What commands left, by their names.

    Args:
        root: the data path.
        lines: script and arguments of each.
        timeout: seconds, of all of them.
        environment: further variables.

    Raises:
        AssertionError: the process ended before it had run them.
    """
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    variables |= {"CHALLENGE_DATA_PATH": str(root), "OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(
        [sys.executable, "-m", "tests.one_process"],
        cwd=REPOSITORY, env=variables, input=json.dumps(lines), capture_output=True, text=True, check=False,
        timeout=timeout,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {name: Done(**left) for name, left in json.loads(done.stdout).items()}


def _ended(words: Sequence[str]) -> Done:
    """Run a command here."""
    program, *arguments = words
    out, err, code = io.StringIO(), io.StringIO(), 0
    sys.argv = [program, *arguments]
    with redirect_stdout(out), redirect_stderr(err):
        try:
            script = Path(program).relative_to(REPOSITORY) if Path(program).is_absolute() else Path(program)
            importlib.import_module(".".join(script.with_suffix("").parts)).main()
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else 1
        except Exception:  # noqa: BLE001 (whatever it is, the next command is run)
            traceback.print_exc()
            code = 1
    return Done(code, out.getvalue(), err.getvalue())


if __name__ == "__main__":
    json.dump({name: asdict(_ended(words)) for name, words in json.load(sys.stdin).items()}, sys.stdout)
