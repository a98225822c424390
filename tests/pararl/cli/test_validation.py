"""Settings that cannot be, each told in one line before anything starts."""

import json
from pathlib import Path

import pytest

from pararl.cli import parse as cli
from pararl.cli import validation
from pararl.config import SETTINGS, for_arm
from tests.pararl.conftest import Complaint

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("--learner.lr -1", "learner.lr > 0 -1.0"),
        ("--learner.lr -1e-3", "learner.lr > 0 -0.001"),
        ("--learner.lr 0", "learner.lr > 0 0.0"),
        ("--learner.lr .nan", "learner.lr finite nan"),
        ("--learner.beta .inf", "learner.beta finite inf"),
        ("--learner.beta 0", "learner.beta > 0"),
        ("--run.updates 0", "run.updates >= 1 0"),
        ("--rollout.guidance -0.5", "rollout.guidance >= 0 -0.5"),
        ("--rollout.text_guidance .inf", "rollout.text_guidance finite inf"),
        ("--rollout.group 1", "rollout.group >= 2"),
        ("--rollout.threads 0", "rollout.threads >= 1"),
        ("--rollout.recorded 9 --rollout.steps 8", "rollout.recorded rollout.steps 8 9"),
        ("--rollout.recorded 0", "rollout.recorded >= 1"),
        ("--run.arms pararl,ppo", "run.arms 'ppo' pararl, pararl_grpo, online_dpo, offline_dpo, offline_stream, best_of_n, hermesflow"),
        ("--run.arms []", "run.arms pararl"),
        ("--run.arms online_dpo,online_dpo", "run.arms 'online_dpo'"),
        ("--eval.splits id,ood", "eval.splits 'ood' id,"),
        ("--curriculum.tasks t2v", "curriculum.tasks 't2v' t2t, i2t, t2i, edit, interleaved, interleaved_edit"),
        ("--curriculum.tasks []", "curriculum.tasks"),
        ("--eval.tasks t2i,t2i", "eval.tasks 't2i'"),
        ("--curriculum.tasks t2i,edit,i2t --rollout.prompts 2", "rollout.prompts >= 3 2 curriculum.tasks"),
        ("--curriculum.canaries clocks", "curriculum.canaries 'clocks' scene_edit,"),
        ("--curriculum.tasks t2t --curriculum.canaries scene_edit,arithmetic,paraphrase", "curriculum.canaries t2t scene_edit"),
        ("--eval.splits id,canary", "eval.splits canary --curriculum.canaries"),
        ("--curriculum.file gone.jsonl", "curriculum.file gone.jsonl"),
        ("--eval.file gone.jsonl", "eval.file --eval.splits"),
        ("--eval.tasks t2t --curriculum.canaries scene_edit,arithmetic,paraphrase", "curriculum.canaries t2t --eval.tasks"),
        ("--curriculum.canaries arithmetic --eval.splits id,canary", "eval.splits curriculum.canaries arithmetic"),
        ("--eval.file gone.jsonl --eval.splits id", "eval.file gone.jsonl"),
        ("--reward.name clip", "reward.name 'clip' scenes, scenes-clip, clip:DIRECTORY"),
        ("--reward.name clip:./gone", "reward.name 'clip:./gone' ./gone"),
        ("--eval.reward scene", "eval.reward 'scene' scenes,"),
        ("--reward.calibration 1", "reward.calibration >= 2 1"),
        ("--reward.name scenes-clip --curriculum.tasks t2i,edit,t2t", "reward.name scenes-clip edit, t2t"),
        ("--eval.reward scenes-clip --eval.tasks t2i,edit", "eval.reward scenes-clip edit"),
        ("--policy.name .", "policy.name policy.json"),
        ("--eval.splits ood_pair", "eval.splits id"),
        ("--eval.splits id,train", "eval.splits 'train'"),
        ("--eval.splits idd", "eval.splits 'idd' known"),
        ("--rollout.gpus 1.5", "rollout.gpus <= 1 1.5"),
        ("--rollout.gpus 2", "rollout.gpus <= 1 2"),
        ("--arm.pararl.learner.gpus 2", "arm.pararl.learner.gpus <= 1 2"),
        ("--run.timeout -1", "run.timeout >= 0 -1"),
        ("--reward.timeout -0.5", "reward.timeout >= 0 -0.5"),
        ("--learner.likelihood elbo", "learner.likelihood elbo pararl --arm.pararl.learner.likelihood"),
        ("--run.arms pararl_grpo --learner.likelihood elbo --learner.negatives spg", "learner.negatives spg pararl_grpo"),
        ("--learner.image_ratio 1.5", "learner.image_ratio 0 1, -1 1.5"),
        ("--learner.text_ratio -0.5", "learner.text_ratio 0 1, -1 -0.5"),
        ("--learner.spg_mix 1.1", "learner.spg_mix >= 0 <= 1 1.1"),
        ("--learner.spg_beta 0.5", "learner.spg_beta >= 1 0.5"),
        ("--run.arms online_dpo --learner.image_ratio 0.8", "learner.image_ratio online_dpo --arm.online_dpo.learner.likelihood"),
        ("--run.arms best_of_n,online_dpo --learner.text_masks block", "learner.text_masks online_dpo"),
        ("--run.arms online_dpo --learner.negatives spg", "learner.negatives --arm.online_dpo.learner.likelihood elbo"),
        ("--run.arms best_of_n --learner.negatives spg", "learner.negatives best_of_n --arm.best_of_n.learner.negatives"),
        ("--run.arms best_of_n --learner.text_masks block --rollout.decoding released", "learner.text_masks rollout.decoding released"),
        ("--rollout.image_sampler emerge --rollout.decoding released", "rollout.image_sampler rollout.decoding released"),
        ("--curriculum.tasks interleaved --rollout.steps 7", "rollout.steps scenes-mmada 2 7"),
        ("--curriculum.tasks interleaved --rollout.decoding sequential --rollout.steps 6", "rollout.steps scenes-mmada 6 3"),
        ("--curriculum.tasks interleaved --rollout.decoding semi_parallel --rollout.steps 6", "rollout.steps 4 semi_parallel 6"),
        ("--policy.name gone", "policy.name 'gone' scenes-mmada"),
        ("--run.name a/b", "run.name 'a/b' --run.dir"),
        ("--run.name ..", "run.name '..'"),
        ("--run.dir=", "run.dir empty"),
        ("--learner.text_weight 0 --learner.image_weight 0", "learner.text_weight learner.image_weight 0"),
        ("--prefer.credit 1", "prefer.credit pararl_grpo pararl, offline_dpo --run.arms"),
        ("--run.arms online_dpo,pararl_grpo --arm.online_dpo.learner.kl 1", "arm.online_dpo.learner.kl pararl_grpo"),
        ("--run.arms online_dpo,pararl_grpo --arm.online_dpo.prefer.credit 1", "arm.online_dpo.prefer.credit pararl_grpo"),
        ("--arm.online_dpo.learner.lr -1", "arm.online_dpo.learner.lr > 0 -1.0 --arm.online_dpo.learner.lr"),
    ],
)
def test_what_cannot_be_is_one_line_that_names_the_setting_and_its_value(complaint: Complaint, argv: str, words: str) -> None:
    line = complaint(argv.split(" "))
    assert [word for word in words.split() if word not in line] == []


