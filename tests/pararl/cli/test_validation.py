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
    ("argv", "line"),
    [
        ("--learner.lr -1", "learner.lr must be > 0, got -1.0 (set --learner.lr)"),
        ("--learner.lr -1e-3", "learner.lr must be > 0, got -0.001 (set --learner.lr)"),
        ("--learner.lr 0", "learner.lr must be > 0, got 0.0"),
        ("--learner.lr .nan", "learner.lr must be finite, got nan"),
        ("--learner.beta .inf", "learner.beta must be finite, got inf"),
        ("--learner.beta 0", "learner.beta must be > 0"),
        ("--run.updates 0", "run.updates must be >= 1, got 0"),
        ("--rollout.guidance -0.5", "rollout.guidance must be >= 0"),
        ("--rollout.text_guidance .inf", "rollout.text_guidance must be finite, got inf"),
        ("--rollout.group 1", "rollout.group must be >= 2"),
        ("--rollout.threads 0", "rollout.threads must be >= 1"),
        ("--rollout.recorded 9 --rollout.steps 8", "rollout.recorded must be <= rollout.steps (8), got 9"),
        ("--rollout.recorded 0", "rollout.recorded must be >= 1"),
        (
            "--run.arms pararl,ppo",
            "run.arms: unknown 'ppo' (known: pararl, pararl_grpo, online_dpo, offline_dpo, offline_stream, best_of_n, hermesflow;",
        ),
        ("--run.arms []", "run.arms must name at least one of pararl, "),
        ("--run.arms online_dpo,online_dpo", "run.arms names 'online_dpo' more than once"),
        ("--eval.splits id,ood", "eval.splits: unknown 'ood' (known: id, "),
        ("--curriculum.tasks t2v", "curriculum.tasks: unknown 't2v' (known: t2t, i2t, t2i, edit, interleaved, interleaved_edit)"),
        ("--curriculum.tasks []", "curriculum.tasks must name at least one kind of prompt"),
        ("--eval.tasks t2i,t2i", "eval.tasks: 't2i' is named more than once"),
        (
            "--curriculum.tasks t2i,edit,i2t --rollout.prompts 2",
            "rollout.prompts must be >= 3, one of each kind in curriculum.tasks, got 2",
        ),
        ("--curriculum.canaries clocks", "curriculum.canaries: unknown 'clocks' (known: scene_edit, "),
        ("--curriculum.tasks t2t --curriculum.canaries scene_edit,arithmetic,paraphrase", "leave no prompt of kind t2t to train on"),
        ("--eval.splits id,canary", "eval.splits: canary needs tags that are never trained on"),
        ("--curriculum.file gone.jsonl", "curriculum.file: there is no file gone.jsonl"),
        ("--eval.file gone.jsonl", "eval.file has the split id alone"),
        ("--eval.tasks t2t --curriculum.canaries scene_edit,arithmetic,paraphrase", "leave no prompt of kind t2t for split id"),
        ("--curriculum.canaries arithmetic --eval.splits id,canary", "no kind that is measured has a prompt with a tag of"),
        ("--eval.file gone.jsonl --eval.splits id", "eval.file: there is no file gone.jsonl"),
        ("--reward.name clip", "reward.name: unknown reward 'clip' (known: scenes, scenes-clip, clip:DIRECTORY, "),
        ("--reward.name clip:./gone", "reward.name: reward 'clip:./gone': ./gone is neither a directory nor a name of the hub"),
        ("--eval.reward scene", "eval.reward: unknown reward 'scene' (known: scenes, "),
        ("--reward.calibration 1", "reward.calibration must be 0, or >= 2 (one score has no deviation), got 1"),
        (
            "--reward.name scenes-clip --curriculum.tasks t2i,edit,t2t",
            "reward.name: scenes-clip scores no prompt of kind edit, t2t (set --reward.name)",
        ),
        ("--eval.reward scenes-clip --eval.tasks t2i,edit", "eval.reward: scenes-clip scores no prompt of kind edit"),
        ("--policy.name .", "policy.name: . has no policy.json"),
        ("--eval.splits ood_pair", "eval.splits must begin with id"),
        ("--eval.splits id,train", "eval.splits: unknown 'train'"),
        ("--rollout.gpus 1.5", "rollout.gpus must be a whole number, or a fraction below 1"),
        ("--learner.likelihood elbo", "arm pararl learns from steps"),
        ("--run.arms pararl_grpo --learner.likelihood elbo --learner.negatives spg", "arm pararl_grpo has none"),
        ("--learner.image_ratio 1.5", "learner.image_ratio must be between 0 and 1, or -1 for the policy's own, got 1.5"),
        ("--learner.text_ratio -0.5", "learner.text_ratio must be between 0 and 1, or -1"),
        ("--learner.spg_mix 1.1", "learner.spg_mix must be >= 0 and <= 1"),
        ("--learner.spg_beta 0.5", "learner.spg_beta must be >= 1"),
        (
            "--run.arms online_dpo --learner.image_ratio 0.8",
            "learner.image_ratio is about ELBOs and arm online_dpo learns from conditionals at",
        ),
        ("--run.arms best_of_n,online_dpo --learner.text_masks block", "learner.text_masks is about ELBOs and arm online_dpo"),
        (
            "--run.arms online_dpo --learner.negatives spg",
            "set --arm.online_dpo.learner.likelihood elbo, or the setting for other arms alone",
        ),
        ("--run.arms best_of_n --learner.negatives spg", "arm best_of_n has none (set --arm.best_of_n.learner.negatives elbo"),
        ("--run.arms best_of_n --learner.text_masks block --rollout.decoding released", "and rollout.decoding released has none"),
        ("--rollout.image_sampler emerge --rollout.decoding released", "rollout.image_sampler emerge does not go with rollout.decoding"),
        ("--curriculum.tasks interleaved --rollout.steps 7", "a multiple of 2 steps, the text blocks of scenes-mmada; 7 give it 7"),
        ("--curriculum.tasks interleaved --rollout.decoding sequential --rollout.steps 6", "of scenes-mmada; 6 give it 3"),
        ("--curriculum.tasks interleaved --rollout.decoding semi_parallel --rollout.steps 6", "must be a multiple of 4 for semi_parallel"),
        ("--policy.name gone", "policy.name: 'gone' is neither an embedded policy (scenes-mmada) nor a directory"),
        ("--run.name a/b", "run.name must be a plain folder name, got 'a/b'"),
        ("--run.name ..", "run.name must be a plain folder name"),
        ("--run.dir=", "run.dir must not be empty"),
        ("--learner.text_weight 0 --learner.image_weight 0", "must not both be 0"),
        ("--prefer.credit 1", "prefer.credit has an effect in arm pararl_grpo only, not in pararl, offline_dpo (set --run.arms"),
        (
            "--run.arms online_dpo,pararl_grpo --arm.online_dpo.learner.kl 1",
            "arm.online_dpo.learner.kl has no effect: only arm pararl_grpo",
        ),
        (
            "--run.arms online_dpo,pararl_grpo --arm.online_dpo.prefer.credit 1",
            "arm.online_dpo.prefer.credit has no effect: only arm pararl_grpo",
        ),
        ("--arm.online_dpo.learner.lr -1", "arm.online_dpo.learner.lr must be > 0, got -1.0 (set --arm.online_dpo.learner.lr)"),
    ],
)
def test_what_cannot_be_is_one_line_that_names_the_setting(complaint: Complaint, argv: str, line: str) -> None:
    assert line in complaint(argv.split(" "))


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
        ("[1]", "is not a JSON object"),
        ("{}", "has no settings"),
        ('{"settings": []}', "has no settings"),
        ('{"settings": {"tasks": []}}', "names no family"),
        ('{"family": "gpt", "settings": {"tasks": []}}', "names the unknown family 'gpt' (known: mmada, "),
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
