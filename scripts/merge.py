"""Merge blocks into one profile a client and write it as an entry.

    python scripts/merge.py --config-name=basics submit=False
        -> embeddings_submit/NAME or embeddings_local/NAME: client_ids.npy, embeddings.npy (float16)

A config names the blocks, in the order of their columns, and for each a processor, a scaler and an imputer
(any transformer of scikit-learn by ``_target_``); see `ubp.blocks.merge.Block`. With ``submit=True`` every relevant
client is in the entry, once; with ``submit=False`` those with an event in the history.
"""

from pathlib import Path

from omegaconf import DictConfig

from ubp.blocks.entry import entry_files, write_entry
from ubp.blocks.merge import Profile, check_histories, find_blocks, merge
from ubp.cli.command import command
from ubp.cli.config import Common, parse
from ubp.cli.output import closing_line
from ubp.io.files import digest_of, fingerprint
from ubp.io.stage import Stage


def _content(block: Path) -> str:
    """Tells one content of a block from another."""
    return digest_of(*map(fingerprint, entry_files(block))) if block.is_dir() else fingerprint(block)


@command("merge", "demo")
def main(config: DictConfig) -> None:
    common = Common.of(config)
    profile = parse(Profile, config, ["blocks", "imputer"])
    data = common.data()
    clients = data.relevant_clients if common.submit else data.clients
    paths = find_blocks(profile, common.paths.embeddings(common.submit))
    check_histories(paths, data.fingerprint, data.folder)
    entry = common.paths.embeddings(common.submit) / config.name

    def made_from() -> dict[str, str]:
        blocks = {f"block {name}": _content(path) for name, path in paths.items()}
        return {"settings": digest_of(profile), "history": data.fingerprint, **blocks}

    stage = Stage(config.name, tuple(entry_files(entry)), made_from, of=entry)
    with stage.once(common.overwrite, waited=data.require_unchanged):
        profiles = merge(profile, paths, clients)
        write_entry(entry, clients, profiles)
    closing_line(config.name, entry, *profiles.shape)


if __name__ == "__main__":
    main()
