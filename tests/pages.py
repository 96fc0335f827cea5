"""Pages of docs/ as tests take them: what they quote, and their commands run as they stand."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests import tiny
from ubp.blocks import registry
from ubp.data.paths import REPOSITORY

# Networks as small as those of the other tests.
SMALL = f"overrides={{dcn: {json.dumps(tiny.overrides(registry.block('dcn')))}}}"


class Page:
    """One of them, by its name in docs/."""

    def __init__(self, name: str) -> None:
        self.text = (REPOSITORY / "docs" / name).read_text()

    def quoted(self, language: str) -> list[str]:
        """The blocks of code in a language."""
        return re.findall(rf"^```{language}\n(.*?)^```$", self.text, flags=re.DOTALL | re.MULTILINE)

    def run(self, folder: Path, clients: str) -> Iterator[tuple[str, str]]:
        """Each command and what it said: in the project's folder, but with another data path and fewer clients."""
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        environment |= {"CHALLENGE_DATA_PATH": str(folder), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
        for line in (line for block in self.quoted("sh") for line in block.splitlines()):
            words = shlex.split(line.replace("clients=1_000", clients).replace("data/", f"{folder}/"))
            words[0] = {"python": sys.executable}.get(words[0], words[0])
            if line.startswith("sh get_all_embeddings.sh"):
                words.append(SMALL)
            done = subprocess.run(
                words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False, timeout=600
            )
            assert done.returncode == 0, (line, done.stderr)
            yield line, done.stdout

    def shows_end_of(self, said: str) -> bool:
        """Whether the page shows the closing line of a command, but for its figures."""
        return f"\n{said.splitlines()[-1].partition(' · ')[0]} · " in self.text

    def names_of_python(self, folder: Path) -> dict[str, object]:
        """What the page's one block of Python leaves, read from another data path."""
        (code,) = self.quoted("python")
        names: dict[str, object] = {}
        exec(compile(code.replace("data/", f"{folder}/"), "the page", "exec"), names)  # noqa: S102
        return names
