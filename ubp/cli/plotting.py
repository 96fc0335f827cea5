"""matplotlib, where it is installed: no command needs it but for a plot."""

import importlib
from typing import Any

from ubp.io.errors import UserError


def pyplot() -> Any:  # noqa: ANN401 (a module that may be absent)
    """matplotlib's, drawing to files.

    Raises:
        UserError: matplotlib is missing.
    """
    try:
        plt = importlib.import_module("matplotlib.pyplot")
    except ImportError as error:
        raise UserError("matplotlib is missing: pip install -r benchmarks/requirements.txt, or plot=null") from error
    plt.switch_backend("agg")
    return plt
