"""Find sentences that are hard to read: in docstrings, in comments and in Markdown.

The rules are counts, so they can't tell whether a text is clear. A text that breaks them seldom is.

Run it on files or folders: `python -m tests.support.prose distributed_backup README.md`.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LONGEST = 30
AVOIDED = ("lest", "whoever", "told", "somebody", "nobody", "thereby")

_AVOIDED = re.compile(rf"\b({'|'.join(AVOIDED)})\b", re.IGNORECASE)
_CODE = re.compile(r"``.+?``|`[^`\n]*`", re.DOTALL)
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_END = re.compile(r"(?<=[.!?:])[\"')\]*]*\s+")
_BULLET = re.compile(r"^\s*([-*+]|\d+\.)\s+")
_ARGUMENT = re.compile(r"^\s*\*{0,2}\w+( \(.*?\))?:\s")
_DRAWING = re.compile(r"\s{2,}\S|[│├└→─┌]")


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence that breaks a rule."""

    path: Path
    line: int
    rule: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}: {self.sentence}"


def findings_in(path: Path) -> Iterator[Finding]:
    """What breaks the rules in one Python or Markdown file."""
    texts = _of_markdown(path.read_text()) if path.suffix == ".md" else _of_python(path.read_text())
    for line, text in texts:
        for sentence in _END.split(_LINK.sub(r"\1", _CODE.sub("code", text)).strip()):
            for rule in _broken(sentence):
                yield Finding(path, line, rule, " ".join(sentence.split()))


def _broken(sentence: str) -> Iterator[str]:
    if (count := len(sentence.split())) > LONGEST:
        yield f"{count} words"
    if ";" in sentence:
        yield "a semicolon"
    if found := _AVOIDED.search(sentence):
        yield f"the word {found[0]!r}"


def _of_python(source: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(source)):
        # A string that stands alone is a docstring: of a module, a class, a function or an attribute.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield from _paragraphs(inspect.cleandoc(node.value.value), node.lineno)
    yield from _comments(source)


def _comments(source: str) -> Iterator[tuple[int, str]]:
    block: list[str] = []
    first = last = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or re.match(r"#\s*(noqa|type:|-{3})|#!", token.string):
            continue
        if block and token.start[0] != last + 1:
            yield first, " ".join(block)
            block = []
        first = first if block else token.start[0]
        last = token.start[0]
        block.append(token.string.lstrip("# "))
    if block:
        yield first, " ".join(block)


def _of_markdown(source: str) -> Iterator[tuple[int, str]]:
    kept = re.sub(r"```.*?```", lambda match: "\n" * match[0].count("\n"), source, flags=re.DOTALL)
    kept = re.sub(r"<!--.*?-->", lambda match: "\n" * match[0].count("\n"), kept, flags=re.DOTALL)
    for number, line in enumerate(lines := kept.splitlines(), 1):
        if line.lstrip().startswith("|"):
            yield from ((number, cell) for cell in line.strip().strip("|").split("|"))
            lines[number - 1] = ""
    yield from _paragraphs("\n".join(lines), 1)


def _paragraphs(text: str, first: int) -> Iterator[tuple[int, str]]:
    """The paragraphs of a text, with their lines: without examples, tables and drawings."""
    block: list[str] = []
    begun, example = first, False
    for number, line in enumerate(text.splitlines(), first):
        example = line.lstrip().startswith((">>>", "```")) or (example and bool(line.strip()))
        if not line.strip() or example or _DRAWING.search(line.strip()):
            if block:
                yield begun, " ".join(block)
            block = []
            continue
        if block and (_BULLET.match(line) or _ARGUMENT.match(line) or line.startswith("#")):
            yield begun, " ".join(block)
            block = []
        begun = begun if block else number
        block.append(_BULLET.sub("", line).strip())
    if block:
        yield begun, " ".join(block)


def files_below(place: Path) -> list[Path]:
    """The Python and Markdown files of a place, or the file itself."""
    return [place] if place.is_file() else sorted([*place.rglob("*.py"), *place.rglob("*.md")])


if __name__ == "__main__":
    found = [finding for name in sys.argv[1:] for path in files_below(Path(name)) for finding in findings_in(path)]
    print(*found, f"{len(found)} sentences to rewrite", sep="\n")
    sys.exit(bool(found))
