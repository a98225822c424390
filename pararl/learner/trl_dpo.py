"""DPO by TRL: a learner whose steps TRL's ``DPOTrainer`` takes, for texts of Show-o.

Loss, reference, gradient, its clipping and the step are TRL's own code. What TRL would do to words (templates, tokenizing, an end token
behind every answer) is left out: it gets the tokens that were sampled. Its loss ``sigmoid_norm`` is the one of ``preference_loss``, on the
exact log-likelihood of a text per token. (Its ``sigmoid`` is that of the paper, on sums over the tokens.)
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from tempfile import gettempdir
from typing import Any

from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from pararl import adapter
from pararl.arms import ArmSpec
from pararl.config import LearnerConfig
from pararl.learner.learner import Learner
from pararl.learner.prefer import Feedback
from pararl.learner.stepper import check_finite
from pararl.learner.trl_view import TextView
from pararl.types import Metrics, Rollout
from policies import Batch, Policy

Row = dict[str, list[int]]
"""A pair as TRL has it: ``prompt_ids``, ``chosen_ids`` and ``rejected_ids``, none of them padded."""

TOLD = ("rewards/", "logps/", "entropy", "mean_token_accuracy")
"""What TRL logs that is logged here: sums over the tokens of a text, and means over its batches whatever they weigh. Means of logits are
left out: those of forbidden rows are in them."""


@dataclass(frozen=True, slots=True)
class Part:
    """Pairs that weigh the same and go through the model together."""

    rows: list[Row]
    scale: float
    """What TRL's loss of them, a mean, is multiplied by, so that the mean over the parts of a step is the weighted mean over its pairs."""


def token_rows(policy: Policy, pairs: Sequence[tuple[Rollout, Rollout]]) -> list[Row]:
    """Pairs (chosen, rejected) of texts as TRL's rows: of a text all tokens up to its first end token, which is the last."""
    prefixes = policy.prepare([chosen for chosen, _ in pairs]).prefixes
    return [
        {"prompt_ids": list(prefix), "chosen_ids": _said(policy, chosen), "rejected_ids": _said(policy, rejected)}
        for prefix, (chosen, rejected) in zip(prefixes, pairs, strict=True)
    ]


def _said(policy: Policy, rollout: Rollout) -> list[int]:
    text = rollout.segment("text")
    if text is None or len(rollout.segments) > 1:
        raise ValueError(f"prompt {rollout.prompt.id}: TRL learns from texts alone, not from task {rollout.prompt.task}")
    said: list[int] = text.tokens[~policy.fill(text)].tolist()
    return said


def parts_of(rows: Sequence[Row], weights: Sequence[float], size: int) -> list[Part]:
    """Rows as parts of at most ``size``: TRL knows no weights, so that only pairs of one weight share a part."""
    groups = [list(group) for _, group in groupby(sorted(range(len(rows)), key=weights.__getitem__), weights.__getitem__)]
    cut = [group[start : start + size] for group in groups for start in range(0, len(group), size)]
    return [Part([rows[i] for i in some], len(cut) * sum(weights[i] for i in some) / sum(weights)) for some in cut]


class PairTrainer(DPOTrainer):
    """A DPOTrainer whose data are ``Part``s."""

    def __init__(self, policy: Policy, rank: int, alpha: int, config: LearnerConfig, seed: int) -> None:
        """Put a new adapter into the policy, drawn from ``seed`` as ``adapter.attach`` draws it. Seeds torch's own random state."""
        collate = DataCollatorForPreference(policy.settings.specials.pad)
        super().__init__(
            TextView(policy),
            args=DPOConfig(
                gettempdir(),  # where TRL would write, if it wrote anything
                seed=seed,
                loss_type=["sigmoid_norm"],
                beta=config.beta * config.text_weight,
                max_grad_norm=config.clip_norm,
                max_steps=1,
                per_device_train_batch_size=1,
                train_sampling_strategy="sequential",
                max_length=None,
                remove_unused_columns=False,
                use_cpu=policy.device.type == "cpu",
                bf16=False,
                activation_checkpointing=False,  # the backbone's own switch does it
                dataloader_pin_memory=False,
                logging_steps=1,
                logging_nan_inf_filter=False,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
            ),
            data_collator=lambda parts: {"scale": parts[0].scale, **collate(parts[0].rows)},
            train_dataset=Dataset.from_list([{"chosen_ids": [0]}]),  # something to look at; each step brings its own
            processing_class=deepcopy(policy.layout.text.tokenizer),
            peft_config=adapter.lora_config(policy, rank, alpha),
        )
        self.remove_callback(PrinterCallback)

    @property
    def peft(self) -> PeftModel:
        """The model with its adapter."""
        assert isinstance(self.model, PeftModel)
        return self.model

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *_: Any, **__: Any) -> Tensor:
        """TRL's loss of a part, scaled."""
        batch = {name: value for name, value in inputs.items() if name != "scale"}
        loss: Tensor = super().compute_loss(model, batch) * inputs["scale"]
        return loss

    def step(self, parts: list[Part]) -> dict[str, float]:
        """One step of the optimiser on all ``parts`` together; what TRL logs of it."""
        self.train_dataset, self.args.gradient_accumulation_steps = parts, len(parts)
        self.train()
        logged: dict[str, float] = self.state.log_history[0]
        return logged


class TrlStepper:
    """Takes the steps of a learner of pairs of texts by a DPOTrainer, which lives as long as the learner does.

    Each update is one ``train()`` of one step, so that all that happens between updates (evaluations, checkpoints, a resume) is as it is
    for any learner. Optimiser and learning rate are handed to TRL. The reference is the base throughout.
    """

    def __init__(self, policy: Policy, trainer: PairTrainer, config: LearnerConfig, optimizer: Optimizer) -> None:
        self.policy, self.trainer, self.config = policy, trainer, config
        trainer.optimizer = optimizer
        # Each update sets its learning rate, which a scheduler of TRL's own would set anew as it begins.
        trainer.lr_scheduler = LambdaLR(optimizer, lambda _: 1.0)

    def step(self, batch: Batch, feedback: Feedback, version: int) -> Metrics:
        """See ``Stepper``; raises its FloatingPointError when the step is done."""
        rows = token_rows(self.policy, [(batch[p.chosen], batch[p.rejected]) for p in feedback.pairs])
        weights = [p.margin if p.weight is None else p.weight for p in feedback.pairs]
        logged = self.trainer.step(parts_of(rows, weights, max(1, self.config.micro // 2)))
        self.trainer.peft.eval()
        loss, norm = logged.pop("loss"), logged.pop("grad_norm")
        check_finite(loss, norm, version)
        theirs = {f"loss/trl_{name.replace('/', '_')}": value for name, value in logged.items() if name.startswith(TOLD)}
        return {"loss/total": loss, "learner/grad_norm": norm, **theirs}


def trl_learner(
    policy: Policy, rank: int, alpha: int, config: LearnerConfig, arm: ArmSpec, seed: int = 0, updates: int | None = None
) -> Learner:
    """A learner of pairs of texts whose steps are those of a DPOTrainer, which puts a new adapter into the policy."""
    trainer = PairTrainer(policy, rank, alpha, config, seed)
    return Learner(policy, trainer.peft.eval(), config, arm, seed, updates, partial(TrlStepper, policy, trainer, config))
