"""The configuration of a run: nested dataclasses, read from YAML and the command line, checked before anything starts.

Every knob is a field here, with its meaning and unit in the string under it; ``--help`` prints exactly these.
``pararl/cli/parse.py`` reads and writes them, ``pararl/cli/validation.py`` checks them. Neither they nor this module import anything heavy,
so that a mistake is told within a second.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal

from pararl.options import DrawingOptions, SamplingOptions

Arm = Literal["pararl", "pararl_grpo", "online_dpo", "offline_dpo", "offline_stream", "best_of_n", "hermesflow"]
ARMS: tuple[Arm, ...] = ("pararl", "pararl_grpo", "online_dpo", "offline_dpo", "offline_stream", "best_of_n", "hermesflow")

RENAMED: dict[str, Arm] = {"output": "online_dpo"}
"""Names that arms had in earlier versions, which command lines, files and run folders may still hold."""


def arm_defaults() -> dict[str, dict[str, Any]]:
    """What some arms need otherwise than the others, by the sweep in docs/results_first_base.md.

    The offline ones: a fixed reference, and smaller steps on data that does not answer. Best of n: the ELBO. The sampler commits what it is
    sure of first; without a baseline, conditionals in its order would only make it surer.

    HermesFlow: the best against the worst, where the best has more than 0.6, at shared draws of the ELBO. Its beta is 0.2 on sums of
    log-probabilities; ours is per token, hence times the 16 tokens of an embedded policy's image. Source: arXiv 2502.12148, and
    ``configs/hermesflow_pairdpo.yaml`` and ``get_dpo_data.py`` of Gen-Verse/HermesFlow.
    """
    offline = {"learner.lr": 1e-4, "learner.beta": 3.0, "learner.reference_every": 0}
    pairs = {"learner.beta": 3.2, "learner.likelihood": "elbo", "prefer.select": "best_worst", "prefer.min_best": 0.6}
    return {
        "offline_dpo": dict(offline),
        "offline_stream": dict(offline),
        "best_of_n": {"learner.lr": 1e-4, "learner.likelihood": "elbo"},
        "hermesflow": offline | pairs,
    }


class ConfigError(ValueError):
    """A setting that cannot be; its message is one line that names the setting, its value and what to do."""


@dataclass(frozen=True)
class RunConfig:
    """What is run and where it lands."""

    dir: str = "outputs"
    """Folder that holds runs."""
    name: str = ""
    """Name of the run's folder below `run.dir`; empty = <time>-<config>."""
    seed: int = 0
    """Seed of everything random in the run."""
    arms: tuple[str, ...] = ("pararl", "offline_dpo")
    """Arms to train, in this order: pararl, pararl_grpo, online_dpo, offline_dpo, offline_stream, best_of_n, hermesflow."""
    updates: int = 50
    """Learner updates per arm."""
    checkpoint_every: int = 10
    """Updates between checkpoints that `--resume` can start from."""
    patience: int = 20
    """Updates in a row that teach nothing (no pair, no spread of rewards, no gradient) after which an arm ends the run; 0 = never. The
    terminal and W&B tell of them from the fifth on."""
    timeout: float = 3600.0
    """Seconds that a worker or the learner may take to start, for a chunk of rollouts or for an update, before the run ends with an error.
    0 = any. After 30 s a line tells what is waited for."""


@dataclass(frozen=True)
class PolicyConfig:
    """The unified model that is aligned."""

    name: str = "scenes-mmada"
    """Name of an embedded policy, or a directory that `policies.load` reads."""
    adapter: str = ""
    """PEFT folder of a LoRA adapter to start from, of this policy; empty = a new one. Rank and alpha are then its own. What a loss compares
    with, and what offline arms sample from, is the policy with this adapter; the base is the policy without."""
    lora_rank: int = 16
    """Rank of the adapter."""
    lora_alpha: int = 32
    """LoRA scale: the adapter's product is multiplied by alpha / rank."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the backbone's weights. auto: as the checkpoint holds them on a GPU, float32 on a CPU, which has no fast bfloat16. The adapter,
    its AdamW moments, log-probabilities and the image tokenizer stay float32 whatever this says."""


@dataclass(frozen=True)
class CurriculumConfig:
    """Which prompts are trained on."""

    tasks: tuple[str, ...] = ("t2i",)
    """Kinds of prompts: t2t, i2t, t2i, edit, interleaved, interleaved_edit (with an input image). kind:2 has twice the share of others."""
    order: Literal["joint", "alternate"] = "joint"
    """joint: every batch holds every kind, in fixed quotas. alternate: every batch holds one kind, in turn."""
    canaries: tuple[str, ...] = ()
    """Tags of prompts that are never trained on, only measured (split canary), to show forgetting."""
    file: str = ""
    """The user's prompts in place of the scene world's: FILE.jsonl in GenEval's or TRL's format, or a data set; see
    docs/prompts_and_rewards.md."""
    image_fit: Literal["refuse", "crop", "pad"] = "refuse"
    """What becomes of pictures of another size than the policy's, in `curriculum.file` and `eval.file`. refuse: they are an error. crop:
    the middle of the policy's shape is taken and resized. pad: the whole is resized, and white is put around it."""
    rest: bool = True
    """Whether a prompt of `curriculum.file` sits out a pass after its group had no spread."""


