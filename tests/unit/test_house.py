"""The marks of the house: how large a module, a class, a function, a signature and a test file may grow."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import SLOWEST

ROOT = Path(__file__).parents[2]
SOURCE = sorted((ROOT / "distributed_backup").rglob("*.py"))
MOST_LINES = {"module": 370, "class": 320, "function": 45}
MOST_LINES_OF_A_TEST_FILE = 600
MOST_PARAMETERS = 6
# Each parameter of these is an option that a user may set.
MORE_PARAMETERS = {
    "BackupAndRestore.__init__": "a drop-in for the constructor of synalinks, with an argument for each option",
    "demo": "typer makes each parameter an option of the command",
}


def sizes(path: Path) -> Iterator[tuple[str, str, int]]:
    """Yield kind, name and lines of each part of a module. The docstring of a function does not count."""
    source = path.read_text()
    yield "module", path.name, source.count("\n")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            yield "class", node.name, (node.end_lineno or 0) - node.lineno + 1
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            documented = (first.end_lineno or 0) - first.lineno + 1 if ast.get_docstring(node) else 0
            yield "function", node.name, (node.end_lineno or 0) - node.lineno + 1 - documented


def test_no_part_of_the_source_is_larger_than_its_mark() -> None:
    """A larger part has more than one concern."""
    assert len(SOURCE) > 100
    found = [(str(path), *size) for path in SOURCE for size in sizes(path) if size[2] > MOST_LINES[size[0]]]
    assert found == []


def parameters(path: Path) -> Iterator[tuple[str, int]]:
    """Yield each function of a module and the number of its parameters. `self` and `cls` do not count."""

    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, int]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                of = child.args
                names = [argument.arg for argument in (*of.posonlyargs, *of.args, *of.kwonlyargs)]
                yield prefix + child.name, len([name for name in names if name not in {"self", "cls"}])
            yield from walk(child, f"{child.name}." if isinstance(child, ast.ClassDef) else prefix)

    yield from walk(ast.parse(path.read_text()), "")


def test_no_function_takes_more_parameters_than_its_mark() -> None:
    """More parameters have a value object in common. An exempt function that is within the mark is no longer exempt."""
    found = {name for path in SOURCE for name, count in parameters(path) if count > MOST_PARAMETERS}
    assert found == set(MORE_PARAMETERS)


def test_parameters_are_counted_as_they_are(tmp_path: Path) -> None:
    """All kinds count, those of methods and of inner functions among them."""
    path = tmp_path / "planted.py"
    path.write_text("class C:\n    async def m(self, a, /, b, *c, d=0, **e):\n        def f(x): ...\n")
    assert list(parameters(path)) == [("C.m", 3), ("C.f", 1)]


def test_no_test_file_is_larger_than_its_mark() -> None:
    """A larger file is divided by concern."""
    lines = {path: path.read_text().count("\n") for path in (ROOT / "tests").rglob("*.py")}
    assert {path: count for path, count in lines.items() if count > MOST_LINES_OF_A_TEST_FILE} == {}


@pytest.mark.parametrize(
    ("source", "size"),
    [
        ("x = 1\n" * 3, ("module", "planted.py", 3)),
        ("class C:\n    x = 1\n    y = 2\n", ("class", "C", 3)),
        ('def f():\n    """One.\n\n    Two.\n    """\n    return 1\n', ("function", "f", 2)),
    ],
)
def test_parts_are_measured_as_they_are(tmp_path: Path, source: str, size: tuple[str, str, int]) -> None:
    """A measure that finds nothing would pass for ever."""
    path = tmp_path / "planted.py"
    path.write_text(source)
    assert size in list(sizes(path))


def test_the_slowest_files_are_where_the_order_of_the_tests_expects_them() -> None:
    """A file that is renamed would otherwise run last, and keep one worker busy while the others have ended."""
    assert [name for name in SLOWEST if not (ROOT / "tests" / name).is_file()] == []
