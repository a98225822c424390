"""What the documents name is there: files, functions, tests and commands; and whatever our files import can be found."""

import ast
import re
import shlex
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from pararl.cli import parse as cli

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
ROOMS = ("benchmarks", "docs", "pararl", "pipelines", "policies", "rewards", "tests")
PLACE = re.compile(rf"\b((?:{'|'.join(ROOMS)})/[\w/.-]+\.(?:py|md|yaml|json|png))(?:::([\w.]+))?")
"""``folder/file.py`` or ``folder/file.py::name``."""


@cache
def names(file: Path) -> frozenset[str]:
    """Functions, classes and constants of a module, and of its classes as ``Class.name``."""
    found = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{x.name}" for x in node.body if isinstance(x, ast.FunctionDef)}
        found |= {t.id for t in getattr(node, "targets", []) if isinstance(t, ast.Name)}
    return frozenset(found)


def missing(text: str) -> list[str]:
    """What a text names that is not there."""
    named = [(ROOT / place[1], place[2]) for place in PLACE.finditer(text)]
    return [f"{file}::{name}" for file, name in named if not file.exists() or (name and name not in names(file))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_and_functions_that_a_document_names_are_there(document: Path) -> None:
    assert missing(document.read_text()) == []


def test_a_name_that_is_not_there_is_found_out() -> None:
    wrong = "see `tests/test_documents.py::test_of_yesterday`, `pipelines/parral.py` and pipelines/configs/default.yaml"
    assert [x.rsplit("/", 1)[1] for x in missing(wrong)] == ["test_documents.py::test_of_yesterday", "parral.py::None"]


def test_every_avoided_bug_has_a_test() -> None:
    rows = [line for line in (ROOT / "docs" / "bugs_avoided.md").read_text().splitlines() if line.startswith("| ")]
    bugs = [row for row in rows if not row.startswith(("| project", "| ---"))]
    assert len(bugs) > 30
    for row in bugs:
        project, _, _, tests = (cell.strip() for cell in row.strip("|").split(" | "))
        found = [place for place in PLACE.finditer(tests) if place[1].startswith("tests/") and place[2].startswith("test_")]
        assert project and found, row


def commands() -> list[str]:
    """Every ``python ...`` of the README, from the name of its program on."""
    lines = (ROOT / "README.md").read_text().splitlines()
    return [line.partition("python ")[2] for line in lines if re.match(r"(ray job submit .*-- )?python (pipelines|benchmarks)/", line)]


def test_every_command_of_the_readme_names_a_program_and_settings_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = [shlex.split(command, comments=True) for command in commands()]
    assert {program for program, *_ in found} >= {"pipelines/pararl.py", "pipelines/evaluate.py", "benchmarks/gpu_mmada.py"}
    for program, *settings in found:
        assert (ROOT / program).exists(), program
        if program == "pipelines/pararl.py" and not {"--help", "--resume"} & set(settings):
            cli.parse([*settings, *([] if "--plan" in settings else ["--plan"])])  # with --plan no file of the user's is read


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "docs"])
def test_whatever_our_files_import_can_be_found(room: str) -> None:
    """Programs that no test starts included."""
    imported = set()
    for file in (ROOT / room).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            imported |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            imported |= {node.module} if isinstance(node, ast.ImportFrom) and node.module else set()
    ours = {name for name in imported if name.split(".")[0] in ROOMS}
    lost = {name for name in ours if not (ROOT / f"{name.replace('.', '/')}.py").exists() and not (ROOT / name.replace(".", "/")).is_dir()}
    if room == "pipelines":
        imported.discard("_root")  # of the folder of a script: tests/test_checkout.py starts all of them
    assert len(ours) > 3 and lost | {name for name in imported - ours if find_spec(name.split(".")[0]) is None} == set()
