"""The verifier of edits against the set of all admissible results, enumerated from the record alone, one edit after the other."""

import itertools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np

from pararl import scenes
from pararl.scenes.changes import apply, change, independent, write_edits
from pararl.scenes.draw_edits import EditRules, draw_edit, draw_two, edit_of
from pararl.scenes.edits import OPERATIONS
from pararl.scenes.grammar import pick
from pararl.scenes.world import COLOURS, SHAPES, Scene

Grid = tuple[int, ...]
MOST = 4000
"""Larger sets of results are not enumerated."""
HEADING = {"right of": (1, 0), "below": (0, 1), "left of": (-1, 0), "above": (0, -1)}


def is_a(value: int, selector: dict[str, str]) -> bool:
    return (
        value >= 0
        and SHAPES[value // 6] == selector.get("class", SHAPES[value // 6])
        and COLOURS[value % 6] == selector.get("color", COLOURS[value % 6])
    )


def meant(grid: Grid, selector: dict[str, str]) -> list[int]:
    if "cell" in selector:
        return ["abcd".index(selector["cell"][0]) * 4 + int(selector["cell"][1]) - 1]
    return [i for i in range(16) if is_a(grid[i], selector)]


def stands(a: int, relation: str, b: int) -> bool:
    dx, dy = a % 4 - b % 4, a // 4 - b // 4
    x, y = HEADING[relation]
    return 4 * max(0, dx * x + dy * y) ** 2 > dx * dx + dy * dy


def put(grid: Grid, **cells: int) -> Grid:
    changed = list(grid)
    for place, value in cells.items():
        changed[int(place[1:])] = value
    return tuple(changed)


def results(grid: Grid, edit: dict[str, Any]) -> Iterator[Grid]:
    """All scenes that one edit may give, read as a person would."""
    operation, subject = edit["operation"], edit["subject"]
    places = [] if operation == "add" else meant(grid, subject)
    kinds = [kind for kind in range(24) if is_a(kind, subject)]
    empty = [i for i in range(16) if grid[i] < 0]
    if operation in ("add", "move"):
        spots = empty
        if "cell" in edit:
            spots = [i for i in empty if i in meant(grid, {"cell": edit["cell"]})]
        if "relation" in edit:
            (target,) = meant(grid, edit["other"])
            spots = [i for i in empty if stands(i, edit["relation"], target)]
        if operation == "add":
            yield from (put(grid, **{f"_{i}": kind}) for i in spots for kind in kinds)
        else:
            (start,) = places
            yield from (put(grid, **{f"_{start}": -1, f"_{i}": grid[start]}) for i in spots)
    elif operation == "remove":
        assert edit.get("any") or len(places) == 1
        yield from (put(grid, **{f"_{i}": -1}) for i in places)
    elif operation == "count":
        wanted = edit["count"] if "count" in edit else len(meant(grid, edit["other"]))
        for gone in itertools.combinations(places, max(0, len(places) - wanted)):
            more = max(0, wanted - len(places))
            for where in itertools.combinations(empty, more):
                for chosen in itertools.product(kinds, repeat=more):
                    new = dict(zip(where, chosen, strict=True)) | dict.fromkeys(gone, -1)
                    yield put(grid, **{f"_{i}": value for i, value in new.items()})
    else:
        (i,) = places
        if operation == "swap":
            (j,) = meant(grid, edit["other"])
            yield put(grid, **{f"_{i}": grid[j], f"_{j}": grid[i]})
        elif operation == "recolour":
            yield put(grid, **{f"_{i}": grid[i] // 6 * 6 + COLOURS.index(edit["color"])})
        else:
            yield put(grid, **{f"_{i}": SHAPES.index(edit["class"]) * 6 + grid[i] % 6})


def all_results(grid: Grid, edits: list[dict[str, Any]]) -> set[Grid] | None:
    """All scenes that the edits may give in this order; None when there are too many."""
    found = {grid}
    for edit in edits:
        following: set[Grid] = set()
        for before in found:
            following.update(itertools.islice(results(before, edit), MOST + 1 - min(MOST, len(following))))
            if len(following) > MOST:
                return None
        found = following
    return found


def best_value(source: Grid, admissible: set[Grid], seen: list[int]) -> tuple[float, set[float]]:
    """The highest value over all admissible results, and the consistencies of those that have it; -2 is an unreadable cell."""
    s, r, o = np.array(source), np.array(sorted(admissible)), np.array(seen)
    shape = (r // 6 == o // 6) & (r >= 0) & (o >= 0)
    colour = (r % 6 == o % 6) & (r >= 0) & (o >= 0)
    alike = np.where(r == o, r >= 0, 0.5 * (shape | colour))
    agreement = 2 * alike.sum(1) / ((r >= 0).sum(1) + (o != -1).sum())
    had_to = r != s
    partly = (shape & ((r // 6 != s // 6) | (s < 0))) | (colour & ((r % 6 != s % 6) | (s < 0)))
    credit = np.where(r == o, 1.0, np.where(o == s, 0.0, 0.5 * partly))
    success = np.minimum((credit * had_to).sum(1) / had_to.sum(1), agreement)
    consistency = ((o == s) & ~had_to).sum(1) / (~had_to).sum(1)
    value = success * (0.6 + 0.4 * consistency)
    return float(value.max()), set(np.round(consistency[value > value.max() - 1e-9], 9).tolist())


def spoil(grid: Grid, rng: random.Random, times: int) -> list[int]:
    """The scene after random damage: drops, additions, recolourings, swaps, unreadable cells."""
    cells = list(grid)
    for _ in range(times):
        i, j, what = rng.randrange(16), rng.randrange(16), rng.randrange(6)
        if what == 0:
            cells[i] = -1
        elif what == 1:
            cells[i] = rng.randrange(24)
        elif what == 2 and max(cells) >= 0:
            cells[i] = rng.choice([value for value in cells if value >= 0]) // 6 * 6 + rng.randrange(6)
        elif what == 3:
            cells[i] = -2
        else:
            cells[i], cells[j] = cells[j], cells[i]
    return cells


def parsed(cells: list[int]) -> scenes.Parsed:
    grid = np.array(cells).reshape(4, 4)
    return scenes.Parsed(Scene(np.maximum(grid, -1)), grid != -2, np.zeros((4, 4), np.float32))


def compare(spec: dict[str, Any], rng: random.Random, outputs: int) -> int:
    """Check the verifier on random outputs for one spec; returns how many were exact, -1 when the results are too many."""
    source = tuple(spec["source"])
    admissible = all_results(source, spec["edit"])
    if admissible is None:
        return -1
    assert admissible and source not in admissible
    assert all_results(source, spec["edit"][::-1]) == admissible, ("the order matters", spec)
    exact = 0
    options = sorted(admissible)
    for i in range(outputs):
        start = source if i % 4 == 3 else rng.choice(options)
        seen = spoil(start, rng, rng.choice((0, 0, 1, 2, 4, 12)))
        value, consistencies = best_value(source, admissible, seen)
        score = scenes.check(spec, parsed(seen))
        assert abs(score.value - value) < 1e-9, (spec, seen, score, value)
        assert score.strict == (tuple(seen) in admissible) == (score.value == 1.0) == all(atom.passed for atom in score.atoms)
        consistency = scenes.axes(spec, parsed(seen)).image_consistency
        assert value == 0 or round(consistency or 0.0, 9) in consistencies
        exact += score.strict is True
    return exact


def test_single_edits_agree_with_the_best_of_all_admissible_results() -> None:
    rng = random.Random(0)
    outcomes = {operation: [0, 0] for operation in OPERATIONS}
    for index in range(2400):
        operation = OPERATIONS[index % 7]
        drawn = draw_edit(rng, operation, EditRules())
        if drawn is None:
            continue
        exact = compare(write_edits([drawn[0]], Scene.from_cells(drawn[1]), operation), rng, 4)
        outcomes[operation][0] += exact >= 0
        outcomes[operation][1] += max(0, exact)
    assert all(specs > 70 and exact > 70 for specs, exact in outcomes.values()), outcomes


def test_two_edits_agree_with_the_best_of_all_admissible_results_in_either_order() -> None:
    rng = random.Random(1)
    specs = exact = 0
    while specs < 450:
        drawn = draw_two(rng, EditRules())
        if drawn is not None:
            found = compare(write_edits(drawn[0], Scene.from_cells(drawn[1]), "two_edits"), rng, 4)
            specs += found >= 0
            exact += max(0, found)
    assert 400 < exact < 1400


def test_two_choices_over_the_same_cells_agree_with_all_pairs_of_cells() -> None:
    """Outputs are crowded with objects that are like both new ones, so that the choices compete for cells."""
    rng = random.Random(2)
    specs = 0
    rules = EditRules(pairs=(("circle", "red"), ("circle", "blue"), ("square", "red"), ("square", "blue"), ("cross", "red")), most_before=3)
    while specs < 200:
        drawn = draw_edit(rng, pick(rng, ("add", "count", "move")), rules)
        if drawn is None:
            continue
        second = edit_of(rng, pick(rng, ("add", "move")), drawn[1], rules)
        if second is None or not independent(change(drawn[0], drawn[1]), change(second, drawn[1])):
            continue
        spec = write_edits([drawn[0], second], Scene.from_cells(drawn[1]), "two_edits")
        admissible = all_results(tuple(drawn[1]), spec["edit"])
        if admissible is None or len(admissible) < 4:
            continue
        specs += 1
        for _ in range(6):
            seen = [value if value >= 0 and rng.random() < 0.9 else rng.choice((-1, -2, 0, 2, 6, 8, 18)) for value in drawn[1]]
            assert abs(scenes.check(spec, parsed(seen)).value - best_value(tuple(drawn[1]), admissible, seen)[0]) < 1e-9, (spec, seen)


def test_applied_edits_are_admissible_and_reach_all_results() -> None:
    rng = random.Random(3)
    for operation in OPERATIONS:
        drawn = None
        while drawn is None or not 2 <= len(all_results(tuple(drawn[1]), [drawn[0].record()]) or ()) <= 12:
            drawn = draw_edit(rng, operation, EditRules())
            if operation in ("recolour", "reshape", "swap") and drawn is not None:
                break
        scene = Scene.from_cells(drawn[1])
        admissible = all_results(tuple(drawn[1]), [drawn[0].record()])

        found = {tuple(apply([drawn[0]], scene, rng).cells.ravel().tolist()) for _ in range(400)}
        assert found == admissible, drawn[0]