@dataclass(frozen=True)
class RolloutConfig(SamplingOptions):
    """How outputs are sampled."""

    prompts: int = 16
    """Prompts per update."""
    group: int = 8
    """Rollouts per prompt (K)."""
    scored: int = 1
    """How many of the recorded steps have their complete guess scored as well (s), for arms with step rewards."""
    equal_calls: bool = True
    """Arms that score final outputs only sample (1 + scored) times as many rollouts per prompt: every arm makes equally many reward
    calls."""
    # What training wants otherwise than one sample does: steps to learn from, groups that differ, and images with a density.
    recorded: int = 4
    choice_temperature: float = 8.0
    flow_noise: float = 0.7
    workers: int = 2
    """Rollout actors."""
    threads: int = 1
    """Threads of each rollout actor."""
    chunk: int = 64
    """Rollouts denoised in one batch. Results depend on it by rounding only."""
    gpus: float = 0.0
    """GPUs of each rollout actor: 0 to 1, a fraction where several share one."""


@dataclass(frozen=True)
class RewardConfig:
    """What scores the outputs."""

    name: str = "scenes"
    """Reward: scenes (exact), scenes-clip, clip:DIRECTORY, clip:OWNER/NAME[@REVISION], or FILE.py:function or package.module:function of
    yours. A CLIP reward says how well image and text fit. That of scenes-clip is a small one of the scene world; the others are any CLIP or
    SigLIP model."""
    workers: int = 1
    """Reward actors."""
    timeout: float = 600.0
    """Seconds that a reward may take to score a chunk (`rollout.chunk`) of rollouts before the run ends with an error; 0 = any."""
    calibration: int = 256
    """Outputs of the base for training prompts; their mean and deviation standardise a CLIP reward. One deviation below the mean or more is
    0, one above or more is 1. 0 = not standardised. Other rewards have a scale of their own."""
    step_mix: float = 0.5
    """Step reward = step_mix x score of the guess + (1 - step_mix) x score of the final output."""
    strict_mix: float = 0.0
    """Score of an output = strict_mix x (1 where everything asked holds, else 0) + (1 - strict_mix) x soft score. Set it above 0 for
    outputs that are often nearly right and seldom right: their soft scores hardly tell the two apart. It has no effect on a reward without
    strict scores."""


@dataclass(frozen=True)
class PreferConfig:
    """How pairs are made from scored groups."""

    select: Literal["best_worst", "all_margin"] = "all_margin"
    """best_worst: the best against the worst of a group. all_margin: every informative pair, weighted by its margin."""
    min_margin: float = 0.02
    """Pairs whose rewards differ by less are dropped."""
    min_best: float = 0.0
    """Pairs whose better side has a reward of no more than this are dropped, if it is above 0."""
    credit: float = 0.0
    """For pararl_grpo: weight of the credit of single image cells and words in the advantages of their tokens. Credit is +1 as asked, -1
    against it, less its mean over the group. It has no effect on a reward that gives none."""
    balance: bool = True
    """Whether every kind of prompt weighs as much in the loss as it has prompts with a pair, however large its margins are."""


@dataclass(frozen=True)
class LearnerConfig(DrawingOptions):
    """How the adapter is updated."""

    trainer: Literal["pararl", "trl"] = "pararl"
    """Whose code takes the steps. trl: TRL's DPOTrainer, for arm offline_dpo on texts of Show-o (i2t). It takes the same pairs and settings
    and the exact log-likelihood of a text per token, whatever learner.likelihood says."""
    lr: float = 1e-3
    """AdamW learning rate."""
    schedule: Literal["constant", "linear"] = "constant"
    """linear: the learning rate falls from lr at the first update towards 0 behind the last of run.updates."""
    weight_decay: float = 0.0
    """AdamW weight decay."""
    clip_norm: float = 1.0
    """Gradient norm above which the gradient is scaled down."""
    beta: float = 1.0
    """Inverse temperature of the preference loss, on per-modality length-normalised log-ratios."""
    reference_every: int = 1
    """Updates between refreshes of the preference loss's reference to the current policy; 0 = what the run starts from, throughout."""
    kl: float = 0.0
    """Weight of the KL penalty of pararl_grpo, to what the run starts from; with ELBOs of continuous images that of the squared change of
    velocities."""
    clip_ratio: float = 0.2
    """Clip range of pararl_grpo's ratios."""
    nll: float = 0.0
    """Weight of the negative log-likelihood of the chosen side, against falling likelihoods."""
    likelihood: Literal["steps", "elbo"] = "steps"
    """steps: exact conditionals of the tokens committed at the recorded steps. elbo: ELBO at shared draws, whatever the trajectory; of
    Show-o2's images the flow-matching loss. Not for arm pararl, whose pairs are of steps; pararl_grpo has then the final output's advantage
    alone."""
    draws: int = 4
    """Monte-Carlo draws of an ELBO."""
    # The command line and YAML write -1 for None.
    image_ratio: float = -1.0
    text_ratio: float = -1.0
    negatives: Literal["elbo", "spg"] = "elbo"
    """What the rejected side of a pair is measured by under likelihood elbo. spg: spg_mix x upper bound + (1 - spg_mix) x ELBO."""
    spg_mix: float = 0.5
    """Weight of the upper bound in that mixture."""
    spg_beta: float = 1.5
    """Power of the upper bound, at least 1: the larger, the more it is about the draws in which a token is likely."""
    micro: int = 32
    """Sequences per forward of the learner; fewer take less memory and give the same gradient. On a CPU few are fastest: their
    activations stay in the cache."""
    gradient_checkpointing: bool = False
    """Whether the learner keeps only the inputs of the backbone's blocks and computes each block again in the backward pass. It gives the
    same gradient in about a twentieth of the memory and takes half as much time again."""
    threads: int = 2
    """Threads of the learner."""
    gpus: float = 0.0
    """GPUs of the learner: 0 to 1."""
    text_weight: float = 1.0
    """Weight of the text modality in the sum of per-modality log-likelihoods."""
    image_weight: float = 1.0
    """Weight of the image modality."""


