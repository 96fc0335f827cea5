"""Finding implicit's GPU part: the CUDA libraries it needs, or why it cannot be used.

implicit 0.7.3's extension (``implicit/gpu/_cuda.so``; ``ldd`` lists them) needs libcudart.so.13, libcublas.so.13,
libcublasLt.so.13, libcurand.so.10, librmm.so and librapids_logger.so. The last two are loaded by the packages that
bring them when rmm is imported. The others lie in pip's wheels (``nvidia/cu13/lib``), where the dynamic linker does
not look; unless they are loaded before, the import fails with "libcublas.so.13: cannot open shared object file", of
which implicit says so little that it looks as if there were no GPU.

rmm has to be the release that implicit was built with (26.2, says its CMakeLists.txt): 26.2 and 26.4 have every
symbol that the extension asks for, 25.12 and before and 26.6 and after do not. ``requirements-gpu.txt`` pins it.
"""

import ctypes
import importlib
import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Final

logger = logging.getLogger(__name__)

# In the order in which they need one another (libcublas.so needs libcublasLt.so), and who brings them.
LIBRARIES: Final = {
    "libcudart.so.13": "nvidia-cuda-runtime",
    "libcublasLt.so.13": "nvidia-cublas",
    "libcublas.so.13": "nvidia-cublas",
    "libcurand.so.10": "nvidia-curand",
}
_DRIVER: Final = "libcuda.so.1"
INSTALL: Final = "pip install -r requirements-gpu.txt"


def gpu_fault() -> str | None:
    """Why implicit cannot compute on a GPU, in the words of what failed; None where it can.

    Loads implicit, and before it the libraries that it needs. Where a driver is there, and so perhaps a GPU, a fault
    comes with what to install.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return "CUDA_VISIBLE_DEVICES names none"
    try:
        ctypes.CDLL(_DRIVER)
    except OSError as error:
        return f"no CUDA driver: {error}"
    try:
        importlib.import_module("rmm")
        for library in LIBRARIES:
            _load(library)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it says there is said here, and more
            gpu = importlib.import_module("implicit.gpu")
        if gpu.HAS_CUDA:
            return None
        # implicit keeps the reason to itself: the same once more, to hear it.
        importlib.import_module("implicit.gpu._cuda").get_device_count()
    except (ImportError, OSError) as error:
        return f"{error} ({INSTALL})"
    except RuntimeError as error:  # the extension is there, the driver or the device does not suit it
        return str(error)
    return "implicit was loaded before its CUDA libraries were"


def _load(library: str) -> None:
    """Load a library from pip's wheels, or, where they have it not, from wherever the dynamic linker finds it.

    Raises:
        OSError: it is nowhere; says which package brings it.
    """
    for folder in _wheels():
        # nvidia/cu13/lib since CUDA 13, nvidia/<name>/lib before.
        for path in sorted(folder.glob(f"*/lib/{library}")):
            ctypes.CDLL(str(path))
            logger.debug("%s", path)
            return
    try:
        ctypes.CDLL(library)
    except OSError as error:
        raise OSError(f"{error}; {LIBRARIES[library]} brings it") from error


def _wheels() -> Iterator[Path]:
    """The folders of the package ``nvidia``, which pip's CUDA wheels share."""
    found = importlib.util.find_spec("nvidia")
    yield from map(Path, (found.submodule_search_locations or []) if found else [])
