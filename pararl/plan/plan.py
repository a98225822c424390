"""The plan of a run, made before anything loads: what the run takes, which GPUs it fits, and what to change where it fits none."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from pararl.arms import ARM_SPECS
from pararl.config import Arm, Config, changed
from pararl.plan.costs import Cost, UpdateCost, update_cost
from pararl.plan.gpus import GPUS, PUBLISH, UTILISATION, Gpu, placed
from pararl.plan.memory import FLOAT32, Memory, learner_memory, rollout_memory, weight_bytes, widest
from pararl.plan.shapes import ModelShape

FEWEST = 8
"""A chunk of fewer rollouts leaves a GPU idle, so that other settings are tried first."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run takes."""

    config: Config
    shape: ModelShape
    rollout: Memory
    """Of each rollout worker."""
    learner: Memory
    """Of the learner, in the arm that takes most."""
    gpus: tuple[tuple[str, ...], ...]
    """The processes on each GPU: ``pararl.plan.gpus.placed``."""
    costs: Mapping[Arm, UpdateCost]

    @classmethod
    def of(cls, config: Config, shape: ModelShape) -> "Plan":
        """The plan of a validated configuration."""
        arms = cast(tuple[Arm, ...], config.run.arms)
        return cls(
            config,
            shape,
            rollout_memory(config, shape, bool(config.rollout.gpus)),
            widest([learner_memory(config, arm, shape, bool(config.learner.gpus)) for arm in arms]),
            tuple(map(tuple, placed(config))),
            {arm: update_cost(config, arm, shape) for arm in arms},
        )

    @property
    def fullest(self) -> float:
        """Bytes on the GPU that needs most; 0 where all runs on the CPU."""
        taken = {"rollout": self.rollout.total, "learner": self.learner.total}
        return max((sum(taken[process] for process in processes) for processes in self.gpus), default=0.0)

    @property
    def publish_bytes(self) -> int:
        """Of an adapter in flight."""
        return FLOAT32 * self.shape.adapter_parameters(self.config.policy.lora_rank)

    def fits(self, gpu: Gpu) -> bool:
        return self.fullest <= gpu.memory

    def seconds(self, gpu: Gpu, arm: Arm) -> Mapping[str, float | None]:
        """Expected seconds of an update by part, at the assumed utilisation; None for a part that runs on the CPU. Rewards are left out."""
        cost, rate = self.costs[arm], gpu.peak * UTILISATION
        samplers = sum("rollout" in processes for processes in self.gpus)
        learners = sum("learner" in processes for processes in self.gpus)
        learning: Cost = cost.learner + cost.reference
        return {
            "rollout": cost.rollout.flops / rate / samplers if samplers else None,
            "learner": learning.flops / rate if learners else None,
            "publish": self.publish_bytes / PUBLISH if ARM_SPECS[arm].data == "current" else 0.0,
        }


def refusal(plan: Plan, gpu: Gpu | None = None) -> str | None:
    """One line that says why a plan cannot be run on ``gpu``, or on any named one, and what to change. None where it can."""
    if any(plan.fits(g) for g in ((gpu,) if gpu else GPUS)):
        return None
    wanted = gpu or max(GPUS, key=lambda g: g.memory)
    found = advice(plan, wanted)
    told = (
        "set " + " ".join(f"--{key} {_written(value)}" for key, value in found.items())
        if found
        else "take a GPU with more: no setting is enough"
    )
    return f"the plan needs {plan.fullest / 1e9:.1f} GB on one GPU, {wanted.name} has {wanted.memory / 1e9:.1f} GB ({told})"


def _written(value: Any) -> str:
    """As the command line takes it."""
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def advice(plan: Plan, gpu: Gpu) -> dict[str, Any]:
    """The settings that make a plan fit: one of them where one will do, else as many as it takes; empty where none do."""

    def made(values: Mapping[str, Any]) -> Plan:
        return Plan.of(changed(plan.config, values), plan.shape)

    for knob in _knobs(plan, FEWEST):
        for values in knob:
            if made(values).fits(gpu):
                return values
    together: dict[str, Any] = {}
    while not made(together).fits(gpu):
        # One step of the knob that frees most, more GPUs only where the others free nothing, less to learn from last of all.
        *steps, apart = [[together | values for values in knob[:1]] for knob in _knobs(made(together), 1)]
        less = [together | values for values in _less(made(together).config)]
        for choice in (sum(steps, []), apart, less):
            best = min(choice, key=lambda values: made(values).fullest, default=together)
            if made(best).fullest < made(together).fullest:
                together = best
                break
        else:
            return {}
    return together


def _knobs(plan: Plan, fewest: int) -> Iterator[list[dict[str, Any]]]:
    """Per setting that takes less memory, cheapest first, its values that take less and less; empty where it is at its least."""
    config, learner = plan.config, plan.config.learner
    least = 1 if learner.likelihood == "elbo" else config.rollout.recorded
    yield [{"rollout.chunk": chunk} for chunk in _halves(config.rollout.chunk, fewest)]
    yield [{"learner.micro": micro} for micro in _halves(learner.micro, least)]
    yield [{"learner.gradient_checkpointing": True}] * (not learner.gradient_checkpointing)
    yield [{"policy.dtype": "bfloat16"}] * (weight_bytes(config, plan.shape, gpu=True) == FLOAT32)
    yield [{"rollout.gpus": 1.0, "learner.gpus": 1.0}] * any(len(processes) > 1 for processes in plan.gpus)


def _less(config: Config) -> list[dict[str, Any]]:
    """The next smaller values of settings that change what is learnt, not only how."""
    ranks = [{"policy.lora_rank": rank} for rank in _halves(config.policy.lora_rank, 4)[:1]]
    recorded = _halves(config.rollout.recorded, max(1, config.rollout.scored))[:1]
    return ranks + [{"rollout.recorded": steps, "learner.micro": steps} for steps in recorded if config.learner.likelihood == "steps"]


def _halves(number: int, least: int) -> list[int]:
    return [number >> shift for shift in range(1, number.bit_length()) if number >> shift >= least]
