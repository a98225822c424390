"""The learner: from rollouts and what they teach to one update of the adapter."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor

from pararl import adapter, optimizer_state
from pararl.arms import ArmSpec
from pararl.config import LearnerConfig
from pararl.learner.accumulate import backward
from pararl.learner.credit import image_credit, text_credit
from pararl.learner.elbo_terms import ElboTerms
from pararl.learner.objectives import OBJECTIVES, Taught
from pararl.learner.prefer import Feedback
from pararl.learner.step_terms import StepTerms, chunked
from pararl.learner.tables import Table, kl_metrics, longest, step_table
from pararl.learner.terms import Metrics
from pararl.types import Modality, Rollout
from policies import Batch, Policy

KL_ROLLOUTS = 32
"""Rollouts of a batch on which the KL to the base is estimated."""
Step = Callable[[Batch, Feedback], Metrics]
"""One optimiser step on a batch, all of which the loss needs; raises FloatingPointError where loss or gradient are not finite."""


class Learner:
    """Holds the policy with its adapter, the optimiser and the reference; ``update`` takes one step."""

    def __init__(
        self, policy: Policy, peft: PeftModel, config: LearnerConfig, arm: ArmSpec, seed: int = 0, updates: int | None = None
    ) -> None:
        """``updates``: of the whole run, which a schedule of the learning rate needs to know. Raises ValueError for settings that do not
        go together."""
        if config.schedule != "constant" and not updates:
            raise ValueError(f"learner.schedule {config.schedule} needs the number of updates of the run")
        if config.likelihood == "elbo" and arm.reward == "step" and arm.objective != "grpo":
            raise ValueError("an ELBO is the likelihood of a whole output: this arm learns from steps, use learner.likelihood steps")
        if config.negatives == "spg" and (config.likelihood != "elbo" or arm.objective != "preference"):
            raise ValueError("learner.negatives spg is about the rejected sides of pairs measured by ELBOs: use learner.negatives elbo")
        self.policy, self.peft, self.config, self.arm, self.seed = policy, peft, config, arm, seed
        policy.checkpoint_gradients(config.gradient_checkpointing)
        self.updates = updates
        self.version = 0
        self.reference: dict[str, Tensor] | None = None
        """Adapter of the reference policy; None = the base."""
        self.reference_version = 0
        self.parameters = [p for _, p in sorted(peft.named_parameters()) if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=config.lr, betas=(0.9, 0.99), weight_decay=config.weight_decay)
        self.step: Step = self.own_step
        """Who takes the steps."""

    def update(self, rollouts: Sequence[Rollout], feedback: Feedback) -> Metrics:
        """One optimiser step on a batch; returns its metrics. A batch that teaches nothing leaves the adapter as it is.

        Raises FloatingPointError when the loss or the gradient is not finite; the adapter is then unchanged.
        """
        metrics: Metrics = {"learner/pairs": float(len(feedback.pairs))}
        batch = self.policy.prepare(rollouts)
        used = by_task(batch, feedback.teaching(final=self.config.likelihood == "elbo"))
        if used:
            for entry in self.optimizer.param_groups:
                entry["lr"] = self.lr
            metrics |= self.step(batch.take(used), feedback.take(used))
            metrics["learner/lr"] = self.lr
        self.version += 1
        if batch[0].version:
            metrics |= self.kl(batch)
        # A KL penalty is to the base: to the policy of the last update, which sampled the batch, its gradient would be 0.
        refreshes = self.arm.objective == "preference" and self.config.reference_every
        if refreshes and self.version % refreshes == 0:
            self.reference = {name: x.clone() for name, x in adapter.tensors(self.peft).items()}
            self.reference_version = self.version
        return metrics

    def own_step(self, batch: Batch, feedback: Feedback) -> Metrics:
        """A step of AdamW on the loss of the arm's objective."""
        self.optimizer.zero_grad(set_to_none=True)
        loss, metrics = self._backward(batch, feedback)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm).item()
        self.check_finite(loss, norm)
        if norm:  # where nothing is taught, AdamW's moments would still move the adapter
            self.optimizer.step()
        return {"loss/total": loss, "learner/grad_norm": norm, **metrics}

    def check_finite(self, loss: float, norm: float) -> None:
        """Raise FloatingPointError unless loss and gradient norm are finite."""
        if not np.isfinite(loss) or not np.isfinite(norm):
            raise FloatingPointError(f"update {self.version + 1}: loss {loss}, gradient norm {norm}; lower learner.lr or check the rewards")

    def _backward(self, batch: Batch, feedback: Feedback) -> tuple[float, Metrics]:
        """Add the gradient of the objective to the adapter; the loss and its metrics."""
        evidence = self._evidence(batch)
        if isinstance(evidence, StepTerms) and not evidence.committed.any():  # nothing but fill at the recorded steps
            return 0.0, {}
        relative = self.arm.objective == "grpo"
        draws = isinstance(evidence, ElboTerms)
        needed = self.arm.objective == "preference" or (relative and self.config.kl > 0 and not draws)
        with torch.no_grad():
            parts = evidence.reference(self.reference_version, self._as_reference) if needed else None
        reference = None if parts is None else evidence.terms(parts)
        taught = Taught(feedback, self._credit(batch, feedback, evidence.width), self.config)

        def loss_of(found: list[Tensor]) -> tuple[Tensor, Metrics]:
            return OBJECTIVES[self.arm.objective](evidence.terms(found), reference, taught)

        # A reference that was refreshed after the last update is the policy itself: its pass is the first pass too.
        fresh = parts if self.reference is not None and self.reference_version == self.version else None
        if relative and isinstance(evidence, ElboTerms):
            loss, metrics = backward(evidence.parts(), loss_of, evidence.shapes(), linear=True)
        else:
            loss, metrics = backward(evidence.parts(), loss_of, evidence.known(fresh))
        return loss, metrics | evidence.metrics()

    def _evidence(self, batch: Batch) -> StepTerms | ElboTerms:
        """What the likelihoods of a batch are read from: its recorded steps, or draws that depend on seed and version alone."""
        if self.config.likelihood == "steps":
            return StepTerms(self.policy, batch, self.config.micro, all(r.version == self.version for r in batch))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.version)
        penalised = self.arm.objective == "grpo" and self.config.kl > 0
        return ElboTerms(self.policy, batch, self.config, generator, self._as_base if penalised else None)

    def _credit(self, batch: Batch, feedback: Feedback, width: int) -> dict[Modality, Tensor]:
        """What is added to the advantages of single tokens."""
        found: dict[Modality, Tensor] = {}
        if feedback.words:
            found["text"] = text_credit(self.policy, batch, feedback.words, width)
        if feedback.credit is not None:
            found["image"] = image_credit(self.policy, feedback.credit, width)
        return found

    def _as_base(self) -> AbstractContextManager[None]:
        return adapter.base(self.peft)

    def _as_reference(self) -> AbstractContextManager[None]:
        return self._as_base() if self.reference is None else swapped(self.peft, self.reference)

    @property
    def lr(self) -> float:
        """Learning rate of the next update: a function of the version, so that a resumed run goes on with it."""
        if self.config.schedule == "constant" or not self.updates:
            return self.config.lr
        return self.config.lr * max(0.0, 1 - self.version / self.updates)

    @torch.no_grad()
    def kl(self, rollouts: Sequence[Rollout]) -> Metrics:
        """``kl/...`` to the base, per token and modality, of the policy that sampled the batch, on some of its rollouts; 0 for the
        base itself."""
        batch = self.policy.prepare(rollouts)
        some = batch.take(np.linspace(0, len(batch) - 1, min(len(batch), KL_ROLLOUTS)).astype(int).tolist())
        width = longest(some)
        with self._as_base():
            tables = [step_table(self.policy, chunk, width) for chunk in chunked(some, self.config.micro)]
        return kl_metrics(Table(*(torch.cat([getattr(t, f.name) for t in tables]) for f in fields(Table))))

    # ---- what a checkpoint keeps

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """All that ``load_state`` needs to go on as if never stopped: arrays (adapter, moments, reference) and counters."""
        named = {f"adapter.{n}": x for n, x in adapter.tensors(self.peft).items()}
        named |= {f"reference.{n}": x for n, x in (self.reference or {}).items()}
        named |= {f"moments.{n}": x for n, x in optimizer_state.flattened(self.optimizer).items()}
        arrays = {n: x.detach().cpu().numpy().copy() for n, x in named.items()}
        return arrays, {"version": self.version, "reference_version": self.reference_version}

    def load_state(self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, float]) -> None:
        """Continue from what ``state`` gave. Raises ValueError where the adapter does not fit."""
        found: dict[str, dict[str, Tensor]] = {"adapter": {}, "reference": {}, "moments": {}}
        for name, array in arrays.items():
            kind, rest = name.split(".", 1)
            found[kind][rest] = torch.from_numpy(np.array(array))
        adapter.load_tensors(self.peft, found["adapter"])
        optimizer_state.load_flattened(self.optimizer, found["moments"])
        self.reference = {n: x.to(self.policy.device) for n, x in found["reference"].items()} or None
        self.version, self.reference_version = int(facts["version"]), int(facts["reference_version"])


def by_task(rollouts: Sequence[Rollout], index: Sequence[int]) -> list[int]:
    """The indices with those of one task side by side, otherwise in their order: a chunk that mixes tasks takes a forward for each.

    Within a task prompts with an input image, whose sequences are longer, stand behind those without.
    """
    tasks = list(dict.fromkeys(rollouts[i].prompt.task for i in index))
    return sorted(index, key=lambda i: (tasks.index(rollouts[i].prompt.task), rollouts[i].prompt.image is not None))


@contextmanager
def swapped(peft: PeftModel, values: dict[str, Tensor]) -> Iterator[None]:
    """Within the block the adapter holds ``values``; its own come back at the end."""
    own = {name: x.clone() for name, x in adapter.tensors(peft).items()}
    adapter.load_tensors(peft, values)
    try:
        yield
    finally:
        adapter.load_tensors(peft, own)
