"""Scenes are checked, immutable values; relations follow GenEval's dominance rule."""

import math
import pickle

import numpy as np
import pytest

from pararl.scenes.world import CELL_NAMES, CELL_RELATIONS, RELATIONS, Scene, relation_holds


def test_a_scene_is_an_immutable_value() -> None:
    cells = np.full((4, 4), -1)
    cells[0, 0], cells[3, 2] = 7, 23
    scene = Scene(cells)
    cells[0, 0] = 3
    assert [tuple(o) for o in scene.objects()] == [(1, 1, 0, 0), (3, 5, 3, 2)]
    assert scene == Scene.of([(3, 5, 3, 2), (1, 1, 0, 0)]) and hash(scene) == hash(Scene.of([(1, 1, 0, 0), (3, 5, 3, 2)]))
    assert scene != Scene.empty() and Scene.empty().objects() == []
    with pytest.raises(ValueError):
        scene.cells[0, 0] = 2
    copy = pickle.loads(pickle.dumps(scene))
    assert copy == scene and not copy.cells.flags.writeable


@pytest.mark.parametrize("cells", [np.zeros((3, 4), int), np.zeros((4, 4)), np.full((4, 4), 24), np.full((4, 4), -2)])
def test_impossible_cells_are_an_error(cells: np.ndarray) -> None:
    with pytest.raises(ValueError, match="cells"):
        Scene(cells)


@pytest.mark.parametrize("objects", [[(0, 0, 0, 0), (1, 1, 0, 0)], [(0, 6, 0, 0)], [(0, 0, -1, 0)], [(4, 0, 0, 0)]])
def test_impossible_objects_are_an_error(objects: list[tuple[int, int, int, int]]) -> None:
    with pytest.raises(ValueError):
        Scene.of(objects)


def test_cell_relations_are_the_sixty_degree_sectors() -> None:
    """A component above half of the length is an angle below 60 degrees from the axis of the relation."""
    axis = {"right of": 0.0, "below": 90.0, "left of": 180.0, "above": 270.0}
    for relation in RELATIONS:
        for a in range(16):
            for b in range(16):
                dx, dy = a % 4 - b % 4, a // 4 - b // 4
                angle = math.degrees(math.atan2(dy, dx)) - axis[relation]
                apart = abs((angle + 180) % 360 - 180)
                assert CELL_RELATIONS[relation][a][b] == (a != b and apart < 60 - 1e-9), (relation, CELL_NAMES[a], CELL_NAMES[b])


def test_slack_is_taken_off_both_components() -> None:
    assert relation_holds("right of", (10.0, 0.0), (0.0, 0.0), slack=9.0)
    assert not relation_holds("right of", (10.0, 0.0), (0.0, 0.0), slack=10.0)
    # 7 and 12 make an angle of 59.7 degrees; 1 and 6 one of 80.5
    assert relation_holds("right of", (7.0, 12.0), (0.0, 0.0)) and not relation_holds("right of", (7.0, 12.0), (0.0, 0.0), slack=6.0)
    with pytest.raises(ValueError, match="behind"):
        relation_holds("behind", (0.0, 0.0), (1.0, 1.0))
