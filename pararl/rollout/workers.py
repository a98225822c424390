"""What a rollout actor does, as a plain class without Ray. This module loads no torch: a worker loads it when it is made."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pararl import sync
from pararl.config import Config, LearnerConfig, RolloutConfig
from pararl.sync import AdapterBuffer, SyncError
from pararl.types import Prompt, Receipt, Rollout

if TYPE_CHECKING:
    import torch

    from policies import Policy, Sampling


@dataclass(frozen=True, slots=True)
class Request:
    """One rollout that is wanted."""

    prompt: Prompt
    index: int
    """Place in the group of the prompt."""
    seed: int


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What a rollout worker is made from."""

    policy: str
    """What ``policies.load`` takes; a directory as an absolute path, because actors run in folders of their own."""
    rank: int
    alpha: int
    threads: int = 1
    device: str = "cpu"
    dtype: str = "auto"
    """``policy.dtype``."""

    @classmethod
    def of(cls, config: Config, process: RolloutConfig | LearnerConfig | None = None) -> "WorkerSettings":
        """The settings of the rollout workers of a run, or with ``config.learner`` those of its learner."""
        name, process = config.policy.name, process or config.rollout
        policy = str(Path(name).resolve()) if Path(name).is_dir() else name
        rank, alpha, device = config.policy.lora_rank, config.policy.lora_alpha, "cuda" if process.gpus else "cpu"
        return cls(policy, rank, alpha, process.threads, device, config.policy.dtype)


def load_policy(settings: WorkerSettings) -> "Policy":
    """The policy of a rollout worker or a learner, placed, without an adapter yet. Raises what ``policies.load`` raises."""
    import policies

    return place(policies.load(settings.policy, dtype=_dtype(settings)), settings)


def place(policy: "Policy", settings: WorkerSettings) -> "Policy":
    """The policy itself, on its device and in its dtype.

    On a GPU with a bfloat16 backbone, the float32 products of an adapter round their factors to TF32. That is finer than the bfloat16 sums
    they go into. In full float32 these few per cent of the operations would take as long as a third of the others.
    """
    import torch

    policy.to(settings.device, _dtype(settings))
    if settings.device != "cpu" and next(policy.model.parameters()).dtype == torch.bfloat16:
        torch.set_float32_matmul_precision("high")
    return policy


def _dtype(settings: WorkerSettings) -> "torch.dtype | None":
    """Of the backbone; None = as the checkpoint holds it."""
    import torch

    if settings.dtype == "auto":
        return torch.float32 if settings.device == "cpu" else None
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[settings.dtype]


def rollout_seed(run_seed: int, update: int, prompt_id: str, index: int) -> int:
    """Seed of one rollout, 0 .. 2**63 - 1: the first 8 bytes of BLAKE2b over the four, so the same on every machine and Python."""
    text = f"{run_seed}|{update}|{prompt_id}|{index}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


class RolloutWorker:
    """Samples rollouts from the base or from one adapter. Its answers depend on its arguments only, so every call may be repeated."""

    def __init__(self, settings: WorkerSettings, name: str = "local", policy: "Policy | None" = None) -> None:
        """Load the policy, or take ``policy``, and attach an adapter that still equals the base. Raises what ``policies.load`` raises."""
        from pararl import adapter
        from policies.cpu import computing

        self.name = name
        self.threads = settings.threads
        self.policy = load_policy(settings) if policy is None else policy
        with computing(self.threads):
            # Before the adapter is there: what the base says, whatever becomes of the adapter.
            self.base_canary = self.policy.canary()
        if not self.base_canary.isfinite().all():  # or the first adapter would be blamed
            raise ValueError(
                f"{self.name}: the base {settings.policy} gives logits that are not finite: check its weights, or set policy.dtype"
            )
        # The worker keeps no random adapter of its own: A is the learner's as soon as one is loaded, and until then B is 0.
        self.model = adapter.attach(self.policy, settings.rank, settings.alpha)
        self.canary = self.base_canary
        self.changes_base = False
        self.receipt: Receipt | None = None

    def load(self, sent: AdapterBuffer) -> Receipt:
        """Put an adapter into the model and return the proof, read back from the model.

        Raises SyncError when its tensors do not fit, or when they changed what the adapter does without changing any canary logit.
        """
        from pararl import adapter
        from policies.cpu import computing

        # A load that fails on its way must not leave the receipt of what was there before.
        held, self.receipt = self.receipt, None
        try:
            bound = adapter.load_tensors(self.model, sync.unpack(sent))
        except ValueError as error:
            raise SyncError(f"{self.name} could not load adapter version {sent.version}: {error}") from error
        checksum = sync.checksum_of(adapter.tensors(self.model))
        with computing(self.threads):
            canary = self.policy.canary()
        # While every B was and is 0, another A changes nothing.
        effective = self.changes_base or sent.changes_base
        # Exactly equal: the smallest change of a logit proves that the tensors are used.
        if effective and (held is None or held.checksum != checksum) and bool((canary == self.canary).all()):
            raise SyncError(
                f"{self.name} loaded adapter version {sent.version}, which differs from the one before, but no canary logit changed. The "
                "model does not use this adapter: is it merged, switched off, or is another one active?"
            )
        self.canary, self.changes_base = canary, sent.changes_base
        self.receipt = Receipt(self.name, sent.version, bound, checksum, (canary - self.base_canary).abs().max().item())
        return self.receipt

    def generate(self, requests: Sequence[Request], sampling: "Sampling", sent: AdapterBuffer | None, version: int) -> list[Rollout]:
        """One rollout per request, sampled as one batch from ``sent``, or from the base where that is None.

        An adapter that is not the one held is loaded and verified first: so a worker that was restarted heals itself. Raises ValueError
        when ``version`` is not that of ``sent`` (of the base: 0).
        """
        from pararl import adapter
        from policies.cpu import computing

        if version != (0 if sent is None else sent.version):
            raise ValueError(
                f"rollouts of version {version} were asked for with {'no adapter' if sent is None else f'adapter {sent.version}'}"
            )
        if sent is not None and (self.receipt is None or (self.receipt.version, self.receipt.checksum) != (version, sent.checksum)):
            sync.verify([self.load(sent)], sent, [self.name])
        prompts, seeds = [r.prompt for r in requests], [r.seed for r in requests]
        with computing(self.threads):
            if sent is None:
                with adapter.base(self.model):
                    rollouts = self.policy.generate(prompts, seeds, sampling, version)
            else:
                rollouts = self.policy.generate(prompts, seeds, sampling, version)
        return [replace(rollout, index=request.index, version=version) for rollout, request in zip(rollouts, requests, strict=True)]
