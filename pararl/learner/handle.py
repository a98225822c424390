"""The learner as the loop sees it: in a process of its own under Ray, or in this one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pararl.arms import ARM_SPECS
from pararl.card import Told
from pararl.config import Arm, Config
from pararl.learner.prefer import Feedback
from pararl.rollout.workers import WorkerSettings, load_policy
from pararl.sync import AdapterBuffer, pack
from pararl.types import Metrics, Rollout

if TYPE_CHECKING:
    from pararl.learner.learner import Learner
    from policies import Policy

State = tuple[dict[str, np.ndarray], dict[str, float]]


class LearnerHandle(Protocol):
    """What the loop asks of a learner."""

    def ready(self) -> None: ...
    def update(self, rollouts: Sequence[Rollout], feedback: Feedback) -> Metrics: ...
    def adapter(self) -> AdapterBuffer: ...
    def kl(self, rollouts: Sequence[Rollout]) -> Metrics: ...
    def state(self) -> State: ...
    def load_state(self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None: ...
    def save(self, directory: Path, told: Told | None = None) -> None: ...
    def close(self) -> None: ...


def make_learner(policy: "Policy", config: Config, arm: Arm) -> "Learner":
    """The learner of an arm, with a new adapter in the policy, or that of ``policy.adapter``."""
    rank, alpha, seed, updates = config.policy.lora_rank, config.policy.lora_alpha, config.run.seed, config.run.updates
    if config.learner.trainer == "trl":
        from pararl.learner.trl_dpo import trl_learner

        return trl_learner(policy, rank, alpha, config.learner, ARM_SPECS[arm], seed, updates)
    from pararl import adapter
    from pararl.learner.learner import Learner

    peft = adapter.attach(policy, rank, alpha, seed)
    if config.policy.adapter:
        adapter.start_from(peft, Path(config.policy.adapter))
    return Learner(policy, peft, config.learner, ARM_SPECS[arm], seed, updates, started=bool(config.policy.adapter))


class LocalLearner:
    """A learner in this process. ``config`` is that of the arm (``for_arm``)."""

    def __init__(self, config: Config, arm: Arm) -> None:
        from policies import cpu

        cpu.use(config.learner.threads)
        settings = WorkerSettings.of(config, config.learner)
        self.name = settings.policy
        self.learner = make_learner(load_policy(settings), config, arm)

    def ready(self) -> None:
        """Returns once the policy is loaded: the constructor has done it."""

    def update(self, rollouts: Sequence[Rollout], feedback: Feedback) -> Metrics:
        """One optimiser step; its metrics."""
        return self.learner.update(rollouts, feedback)

    def adapter(self) -> AdapterBuffer:
        """The adapter as it is now, with its version."""
        from pararl import adapter

        return pack(adapter.tensors(self.learner.peft), self.learner.version)

    def kl(self, rollouts: Sequence[Rollout]) -> Metrics:
        """KL to the base, per token and modality, of the policy that sampled these rollouts."""
        return self.learner.kl(rollouts)

    def state(self) -> State:
        """What a checkpoint keeps."""
        return self.learner.state()

    def load_state(self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.learner.load_state(arrays, facts)

    def save(self, directory: Path, told: Told | None = None) -> None:
        """Write the adapter as a PEFT directory, with what the run tells of it in its card."""
        from pararl import adapter

        adapter.save(self.learner.peft, directory, self.name, told)

    def close(self) -> None:
        """Nothing to end: the learner goes with this object."""


class RayLearner:
    """A learner in an actor: it keeps torch, and any GPU, out of the driver. The actor is not restarted: its state comes from a
    checkpoint."""

    def __init__(self, config: Config, arm: Arm) -> None:
        from pararl.rollout.actors import Actors
        from pararl.rollout.waiting import Limit

        self.limit = Limit(config.run.timeout, "run.timeout")
        options = {"threads": config.learner.threads, "gpus": config.learner.gpus, "restarts": 0, "retries": 0}
        self.actors = Actors(LocalLearner, [("the learner", (config, arm))], self.limit, **options)

    def _call(self, method: str, doing: str, *args: Any) -> Any:
        from pararl.rollout.actors import Call

        return self.actors.every(Call(method, args, doing, self.limit))[0]

    def ready(self) -> None:
        """See ``LocalLearner``, here and below."""
        self.actors.ready()

    def update(self, rollouts: Sequence[Rollout], feedback: Feedback) -> Metrics:
        return self._call("update", "make an update", rollouts, feedback)

    def adapter(self) -> AdapterBuffer:
        return self._call("adapter", "give its adapter")

    def kl(self, rollouts: Sequence[Rollout]) -> Metrics:
        return self._call("kl", "measure the KL to the base", rollouts)

    def state(self) -> State:
        return self._call("state", "give its state")

    def load_state(self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        self._call("load_state", "go on from a checkpoint", dict(arrays), dict(facts))

    def save(self, directory: Path, told: Told | None = None) -> None:
        self._call("save", "save the adapter", directory.resolve(), told)

    def close(self) -> None:
        """End the actor."""
        self.actors.close()
