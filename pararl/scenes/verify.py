"""The exact verifier: what a scene (and a plan) gets right of a spec, fact by fact.

Atoms, in this order, each with a soft value in [0, 1] whose mean is the score's ``value``:

- ``object`` / ``count`` (one / more wanted), one per include: the number of objects of its shape, and of its colour where several
  includes share the shape. Exact when the spec also excludes one more, else "at least". Soft: 1 - |found - wanted| / wanted, at least 0.
- ``color``, one per include with a colour: at least ``count`` objects have shape and colour. Soft: the fraction found. Where the count is
  exact, too many objects lower it to ``count`` / objects counted, so filling the canvas with every colour does not pay.
- ``position``, one per include with a position: it holds between every matching object and every matching target, and both exist.
  Soft: the fraction of pairs.
- ``object``, once more where includes overlap: distinct objects fill all of them. (GenEval would count one object twice.)
- ``negation`` / ``count``, one per other exclude: fewer than so many.
- ``closed_world`` (closed specs): no object beyond what was asked for, colours aside (a wrong colour fails its own atom).
- ``validity``: every cell of the image is readable.

The last three kinds hold on an empty canvas, so their soft value is at most the *agreement*. That is the F1 between required slots and
objects (recall in open specs), a right shape of a wrong colour counting half. A blank image therefore scores 0, and a flooded one little.
"""

from dataclasses import dataclass, field

import numpy as np

from pararl.scenes.matching import Matching, match
from pararl.scenes.pixels import Parsed
from pararl.scenes.spec import Exclude, Include, Requirement
from pararl.scenes.words import NUMBERS, noun
from pararl.scenes.world import CELL_NAMES, CELL_RELATIONS, COLOURS, EMPTY, GRID, SHAPES, Scene
from pararl.types import Atom


@dataclass(slots=True)
class Findings:
    """The atoms of one output, their soft values, and the credit of each cell."""

    atoms: list[Atom] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    credit: np.ndarray = field(default_factory=lambda: np.zeros((GRID, GRID), np.float32))

    def add(self, statement: str, skill: str, passed: bool, value: float, reason: str) -> None:
        """Append an atom; the reason is kept only where it failed."""
        self.atoms.append(Atom(statement, skill, passed, "" if passed else reason, value))
        self.values.append(value)

    @property
    def value(self) -> float:
        """Mean of the soft values."""
        return sum(self.values) / len(self.values)

    @property
    def strict(self) -> bool:
        """Whether every atom passed."""
        return all(atom.passed for atom in self.atoms)


def verify(need: Requirement, seen: Scene | Parsed) -> Findings:
    """All facts about an image; ``seen`` is what was read from it, or a scene taken as fully readable."""
    scene, valid = (seen.scene, seen.valid) if isinstance(seen, Parsed) else (seen, None)
    cells = scene.cells.ravel().tolist()
    unreadable = [] if valid is None or valid.all() else [place for place, ok in enumerate(valid.ravel().tolist()) if not ok]
    objects = [place for place, value in enumerate(cells) if value != EMPTY]
    matching = match(need.include, [cells[place] for place in objects])
    agreement = matching.agreement(need.closed, len(unreadable))
    findings = Findings()
    bounds = list(need.exclude)
    crowds = [_check_count(findings, include, need.include, bounds, cells) for include in need.include]
    for include, crowd in zip(need.include, crowds, strict=True):
        if include.colour is not None:
            _check_colour(findings, include, crowd, cells)
    broken: set[int] = set()
    for include in need.include:
        if include.relation is not None:
            broken |= _check_position(findings, include, need.include[include.target], cells)
    if matching.overlapping:
        filled, slots = matching.filled, matching.slots
        findings.add(
            "different objects for everything asked", "object", filled == slots, filled / slots, f"expected {slots} objects, found {filled}"
        )
    forbidden = _check_bounds(findings, bounds, cells, agreement)
    if need.closed:
        extra = [f"{_name(cells[objects[i]])} in {CELL_NAMES[objects[i]]}" for i in matching.extra]
        findings.add("nothing else", "closed_world", not extra, agreement, f"found also {', '.join(extra)}")
    readable = 1 - len(unreadable) / len(cells)
    names = ", ".join(CELL_NAMES[place] for place in unreadable)
    findings.add("every cell is readable", "validity", not unreadable, readable * agreement, f"unreadable cells {names}")
    findings.credit = _credit(matching, objects, unreadable, broken, forbidden, need.closed)
    return findings