def test_every_mistake_is_told_at_once(complaint: Complaint) -> None:
    line = complaint(["--learner.lr", "-1", "--run.updates", "0", "--run.arms", "ppo"])
    assert "learner.lr" in line and "run.updates" in line and "'ppo'" in line


def test_every_number_has_a_range() -> None:
    assert set(validation.BOUNDS) == {key for key, kind in SETTINGS.items() if kind in (int, float)}


def test_settings_of_elbos_go_with_the_arms_that_have_them() -> None:
    words = "--run.arms online_dpo,best_of_n,pararl --learner.draws 2 --arm.online_dpo.learner.likelihood elbo "
    words += "--arm.online_dpo.learner.negatives spg"
    config = cli.parse([*words.split(), "--arm.best_of_n.learner.image_ratio", "0", "--rollout.image_sampler", "emerge"]).config
    assert for_arm(config, "online_dpo").learner.negatives == "spg" and for_arm(config, "best_of_n").learner.image_ratio == 0
    assert for_arm(config, "pararl").learner.image_ratio == -1


def test_a_policy_directory_is_a_policy(elsewhere: Path) -> None:
    (elsewhere / "mine").mkdir()
    (elsewhere / "mine" / "policy.json").write_text(json.dumps({"family": "mmada", "settings": {"tasks": ["t2i"]}}))
    assert cli.parse(["--policy.name", "mine"]).config.policy.name == "mine"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "is not JSON: Expecting"),
        ("[1]", "holds a list where a JSON object is expected"),
        ("{}", "has no settings"),
        ('{"settings": []}', "has no settings"),
        ('{"family": "mmada", "settings": {"grid": [4], "text_block": 0}}', "has settings that cannot be: text_block 0, grid [4]"),
        ('{"settings": {"grid": [4, 4]}}', "names no family"),
        ('{"family": "gpt", "settings": {"grid": [4, 4]}}', "names the unknown family 'gpt' (known: mmada, "),
    ],
)
def test_a_broken_policy_file_is_told_in_one_line(elsewhere: Path, content: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    (elsewhere / "mine").mkdir()
    (elsewhere / "mine" / "policy.json").write_text(content)
    with pytest.raises(SystemExit) as exit_:
        cli.parse(["--policy.name", "mine"])
    error = capsys.readouterr().err
    assert exit_.value.code == 2 and error.count("\n") == 1 and f"policy.name: mine/policy.json {told}" in error


def test_a_policy_directory_without_its_tokenizers_is_told_before_prompts_are_held_against_it(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (elsewhere / "mine").mkdir()
    (elsewhere / "mine" / "policy.json").write_text(json.dumps({"family": "mmada", "settings": {"tasks": ["t2i"]}}))
    (elsewhere / "own.jsonl").write_text("".join(json.dumps({"prompt": f"w{i}"}) + "\n" for i in range(16)))
    with pytest.raises(SystemExit):
        cli.parse(["--policy.name", "mine", "--curriculum.file", "own.jsonl", "--reward.name", "mine:reward"])
    assert "policy.name: mine lacks tokenizer.json, tokenizer_config.json, image_tokenizer/config.json" in capsys.readouterr().err


def test_a_reward_of_the_users_own_is_taken_by_module_and_name() -> None:
    assert cli.parse(["--reward.name", "mine.rewards:score"]).config.reward.name == "mine.rewards:score"
    with pytest.raises(SystemExit):
        cli.parse(["--reward.name", "scene"])