@dataclass(frozen=True)
class EvalConfig:
    """How the base and every adapter are measured."""

    prompts: int = 256
    """Prompts per split and kind."""
    every: int = 20
    """Updates between evaluations of the ID split during training; 0 = only before and after."""
    first: int = 0
    """Index of the first prompt of each split: settings that were chosen on some prompts are better reported on others."""
    during: int = 64
    """Prompts of those evaluations, per kind."""
    tasks: tuple[str, ...] = ()
    """Kinds of prompts that are measured; empty = those of curriculum.tasks."""
    file: str = ""
    """The user's prompts that are measured, as split id, in place of the scene world's: as curriculum.file."""
    splits: tuple[str, ...] = ("id", "ood_pair", "ood_rel", "ood_count", "para")
    """Splits measured at the end."""
    seed: int = 1_000_003
    """Seed of the evaluation's rollouts: the same for every arm."""
    reward: str = ""
    """Reward that measures, in evaluations and beside the training reward of every update; empty = reward.name."""


@dataclass(frozen=True)
class TrackConfig:
    """Weights & Biases."""

    mode: Literal["auto", "offline", "online", "disabled"] = "auto"
    """auto: online when the user is logged in, else offline."""
    project: str = "pararl"
    """W&B project."""
    images: int = 8
    """Fixed prompts whose images are logged at every evaluation."""


@dataclass(frozen=True)
class Config:
    """A run of pararl."""

    run: RunConfig = field(default_factory=RunConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    prefer: PreferConfig = field(default_factory=PreferConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    arm: Mapping[str, Mapping[str, Any]] = field(default_factory=arm_defaults)
    """Per-arm overrides, `{arm: {"learner.lr": 3e-4}}`: any setting of learner and prefer, reward.step_mix and reward.strict_mix."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    track: TrackConfig = field(default_factory=TrackConfig)


SECTIONS: dict[str, type] = {f.name: f.type for f in fields(Config) if isinstance(f.type, type) and is_dataclass(f.type)}
"""The sections of ``Config`` in order; ``arm`` is not one of them."""
SETTINGS: dict[str, Any] = {f"{name}.{f.name}": f.type for name, section in SECTIONS.items() for f in fields(section)}
"""Every setting as ``section.key`` with its declared type."""
INHERITED = {f"{name}.{f.name}" for name, kind in SECTIONS.items() for base in kind.__bases__ if is_dataclass(base) for f in fields(base)}
"""Those among them that ``pararl/options.py`` defines."""
PER_ARM = tuple(key for key in SETTINGS if key.startswith(("learner.", "prefer."))) + ("reward.step_mix", "reward.strict_mix")
"""What an arm may set for itself; whatever would change its budget of reward calls or updates is left out."""


def flat(config: Config) -> dict[str, Any]:
    """Every setting of ``config`` as ``{"section.key": value}``, ``arm`` left out."""
    return {key: getattr(getattr(config, key.partition(".")[0]), key.partition(".")[2]) for key in SETTINGS}


def changed(config: Config, values: Mapping[str, Any]) -> Config:
    """``config`` with the settings of ``values`` (``{"section.key": value}``) in place of its own."""
    sections: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    return replace(config, **{name: replace(getattr(config, name), **own) for name, own in sections.items()})


def measuring(config: Config) -> str:
    """The name of the reward that measures."""
    return config.eval.reward or config.reward.name


def checking(config: Config) -> str:
    """The reward that the specs of training prompts must suit: scenes, which reads them, where it trains or measures."""
    return "scenes" if measuring(config) == "scenes" else config.reward.name


def for_arm(config: Config, arm: str) -> Config:
    """The settings that ``arm`` runs with: its own overrides applied, ``arm`` emptied. Raises ConfigError for an unknown arm."""
    if arm not in ARMS:
        raise ConfigError(f"unknown arm {arm!r} (known: {', '.join(ARMS)})")
    return replace(changed(config, config.arm.get(arm, {})), arm={})
