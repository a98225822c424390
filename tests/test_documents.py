"""What the documents name is there: files, functions, tests and commands; and whatever our files import can be found."""

import ast
import json
import re
import shlex
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from textwrap import indent

import pytest

from pararl.cli import parse as cli
from pararl.config import ARMS, SECTIONS, SETTINGS
from pararl.releases import RELEASES
from pipelines.command import PROGRAMS
from policies.sources import CHECKPOINTS
from policies.traits import TRAITS

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


@pytest.mark.parametrize("room", [room for room in ROOMS if room not in ("docs", "tests")])
def test_files_and_functions_that_our_docstrings_and_configurations_name_are_there(room: str) -> None:
    files = [file for ending in ("py", "yaml") for file in (ROOT / room).rglob(f"*.{ending}")]
    assert {str(file): told for file in files if (told := missing(file.read_text()))} == {}


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


def commands(text: str) -> list[list[str]]:
    """The words of each ``python FILE.py ...``, ``python -m ...`` and ``pararl COMMAND ...`` of a document, in blocks or between backticks,
    as a shell has it; a command stands for its program."""
    parts = re.sub(r"\\\n\s*", " ", text).split("```")
    blocks, prose = "\n".join(parts[1::2]), "\n".join(parts[::2])
    for name, value in re.findall(r'^(\w+)="(.*)"$', blocks, re.MULTILINE):
        blocks = blocks.replace(f"${name} ", f"{value} ")
    lines = [*blocks.splitlines(), *re.findall(r"`([^`]+)`", prose)]
    programs = {name: f"python pipelines/{module}.py" for name, (module, _) in PROGRAMS.items()}
    lines = [re.sub(r"^pararl ([a-z]+)", lambda x: programs.get(x[1], f"python pipelines/{x[1]}.py"), line) for line in lines]
    found = [re.search(r"^(?:for .* do |ray job submit .* -- )?python ((?:-m )?[a-z][\w/.]+( .*?)?)(?:; done.*)?$", line) for line in lines]
    return [shlex.split(x[1], comments=True) for x in found if x]


def unknown(words: list[str]) -> list[str]:
    """What a command names that is not there: its program, and options that neither the program nor a run has."""
    program, *options = words[1:] if words[0] == "-m" else words
    place = ROOT / program.replace(".", "/") / "__main__.py" if words[0] == "-m" else ROOT / program
    if not place.exists():
        return [program]
    text = place.read_text() + (ROOT / "pararl" / "cli" / "help.py").read_text()
    varied = [option.partition("=")[0] for option, before in zip(options, ["", *options], strict=False) if before == "--vary"]
    settings = [*varied, *(o[2:] for o in options if o.startswith("--") and "." in o)]
    own = [o for o in options if o.startswith("--") and "." not in o and f'"{o}"' not in text and o != "--help"]
    return own + [name for name in settings if re.sub(rf"^arm\.({'|'.join(ARMS)})\.", "", name) not in SETTINGS]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_of_a_document_names_a_program_and_settings_that_there_are(document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = commands(document.read_text())
    assert [name for words in found for name in unknown(words)] == []
    for program, *settings in found:
        # Runs and their adapters are made on the way.
        if program == "pipelines/pararl.py" and not {"--help", "--resume", "--policy.adapter"} & set(settings):
            # With --plan no file of the user's is read; a policy that the reader makes on the way stands for the embedded one.
            settings = [{"my-model": "scenes-mmada"}.get(word, word) for word in settings]
            cli.parse([*settings, *([] if "--plan" in settings else ["--plan"])])


def test_the_documents_show_how_every_program_is_run() -> None:
    shown = {words[0] for document in DOCUMENTS for words in commands(document.read_text())}
    assert shown >= {
        f"pipelines/{path.name}" for path in (ROOT / "pipelines").glob("*.py") if 'if __name__ == "__main__"' in path.read_text()
    }


def test_a_command_with_a_setting_that_is_not_there_is_found_out() -> None:
    text = "```\npython pipelines/study.py --vary learner.rate=1 \\\n    --eval.promts 2 --seed 0\npararl train --run.sed 1\n```\n"
    text += "and `python pipelines/parral.py`"
    wrong = ["--seed", "learner.rate", "eval.promts", "run.sed", "pipelines/parral.py"]
    assert [name for words in commands(text) for name in unknown(words)] == wrong
    assert [name for words in commands("`pararl trian --run.seed 1`") for name in unknown(words)] != []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_settings_that_a_document_names_are_there(document: Path) -> None:
    # `policy.model` and `run.batch(update)` are Python.
    sections = "|".join(name for name in SECTIONS if name != "policy")
    named = re.findall(rf"`(?:--)?((?:{sections})\.\w+)(?![\w(])", document.read_text())
    assert [name for name in named if name not in SETTINGS] == []


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under a heading of the README, backticks left out, without its head."""
    part = (ROOT / "README.md").read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_readme_shows_the_loop_as_it_is() -> None:
    shown = re.search(r"```python\n(with ArmRun.+?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert shown and indent(shown[1], "    ") in (ROOT / "pipelines" / "pararl.py").read_text()


def test_the_readme_tells_every_arm_and_family() -> None:
    assert [arm for arm, *_ in rows("Arms")] == list(ARMS)
    kept = {name: json.loads((path / "policy.json").read_text())["family"] for path in CHECKPOINTS.iterdir() if (name := path.name)}
    known = {name: json.loads(path.read_text())["family"] for name, path in RELEASES.items()}
    told = {
        family: (text, image, [x for x in embedded.split(", ") if x != "-"], sorted(releases.split(", ")))
        for family, _, text, image, embedded, releases in rows("Families")
    }
    assert told == {
        name: (t.text, t.image, [x for x, family in kept.items() if family == name], sorted(x for x, f in known.items() if f == name))
        for name, t in TRAITS.items()
    }


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
