"""The pairs that the embedded CLIP model learns from are right, their twins nearly so, and its loss is that of CLIP's paper."""

from collections import Counter

import numpy as np
import pytest
import torch

from pararl import scenes
from pararl.scenes.sentences import parse_caption
from rewards import pretraining
from rewards.pretraining import CHANGES, changed, contrastive_loss, new_model, training_pairs


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_one_thing_and_makes_the_prompt_false(name: str) -> None:
    rng = np.random.default_rng(0)
    found = 0
    for index in range(200):
        example = scenes.example("id", index)
        other = changed(example.scene, lambda scene, spec=example.prompt.spec: not scenes.check(spec, scene).strict, rng, name)  # type: ignore[misc]
        if other is None:
            continue
        found += 1
        assert not scenes.score("t2i", example.prompt.spec, scenes.Example(example.prompt, other, example.output).output, other).strict
        before, after = example.scene.cells.ravel().tolist(), other.cells.ravel().tolist()
        cells = [(b, a) for b, a in zip(before, after, strict=True) if b != a]
        shapes, colours = ([Counter(part(v) for v in cells if v >= 0) for cells in (before, after)] for part in (_shape, _colour))
        if name in ("colour", "shape", "count"):
            assert len(cells) == 1
            (one,) = cells
            same = {"colour": _shape, "shape": _colour}.get(name)
            assert (-1 in one) == (name == "count") and (same is None or same(one[0]) == same(one[1]))
        elif name == "binding":
            assert len(cells) == 2 and shapes[0] == shapes[1] and colours[0] == colours[1] and sorted(before) != sorted(after)
        else:
            assert len(cells) == 2 and sorted(before) == sorted(after)
    assert found > 20


def _shape(value: int) -> int:
    return value // 6


def _colour(value: int) -> int:
    return value % 6


def test_every_text_is_true_of_its_image_and_plans_stand_beside_what_they_are_false_of() -> None:
    pairs = training_pairs(0, 100, seed=1)
    seen = scenes.parse_batch(pairs.images)
    assert len(pairs.texts) == len(seen) > 190
    plans = {place: plan for place, text in enumerate(pairs.texts) if (plan := scenes.parse_plan(text)) is not None}
    for place, parsed in enumerate(seen):
        assert parsed.valid.all(), "the noise leaves every cell readable"
        if place in plans:
            assert plans[place] == parsed.scene and (place == 0 or seen[place - 1].scene != parsed.scene)
        else:
            assert parse_caption(pairs.texts[place]) is not None
    assert 0.5 < len(plans) / len(seen) < 0.75
    assert training_pairs(0, 3, seed=1).texts == pairs.texts[:6], "a pure function of place and seed, scene by scene"


def test_the_loss_is_the_mean_cross_entropy_of_both_directions() -> None:
    torch.manual_seed(0)
    model, processor = new_model()
    pairs = training_pairs(0, 4, seed=0)
    loss = contrastive_loss(model, processor, pairs)
    rows = []
    with torch.no_grad():
        for text in pairs.texts:
            inputs = [processor(text=[text], images=[image], return_tensors="pt") for image in pairs.images]
            rows.append([model(**given).logits_per_text.item() for given in inputs])
    table = np.array(rows, np.float64)
    by_text = np.log(np.exp(table).sum(1)) - np.diag(table)
    by_image = np.log(np.exp(table).sum(0)) - np.diag(table)
    assert loss.item() == pytest.approx((by_text.mean() + by_image.mean()) / 2, rel=1e-4)


def test_shares_of_an_untrained_model_are_chance_and_known_by_hand() -> None:
    torch.manual_seed(0)
    model, processor = new_model()
    shares = pretraining.measure(model, processor, 64)
    assert set(shares) == {"retrieval right", *(f"{name} right" for name in CHANGES)}
    assert shares["retrieval right"] < 0.3
    right, asked = 0, 0
    rng = np.random.default_rng((0, 64))
    for index in range(64):
        example = scenes.example("id", index)
        other = changed(example.scene, lambda scene, spec=example.prompt.spec: not scenes.check(spec, scene).strict, rng, "colour")  # type: ignore[misc]
        if other is None:
            continue
        images = [scenes.render(example.scene), scenes.render(other)]
        with torch.no_grad():
            logits = model(**processor(text=[example.prompt.text], images=images, return_tensors="pt")).logits_per_text[0]
        right, asked = right + int(logits[0] > logits[1]), asked + 1
    assert shares["colour right"] == right / asked
