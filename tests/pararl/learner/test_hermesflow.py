"""The arm ``hermesflow``: captions and images of the same scenes, a DPO term of each."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pararl import scenes
from pararl.arms import ARM_SPECS
from pararl.cli.validation import validate
from pararl.config import Config, ConfigError, CurriculumConfig, RolloutConfig, RunConfig, for_arm
from pararl.data.curriculum import Curriculum
from pararl.learner.losses import preference_loss
from pararl.learner.prefer import Feedback, prefer
from pararl.loop.source import static_batch
from pararl.scenes.sentences import caption
from pararl.types import Judgement, Output, Prompt, Rollout, Score
from tests.wording import telling

ARM = ARM_SPECS["hermesflow"]
TASKS = CurriculumConfig(tasks=("i2t", "t2i"))


def config(curriculum: CurriculumConfig = TASKS, prompts: int = 8, updates: int = 4) -> Config:
    return Config(run=RunConfig(arms=("hermesflow",), updates=updates), curriculum=curriculum, rollout=RolloutConfig(prompts=prompts))


def rollouts_of(prompts: list[Prompt], group: int) -> list[Rollout]:
    return [Rollout(p, k, 0, 0, 4, (0,), (), Output(), ()) for p in prompts for k in range(group)]


def preferred(values: list[list[float]]) -> tuple[list[Rollout], Feedback]:
    """What groups of such rewards teach: one of scene 0 captioned, of scene 1 captioned, ..., and then as many drawn."""
    half = len(values) // 2
    prompts = [Prompt(f"s{i}", kind, "x") for kind in ("i2t", "t2i") for i in range(half)]
    made = rollouts_of(prompts, len(values[0]))
    judgements = [Judgement(Score(v)) for group in values for v in group]
    return made, prefer(made, judgements, ARM, for_arm(Config(), "hermesflow").prefer, 0.5, keep=8)


def test_the_best_teaches_against_the_worst_where_it_is_good_and_both_kinds_have_a_pair() -> None:
    _, feedback = preferred([[0.2, 0.9, 0.7], [0.1, 0.8, 0.3], [0.9, 0.9, 0.9], [0.8, 0.0, 0.7], [0.6, 0.1, 0.0], [0.7, 0.1, 0.9]])
    assert {(p.chosen, p.rejected) for p in feedback.pairs} == {(1, 0), (9, 10)}, (
        "s1 was never drawn well, the captions of s2 are all alike"
    )


def test_the_loss_is_half_the_sum_of_a_term_for_each_kind() -> None:
    made, feedback = preferred([[0.2, 0.9], [0.1, 0.8], [0.8, 0.0], [0.9, 0.1]])
    assert Counter(made[p.chosen].prompt.kind for p in feedback.pairs) == {"i2t": 2, "t2i": 2}
    ratio = torch.randn(len(made), generator=torch.Generator().manual_seed(0))
    chosen, rejected = (ratio[[getattr(p, side) for p in feedback.pairs]] for side in ("chosen", "rejected"))
    loss, _ = preference_loss(chosen, rejected, 0.7, torch.tensor([p.weight for p in feedback.pairs]))
    terms = {}
    for kind in ("i2t", "t2i"):
        of_kind = [p for p in feedback.pairs if made[p.chosen].prompt.kind == kind]
        terms[kind] = torch.stack([-F.logsigmoid(0.7 * (ratio[p.chosen] - ratio[p.rejected])) for p in of_kind]).mean()
    assert torch.allclose(loss, (terms["i2t"] + terms["t2i"]) / 2, rtol=1e-6)


def test_every_batch_captions_and_draws_the_same_scenes() -> None:
    curriculum = Curriculum(config(), pairs=True)
    for _ in range(3):
        batch = curriculum.next()
        asked, drawn = batch[:4], batch[4:]
        assert {p.kind for p in asked} == {"i2t"} and {p.kind for p in drawn} == {"t2i"}
        assert [p.id for p in asked] == [p.id for p in drawn]
        for asked_for, description in zip(asked, drawn, strict=True):
            example = scenes.example("train", int(description.id.removeprefix("train-")))
            assert example.prompt == description
            assert asked_for.image is not None and np.array_equal(asked_for.image, scenes.render(example.scene))
            score = scenes.score("i2t", asked_for.spec, Output(text=caption(example.scene)))
            assert score.strict and asked_for.spec["tag"] == "caption"


def test_captions_of_train_and_of_id_are_never_the_same() -> None:
    """By their right answer, as those of task i2t: a scene whose caption belongs to the other split is passed over."""
    answers: dict[str, set[str]] = {split: set() for split in ("train", "id")}
    for split, found in answers.items():
        for i in range(300):
            if scenes.captioned(split, i) is not None:
                found.add(caption(scenes.example(split, i).scene))
    assert min(map(len, answers.values())) > 20 and answers["train"].isdisjoint(answers["id"])


def test_a_canary_takes_its_other_half_with_it() -> None:
    batches = Curriculum(config(replace(TASKS, canaries=("position",))), pairs=True)
    for _ in range(5):
        batch = batches.next()
        assert all(p.spec["tag"] != "position" for p in batch) and [p.id for p in batch[:4]] == [p.id for p in batch[4:]]


def test_own_prompts_are_paired_by_their_id(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    found = [x for i in range(40) if (x := scenes.captioned("train", i))]
    mates = [replace(scenes.prompt("train", int(p.id.removeprefix("train-"))), split="user") for p in found]
    scenes.write_jsonl(path, [*found[:9], *reversed(mates[2:12])])
    settings = config(replace(TASKS, file=str(path)), prompts=6)
    straight, resumed = (Curriculum(settings, pairs=True) for _ in range(2))
    straight.next()
    resumed.load_state(json.loads(json.dumps(straight.state())))
    for _ in range(5):
        batch = straight.next()
        assert [p.id for p in batch[:3]] == [p.id for p in batch[3:]] and {p.kind for p in batch[3:]} == {"t2i"}
        assert [(p.kind, p.id) for p in batch] == [(p.kind, p.id) for p in resumed.next()]
        straight.told(batch[:2])
        resumed.told(batch[:2])
    validate(settings)
    with pytest.raises(ConfigError, match=telling("hermesflow", 8, "i2t", "t2i", path, 7)):
        validate(replace(settings, rollout=RolloutConfig(prompts=16)))


@pytest.mark.parametrize("ends", [(5,), (3, 5)])
def test_pairs_stay_together_when_static_rollouts_are_shuffled(ends: tuple[int, ...]) -> None:
    settings = config(updates=5)
    curriculum = Curriculum(settings, pairs=True)
    stored = rollouts_of([p for _ in range(5) for p in curriculum.next()], 2)
    seen = []
    for update in range(1, 6):
        kinds: dict[str, set[str]] = {"i2t": set(), "t2i": set()}
        for i in static_batch(settings, stored, ends, update, pairs=True):
            kinds[stored[i].prompt.kind].add(stored[i].prompt.id)
        assert kinds["i2t"] == kinds["t2i"] and len(kinds["i2t"]) == 4
        seen += sorted(kinds["i2t"])
    ordered = list(dict.fromkeys(r.prompt.id for r in stored))
    assert sorted(seen) == sorted(ordered) and seen != ordered
    # What an extension sampled is learnt from behind what there was.
    assert sorted(seen[: 4 * ends[0]]) == sorted(ordered[: 4 * ends[0]])


@pytest.mark.parametrize(
    ("tasks", "prompts", "canaries", "said"),
    [
        (("t2i",), 8, (), ("--curriculum.tasks", "i2t", "t2i")),
        (("i2t", "t2i"), 7, (), ("--rollout.prompts",)),
        (("i2t", "t2i"), 8, ("caption",), ("--curriculum.canaries",)),
        (("i2t", "drawing"), 8, (), ("curriculum.tasks", "'drawing'")),
    ],
)
def test_what_has_no_pairs_is_told(tasks: tuple[str, ...], prompts: int, canaries: tuple[str, ...], said: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=telling(*said)):
        validate(config(CurriculumConfig(tasks=tasks, canaries=canaries), prompts))
