"""The results that documents show: each figure in a document is the one in the newest result file."""

from __future__ import annotations

import re
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from tests.bench.__main__ import BENCHMARKS
from tests.bench.picture import picture
from tests.bench.results import DOCUMENT as BENCH
from tests.bench.results import SUMMARY, Measured, Report, compared
from tests.chaos import __main__ as chaos_command
from tests.chaos import results as chaos
from tests.chaos.campaign import Campaign, Result
from tests.chaos.history import Story
from tests.chaos.plan import Run
from tests.chaos.planted import Found
from tests.fuzz import __main__ as fuzz
from tests.fuzz.engine import Parser
from tests.fuzz.planted import PLANTED
from tests.fuzz.results import DOCUMENT as FUZZ
from tests.support.figures import NOT_MEASURED, Document, command, origin, origins, table

# The package of the simulation replaces a module of the training, so it is not imported here.
SIMULATION = Document(folder=FUZZ.folder.parent / "simulation")
DOCUMENTS = {document.folder.name: document for document in (BENCH, FUZZ, chaos.DOCUMENT, SIMULATION)}
TABLE = re.compile(r"<!-- results of .*?<!-- end of results -->", re.DOTALL)
ORIGIN = {"day": "today", "machine": "2 CPUs"}
MEASURED = (
    Measured(figure="blocked", case="30 kB", who="ours", values=[1.0, 3.0, 2.0]),
    Measured(figure="blocked", case="30 kB", who="orjson.dumps", values=[1.0], goal=1.5),
    Measured(figure="memory", case="idle", who="ours", values=[9.0], unit="MB", goal=10.0),
)


def made_up(*measured: Measured) -> dict[str, Any]:
    made = Report(title="Made up", head=["state", "ours"], rows=[["30 kB", "2.0"]], measured=measured)
    return {"blocked": made.as_json(ORIGIN)}


def readme(document: Document) -> Path:
    return document.folder / "README.md"


def stale(document: Document) -> list[str]:
    """Return the names of the files that hold other figures than the newest results."""
    return [path.name for path, text in document.texts(document.read()).items() if path.read_text() != text]


def copied(document: Document, folder: Path) -> Document:
    """Return a copy of a document and its results in an empty folder."""
    for path in document.folder.iterdir():
        if path.suffix in {".md", ".json", ".svg"}:
            (folder / path.name).write_bytes(path.read_bytes())
    return Document(folder=folder, tables=document.tables, picture=document.picture)


@pytest.mark.parametrize("document", DOCUMENTS.values(), ids=DOCUMENTS)
def test_every_figure_in_a_document_is_the_newest_result(document: Document) -> None:
    """If this fails, run `uv run python -m tests.NAME` for what has changed, with `--write` if it has that option."""
    assert stale(document) == []


@pytest.mark.parametrize("document", DOCUMENTS.values(), ids=DOCUMENTS)
def test_a_figure_that_was_changed_by_hand_is_seen(document: Document, tmp_path: Path) -> None:
    """In each table that has figures. The tables are made anew, and the text around them stays."""
    copy = copied(document, tmp_path)
    text = readme(copy).read_text()
    for found in TABLE.finditer(text):
        if (digit := re.search(r"\d", found[0])) is None:
            assert NOT_MEASURED in found[0]
            continue
        place = found.start() + digit.start()
        readme(copy).write_text(f"{text[:place]}{9 - int(digit[0])}{text[place + 1 :]}")
        assert stale(copy) == ["README.md"]
        copy.keep({})
        assert (readme(copy).read_text(), stale(copy)) == (text, [])


def test_what_is_not_measured_says_so(tmp_path: Path) -> None:
    """Only the tables without results."""
    document = Document(folder=tmp_path)
    block = "before 2.0\n<!-- results of {} -->\n<!-- end of results -->\nafter 2.0\n"
    readme(document).write_text(block.format("blocked") + block.format("other"))
    document.keep(made_up())
    made = f"\n{table(['state', 'ours'], [['30 kB', '2.0']])}\ntoday, 2 CPUs.\n\n"
    filled = block.replace("-->\n<", "-->\n{}<", 1)
    assert readme(document).read_text() == filled.format("blocked", made) + filled.format(
        "other", f"\n{NOT_MEASURED}\n"
    )
    assert document.names() == ["blocked", "other"]


def test_results_of_other_names_stay(tmp_path: Path) -> None:
    """A command replaces only what it has measured."""
    document = Document(folder=tmp_path)
    readme(document).write_text("")
    document.keep({"one": {"head": [], "rows": [], **ORIGIN}, "other": {"head": [], "rows": [], **ORIGIN}})
    document.keep({"other": {"head": ["x"], "rows": [], **ORIGIN}})
    assert {name: each["head"] for name, each in document.read().items()} == {"one": [], "other": ["x"]}


