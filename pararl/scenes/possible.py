"""Whether any scene of this world can hold what a spec asks for: its numbers, and how its objects lie to each other.

Counts are told exactly. Relations are held against each other by looking for cells: what is refused cannot be. Among relations of many
objects, something that cannot be may be taken.
"""

from collections import Counter
from collections.abc import Iterable, Iterator

from pararl.scenes.spec import Exclude, Include, Requirement
from pararl.scenes.words import NUMBERS, noun
from pararl.scenes.world import CELL_RELATIONS, CELLS, COLOURS, SHAPES

Sort = tuple[int, int | None]
"""Shape and colour of objects, None = any colour."""
TRIES = 2_000
"""Cells that are tried before relations are taken to be possible."""


def check_possible(need: Requirement) -> None:
    """Raise ValueError that names the clauses which no scene can satisfy together."""
    if (total := sum(include.count for include in need.include)) > CELLS:
        raise ValueError(f"the spec asks for {total} objects, a scene has {CELLS} cells")
    for shape in dict.fromkeys(include.shape for include in need.include):
        _check_counts(shape, [i for i in need.include if i.shape == shape], [e for e in need.exclude if e.shape == shape])
    relations = list(_relations(need.include))
    for include, target in relations:
        if include.shape == target.shape and (None in (include.colour, target.colour) or include.colour == target.colour):
            raise ValueError(f"the spec wants {_label(include)} {include.relation} {_label(target)}, which may be the same object")
    if relations and not _placeable(need.include):
        told = " and ".join(f"{_all_of(include)} {include.relation} {_all_of(target)}" for include, target in relations)
        raise ValueError(f"no scene of {CELLS} cells has {told}")


def _relations(includes: tuple[Include, ...]) -> Iterator[tuple[Include, Include]]:
    """The includes with a position, and what each refers to."""
    return ((include, includes[include.target]) for include in includes if include.relation is not None)


def _check_counts(shape: int, includes: list[Include], excludes: list[Exclude]) -> None:
    """Raise ValueError where the objects of one shape that are asked for are more than the excludes leave."""
    wanted = Counter[int | None]()
    for include in includes:
        wanted[include.colour] += include.count
    total, most = wanted.total(), dict[int | None, int]()
    for exclude in excludes:
        most[exclude.colour] = min(most.get(exclude.colour, CELLS), exclude.count - 1)
    for colour, count in most.items():
        asked = total if colour is None else wanted[colour]
        if asked > count:
            raise ValueError(f"the spec asks for {_amount(asked, shape, colour)} and excludes {_amount(count + 1, shape, colour)}")
    if total > sum(most.get(colour, CELLS) for colour in range(len(COLOURS))):
        raise ValueError(f"the spec asks for {_amount(total, shape, None)} and excludes all of their colours")


def _placeable(includes: tuple[Include, ...]) -> bool:
    """Whether cells are found in which all relations hold; also true where the search is given up."""
    # Objects of one shape and colour are alike, whichever include asks for them, and all have a part in what is said of any.
    counts = Counter[Sort]()
    for include in includes:
        counts[_sort(include)] += include.count
    rules = list[tuple[Sort, Sort, list[frozenset[int]]]]()
    for include, target in _relations(includes):
        holds = CELL_RELATIONS[include.relation or ""]
        beyond = [frozenset(b for b in range(CELLS) if holds[a][b]) for a in range(CELLS)]
        before = [frozenset(a for a in range(CELLS) if holds[a][b]) for b in range(CELLS)]
        pairs = [(one, other) for one in _among(include, counts) for other in _among(target, counts)]
        rules += [(one, other, beyond) for one, other in pairs] + [(other, one, before) for one, other in pairs]
    concerned = sorted(dict.fromkeys(sort for sort, _, _ in rules), key=counts.__getitem__)  # few objects rule out most cells
    objects = [sort for sort in concerned for _ in range(counts[sort])]
    tries = 0

    def place(at: int, open_cells: dict[Sort, frozenset[int]]) -> bool:
        """Whether the objects from one on find cells, each sort having those that are open to it."""
        nonlocal tries
        if at == len(objects):
            return True
        new = objects[at]
        for cell in sorted(open_cells[new]):
            tries += 1
            if tries > TRIES:
                return True
            # Those that are alike go from cell to cell in order.
            left = {sort: frozenset(k for k in cells if k != cell and (sort != new or k > cell)) for sort, cells in open_cells.items()}
            for one, other, allowed in rules:
                if one == new:
                    left[other] &= allowed[cell]
            if all(len(left[sort]) >= count for sort, count in Counter(objects[at + 1 :]).items()) and place(at + 1, left):
                return True
        return False

    return place(0, dict.fromkeys(concerned, frozenset(range(CELLS))))


def _sort(include: Include) -> Sort:
    return include.shape, include.colour


def _among(include: Include, sorts: Iterable[Sort]) -> list[Sort]:
    """The sorts whose objects are all among those of an include."""
    return [(shape, colour) for shape, colour in sorts if shape == include.shape and include.colour in (None, colour)]


def _label(include: Include) -> str:
    return SHAPES[include.shape] if include.colour is None else f"{COLOURS[include.colour]} {SHAPES[include.shape]}"


def _all_of(include: Include) -> str:
    return _amount(include.count, include.shape, include.colour)


def _amount(count: int, shape: int, colour: int | None) -> str:
    number = NUMBERS[count] if count < len(NUMBERS) else str(count)
    return f"{number} {'' if colour is None else f'{COLOURS[colour]} '}{noun(SHAPES[shape], count)}"
