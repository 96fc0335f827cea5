"""A neural block's encoder as ONNX, for services that hold no training code.

    python scripts/export.py name=next_url_192_6_4
    python scripts/export.py name=dcn out=/some/folder tolerance=1e-5
        -> exported/NAME/ below the data path: NAME.onnx, NAME.json, NAME.VOCABULARY.parquet

NAME.json says each input's name, dtype, shape and how it is made from events, by which vocabulary; the opset, and how
far onnxruntime's vectors of some clients of the log are from torch's. Blocks that cannot be exported say why.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from ubp.blocks.fitted import content_digest, lineage_of, load
from ubp.blocks.merge import FittedMerge
from ubp.cli.chosen import choose_fit, require_name
from ubp.cli.command import command
from ubp.cli.config import Common, parse
from ubp.cli.output import closing_line, say
from ubp.data.paths import LOCAL, DataPaths
from ubp.io.errors import UserError, require
from ubp.io.stage import Stage

_KEPT = ("name", "seed", "fingerprint", "as_of")  # of the fit's lineage


@dataclass
class Order:
    """What is asked for; see the config."""

    name: str
    out: str | None
    clients: int
    tolerance: float

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            UserError: a number out of its range.
        """
        require(self.clients >= 1, "clients", self.clients, "at least 1")
        require(self.tolerance > 0, "tolerance", self.tolerance, "above 0")


def order_of(config: DictConfig, paths: DataPaths) -> Order:
    """What the command line asks for.

    Raises:
        UserError: no block is named, or a number makes no sense.
    """
    require_name(config, paths, "fitted block")
    return parse(Order, config, list(Order.__dataclass_fields__))


def require_own(out: Path) -> None:
    """Replace a folder that this command wrote before, but nothing else.

    Raises:
        UserError: something else lies there.
    """
    if out.exists() and not (out.is_dir() and any(out.glob("*.onnx"))):
        raise UserError(f"out={out}: something else lies there; name a folder that is not there yet")


@command("scripts", "export")
def main(config: DictConfig) -> None:
    common = Common.of(config)
    order = order_of(config, common.paths)
    model = choose_fit(common.paths, order.name, None if config.submit is None else common.submit)
    # torch takes a second to import.
    from ubp.training.export import OPSET, encoder_of, export, model_of, require_libraries

    block = load(model)
    if isinstance(block, FittedMerge):
        names = ", ".join(part.name for part in block.blocks)
        raise UserError(f"name={order.name}: cannot be exported: a merge is no network; export its blocks: {names}")
    encoder = encoder_of(order.name, block)
    require_libraries()
    out = Path(order.out) if order.out else common.paths.exported(order.name)
    require_own(out)
    history = common.data(submit=model.name != LOCAL)
    made_from: dict[str, Any] = {"fit": content_digest(model), "clients": order.clients, "tolerance": order.tolerance}
    made_from |= {"opset": OPSET, "seed": common.seed, "history": history.fingerprint}
    with Stage(f"{order.name} as ONNX", (out,), lambda: made_from).once(common.overwrite):
        known = history.seen()
        drawn = np.random.default_rng(common.seed).choice(known, min(order.clients, len(known)), replace=False)
        lineage = {key: value for key, value in lineage_of(model).items() if key in _KEPT}
        compared = (history, np.sort(drawn))
        measured = export(order.name, encoder, model_of(block).encode, out, compared, order.tolerance, lineage)
    inputs = ", ".join(f"{each.name} {each.dtype}" for each in encoder.inputs)
    say(f"opset {OPSET}; inputs: {inputs}")
    say(
        f"onnxruntime beside torch: {measured.clients:,} clients, no number more than {measured.largest:.1e} apart, "
        f"{measured.relative:.1e} of their root mean square; allowed {order.tolerance:.0e}"
    )
    closing_line(f"{order.name} as ONNX", out)


if __name__ == "__main__":
    main()