def test_a_result_says_when_where_and_how_it_was_made() -> None:
    """Equal origins are named once."""
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", origin()["day"])
    line = command("tests.chaos", {"plant-all": True, "runs": 10, "bug": None, "programs": "a b"})
    assert line == "uv run python -m tests.chaos --plant-all --runs 10 --programs 'a b'"
    earlier, later = ({**ORIGIN, "day": day, "command": line} for day in ("1", "2"))
    assert origins([later, later]) == f"`{line}`, 2, 2 CPUs.\n"
    assert origins([later, earlier]) == f"- `{line}`, 1, 2 CPUs.\n- `{line}`, 2, 2 CPUs.\n"


def test_every_benchmark_has_its_place_in_the_document() -> None:
    """One that is new can't be left out."""
    assert sorted(BENCH.names()) == sorted([SUMMARY, *BENCHMARKS])
    assert set(BENCH.read()) <= set(BENCHMARKS)


def test_the_figures_of_a_parser_replace_its_row_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each row has its command. Without `--write`, nothing is written."""
    document = copied(FUZZ, tmp_path)
    document.replace({})
    monkeypatch.setattr(fuzz, "DOCUMENT", document)

    def run(arguments: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["fuzz", *arguments.split()])
        assert fuzz.main() == 0
        (made,) = TABLE.findall(readme(document).read_text())
        return [line for line in made.splitlines() if "metadata of" in line or "--seed" in line]

    empty = readme(document).read_text()
    run("--inputs 3 --module notices")
    assert readme(document).read_text() == empty
    first = run("--inputs 3 --module notices --write")
    rows = [f"| metadata of {name} | 3 |" for name in ("Azure", "EC2", "GCE")]
    assert [line[: len(row)] for line, row in zip(first, rows, strict=False)] == rows
    assert len(first) == 4
    assert first[3].startswith("`uv run python -m tests.fuzz --inputs 3 --seed 0 --module notices`, ")
    second = run("--inputs 5 --seed 7 --module notices --parser EC2 --write")
    assert (second[0], second[2]) == (first[0], first[2])
    assert second[1].startswith("| metadata of EC2 | 5 |")
    assert sum("--inputs 5 --seed 7 --module notices --parser EC2`, " in line for line in second) == 1
    assert len(second) == 5


def test_a_campaign_replaces_its_column_only(tmp_path: Path) -> None:
    """A fault that did not hit in a campaign counts as zero. Planted errors have a table of their own."""
    document = copied(chaos.DOCUMENT, tmp_path)
    document.replace({})

    def keep(coordinator: str, store: str, faults: dict[str, int]) -> None:
        found = chaos.figures([], 30.4) | {"faults": faults, "commands": {"status": 3}}
        document.keep({chaos.name_of(coordinator, store): ORIGIN | found})

    keep("file", "dir", {"pause": 5, "eviction": 2})
    keep("redis", "s3", {"pause": 7, "cut": 1})
    document.keep({chaos.PLANTED: {"head": ["error", "runs"], "rows": [["no order", "4"]], **ORIGIN}})
    keep("file", "dir", {"pause": 6})
    campaigns, planted = TABLE.findall(readme(document).read_text())
    assert [line.split(" | ") for line in campaigns.splitlines() if line.startswith("| ")] == [
        ["| what", "file coordinator", "redis coordinator, files in s3 |"],
        ["| ---", "---:", "---: |"],
        *(["| cut", "0", "1 |"], ["| pause", "6", "7 |"], ["| all faults", "6", "8 |"], ["| `status`", "3", "3 |"]),
        *(["| minutes", "30", "30 |"], ["| processes of workers", "0", "0 |"], ["| runs", "0", "0 |"]),
        *(["| runs without an excuse", "0", "0 |"], ["| violations", "0", "0 |"]),
    ]
    assert "| no order | 4 |" in planted


def test_planted_errors_are_kept_in_their_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only if all were found."""
    document = copied(chaos.DOCUMENT, tmp_path)
    document.replace({})
    monkeypatch.setattr(chaos_command, "DOCUMENT", document)
    monkeypatch.setattr(sys, "argv", ["chaos", "--plant-all", "--write", "--keep", str(tmp_path)])

    def find(runs: int | None) -> int:
        rows = [Found(error="no order", runs=runs, checks=["lost", "order"])]
        monkeypatch.setattr(chaos_command, "find_all", lambda *_: iter(rows))
        return chaos_command.main()

    assert (find(None), document.read()) == (1, {})
    assert "nothing was written, because no order was not found: give more --runs\n" in capsys.readouterr().err
    assert find(4) == 0
    campaigns, planted = TABLE.findall(readme(document).read_text())
    assert NOT_MEASURED in campaigns
    assert "| no order | 4 | `lost`, `order` |" in planted
    assert "`uv run python -m tests.chaos --plant-all --runs 10`, " in planted
    assert not list(tmp_path.glob("chaos-*"))


