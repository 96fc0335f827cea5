"""Arrows point one way: down between the library's wings, from scripts and model folders to the library."""

import ast
from pathlib import Path

import pytest

from ubp.blocks import registry
from ubp.data.paths import REPOSITORY

# No wing imports one of its own floor or of a higher one.
FLOORS = {
    "io": 0,
    "data": 1,
    **dict.fromkeys(("sequences", "blocks"), 2),
    **dict.fromkeys(("training", "evaluation"), 3),
    "nightly": 4,
    **dict.fromkeys(("cli", "report"), 5),
    "api": 6,
}
FAMILIES = sorted({entry.command.partition("/")[0] for entry in registry.entries()})
LIBRARY = sorted((REPOSITORY / "ubp").glob("*/*.py"))


def imports(file: Path) -> set[str]:
    """Modules that a file imports anywhere in it, by their full names."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def wing(module: str) -> str:
    return module.split(".")[1]


def test_every_wing_has_a_floor():
    assert {file.parent.name for file in LIBRARY} == set(FLOORS) - {"api"}


@pytest.mark.parametrize("file", LIBRARY, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_no_arrow_runs_up(file):
    own = file.parent.name
    for module in imports(file):
        if module.startswith("ubp.") and wing(module) != own:
            assert FLOORS[wing(module)] < FLOORS[own], f"{file.name} imports {module}"


def test_no_circle_among_modules():
    modules = {f"ubp.{file.parent.name}.{file.stem}": file for file in LIBRARY if file.stem != "__init__"}
    arrows = {
        name: {other for other in modules if any(found == other or found.startswith(f"{other}.") for found in seen)}
        for name, seen in ((name, top_imports(file)) for name, file in modules.items())
    }
    while leaves := [name for name, others in arrows.items() if not others & arrows.keys()]:
        for name in leaves:
            del arrows[name]
    assert not arrows


def top_imports(file: Path) -> set[str]:
    """What a file imports when it is imported itself."""
    found = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_the_library_knows_no_block_and_no_library_that_only_a_block_uses():
    foreign = {*FAMILIES, "scripts", "benchmarks", "tests", "implicit", "lightfm", "vllm", "huggingface_hub"}
    for file in [*LIBRARY, *(REPOSITORY / "ubp").glob("*.py")]:
        roots = {module.partition(".")[0] for module in imports(file)}
        assert not roots & foreign, file


def test_blocks_do_not_import_one_another():
    for family in FAMILIES:
        for file in (REPOSITORY / family).glob("*.py"):
            roots = {module.partition(".")[0] for module in imports(file)}
            assert not roots & ({*FAMILIES, "scripts", "benchmarks"} - {family}), file
