"""Who imports whom: every room says in its first lines what it may import, and imports nothing else; there is no circle."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from policies.traits import TRAITS

ROOT = Path(__file__).resolve().parents[1]
GROUND = "the ground floor"
"""The files in the root of ``pararl``: they may be imported by all, and import nothing of ours but each other."""
FOLDERS = {f"pararl.{path.parent.name}": path.parent for path in sorted((ROOT / "pararl").glob("*/__init__.py"))}
ROOMS = {**FOLDERS, "policies": ROOT / "policies", "rewards": ROOT / "rewards", "pipelines": ROOT / "pipelines"}


def room_of(module: str) -> str | None:
    """The room of a module of ours; None for one that is not ours."""
    top, _, rest = module.partition(".")
    if top != "pararl":
        return top if top in ROOMS else None
    folder = f"pararl.{rest.partition('.')[0]}"
    return folder if folder in FOLDERS else GROUND


def imported(file: Path) -> Iterator[str]:
    """The modules that a file imports when it runs; what only a type checker reads does not count."""
    waiting: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        waiting += ast.iter_child_nodes(node)


def files(room: str) -> Iterator[Path]:
    """The modules of a room."""
    return (ROOT / "pararl").glob("*.py") if room == GROUND else ROOMS[room].rglob("*.py")


@cache
def arrows(room: str) -> frozenset[str]:
    """The other rooms that a room imports."""
    return frozenset(other for file in files(room) for module in imported(file) if (other := room_of(module)) not in (None, room))


@cache
def docstring(room: str) -> tuple[str, str]:
    """The first sentence of a room's docstring, and what stands behind "May import:", each on one line and without its last stop."""
    text = ast.get_docstring(ast.parse((ROOMS[room] / "__init__.py").read_text(encoding="utf-8"))) or ""
    found = re.search(r"^May import: (.+?)\.$", text, re.MULTILINE | re.DOTALL)
    assert found, f"{room} does not say what it may import"
    sentence = re.split(r"\.\s|\.$", text.replace("\n", " "), maxsplit=1)[0]
    return sentence, found[1].replace("\n", " ")


def allowed(room: str) -> set[str]:
    """What the docstring of a room says that it may import."""
    names = [name.strip() for name in docstring(room)[1].split(",")]
    return {f"pararl.{name}" if f"pararl.{name}" in FOLDERS else name for name in names}


def table_of_rooms() -> dict[str, tuple[str, str]]:
    """The rows of the table of docs/architecture.md by room: what it answers, and what it may import."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w/]+)` \| (.+)\. \| (.+) \|$", text.partition("## The loop")[0], re.MULTILINE)
    return {folder.replace("/", "."): (answer, imports) for folder, answer, imports in rows}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_what_it_says_and_says_nothing_more(room: str) -> None:
    assert arrows(room) == allowed(room)


def test_the_table_of_rooms_in_the_documents_says_what_the_docstrings_say() -> None:
    table = table_of_rooms()
    assert table == {room: (docstring(room)[0].replace("``", "`"), docstring(room)[1]) for room in ROOMS}
    places = {room: i for i, room in enumerate(table)}
    for room in ROOMS:  # the table reads upwards: a room stands below all that it imports
        assert all(places[other] < places[room] for other in allowed(room) - {GROUND}), room


def test_the_ground_floor_imports_nothing_of_ours() -> None:
    assert not arrows(GROUND)


def test_imports_go_downwards_only() -> None:
    floors = TopologicalSorter({room: arrows(room) for room in ROOMS})
    assert list(floors.static_order())[-1] == "pipelines"  # raises CycleError for a circle


def test_policies_and_rewards_never_import_each_other_nor_the_loop() -> None:
    assert arrows("policies") == {GROUND}
    assert arrows("rewards") == {GROUND, "pararl.scenes"}


@pytest.mark.parametrize("room", [GROUND, *(room for room in ROOMS if room != "policies")])
def test_no_file_outside_policies_names_a_family(room: str) -> None:
    """Neither as a word of the code nor by what it imports."""
    names = set(TRAITS)
    for file in files(room):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value not in names, f"{file}:{node.lineno} names {node.value}"
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("policies."):
                assert names.isdisjoint(node.module.split(".")), f"{file}:{node.lineno}"
