"""What is trained on, in which order, and that a resumed run goes on with the same prompts."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from pararl import scenes
from pararl.config import Config, CurriculumConfig, RolloutConfig, RunConfig
from pararl.data.curriculum import Curriculum, Finite
from pararl.types import KINDS, Prompt
from tests.wording import telling

ALL = CurriculumConfig(tasks=("t2t", "i2t", "t2i:2", "edit", "interleaved", "interleaved_edit"))


def config(curriculum: CurriculumConfig = ALL, prompts: int = 14, seed: int = 0) -> Config:
    return Config(run=RunConfig(seed=seed), curriculum=curriculum, rollout=RolloutConfig(prompts=prompts))


def names(batch: list[Prompt]) -> list[tuple[str, str]]:
    return [(p.kind, p.id) for p in batch]


def test_every_joint_batch_holds_every_kind_in_its_quota_and_no_prompt_comes_twice() -> None:
    curriculum = Curriculum(config())
    batches = [curriculum.next() for _ in range(5)]
    for batch in batches:
        assert Counter(p.kind for p in batch) == {"t2t": 2, "i2t": 2, "t2i": 4, "edit": 2, "interleaved": 2, "interleaved_edit": 2}
        assert all(p.split == "train" for p in batch)
    assert len({name for batch in batches for name in names(batch)}) == 5 * 14


def test_alternating_batches_hold_one_kind_each_in_turn() -> None:
    curriculum = Curriculum(config(CurriculumConfig(tasks=("t2i", "edit:2"), order="alternate"), prompts=3))
    kinds = [{p.kind for p in curriculum.next()} for _ in range(6)]
    assert kinds == [{"edit"}, {"t2i"}, {"edit"}] * 2, "as evenly as the shares allow"


def test_prompts_are_a_function_of_the_seed() -> None:
    one, same, other = (Curriculum(config(seed=seed)).next() for seed in (0, 0, 1))
    assert [p.text for p in one] == [p.text for p in same] != [p.text for p in other]


def test_canary_tags_are_never_trained_on() -> None:
    canaries = ("arithmetic", "vqa_shape", "swap")
    curriculum = Curriculum(config(replace(ALL, canaries=canaries)))
    trained = Counter(p.spec["tag"] for _ in range(30) for p in curriculum.next())
    assert not set(canaries) & set(trained)
    without = Curriculum(config())
    assert set(canaries) <= {p.spec["tag"] for _ in range(30) for p in without.next()}, "they would have come otherwise"


@pytest.mark.parametrize("order", ["joint", "alternate"])
def test_a_restored_curriculum_goes_on_with_the_same_prompts(order: str, tmp_path: Path) -> None:
    scenes.write_jsonl(tmp_path / "own.jsonl", [scenes.prompt("train", i, 0, *scenes.FORMS[k]) for k in KINDS for i in range(20)])
    for file in ("", str(tmp_path / "own.jsonl")):
        settings = config(replace(ALL, order=order, file=file))  # type: ignore[arg-type]
        straight, stopped = Curriculum(settings), Curriculum(settings)
        for _ in range(4):
            batch = straight.next()
            straight.told(batch[::2])
            stopped.next()
            stopped.told(batch[::2])
        resumed = Curriculum(settings)
        resumed.load_state(json.loads(json.dumps(stopped.state())))
        for _ in range(8):
            assert names(straight.next()) == names(resumed.next())


def own(count: int) -> list[Prompt]:
    return [Prompt(f"p{i}", "t2i", "x") for i in range(count)]


def test_a_pass_gives_every_prompt_once_in_an_order_of_its_own() -> None:
    cursor = Finite(own(12), seed=0)
    passes = [[p.id for _ in range(3) for p in cursor.next(4)] for _ in range(3)]
    assert all(sorted(one) == sorted(p.id for p in own(12)) for one in passes)
    assert passes[0] != passes[1] != passes[2]


def test_a_prompt_without_spread_sits_out_exactly_one_pass() -> None:
    cursor = Finite(own(8), seed=0)
    first = [p.id for p in cursor.next(8)]
    cursor.told(first[:2])
    second = [p.id for p in cursor.next(6)]
    assert set(second) == set(first[2:]), "the two that taught nothing rest"
    third = [p.id for count in (6, 2) for p in cursor.next(count)]
    assert set(third) == set(first), "and come back in the next"
    always = Finite(own(8), seed=0, rest=False)
    always.next(8)
    always.told(first[:2])
    assert {p.id for p in always.next(8)} == set(first)


def test_batches_stay_full_and_without_doubles_where_everything_rests() -> None:
    cursor = Finite(own(5), seed=1)
    for _ in range(20):
        batch = cursor.next(4)
        assert len({p.id for p in batch}) == 4
        cursor.told(p.id for p in batch)
    with pytest.raises(ValueError, match=telling(6, "t2i", 5)):
        cursor.next(6)


def test_a_batch_across_two_passes_rests_its_prompts_by_the_pass_that_each_was_drawn_in() -> None:
    cursor = Finite(own(10), seed=0)
    cursor.next(8)
    straddling = [p.id for p in cursor.next(4)]  # two of pass 0, two of pass 1
    cursor.told(straddling)
    rest_of_pass_1 = [p.id for p in cursor.next(6)]
    assert not set(straddling) & set(rest_of_pass_1), "the two of pass 0 rest in pass 1, the two of pass 1 have had their turn"
    pass_2 = [p.id for p in cursor.next(8)]
    assert not set(straddling[2:]) & set(pass_2) and set(straddling[:2]) <= set(pass_2)


def test_canary_tags_of_the_users_prompts_are_not_trained_on_either(tmp_path: Path) -> None:
    scenes.write_jsonl(tmp_path / "own.jsonl", [scenes.prompt("train", i) for i in range(60)])
    settings = CurriculumConfig(file=str(tmp_path / "own.jsonl"), canaries=("counting", "position"))
    curriculum = Curriculum(config(settings, prompts=8))
    assert not {"counting", "position"} & {p.spec["tag"] for _ in range(20) for p in curriculum.next()}


def test_a_prompt_file_that_changed_under_a_run_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    scenes.write_jsonl(file, [scenes.prompt("train", i) for i in range(20)])
    settings = config(CurriculumConfig(file=str(file)), prompts=4)
    state = Curriculum(settings).state()
    scenes.write_jsonl(file, [scenes.prompt("train", i) for i in range(16)])
    with pytest.raises(ValueError, match=telling("t2i", "curriculum.file")):
        Curriculum(settings).load_state(state)
