"""The verifier against one written another way: object tuples, permutations and angles, from the record alone."""

import itertools
import math
import random
from collections.abc import Iterator
from typing import Any

import numpy as np

from pararl import scenes
from pararl.scenes.matching import match
from pararl.scenes.spec import read_spec
from pararl.scenes.world import COLOURS, SHAPES, Scene

Thing = tuple[str, str, int, int]
HEADING = {"right of": 0, "below": 90, "left of": 180, "above": 270}


def things(scene: Scene) -> list[Thing]:
    grid = scene.cells.tolist()
    return [(SHAPES[grid[y][x] // 6], COLOURS[grid[y][x] % 6], x, y) for y in range(4) for x in range(4) if grid[y][x] >= 0]


def is_a(thing: Thing, entry: dict[str, Any]) -> bool:
    return thing[0] == entry["class"] and thing[1] == entry.get("color", thing[1])


def stands(a: Thing, relation: str, b: Thing) -> bool:
    angle = math.degrees(math.atan2(a[3] - b[3], a[2] - b[2]))
    return abs((angle - HEADING[relation] + 180) % 360 - 180) < 60 - 1e-6


def true_in_closed_world(spec: dict[str, Any], seen: list[Thing]) -> bool:
    """Whether the objects can be dealt out to the slots one to one, with every relation and no forbidden object."""
    slots = [i for i, entry in enumerate(spec["include"]) for _ in range(entry["count"])]
    if len(slots) != len(seen) or any(sum(is_a(t, entry) for t in seen) >= entry["count"] for entry in spec["exclude"]):
        return False
    for dealt in itertools.permutations(seen):
        if not all(is_a(thing, spec["include"][slot]) for thing, slot in zip(dealt, slots, strict=True)):
            continue
        by_slot = [(thing, spec["include"][slot], slot) for thing, slot in zip(dealt, slots, strict=True)]
        return all(
            stands(a, entry["position"][0], b)
            for (a, entry, _), (b, _, slot) in itertools.product(by_slot, by_slot)
            if "position" in entry and entry["position"][1] == slot
        )
    return False


def true_in_open_world(spec: dict[str, Any], seen: list[Thing]) -> bool:
    """Whether distinct objects fill the slots, all pairs stand as said, and no bound is reached."""
    if any(sum(is_a(t, entry) for t in seen) >= entry["count"] for entry in spec["exclude"]):
        return False
    for entry in spec["include"]:
        if "position" in entry:
            relation, target = entry["position"]
            if not all(stands(a, relation, b) for a in seen if is_a(a, entry) for b in seen if is_a(b, spec["include"][target])):
                return False
    return most_filled(spec, seen) == sum(entry["count"] for entry in spec["include"])


def most_filled(spec: dict[str, Any], seen: list[Thing]) -> int:
    """The size of a maximum matching, by trying every choice for one slot after the other."""
    slots = [entry for entry in spec["include"] for _ in range(entry["count"])]

    def best(slot: int, free: frozenset[int]) -> int:
        if slot == len(slots):
            return 0
        filled = [1 + best(slot + 1, free - {i}) for i in free if is_a(seen[i], slots[slot])]
        return max([best(slot + 1, free), *filled])

    return best(0, frozenset(range(len(seen))))


def mutated(scene: Scene, rng: random.Random, edits: int) -> Scene:
    """The scene after random edits: drop, add, recolour, reshape or move an object, or swap two cells."""
    cells = [int(value) for value in scene.cells.ravel()]
    for _ in range(edits):
        full = [i for i, value in enumerate(cells) if value >= 0] or [0]
        i, j = rng.choice(full), rng.randrange(16)
        edit = rng.randrange(6)
        if edit == 0:
            cells[i] = -1
        elif edit == 1 and len(full) < 6:
            cells[j] = rng.randrange(24)
        elif edit == 2 and cells[i] >= 0:
            cells[i] = cells[i] // 6 * 6 + rng.randrange(6)
        elif edit == 3 and cells[i] >= 0:
            cells[i] = rng.randrange(4) * 6 + cells[i] % 6
        else:
            cells[i], cells[j] = cells[j], cells[i]
    return Scene(np.array(cells).reshape(4, 4))


def closed_cases(count: int) -> Iterator[tuple[dict[str, Any], Scene]]:
    rng = random.Random(0)
    for index in range(count):
        shown = scenes.example("pretrain", index, seed=11)
        yield dict(shown.prompt.spec), mutated(shown.scene, rng, rng.randrange(4))


def test_closed_specs_agree_with_dealing_objects_to_slots() -> None:
    outcomes = {True: 0, False: 0}
    for spec, scene in closed_cases(6000):
        expected = true_in_closed_world(spec, things(scene))
        score = scenes.check(spec, scenes.parse(scenes.render(scene)))
        outcomes[expected] += 1
        assert score.strict == expected, (spec, scenes.plan_text(scene), score)
        assert (score.value == 1.0) == expected and 0 <= score.value <= 1
    assert min(outcomes.values()) > 1500, outcomes


def test_open_specs_agree_with_bounds_and_distinct_objects() -> None:
    """GenEval-format records as a user may write them: overlapping classes, several relations, any bounds."""
    rng = random.Random(1)
    outcomes = {True: 0, False: 0}
    for _ in range(6000):
        spec: dict[str, Any] = {"include": [random_entry(rng, 2) for _ in range(rng.randint(1, 3))], "exclude": []}
        for i, entry in enumerate(spec["include"]):
            if i and rng.random() < 0.4:
                entry["position"] = [rng.choice(list(HEADING)), rng.randrange(i)]
        spec["exclude"] = [random_entry(rng, 4) for _ in range(rng.randint(0, 2))]
        scene = Scene(np.array([rng.randrange(12) // 3 * 3 if rng.random() < 0.3 else -1 for _ in range(16)]).reshape(4, 4))
        expected = true_in_open_world(spec, things(scene))
        outcomes[expected] += 1
        score = scenes.check(spec, scene)
        assert score.strict == expected, (spec, scenes.plan_text(scene), score)
        assert (score.value == 1.0) == expected
    assert min(outcomes.values()) > 300, outcomes


def random_entry(rng: random.Random, most: int) -> dict[str, Any]:
    """A circle or square, red or yellow or of any colour."""
    entry: dict[str, Any] = {"class": rng.choice(("circle", "square")), "count": rng.randint(1, most)}
    return entry | ({"color": rng.choice(("red", "yellow"))} if rng.random() < 0.5 else {})


def test_the_matching_is_maximum_and_credit_counts_it() -> None:
    rng = random.Random(2)
    for _ in range(1500):
        spec: dict[str, Any] = {"include": [random_entry(rng, 2) for _ in range(3)], "closed": True}
        scene = Scene(np.array([rng.choice((0, 3, 6, 9, 12)) if rng.random() < 0.3 else -1 for _ in range(16)]).reshape(4, 4))
        seen = things(scene)
        found = match(read_spec(spec).include, [SHAPES.index(t[0]) * 6 + COLOURS.index(t[1]) for t in seen])
        assert found.filled == most_filled(spec, seen)
        assert found.filled + len(found.near) + len(found.extra) == len(seen)
        credit = scenes.check(spec, scene).credit
        assert credit is not None
        assert int((credit == 1).sum()) == found.filled and int((credit == -1).sum()) == len(seen) - found.filled
        assert (credit[scene.cells < 0] == 0).all()


def test_repairing_a_scene_never_lowers_its_score_to_that_of_a_blank_one() -> None:
    """The soft score is informative: an image with something right beats a blank one, and fewer edits score higher on average."""
    rng = random.Random(3)
    means = []
    for edits in (0, 1, 2, 4, 8):
        values = []
        for index in range(400):
            shown = scenes.example("id", index)
            values.append(scenes.check(shown.prompt.spec, mutated(shown.scene, rng, edits)).value)
        means.append(sum(values) / len(values))
    assert means[0] == 1.0 and all(a > b + 0.02 for a, b in itertools.pairwise(means)), means
