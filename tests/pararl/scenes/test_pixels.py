"""The renderer and the parser are exact inverses, and the parser tells damage from content."""

import itertools

import numpy as np
import pytest

from pararl import scenes
from pararl.scenes.pixels import BACKGROUND, CELL_PIXELS, GLYPHS, MAX_RMSE, PALETTE, SIDE
from pararl.scenes.world import COLOURS, KINDS, SHAPES, Scene


def random_scenes(count: int, seed: int) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [Scene(np.where(rng.random((4, 4)) < rng.random(), rng.integers(0, KINDS, (4, 4)), -1)) for _ in range(count)]


def rmse(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.mean((a.astype(float) - b.astype(float)) ** 2)))


def test_parse_inverts_render_on_thousands_of_scenes() -> None:
    drawn = random_scenes(3000, 0)
    for scene, seen in zip(drawn, scenes.parse_batch(scenes.render_batch(drawn)), strict=True):
        assert seen.scene == scene
        assert seen.valid.all()
        assert float(seen.rmse.max()) < 0.5


def test_every_kind_in_every_cell_is_read_back() -> None:
    for kind, place in itertools.product(range(KINDS), range(16)):
        cells = np.full(16, -1)
        cells[place] = kind
        seen = scenes.parse(scenes.render(Scene(cells.reshape(4, 4)))).scene
        assert [tuple(seen_object) for seen_object in seen.objects()] == [(kind // 6, kind % 6, place // 4, place % 4)]


def test_render_paints_each_cell_alone() -> None:
    """The pixels of a cell depend on its object only: background outside the shape, the palette's colour inside."""
    for scene in random_scenes(50, 1):
        image = scenes.render(scene)
        for row, column in itertools.product(range(4), range(4)):
            tile = image[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8].reshape(-1, 3)
            colours = {tuple(pixel) for pixel in tile.tolist()}
            kind = int(scene.cells[row, column])
            assert colours == ({BACKGROUND} if kind < 0 else {BACKGROUND, PALETTE[COLOURS[kind % 6]]})


def test_batched_and_single_rendering_and_parsing_agree() -> None:
    drawn = random_scenes(40, 2)
    images = np.random.default_rng(2).integers(-40, 40, (40, SIDE, SIDE, 3)) + scenes.render_batch(drawn)
    images = np.clip(images, 0, 255).astype(np.uint8)
    for scene, image, seen in zip(drawn, images, scenes.parse_batch(images), strict=True):
        alone = scenes.parse(image)
        assert alone.scene == seen.scene and (alone.valid == seen.valid).all()
        assert (scenes.render_batch([scene])[0] == scenes.render(scene)).all()
    assert scenes.parse_batch([]) == []


def test_glyphs_lie_far_apart() -> None:
    for a, b in itertools.combinations(range(KINDS + 1), 2):
        assert rmse(GLYPHS[a], GLYPHS[b]) > 50
    for kind in range(KINDS):
        inside = (GLYPHS[kind] != BACKGROUND).any(-1)
        assert min(inside.any(0).sum(), inside.any(1).sum()) >= 6


def test_noise_of_sigma_10_and_of_25_changes_nothing() -> None:
    drawn = random_scenes(300, 3)
    rng = np.random.default_rng(3)
    for sigma in (10.0, 25.0):
        noisy = np.stack([scenes.render(scene, rng, noise=sigma) for scene in drawn])
        assert (noisy != scenes.render_batch(drawn)).any()
        for scene, seen in zip(drawn, scenes.parse_batch(noisy), strict=True):
            assert seen.scene == scene and seen.valid.all()


def test_error_towards_another_glyph_is_tolerated_up_to_a_third_and_called_invalid_in_the_middle() -> None:
    """The worst direction for an error of a decoder is straight at another glyph."""
    for a, b in itertools.permutations(range(KINDS + 1), 2):
        away = GLYPHS[b].astype(float) - GLYPHS[a].astype(float)
        slight, even = (np.tile(np.rint(GLYPHS[a] + share * away).astype(np.uint8), (4, 4, 1)) for share in (0.33, 0.5))
        seen = scenes.parse(slight)
        near = rmse(slight[:8, :8], GLYPHS[a]) <= MAX_RMSE
        assert (seen.valid == near).all()
        assert (seen.scene.cells == (a if near and a < KINDS else -1)).all()
        assert not scenes.parse(even).valid.any()


@pytest.mark.parametrize("name", ["noise", "black", "white", "mid grey", "checkerboard", "shifted by half a cell"])
def test_garbage_is_invalid(name: str) -> None:
    rng = np.random.default_rng(4)
    checkers = np.indices((SIDE, SIDE)).sum(0)[..., None] % 2 * 255
    full = scenes.render(Scene(rng.integers(0, KINDS, (4, 4))))
    images = {
        "noise": rng.integers(0, 256, (SIDE, SIDE, 3)),
        "black": np.zeros((SIDE, SIDE, 3)),
        "white": np.full((SIDE, SIDE, 3), 255),
        "mid grey": np.full((SIDE, SIDE, 3), 128),
        "checkerboard": np.broadcast_to(checkers, (SIDE, SIDE, 3)),
        "shifted by half a cell": np.roll(full, (CELL_PIXELS // 2, CELL_PIXELS // 2), (0, 1)),
    }
    seen = scenes.parse(images[name].astype(np.uint8))
    assert not seen.valid.any()
    assert seen.scene == Scene.empty()


def test_one_damaged_cell_spoils_only_itself() -> None:
    scene = random_scenes(1, 5)[0]
    image = scenes.render(scene)
    image[8:16, 16:24] = np.random.default_rng(5).integers(0, 256, (8, 8, 3))
    seen = scenes.parse(image)
    assert np.argwhere(~seen.valid).tolist() == [[1, 2]]
    expected = scene.cells.copy()
    expected[1, 2] = -1
    assert (seen.scene.cells == expected).all()


@pytest.mark.parametrize(
    "image",
    [np.zeros((32, 32), np.uint8), np.zeros((16, 32, 3), np.uint8), np.zeros((32, 32, 3), np.float32), np.zeros((1, 32, 32, 3), np.uint8)],
)
def test_wrong_shape_or_type_is_an_error(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        scenes.parse(image)


def test_jitter_moves_objects_inside_their_cells_only() -> None:
    cells = np.full((4, 4), -1)
    cells[1, 1] = SHAPES.index("cross") * 6
    exact = scenes.render(Scene(cells))
    moved = [scenes.render(Scene(cells), np.random.default_rng(seed), jitter=2) for seed in range(20)]
    assert len({image.tobytes() for image in moved}) > 5
    for image in moved:
        outside = image.copy()
        outside[8:16, 8:16] = BACKGROUND
        assert (outside == BACKGROUND).all()
        assert {tuple(p) for p in image.reshape(-1, 3).tolist()} == {tuple(p) for p in exact.reshape(-1, 3).tolist()}
    with pytest.raises(ValueError, match="rng"):
        scenes.render(Scene(cells), jitter=1)
