"""The learner: from rollouts and what they teach to one update of the adapter."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from torch.optim import Optimizer

from pararl import adapter, optimizer_state
from pararl.arms import ArmSpec
from pararl.config import LearnerConfig
from pararl.learner.objectives import OBJECTIVES
from pararl.learner.prefer import Feedback
from pararl.learner.reference import Reference
from pararl.learner.stepper import GradientStepper, Stepper
from pararl.learner.tables import chunks, joined, kl_metrics, longest, step_table
from pararl.types import Metrics, Rollout
from policies import Batch, Policy

KL_ROLLOUTS = 32
"""Rollouts of a batch on which the KL to the base is estimated."""


class Learner:
    """Holds the policy with its adapter, the optimiser and the reference; ``update`` takes one step."""

    def __init__(
        self,
        policy: Policy,
        peft: PeftModel,
        config: LearnerConfig,
        arm: ArmSpec,
        seed: int = 0,
        updates: int | None = None,
        stepper: Callable[[Optimizer], Stepper] | None = None,
        started: bool = False,
    ) -> None:
        """``updates``: of the whole run, which a schedule of the learning rate needs to know. ``stepper``: makes what takes the steps of
        an optimiser; None = a ``GradientStepper``. ``started``: whether the adapter is one that a run starts from: it is then the
        reference. Raises ValueError for settings that do not go together."""
        if config.schedule != "constant" and not updates:
            raise ValueError(f"learner.schedule {config.schedule} needs the number of updates of the run")
        self.policy, self.peft, self.config, self.arm, self.updates = policy, peft, config, arm, updates
        policy.checkpoint_gradients(config.gradient_checkpointing)
        self.version = 0
        self.reference = Reference(peft)
        if started:
            self.reference.refresh(self.version)
        self.parameters = [p for _, p in sorted(peft.named_parameters()) if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=config.lr, betas=(0.9, 0.99), weight_decay=config.weight_decay)
        self.stepper: Stepper
        if stepper is None:
            self.stepper = GradientStepper(policy, self.reference, self.parameters, self.optimizer, config, arm, seed)
        else:
            self.stepper = stepper(self.optimizer)

    def update(self, rollouts: Sequence[Rollout], feedback: Feedback) -> Metrics:
        """One optimiser step on a batch; returns its metrics. A batch that teaches nothing leaves the adapter as it is.

        Raises FloatingPointError when the loss or the gradient is not finite; the adapter is then unchanged.
        """
        batch = self.policy.prepare(rollouts)
        metrics: Metrics = {"learner/pairs": float(len(feedback.pairs))}
        used = by_task(batch, feedback.used(final=self.config.likelihood == "elbo"))
        if used:
            for entry in self.optimizer.param_groups:
                entry["lr"] = self.lr
            metrics |= self.stepper.step(batch.take(used), feedback.take(used), self.version)
            metrics["learner/lr"] = self.lr
        self.version += 1
        if batch[0].version:
            metrics |= self._kl(batch.take(spread(len(batch))))
        refreshes = OBJECTIVES[self.arm.objective].refreshes and self.config.reference_every
        if refreshes and self.version % refreshes == 0:
            self.reference.refresh(self.version)
        return metrics

    @property
    def lr(self) -> float:
        """Learning rate of the next update: a function of the version, so that a resumed run goes on with it."""
        if self.config.schedule == "constant" or not self.updates:
            return self.config.lr
        return self.config.lr * max(0.0, 1 - self.version / self.updates)

    def kl(self, rollouts: Sequence[Rollout]) -> Metrics:
        """``kl/...`` to the base, per token and modality, of the policy that sampled the batch, on some of its rollouts; 0 for the
        base itself."""
        return self._kl(self.policy.prepare([rollouts[i] for i in spread(len(rollouts))]))

    @torch.no_grad()
    def _kl(self, batch: Batch) -> Metrics:
        with adapter.base(self.peft):
            tables = [step_table(self.policy, chunk, longest(batch)) for chunk in chunks(batch, self.config.micro)]
        return kl_metrics(joined(tables))

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """All that ``load_state`` needs to go on as if never stopped: arrays (adapter, moments, reference) and counters."""
        named = {f"adapter.{n}": x for n, x in adapter.tensors(self.peft).items()}
        named |= {f"reference.{n}": x for n, x in (self.reference.values or {}).items()}
        named |= {f"moments.{n}": x for n, x in optimizer_state.tensors(self.optimizer).items()}
        arrays = {n: x.detach().cpu().numpy().copy() for n, x in named.items()}
        return arrays, {"version": self.version, "reference_version": self.reference.version}

    def load_state(self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, float]) -> None:
        """Continue from what ``state`` gave. Raises ValueError where the adapter does not fit."""
        found: dict[str, dict[str, Tensor]] = {"adapter": {}, "reference": {}, "moments": {}}
        for name, array in arrays.items():
            kind, rest = name.split(".", 1)
            found[kind][rest] = torch.from_numpy(np.array(array))
        adapter.load_tensors(self.peft, found["adapter"])
        optimizer_state.load_tensors(self.optimizer, found["moments"])
        self.reference.load({n: x.to(self.policy.device) for n, x in found["reference"].items()}, int(facts["reference_version"]))
        self.version = int(facts["version"])


def spread(count: int) -> list[int]:
    """Evenly spaced places in a batch of ``count`` rollouts, ``KL_ROLLOUTS`` at most."""
    places: list[int] = np.linspace(0, count - 1, min(count, KL_ROLLOUTS)).astype(int).tolist()
    return places


def by_task(rollouts: Sequence[Rollout], index: Sequence[int]) -> list[int]:
    """The indices with those of one task side by side, otherwise in their order: a chunk that mixes tasks takes a forward for each.

    Within a task prompts with an input image, whose sequences are longer, stand behind those without.
    """
    tasks = list(dict.fromkeys(rollouts[i].prompt.task for i in index))
    return sorted(index, key=lambda i: (tasks.index(rollouts[i].prompt.task), rollouts[i].prompt.image is not None))
