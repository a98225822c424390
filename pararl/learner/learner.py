"""The learner: from rollouts and what they teach to one update of the adapter."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields
from functools import partial

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor

from pararl import adapter
from pararl.arms import ArmSpec
from pararl.config import LearnerConfig
from pararl.learner.accumulate import backward
from pararl.learner.credit import image_credit, text_credit
from pararl.learner.elbo_terms import Bounds, Cell, Evidence
from pararl.learner.losses import Figures, accuracy, clipped_loss, likelihood_loss, preference_loss
from pararl.learner.prefer import Feedback
from pararl.learner.tables import Table, check_densities, kl_figures, longest, step_records, step_table
from pararl.types import MODALITIES, Modality, Rollout
from policies import DrawTokens, Policy
from policies.likelihood.kl import k3

KL_ROLLOUTS = 32
"""Rollouts of a batch on which the KL to the base is estimated."""


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

    def update(self, rollouts: Sequence[Rollout], feedback: Feedback) -> Figures:
        """One optimiser step on a batch; returns its figures. A batch that teaches nothing leaves the adapter as it is.

        Raises FloatingPointError when the loss or the gradient is not finite; the adapter is then unchanged.
        """
        figures: Figures = {"preference/pairs": float(len(feedback.pairs))}
        used = by_task(rollouts, self._used(feedback))
        if used:
            for entry in self.optimizer.param_groups:
                entry["lr"] = self.lr
            figures |= self._step([rollouts[i] for i in used], feedback, {i: k for k, i in enumerate(used)})
            figures["preference/lr"] = self.lr
        self.version += 1
        if rollouts[0].version:
            figures |= self.kl(rollouts)
        # A KL penalty is to the base: to the policy of the last update, which sampled the batch, its gradient would be 0.
        refreshes = self.arm.objective == "preference" and self.config.reference_every
        if refreshes and self.version % refreshes == 0:
            self.reference = {name: x.clone() for name, x in adapter.tensors(self.peft).items()}
            self.reference_version = self.version
        return figures

    def _step(self, rollouts: list[Rollout], feedback: Feedback, place: dict[int, int]) -> Figures:
        """One optimiser step on the rollouts that the loss needs, at the ``place`` of their index in the batch."""
        self.optimizer.zero_grad(set_to_none=True)
        loss, figures = self._backward(rollouts, feedback, place)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm).item()
        self._check_finite(loss, norm)
        if norm:  # where nothing is taught, AdamW's moments would still move the adapter
            self.optimizer.step()
        return {"preference/loss": loss, "preference/grad_norm": norm, **figures}

    def _check_finite(self, loss: float, norm: float) -> None:
        if not np.isfinite(loss) or not np.isfinite(norm):
            raise FloatingPointError(f"update {self.version + 1}: loss {loss}, gradient norm {norm}; lower learner.lr or check the rewards")

    @property
    def lr(self) -> float:
        """Learning rate of the next update: a function of the version, so that a resumed run goes on with it."""
        if self.config.schedule == "constant" or not self.updates:
            return self.config.lr
        return self.config.lr * max(0.0, 1 - self.version / self.updates)

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """All that ``load_state`` needs to go on as if never stopped: arrays (adapter, moments, reference) and counters."""
        moments = self.optimizer.state_dict()["state"]
        named = {f"adapter.{n}": x for n, x in adapter.tensors(self.peft).items()}
        named |= {f"reference.{n}": x for n, x in (self.reference or {}).items()}
        named |= {f"moments.{i}.{n}": x for i, entry in moments.items() for n, x in entry.items()}
        arrays = {n: x.detach().cpu().numpy().copy() for n, x in named.items()}
        return arrays, {"version": self.version, "reference_version": self.reference_version}

    def load_state(self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, float]) -> None:
        """Continue from what ``state`` gave. Raises ValueError where the adapter does not fit."""
        found: dict[str, dict[str, Tensor]] = {"adapter": {}, "reference": {}, "moments": {}}
        for name, array in arrays.items():
            kind, rest = name.split(".", 1)
            found[kind][rest] = torch.from_numpy(np.array(array))
        adapter.load_tensors(self.peft, found["adapter"])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, x in found["moments"].items():
            index, field = name.split(".")
            moments.setdefault(int(index), {})[field] = x
        self.optimizer.load_state_dict({"state": moments, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.reference = {n: x.to(self.policy.device) for n, x in found["reference"].items()} or None
        self.version, self.reference_version = int(facts["version"]), int(facts["reference_version"])

    def _used(self, feedback: Feedback) -> list[int]:
        """Indices of the rollouts that the loss needs, increasing."""
        if feedback.advantages is not None:
            # Of an ELBO, that of the final output alone: what scores of steps teach besides must not dilute it.
            final = self.config.likelihood == "elbo"
            teaches = (feedback.advantages[:, -1:] if final else feedback.advantages).any(1)
            if feedback.credit is not None:
                teaches |= feedback.credit.any((1, 2))
            return sorted({*np.flatnonzero(teaches).tolist(), *(i for i, words in feedback.words.items() if words.any())})
        return sorted({i for p in feedback.pairs for i in (p.chosen, p.rejected)} | set(feedback.best))

    def _chunks(self, rollouts: list[Rollout]) -> list[list[Rollout]]:
        """So many rollouts together that their recorded steps are ``learner.micro`` sequences; one at least."""
        count = max(1, self.config.micro // len(rollouts[0].recorded))
        return [rollouts[i : i + count] for i in range(0, len(rollouts), count)]

    def _backward(self, rollouts: list[Rollout], feedback: Feedback, place: dict[int, int]) -> tuple[float, Figures]:
        if self.config.likelihood == "elbo":
            return self._backward_elbo(rollouts, feedback, place)
        check_densities(rollouts)
        chunks = self._chunks(rollouts)
        width = longest(rollouts)
        needs_reference = self.arm.objective == "preference" or (self.arm.objective == "grpo" and self.config.kl > 0)
        with torch.no_grad():
            references = [self._reference_table(c, width) for c in chunks] if needs_reference else []
        records = [step_records(self.policy, c, width) for c in chunks]
        behaviour, committed = (torch.cat([record[i] for record in records]).to(self.policy.device) for i in range(2))
        if not committed.any():  # nothing but fill at the recorded steps
            return 0.0, {}
        # Where the policy is still the one that sampled, the sampler's own record is the first pass.
        on_policy = all(r.version == self.version for r in rollouts)
        known = [record[0].to(self.policy.device) for record in records] if on_policy else None

        def loss_of(parts: list[Tensor]) -> tuple[Tensor, Figures]:
            whole = Table(torch.cat(parts), behaviour, committed)
            reference = torch.cat(references) if references else whole.behaviour
            if self.arm.objective == "grpo":
                return self._grpo(whole, reference, feedback, list(place), text_credit(self.policy, rollouts, feedback, list(place), width))
            levels = self._weigh(whole.levels(whole.logprob))
            if self.arm.objective == "best":
                return likelihood_loss(levels[:, -1])
            return self._preference(levels, self._weigh(whole.levels(reference)), feedback, place)

        gaps: list[float] = []

        def part(chunk: list[Rollout]) -> Tensor:
            table = step_table(self.policy, chunk, width)
            if table.committed.any():
                gaps.append((table.logprob.detach() - table.behaviour)[table.committed].abs().max().item())
            return table.logprob

        loss, figures = backward([partial(part, chunk) for chunk in chunks], loss_of, known)
        # What the policy says now against what its sampler said: anything but rounding means that they are not the same model.
        # No gap where no part had a gradient: every advantage may stand at a step that committed nothing but fill.
        return loss, figures | ({"sync/logprob_gap": max(gaps)} if on_policy and gaps else {})

    def _backward_elbo(self, rollouts: list[Rollout], feedback: Feedback, place: dict[int, int]) -> tuple[float, Figures]:
        """The same with bounds at shared draws in place of the exact conditionals; takes rollouts in the order of ``by_task``."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.version)
        evidence = Evidence(self.policy, rollouts, self.config, generator)
        if self.arm.objective == "grpo":
            return self._backward_weighted(evidence, rollouts, feedback, list(place))
        reference: Bounds | None = None
        known: list[Tensor] | None = None
        if self.arm.objective == "preference":
            with torch.no_grad(), self._as_reference():
                parts = [part() for part in evidence.parts()]
            reference = evidence.bounds(parts)
            # A reference that was refreshed after the last update is the policy itself: its pass is the first pass too.
            known = parts if self.reference is not None and self.reference_version == self.version else None

        def loss_of(parts: list[Tensor]) -> tuple[Tensor, Figures]:
            found = evidence.bounds(parts)
            loglik = self._weigh(found.lower)[:, None]
            if reference is None:
                return likelihood_loss(loglik.mean(1))
            rejected = self._weigh(found.rejected - reference.rejected)[:, None]
            return self._preference(loglik, self._weigh(reference.lower)[:, None], feedback, place, rejected)

        return backward(evidence.parts(), loss_of, known)

    def _backward_weighted(self, evidence: Evidence, rollouts: list[Rollout], feedback: Feedback, used: list[int]) -> tuple[float, Figures]:
        """The gradient of Eq. 3 where the policy is the one that sampled, with the ELBO of the final output in place of conditionals at
        steps: every token's part of it times its advantage (UDM-GRPO, arXiv 2604.18518), less ``learner.kl`` times what it has moved from
        the base. A sum over the parts, hence one pass."""
        assert feedback.advantages is not None
        width = evidence.width
        place = {id(rollout): row for row, rollout in enumerate(rollouts)}
        advantage = (
            torch.from_numpy(feedback.advantages[used][:, -1]).to(self.policy.device)[:, None, None].repeat(1, len(MODALITIES), width)
        )
        advantage[:, MODALITIES.index("text")] += text_credit(self.policy, rollouts, feedback, used, width)
        if feedback.credit is not None:
            advantage[:, MODALITIES.index("image")] += image_credit(self.policy, feedback.credit[used], width)
        count = {m: sum(r.segment(m) is not None for r in rollouts) * self.config.draws for m in MODALITIES}
        total = 0.0
        penalties: Figures = {}
        for cell in evidence.cells:
            rows = [place[id(rollout)] for rollout in cell.rollouts]
            base = self._base_tokens(cell) if self.config.kl else None
            loss = torch.zeros((), device=self.policy.device)
            for modality, tokens in self.policy.draw_tokens(cell.rollouts, cell.draw).items():
                counted = cell.draw.counted[modality][0].sum(-1)
                gain = advantage[rows, MODALITIES.index(modality), : tokens.logprob.shape[-1]] * tokens.logprob
                part = -(gain.sum(-1) / counted).sum() / count[modality]  # both are 0 where a token is not counted
                if base is not None:
                    penalty = (tokens.divergence(base[modality]).sum(-1) / counted).sum() / count[modality]
                    part = part + self.config.kl * penalty
                    name = f"preference/kl_penalty_{modality}"
                    penalties[name] = penalties.get(name, 0.0) + penalty.item()
                loss = loss + self._weight(modality) * part
            loss.backward()
            total += loss.item()
        return total, penalties

    @torch.no_grad()
    def _base_tokens(self, cell: Cell) -> dict[Modality, DrawTokens]:
        """What the base says of the tokens of a cell."""
        with adapter.base(self.peft):
            return self.policy.draw_tokens(cell.rollouts, cell.draw)

    def _weigh(self, per_modality: Tensor) -> Tensor:
        """Weighted sum over the last, modality axis."""
        return per_modality @ torch.tensor([self._weight(m) for m in MODALITIES], device=per_modality.device)

    def _weight(self, modality: Modality) -> float:
        return {"text": self.config.text_weight, "image": self.config.image_weight}[modality]

    def _preference(
        self, policy: Tensor, reference: Tensor, feedback: Feedback, place: dict[int, int], against: Tensor | None = None
    ) -> tuple[Tensor, Figures]:
        """DPO on log-likelihoods [batch, level]: of the recorded steps, and last of the final output. ``against``: log-ratios of rejected
        sides, where they are measured otherwise than chosen ones."""
        ratio = policy - reference
        against = ratio if against is None else against
        column = torch.tensor([ratio.shape[1] - 1 if p.step is None else p.step for p in feedback.pairs])
        chosen = torch.tensor([place[p.chosen] for p in feedback.pairs])
        rejected = torch.tensor([place[p.rejected] for p in feedback.pairs])
        weights = torch.tensor([p.margin if p.weight is None else p.weight for p in feedback.pairs], device=ratio.device)
        loss, figures = preference_loss(ratio[chosen, column], against[rejected, column], self.config.beta, weights)
        # Against a reference that is the policy itself, margins are 0: how the policy ranks the pairs without one is logged beside them.
        gaps = (policy[chosen, column] - policy[rejected, column]).detach()
        figures["preference/likelihood_margin"] = gaps.mean().item()
        figures["preference/likelihood_accuracy"] = accuracy(gaps)
        if self.config.nll:
            anchor = -policy[chosen.unique(), -1].mean()
            loss = loss + self.config.nll * anchor
            figures["preference/nll"] = anchor.item()
        return loss, figures

    def _grpo(self, table: Table, reference: Tensor, feedback: Feedback, used: list[int], words: Tensor) -> tuple[Tensor, Figures]:
        """Eq. 3 on the recorded steps of each modality, each step with its own advantage; the last column, that of the final output
        alone, has no tokens. Modalities are normalised by their own tokens and weighed, so that the longer does not swamp the shorter."""
        assert feedback.advantages is not None
        advantages = torch.from_numpy(feedback.advantages[used]).to(table.logprob.device)
        loss = torch.zeros((), device=table.logprob.device)
        figures: Figures = {}
        for m, modality in enumerate(MODALITIES):
            logprob, behaviour, committed = (x[:, :, m] for x in (table.logprob, table.behaviour, table.committed))
            if not committed.any():
                continue
            advantage = advantages[:, :-1, None]
            if modality == "image" and feedback.credit is not None:
                advantage = advantage + image_credit(self.policy, feedback.credit[used], logprob.shape[-1])[:, None]
            elif modality == "text":
                advantage = advantage + words[:, None]
            part, more = clipped_loss(logprob, behaviour, advantage, committed, self.config.clip_ratio)
            if self.config.kl:
                penalty = k3(logprob, reference[:, :, m])[committed].mean()
                part = part + self.config.kl * penalty
                figures[f"preference/kl_penalty_{modality}"] = penalty.item()
            loss = loss + self._weight(modality) * part
            figures |= {f"{name}_{modality}": value for name, value in more.items()}
        return loss, figures

    def _reference_table(self, rollouts: list[Rollout], width: int) -> Tensor:
        """Reference log-probabilities; those that the sampler recorded where it was the reference, which saves the forward."""
        if all(r.version == self.reference_version for r in rollouts):
            return step_records(self.policy, rollouts, width)[0].to(self.policy.device)
        with self._as_reference():
            return step_table(self.policy, rollouts, width).logprob

    def _as_reference(self) -> AbstractContextManager[None]:
        return adapter.base(self.peft) if self.reference is None else swapped(self.peft, self.reference)

    @torch.no_grad()
    def kl(self, rollouts: Sequence[Rollout]) -> Figures:
        """``kl/...`` to the base, per token and modality, of the policy that sampled the batch, on some of its rollouts; 0 for the
        base itself."""
        some = [rollouts[i] for i in np.linspace(0, len(rollouts) - 1, min(len(rollouts), KL_ROLLOUTS)).astype(int)]
        with adapter.base(self.peft):
            tables = [step_table(self.policy, chunk, longest(some)) for chunk in self._chunks(some)]
        return kl_figures(Table(*(torch.cat([getattr(t, f.name) for t in tables]) for f in fields(Table))))


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
