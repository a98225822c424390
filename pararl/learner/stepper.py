"""What takes a learner's optimiser steps."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from pararl.arms import ArmSpec
from pararl.config import LearnerConfig
from pararl.learner.accumulate import backward
from pararl.learner.credit import signal_of
from pararl.learner.elbo_terms import ElboTerms
from pararl.learner.objectives import OBJECTIVES, check
from pararl.learner.prefer import Feedback
from pararl.learner.reference import Reference
from pararl.learner.step_terms import StepTerms
from pararl.learner.terms import Terms
from pararl.types import Metrics
from policies import Batch, Policy


class Stepper(Protocol):
    """Takes the steps: ``GradientStepper``, or TRL's (``trl_dpo.TrlStepper``)."""

    def step(self, batch: Batch, feedback: Feedback, version: int) -> Metrics:
        """One optimiser step of the policy of that version on the rollouts that ``feedback`` is about; its ``loss/...`` and
        ``learner/grad_norm``.

        Raises FloatingPointError when the loss or the gradient is not finite.
        """


class GradientStepper:
    """Terms of the policy, terms of the reference, the objective's gradient part by part, and a step along it."""

    def __init__(
        self,
        policy: Policy,
        reference: Reference,
        parameters: Sequence[Tensor],
        optimizer: Optimizer,
        config: LearnerConfig,
        arm: ArmSpec,
        seed: int,
    ) -> None:
        """``seed``: of the draws, with the version. Raises ValueError where the arm and the likelihood do not go together."""
        check(config, arm)
        self.policy, self.reference, self.parameters, self.optimizer = policy, reference, parameters, optimizer
        self.config, self.objective, self.seed = config, OBJECTIVES[arm.objective], seed

    def step(self, batch: Batch, feedback: Feedback, version: int) -> Metrics:
        """See ``Stepper``. The adapter is unchanged where it raises. Rollouts of a task stand side by side."""
        self.optimizer.zero_grad(set_to_none=True)
        loss, metrics = self._backward(batch, feedback, version)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm).item()
        check_finite(loss, norm, version)
        if norm:  # where nothing is taught, AdamW's moments would still move the adapter
            self.optimizer.step()
        return {"loss/total": loss, "learner/grad_norm": norm, **metrics}

    def _backward(self, batch: Batch, feedback: Feedback, version: int) -> tuple[float, Metrics]:
        terms = self._terms(batch, version)
        if terms.empty:
            return 0.0, {}
        reference = terms.reference(self.reference) if self.objective.reference(self.config) else None
        signal = signal_of(self.policy, batch, feedback, terms.width)

        def loss_of(parts: list[Tensor]) -> tuple[Tensor, Metrics]:
            return self.objective.loss(terms.likelihoods(parts), reference, signal, self.config)

        loss, metrics = backward(terms.parts(), loss_of, terms.known(), terms.linear)
        return loss, metrics | terms.metrics()

    def _terms(self, batch: Batch, version: int) -> Terms:
        if self.config.likelihood == "steps":
            return StepTerms(self.policy, batch, self.config.micro, version)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + version)
        return ElboTerms(self.policy, batch, self.config, generator, version, self.objective.tokens)


def check_finite(loss: float, norm: float, version: int) -> None:
    """Raise FloatingPointError where the loss or the gradient norm of the update after ``version`` is not finite."""
    if not np.isfinite(loss) or not np.isfinite(norm):
        raise FloatingPointError(f"update {version + 1}: loss {loss}, gradient norm {norm}; lower learner.lr or check the rewards")
