"""Finding CUDA libraries in pip's wheels, and saying truly what is missing: on faked ones."""

import ctypes
import importlib
import importlib.machinery
import importlib.util
from types import SimpleNamespace

import pytest

from ALS.implicit_gpu import INSTALL, LIBRARIES, gpu_fault


class Machine:
    """A made-up machine: what its dynamic linker and its Python find."""

    def __init__(self, monkeypatch, folder):
        self.wheels = folder / "nvidia"
        self.loaded = []  # in order: paths and names given to the linker, modules imported
        self.linker = {"libcuda.so.1"}
        self.faults = {}  # module -> what its import raises
        self.has_cuda, self.device_fault = True, None
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
        monkeypatch.setattr(ctypes, "CDLL", self._load)
        monkeypatch.setattr(importlib, "import_module", self._import)
        monkeypatch.setattr(importlib.util, "find_spec", self._find)

    def install(self, layout="cu13"):
        for name in LIBRARIES:
            path = self.wheels / layout / "lib" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    def _load(self, name):
        if "/" not in name and name not in self.linker:
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")
        self.loaded.append(name)

    def _find(self, name):
        assert name == "nvidia"
        spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(self.wheels)]
        return spec if self.wheels.exists() else None

    def _import(self, name):
        self.loaded.append(name)
        if name in self.faults:
            raise self.faults[name]
        return SimpleNamespace(HAS_CUDA=self.has_cuda, get_device_count=self._count)

    def _count(self):
        if self.device_fault:
            raise RuntimeError(self.device_fault)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    return Machine(monkeypatch, tmp_path)


@pytest.mark.parametrize("layout", ["cu13", "cublas"])
def test_libraries_of_wheels_are_loaded_before_implicit(machine, layout):
    machine.install(layout)
    assert gpu_fault() is None
    wanted = [str(machine.wheels / layout / "lib" / name) for name in LIBRARIES]
    assert machine.loaded == ["libcuda.so.1", "rmm", *wanted, "implicit.gpu"]


def test_libraries_that_the_system_has(machine):
    machine.linker |= set(LIBRARIES)
    assert gpu_fault() is None
    assert machine.loaded == ["libcuda.so.1", "rmm", *LIBRARIES, "implicit.gpu"]


def test_a_missing_library_is_named_with_its_package(machine):
    machine.install()
    (machine.wheels / "cu13" / "lib" / "libcurand.so.10").unlink()
    assert gpu_fault() == (
        "libcurand.so.10: cannot open shared object file: No such file or directory; nvidia-curand brings it "
        f"({INSTALL})"
    )
    assert "implicit.gpu" not in machine.loaded


def test_no_driver(machine):
    machine.linker.clear()
    assert gpu_fault() == ("no CUDA driver: libcuda.so.1: cannot open shared object file: No such file or directory")
    assert machine.loaded == []


def test_no_rmm(machine):
    machine.install()
    machine.faults["rmm"] = ModuleNotFoundError("No module named 'rmm'")
    assert gpu_fault() == f"No module named 'rmm' ({INSTALL})"


def test_another_rmm_than_implicits(machine):
    machine.install()
    machine.has_cuda = False
    machine.faults["implicit.gpu._cuda"] = ImportError("_cuda.so: undefined symbol: _ZTIN3rmm9bad_allocE")
    assert gpu_fault() == f"_cuda.so: undefined symbol: _ZTIN3rmm9bad_allocE ({INSTALL})"


def test_a_driver_too_old(machine):
    machine.install()
    machine.has_cuda, machine.device_fault = False, "Cuda Error: CUDA driver version is insufficient"
    assert gpu_fault() == "Cuda Error: CUDA driver version is insufficient"


def test_implicit_loaded_too_early(machine):
    machine.install()
    machine.has_cuda = False
    assert gpu_fault() == "implicit was loaded before its CUDA libraries were"


def test_gpus_hidden_by_the_user(machine, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu_fault() == "CUDA_VISIBLE_DEVICES names none"
    assert machine.loaded == []
