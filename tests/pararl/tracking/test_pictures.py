"""The sheet of samples shows every pixel, mark and reason."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pararl.tracking import pictures
from pararl.tracking.pictures import FAILED, FRAME, GAP, GREY, LABEL, MARGIN, PASSED, Sample, SampleRow, enlarged, samples_png
from tests.wording import telling


def noise(seed: int, side: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).copy()


def corner(sheet: np.ndarray, patch: np.ndarray) -> tuple[int, int]:
    """(row, column) of the upper left pixel at which `patch` lies in `sheet`; the test fails where it does not."""
    tall, wide = patch.shape[:2]
    starts = np.argwhere((sheet[: sheet.shape[0] - tall + 1, : sheet.shape[1] - wide + 1] == patch[0, 0]).all(-1))
    places = [(int(y), int(x)) for y, x in starts if (sheet[y : y + tall, x : x + wide] == patch).all()]
    assert places, "the image is not on the sheet"
    return places[0]


def count(sheet: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((sheet == colour).all(-1).sum())


def test_every_image_is_on_the_sheet_pixel_for_pixel_in_its_row_and_column(tmp_path: Path) -> None:
    images = [[noise(10 * row + column) for column in range(3)] for row in range(2)]
    rows = [SampleRow(f"prompt {i}", tuple(Sample(image, 0.5, False, ("found 2",)) for image in line)) for i, line in enumerate(images)]
    samples_png(tmp_path / "samples" / "id.png", ["base", "pararl", "offline_dpo"], rows)
    sheet = pixels(tmp_path / "samples" / "id.png")
    places = np.array([[corner(sheet, np.kron(image, np.ones((5, 5, 1), np.uint8))) for image in line] for line in images])
    lefts = [MARGIN + LABEL + GAP + FRAME + column * (160 + 2 * FRAME + GAP) for column in range(3)]
    assert (places[:, :, 1] == lefts).all()
    assert (places[:, :, 0] == places[:, :1, 0]).all()
    assert places[1, 0, 0] - places[0, 0, 0] > 160
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["id.png"]


@pytest.mark.parametrize(("strict", "colour"), [(True, PASSED), (False, FAILED), (None, GREY)])
def test_frame_tells_strict_failed_and_unjudged_apart(tmp_path: Path, strict: bool | None, colour: tuple[int, int, int]) -> None:
    image = noise(1)
    samples_png(tmp_path / "a.png", ["base"], [SampleRow("a circle", (Sample(image, 1.0, strict),))])
    sheet = pixels(tmp_path / "a.png")
    y, x = corner(sheet, np.kron(image, np.ones((5, 5, 1), np.uint8)))
    around = np.concatenate([sheet[y - FRAME, x - FRAME : x + 160 + FRAME], sheet[y - FRAME : y + 160 + FRAME, x + 160 + FRAME - 1]])
    assert (around == colour).all()
    assert all(count(sheet, other) == 0 for other in (PASSED, FAILED) if other != colour)


def test_reasons_add_red_ink_below_the_image_and_the_sheet_grows_with_them(tmp_path: Path) -> None:
    def sheet(failed: tuple[str, ...]) -> np.ndarray:
        samples_png(tmp_path / "a.png", ["base"], [SampleRow("a circle", (Sample(noise(1), 0.5, False, failed),))])
        return pixels(tmp_path / "a.png")

    bare, one, two = sheet(()), sheet(("found 3",)), sheet(("found 3", "no red"))
    assert bare.shape[0] < one.shape[0] < two.shape[0]
    assert count(bare, FAILED) < count(one, FAILED) < count(two, FAILED)
    assert (bare == one[: bare.shape[0]])[: bare.shape[0] - MARGIN].all()


def test_reasons_that_do_not_fit_are_counted() -> None:
    cell = Sample(noise(1), 0.5, False, tuple(f"expected thing {i} = 1, found 0" for i in range(9)))
    lines = [text for text, _ in pictures._said(cell, 168)]
    whole = sum(line.startswith("\u2013") for line in lines)
    assert lines[-1] == f"\u2026 and {9 - whole} more"
    assert 1 <= whole < 9
    assert len(lines) <= pictures.MAX_LINES + 1


def test_a_sheet_of_all_claims_leaves_none_out_and_has_them_beside_the_image(tmp_path: Path) -> None:
    failed = tuple(f"expected thing {i} = 1, found 0" for i in range(30))
    image, text = noise(1), " ".join(["word"] * 200)
    cell = Sample(image, 0.5, False, failed, text, held=("nothing else", "every cell is readable"))
    said = pictures._said(cell, 168)
    assert [line for line, ink in said if ink == FAILED] == [f"\u2013 {reason}" for reason in failed]
    assert [line for line, ink in said if ink == PASSED] == ["+ nothing else", "+ every cell is readable"]
    assert sum(line.count("word") for line, ink in said if ink == GREY) == 200
    samples_png(tmp_path / "a.png", ["base"], [SampleRow("a circle", (cell,))])
    sheet = pixels(tmp_path / "a.png")
    _, x = corner(sheet, np.kron(image, np.ones((5, 5, 1), np.uint8)))
    beside = sheet[:, x + 160 + FRAME :]
    assert count(beside, PASSED) > 20 and (beside[-MARGIN:] == 255).all() and (beside[:, 1 - MARGIN :] == 255).all(), "nothing is cut off"


def test_wrapped_lines_fit_and_lose_no_letter() -> None:
    text = "two red circles left of a blue square " + "w" * 90 + " end"
    lines = pictures._wrapped(text, 200, pictures.NORMAL)
    assert all(0 < pictures._font(pictures.NORMAL).getlength(line) <= 200 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_small_images_grow_by_a_whole_factor_and_large_ones_shrink() -> None:
    sizes = {side: enlarged(noise(0, side)).size for side in (7, 32, 100, 160, 200, 512)}
    assert sizes == {7: (161, 161), 32: (160, 160), 100: (200, 200), 160: (160, 160), 200: (200, 200), 512: (320, 320)}


@pytest.mark.parametrize("image", [np.zeros((8, 8, 3)), np.zeros((8, 8), np.uint8), np.zeros((0, 8, 3), np.uint8)])
def test_what_is_no_image_is_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=telling("uint8")):
        enlarged(image)


def test_rows_and_columns_must_agree(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=telling(1, 2, "base", "pararl", "'a circle'")):
        samples_png(tmp_path / "a.png", ["base", "pararl"], [SampleRow("a circle", (Sample(noise(0)),))])
    with pytest.raises(ValueError, match=telling(tmp_path / "a.png")):
        samples_png(tmp_path / "a.png", ["base"], [])
    assert list(tmp_path.iterdir()) == []


def test_texts_alone_and_input_images_are_on_the_sheet(tmp_path: Path) -> None:
    shown = noise(4)
    rows = [SampleRow("what is in the picture ?", (Sample(None, 0.0, False, ("expected 'two'",), "three"),), shown)]
    samples_png(tmp_path / "a.png", ["base"], rows)
    sheet = pixels(tmp_path / "a.png")
    with Image.fromarray(shown) as picture:
        small = np.asarray(picture.resize((160, 160), Image.Resampling.NEAREST).resize((106, 106), Image.Resampling.NEAREST))
    y, x = corner(sheet, small)
    assert x == MARGIN and y > MARGIN, "the input image stands under its prompt"
    words = pixels_of_text(tmp_path, "three")
    assert words != pixels_of_text(tmp_path, "four") and words != pixels_of_text(tmp_path, "")


def pixels_of_text(folder: Path, text: str) -> bytes:
    samples_png(folder / "t.png", ["base"], [SampleRow("count", (Sample(None, 1.0, True, (), text),))])
    return pixels(folder / "t.png").tobytes()
