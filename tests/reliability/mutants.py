"""Modules with one small fault each, and whether their tests find it.

    python tests/reliability/mutants.py ubp/data/split.py tests/ubp/data/test_split.py [HOW_MANY]

prints a line of JSON for each mutant that was tried, with the line of the module that its fault is in. A mutant never
touches the file: a forked process imports the module from a changed tree. The parent imports what is slow (polars,
torch) once but runs none of it, as their threads do not live on in a fork; this is what keeps mutmut from working here:
its children wait for them until they time out.
"""

import ast
import contextlib
import importlib.util
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from importlib.abc import MetaPathFinder, SourceLoader
from pathlib import Path
from typing import Final

COMPARED: Final = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
COMPUTED: Final = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
DROPPED: Final = {"sort", "unique", "filter", "fill_null", "abs", "clip", "drop_nulls", "head", "round", "shift"}
NAMES: Final = {
    "min": "max", "any": "all", "minimum": "maximum", "first": "last", "floor": "ceil", "left": "right",
    "semi": "anti", "inner": "left", "cum_sum": "cum_max", "sum": "max", "mean": "sum", "rows": "columns",
}  # fmt: skip
SWAPPED: Final = NAMES | {other: name for name, other in reversed(NAMES.items())}
JOINED: Final = {"path", "paths", "folder", "aside"}  # a / of these is no division
Change = tuple[int, str, Callable[[], None]]  # line, what, and how to make it


def changes(tree: ast.Module) -> list[Change]:
    """The faults that can be put into a module; messages, types, docstrings and decorators are left alone."""
    return list(_within(tree))


def _within(parent: ast.AST) -> Iterator[Change]:
    for name, value in ast.iter_fields(parent):
        if name in {"annotation", "returns", "decorator_list", "type_params", "type_comment"}:
            continue
        for place, child in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(child, ast.AST) or _is_talk(child) or _is_default(parent, child):
                continue

            def put(new: ast.AST, name: str = name, place: int = place, value: object = value) -> None:
                if isinstance(value, list):
                    value[place] = new
                else:
                    setattr(parent, name, new)

            yield from _at(child, put)
            if not isinstance(child, ast.Raise):
                yield from _within(child)


def _is_default(parent: ast.AST, node: ast.AST) -> bool:
    """A setting's default, which stands in a config too, and whether a zip or join checks what is so."""
    is_default = isinstance(parent, ast.ClassDef) and isinstance(node, ast.AnnAssign)
    return is_default or (isinstance(node, ast.keyword) and node.arg in {"strict", "validate"})


def _is_talk(node: ast.AST) -> bool:
    """Text for people, and what only a type checker reads."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    called = node.value.func if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) else None
    is_log = isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) and called.value.id == "logger"
    is_typing = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    return is_log or is_typing or isinstance(node, (ast.JoinedStr, ast.Import, ast.ImportFrom))


def _at(node: ast.AST, put: Callable[[ast.AST], None]) -> Iterator[Change]:  # noqa: C901 (a list of kinds)
    """The faults that one node can have."""
    line, was = getattr(node, "lineno", 0), ast.unparse(node)

    def to(new: ast.AST) -> Change:
        return line, f"{was.splitlines()[0][:80]} -> {ast.unparse(new).splitlines()[0][:80]}", lambda: put(new)

    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARED:
        yield to(ast.Compare(node.left, [COMPARED[type(node.ops[0])](), *node.ops[1:]], node.comparators))
    elif isinstance(node, ast.BinOp) and type(node.op) in COMPUTED and not JOINED & set(was.replace(".", " ").split()):
        yield to(ast.BinOp(node.left, COMPUTED[type(node.op)](), node.right))
    elif isinstance(node, ast.BoolOp):
        yield to(ast.BoolOp(COMPUTED[type(node.op)](), node.values))
    elif isinstance(node, ast.UnaryOp):
        yield to(node.operand)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield to(ast.Constant(not node.value))
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield to(ast.Constant(node.value + 1))
    elif isinstance(node, ast.Constant) and node.value in SWAPPED:
        yield to(ast.Constant(SWAPPED[node.value]))
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in DROPPED:
        yield to(node.func.value)
    elif isinstance(node, ast.Attribute) and node.attr in SWAPPED:
        yield to(ast.Attribute(node.value, SWAPPED[node.attr], node.ctx))
    elif isinstance(node, ast.Name) and node.id in SWAPPED and isinstance(node.ctx, ast.Load):
        yield to(ast.Name(SWAPPED[node.id], node.ctx))
    elif isinstance(node, (ast.Raise, ast.AugAssign)) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):  # noqa: E501  # fmt: skip
        yield to(ast.Pass())
    elif isinstance(node, ast.IfExp):
        yield to(node.body)
        yield to(node.orelse)


class Mutated(MetaPathFinder, SourceLoader):
    """Gives a module from a changed tree."""

    def __init__(self, module: str, path: Path, number: int) -> None:
        self.module, self.path = module, path
        self.tree = ast.parse(path.read_text())
        changes(self.tree)[number][2]()
        ast.fix_missing_locations(self.tree)

    def find_spec(self, name, path=None, target=None):  # noqa: ARG002
        return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.module else None

    def get_filename(self, name):  # noqa: ARG002
        return str(self.path)

    def get_data(self, path):
        return Path(path).read_bytes()

    def get_code(self, name):  # noqa: ARG002
        return compile(self.tree, str(self.path), "exec")


def outcome(run: Callable[[], int], seconds: float) -> str:
    """What came of a function in a forked process: ``survived`` (it gave 0), ``killed`` or ``timeout``."""
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        silence = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(silence, stream)
        code = 1
        with contextlib.suppress(BaseException):
            code = int(run())
        os._exit(code)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "killed" if status else "survived"
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timeout"


def main(file: str, tests: list[str], most: int | None) -> None:
    """Try a module's mutants, or so many of them, the same ones each time."""
    path, module = Path(file), file.removesuffix(".py").replace("/", ".")
    import hydra, hypothesis, omegaconf, polars, pytest, sklearn.decomposition, torch, torchmetrics  # noqa: E401, F401, I001  # fmt: skip

    words = ["-x", "-q", "-m", "not full and not long", "--hypothesis-seed=0", *tests]
    words += ["-p", "no:cacheprovider", "-p", "no:xdist"]

    def tested(number: int | None) -> int:
        if number is not None:
            sys.meta_path.insert(0, Mutated(module, path, number))
        return int(pytest.main(words))

    began = time.monotonic()
    if (unchanged := outcome(lambda: tested(None), 600)) != "survived":
        raise SystemExit(f"{file}: the tests of the unchanged module: {unchanged}")
    seconds = 10 + 5 * (time.monotonic() - began)
    text = path.read_text()
    found = changes(ast.parse(text))
    chosen = sorted(random.Random(0).sample(range(len(found)), min(most or len(found), len(found))))  # noqa: S311
    for number in chosen:
        line, what, _ = found[number]
        result = outcome(lambda number=number: tested(number), seconds)
        tried = {"file": file, "line": line, "text": text.splitlines()[line - 1].strip(), "what": what}
        sys.stdout.write(json.dumps(tried | {"result": result}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    *words, last = sys.argv[1:]
    most = int(last) if last.isdecimal() else None
    main(words[0], words[1:] if most else [*words[1:], last], most)
