"""Check an entry against every rule of the format; all violations are listed, exit code 1 if there are any.

    python scripts/validate.py entry=data/embeddings_submit/best_solution
    python scripts/validate.py entry=/some/where/my_entry local=True

An entry in ``embeddings_local`` may leave out relevant clients; ``local=True`` or ``local=False`` says so of
any other.
"""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from ubp.blocks.entry import read_entry, violations
from ubp.cli.command import command
from ubp.cli.config import Common, optional_at, value_at
from ubp.cli.output import closing_line
from ubp.data.reading import load_clients
from ubp.io.errors import UserError


@command("scripts", "validate")
def main(config: DictConfig) -> None:
    common = Common.of(config)
    if OmegaConf.is_missing(config, "entry"):
        raise UserError("entry: name the folder to check: entry=PATH")
    entry, local = Path(value_at(config, "entry", str)), optional_at(config, "local", bool)
    if local is None:
        local = entry.resolve().parent == common.paths.embeddings(submit=False).resolve()
    found = violations(entry, load_clients(common.paths.relevant_clients), local)
    if found:
        raise UserError(found)
    closing_line(f"{entry.name} is valid{' (local)' if local else ''}", entry, *read_entry(entry)[1].shape)


if __name__ == "__main__":
    main()