@pytest.mark.parametrize("violation", ["", "order: another answer"])
def test_a_campaign_with_violations_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], violation: str
) -> None:
    """The command that repeats such a run is printed, and its files stay. At least one run is carried out."""
    document = copied(chaos.DOCUMENT, tmp_path)
    document.replace({})

    class Broken(Campaign):
        def carry_out(self, run: Run) -> Result:
            if violation:
                (self.root / "3-omega" / "logs").mkdir(parents=True)
            return Result(run=run, story=Story(), violations=list(filter(None, [violation])))

    monkeypatch.setattr(chaos_command, "DOCUMENT", document)
    monkeypatch.setattr(chaos_command, "Campaign", Broken)
    monkeypatch.setattr(chaos_command, "places", lambda *_, **__: nullcontext())
    line = f"chaos --minutes 1e-9 --seed 3 --programs omega --workers 2 --write --keep {tmp_path}"
    monkeypatch.setattr(sys, "argv", line.split())
    assert chaos_command.main() == int(bool(violation))
    output, errors = capsys.readouterr()
    assert "| runs | 1 |" in output
    again = "again: uv run python -m tests.chaos --runs 1 --seed 3 --programs omega --store dir --coordinator file"
    assert (f"{again} --workers 2\n" in output) == bool(violation)
    assert errors == ("nothing was written, because there were violations\n" if violation else "")
    assert bool(document.read()) == (not violation)
    assert [f"files: {folder}" in output for folder in tmp_path.glob("chaos-*")] == ([True] if violation else [])


def test_a_parser_that_fails_keeps_its_earlier_row(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rows of others are written. The command that repeats the failure is printed."""
    document = copied(FUZZ, tmp_path)
    document.replace({})
    (broken,) = [parser for parser in PLANTED if parser.name == "a missing field without a handler"]
    sound = Parser(name="sound", seeds=(b"x",), call=len)
    monkeypatch.setattr(fuzz, "DOCUMENT", document)
    monkeypatch.setattr(fuzz, "parsers_of", lambda *_: [broken, sound])
    monkeypatch.setattr(sys, "argv", ["fuzz", "--inputs", "100", "--seed", "2", "--write"])
    assert fuzz.main() == 1
    assert list(document.read()) == ["sound"]
    errors = capsys.readouterr().err
    assert f"the row of {broken.name} was not written, because inputs broke a rule\n" in errors
    assert f"again: uv run python -m tests.fuzz --inputs 100 --seed 2 --parser '{broken.name}'\n" in errors


def test_figures_of_a_planted_error_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would stand for the package's own."""
    monkeypatch.setattr(sys, "argv", ["chaos", "--write", "--bug", "no order"])
    with pytest.raises(SystemExit) as raised:
        chaos_command.main()
    assert raised.value.code == 2


def test_every_parser_has_its_row() -> None:
    """Run `uv run python -m tests.fuzz --parser NAME --write` for one that is new. `answers` imports synalinks."""
    known = {parser.name for parser in fuzz.parsers_of(tuple(name for name in fuzz.MODULES if name != "answers"))}
    known |= set(re.findall(r'name="(.*?)"', (FUZZ.folder / "answers.py").read_text()))
    assert set(FUZZ.read()) in (set(), known)


def test_a_summary_has_minimum_median_and_p99() -> None:
    """Of all rounds, with four digits."""
    found = Measured(figure="f", case="c", who="ours", values=[float(value) for value in range(101)]).summary()
    assert (found["min"], found["median"], found["p99"], found["rounds"]) == (0.0, 50.0, 99.0, 101)


def test_goals_are_of_ratios_or_of_our_own_figure() -> None:
    """A figure without a goal is neither reached nor missed."""
    found = {(each.measured["figure"], each.measured["who"]): each for each in compared(made_up(*MEASURED))}
    assert found["blocked", "ours"].is_met is None
    assert (found["blocked", "orjson.dumps"].ratio, found["blocked", "orjson.dumps"].is_met) == (2.0, False)
    assert (found["memory", "ours"].ratio, found["memory", "ours"].is_met) == (9.0, True)


def test_the_picture_has_a_bar_for_each_goal() -> None:
    """Its colour and its number tell whether the goal is reached."""
    drawn = picture(compared(made_up(*MEASURED)))
    assert drawn.count('class="saving"') == drawn.count('class="notice"') == 1
    assert "2.00 of 1.5" in drawn
    assert "9.00 of 10 MB" in drawn