def _count(cells: list[int], shape: int, colour: int | None) -> int:
    return len(_places(cells, shape, colour))


def _places(cells: list[int], shape: int, colour: int | None) -> list[int]:
    """Cells that hold an object of that shape and colour."""
    if colour is not None:
        wanted = shape * len(COLOURS) + colour
        return [place for place, value in enumerate(cells) if value == wanted]
    return [place for place, value in enumerate(cells) if value != EMPTY and value // len(COLOURS) == shape]


def _label(shape: int, colour: int | None) -> str:
    return SHAPES[shape] if colour is None else f"{COLOURS[colour]} {SHAPES[shape]}"


def _name(value: int) -> str:
    return _label(*divmod(value, len(COLOURS)))


def _amount(count: int, shape: int, colour: int | None) -> str:
    number = NUMBERS[count] if count < len(NUMBERS) else str(count)
    return f"{number} {'' if colour is None else f'{COLOURS[colour]} '}{noun(SHAPES[shape], count)}"


def _check_count(findings: Findings, include: Include, includes: tuple[Include, ...], bounds: list[Exclude], cells: list[int]) -> int:
    """The number of objects of an include; takes its upper bound, if there is one, out of ``bounds``.

    Returns the number found where it must be exact, else 0.
    """
    shared = sum(other.shape == include.shape for other in includes) > 1
    colour = include.colour if shared else None
    wanted, found = include.count, _count(cells, include.shape, colour)
    bound = Exclude(include.shape, colour, wanted + 1)
    # GenEval writes an exact count as at least n and fewer than n + 1: the two are one atom here, and pay once.
    exact = bound in bounds
    if exact:
        bounds.remove(bound)
    passed = found == wanted if exact else found >= wanted
    value = 1.0 if passed else max(0.0, 1 - abs(found - wanted) / wanted)
    statement = ("" if exact else "at least ") + _amount(wanted, include.shape, colour)
    reason = f"expected {_label(include.shape, colour)} {'=' if exact else '>='} {wanted}, found {found}"
    findings.add(statement, "object" if wanted == 1 else "count", passed, value, reason)
    return found if exact else 0


def _check_colour(findings: Findings, include: Include, crowd: int, cells: list[int]) -> None:
    wanted, found = include.count, _count(cells, include.shape, include.colour)
    there = [COLOURS[cells[place] % len(COLOURS)] for place in _places(cells, include.shape, None)]
    shape, colour = SHAPES[include.shape], COLOURS[include.colour or 0]
    reason = f"expected {colour} {shape} >= {wanted}, found {found} of {len(there)}" + (f" ({', '.join(there)})" if there else "")
    verb = "is" if wanted == 1 else "are"
    findings.add(
        f"{_amount(wanted, include.shape, None)} {verb} {colour}", "color", found >= wanted, min(found, wanted) / max(crowd, wanted), reason
    )


def _check_position(findings: Findings, include: Include, target: Include, cells: list[int]) -> set[int]:
    """A relation between two includes; returns the cells of the pairs that break it."""
    subjects, targets = _places(cells, include.shape, include.colour), _places(cells, target.shape, target.colour)
    holds = CELL_RELATIONS[include.relation or ""]
    wrong = [(a, b) for a in subjects for b in targets if not holds[a][b]]
    pairs = len(subjects) * len(targets)
    names = _label(include.shape, include.colour), _label(target.shape, target.colour)
    statement = f"{names[0]} {include.relation} {names[1]}"
    reason = f"expected {statement}, found "
    if not pairs:
        reason += " and ".join(f"no {name}" for name, places in zip(names, (subjects, targets), strict=True) if not places)
    elif wrong:
        reason += f"{names[0]} in {CELL_NAMES[wrong[0][0]]} and {names[1]} in {CELL_NAMES[wrong[0][1]]}"
    findings.add(statement, "position", pairs > 0 and not wrong, 1 - len(wrong) / pairs if pairs else 0.0, reason)
    return {place for pair in wrong for place in pair}


def _check_bounds(findings: Findings, bounds: list[Exclude], cells: list[int], agreement: float) -> set[int]:
    """The excludes that are no include's upper bound; returns the cells of objects that are forbidden altogether."""
    forbidden: set[int] = set()
    for bound in bounds:
        places = _places(cells, bound.shape, bound.colour)
        passed = len(places) < bound.count
        label = _label(bound.shape, bound.colour)
        statement, skill = (
            (f"no {label}", "negation") if bound.count == 1 else (f"fewer than {_amount(bound.count, bound.shape, bound.colour)}", "count")
        )
        findings.add(statement, skill, passed, agreement * passed, f"expected {label} < {bound.count}, found {len(places)}")
        if bound.count == 1:
            forbidden.update(places)
    return forbidden


def _credit(
    matching: Matching, objects: list[int], unreadable: list[int], broken: set[int], forbidden: set[int], closed: bool
) -> np.ndarray:
    """float32 [4, 4]: +1 fills a slot; -1 contradicts, is too much or is unreadable; 0 empty or neutral.

    Neutral are objects in a relation that does not hold (either side may be at fault) and, in open specs, objects nobody asked for.
    """
    credit = np.zeros(GRID * GRID, np.float32)
    unmatched = set(matching.extra) | set(matching.near)
    for i, place in enumerate(objects):
        if place in forbidden:
            credit[place] = -1
        elif i in unmatched:
            credit[place] = -1 if closed or i in matching.near else 0
        # Either side of a broken relation may be at fault.
        elif place not in broken:
            credit[place] = 1
    credit[unreadable] = -1
    return credit.reshape(GRID, GRID)


def verify_plan(findings: Findings, need: Requirement, seen: Scene | Parsed, plan: Scene | None) -> np.ndarray | None:
    """Append the atoms on the plan of an interleaved output: ``plan`` and ``output_alignment``; None = it did not parse.

    Returns the credit of the plan's cells.
    """
    if plan is None:
        findings.add("the plan satisfies the prompt", "plan", False, 0.0, "the plan does not parse")
        findings.add("plan and image agree", "output_alignment", False, 0.0, "the plan does not parse")
        return None
    planned = verify(need, plan)
    failed = "; ".join(atom.reason for atom in planned.atoms if not atom.passed)
    findings.add("the plan satisfies the prompt", "plan", planned.strict, planned.value, failed)
    value, passed, reason = align(seen, plan)
    # An empty plan of an empty image agrees trivially: worth only what the plan itself is worth.
    findings.add("plan and image agree", "output_alignment", passed, planned.value * passed if value is None else value, reason)
    return planned.credit


def align(seen: Scene | Parsed, plan: Scene) -> tuple[float | None, bool, str]:
    """How a plan and an image agree: F1 over placed objects (None where there is none), whether they are equal, and why not."""
    scene, readable = (seen.scene, bool(seen.valid.all())) if isinstance(seen, Parsed) else (seen, True)
    pairs = list(zip(scene.cells.ravel().tolist(), plan.cells.ravel().tolist(), strict=True))
    common = sum(drawn == wanted != EMPTY for drawn, wanted in pairs)
    placed = sum((drawn != EMPTY) + (wanted != EMPTY) for drawn, wanted in pairs)
    differing = [name for name, (drawn, wanted) in zip(CELL_NAMES, pairs, strict=True) if drawn != wanted]
    reason = f"plan and image differ in {', '.join(differing)}" if differing else "" if readable else "the image has unreadable cells"
    return 2 * common / placed if placed else None, readable and not differing, reason
