"""What is measured: which prompts, kind by kind, and that canaries and held-out splits stay apart."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pararl import scenes
from pararl.config import Config, CurriculumConfig, EvalConfig, PolicyConfig, RolloutConfig
from pararl.evaluation.evaluation import Evaluation, difficulty, evaluate, evaluated_kinds, metrics, split_prompts, split_result
from pararl.evaluation.examiner import Examiner
from pararl.loop.session import Measured
from pararl.options import Sampling
from pararl.rollout.fleet import LocalFleet
from pararl.rollout.reward_workers import LocalRewardWorkers
from pararl.types import KINDS, Judgement, Prompt, Rollout, Score

CANARIES = ("arithmetic", "vqa_shape", "swap")


@pytest.fixture
def config(tiny_policy_dir: Path) -> Config:
    return Config(
        policy=PolicyConfig(name=str(tiny_policy_dir), lora_rank=2),
        curriculum=CurriculumConfig(tasks=KINDS, canaries=CANARIES),
        rollout=RolloutConfig(steps=4, recorded=2, prompts=6),
        eval=EvalConfig(prompts=4, splits=("id", "ood_ops", "canary")),
    )


def test_every_kind_is_measured_on_the_splits_that_it_has(config: Config) -> None:
    assert evaluated_kinds(config) == KINDS
    for kind in KINDS:
        for split in ("id", "ood_ops", "para", "canary"):
            prompts = split_prompts(split, kind, 20, config)
            has = {"ood_ops": kind in ("t2t", "edit", "interleaved_edit"), "canary": kind not in ("t2i", "interleaved")}.get(split, True)
            assert len(prompts) == (20 if has else 0), (kind, split)
            assert all(p.kind == kind for p in prompts)
            assert all((p.spec["tag"] in CANARIES) == (split == "canary") for p in prompts)
    without = replace(config, curriculum=replace(config.curriculum, canaries=()))
    assert {p.spec["tag"] for p in split_prompts("id", "t2t", 60, without)} >= {"arithmetic"}


def test_prompts_of_the_id_split_are_never_trained_on(config: Config) -> None:
    def key(prompt: Prompt) -> tuple[str, str]:
        """Text and picture: a caption's question is always the same, the picture is not."""
        return prompt.text, "" if prompt.image is None else prompt.image.tobytes().hex()

    for kind in KINDS:
        trained = {key(scenes.prompt("train", i, 0, *scenes.FORMS[kind])) for i in range(300)}
        assert not {key(p) for p in split_prompts("id", kind, 300, config)} & trained


def test_splits_whose_prompts_are_all_canaries_are_left_out(config: Config) -> None:
    for kind, canaries, split in (
        ("i2t", ("vqa_relation",), "ood_rel"),
        ("edit", ("count",), "ood_count"),
        ("t2i", scenes.TAGS["t2i"], "id"),
    ):
        changed = replace(config, curriculum=replace(config.curriculum, canaries=canaries))
        assert split_prompts(split, kind, 5, changed) == []  # type: ignore[arg-type]
        assert len(split_prompts("canary", kind, 5, changed)) == 5  # type: ignore[arg-type]


def test_measured_metrics_are_means_over_their_own_prompts(config: Config) -> None:
    def generate(prompts: list[Prompt]) -> list[Rollout]:
        return [Rollout(p, 0, 0, 0, 4, (), (), scenes.example("id", 0).output, ()) for p in prompts]

    def judge(rollouts: list[Rollout]) -> list[Judgement]:
        return [Judgement(Score(KINDS.index(r.prompt.kind) / 10, r.prompt.kind == "edit")) for r in rollouts]

    done = evaluate(generate, judge, config, config.eval.splits, 5)  # type: ignore[arg-type]
    assert {kind: set(results) for kind, results in done.kinds.items()}["edit"] == {"id", "ood_ops", "canary"}
    assert [done.kinds[kind]["id"].soft for kind in KINDS] == pytest.approx([i / 10 for i in range(6)])
    assert done.splits["id"].soft == pytest.approx(0.25) and done.splits["id"].strict == pytest.approx(1 / 6)
    found = metrics(done.kinds)
    assert found["eval/edit_id_strict"] == 1.0 and found["eval/id_strict"] == pytest.approx(1 / 6)
    assert set(metrics(done.kinds, ("id",))) == {name for name in found if "_id_" in name or name.startswith("eval/id_")}
    measured = Measured(done.kinds, [])
    held = [results["ood_ops"] for results in done.kinds.values() if "ood_ops" in results]
    assert measured.ood is not None and measured.ood.n == sum(r.n for r in held), "canaries are not held-out prompts"
    assert [row.prompt in {r.prompt.text for r in done.rollouts[5 * i : 5 * i + 5]} for i, row in enumerate(done.samples(6))] == [True] * 6


def test_samples_go_from_the_easiest_to_the_hardest_prompt_and_evaluations_of_two_sizes_show_the_same() -> None:
    prompts = [scenes.prompt("id", i) for i in range(64)]
    rollouts = tuple(Rollout(p, 0, 0, 0, 4, (), (), scenes.example("id", 0).output, ()) for p in prompts)
    whole = Evaluation({}, rollouts, tuple(Judgement(Score(0.5)) for _ in prompts))
    claims = {p.text: len(p.spec["atoms"]) for p in prompts}
    shown = [claims[row.prompt] for row in whole.samples(16)]
    assert len(shown) == 16 and shown == sorted(shown)
    assert {shown[0], shown[-1]} == {min(claims.values()), max(claims.values())} and len(set(shown)) >= 4
    small = Evaluation({}, rollouts[:24], whole.judgements[:24])
    assert [row.prompt for row in small.samples(8, among=24)] == [row.prompt for row in whole.samples(8, among=24)]
    assert len(whole.samples(100)) == 64


def test_the_first_prompts_of_an_evaluation_say_what_an_evaluation_of_so_many_says(config: Config) -> None:
    fleet, judge = LocalFleet(config), LocalRewardWorkers(config)

    def generate(prompts: Sequence[Prompt]) -> list[Rollout]:
        return fleet.generate(prompts, 1, 0, config.eval.seed, Sampling(steps=4, recorded=2, guesses=0), update=0)

    large, small = (evaluate(generate, judge.score, config, ("id",), count) for count in (5, 2))
    whole = metrics(small.kinds)
    assert large.first(2) == pytest.approx({f"eval/during_{name}": whole[f"eval/id_{name}"] for name in ("soft", "strict", "n", "error")})
    assert large.first(5) != large.first(2) and large.first(2)["eval/during_n"] == 12


def test_prompts_of_another_world_are_as_hard_as_they_are_long() -> None:
    texts = ["a dog", "a dog that chases a ball over a meadow", "a dog with a ball"]
    order = sorted((Prompt(text, "t2i", text, {"source": "web", "atoms": 3}) for text in texts), key=difficulty)
    assert [p.text for p in order] == [texts[0], texts[2], texts[1]]


def test_a_split_has_the_standard_error_of_its_mean_score() -> None:
    values = np.random.default_rng(0).random(40)
    found = split_result([Judgement(Score(float(v))) for v in values])
    assert found.error == pytest.approx(values.std(ddof=1) / 40**0.5) and found.strict is None
    assert split_result([Judgement(Score(0.5))]).error is None, "one output tells nothing of the error"


def test_the_users_prompts_are_measured_in_place_of_the_worlds(config: Config, tmp_path: Path) -> None:
    own = [scenes.prompt("para", i, 0, *scenes.FORMS[kind]) for kind in ("t2i", "edit") for i in range(3)]
    scenes.write_jsonl(tmp_path / "own.jsonl", own)
    config = replace(config, eval=EvalConfig(file=str(tmp_path / "own.jsonl"), splits=("id",), tasks=("t2i", "edit")))
    assert [p.id for kind in ("t2i", "edit") for p in split_prompts("id", kind, 9, config)] == [p.id for p in own]
    assert split_prompts("para", "t2i", 9, config) == []


def test_the_examiner_measures_what_a_run_measures_and_more(config: Config) -> None:
    fleet, reward_workers = LocalFleet(config), LocalRewardWorkers(config)
    from pararl.evaluation.evaluation import eval_sampling

    sampling: Sampling = eval_sampling(config.rollout)
    seed = config.eval.seed
    expected = evaluate(lambda p: fleet.generate(p, 1, 0, seed, sampling, update=0), reward_workers.score, config, config.eval.splits, 4)
    found = Examiner(config, fleet.worker.policy, None, "base").examine(4, diversity=2, samples=3)
    for kind, splits in expected.kinds.items():
        assert set(found.report[kind]) == set(splits)  # type: ignore[index]
        for split, result in splits.items():
            report = found.report[kind][split]  # type: ignore[index]
            assert report["soft"]["mean"] == pytest.approx(result.soft) and report["strict"]["mean"] == result.strict
            assert ("cycle" in report) == (kind in ("t2i", "interleaved")) and "kl" not in report
            assert ("diversity" in report) == (split == "id")
            assert ("axes" in report) == (kind not in ("t2t", "i2t"))
    assert len(found.worst(2)) == 12 and all(not s.score.strict for s in found.worst(2))


def test_the_examiner_tells_an_adapters_distance_from_the_base(config: Config) -> None:
    fleet = LocalFleet(config)
    small = replace(config, eval=replace(config.eval, splits=("id",)))
    model, policy = fleet.worker.model, fleet.worker.policy
    same = Examiner(small, policy, model, "a").examine(2, 0, 1).report["t2i"]["id"]["kl"]
    assert same["kl/total"] == pytest.approx(0.0, abs=1e-6)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.05)
    changed = Examiner(small, policy, model, "a").examine(2, 0, 1).report
    assert changed["t2i"]["id"]["kl"]["kl/total"] > 1e-3 and np.isfinite(changed["i2t"]["id"]["kl"]["kl/text"])
