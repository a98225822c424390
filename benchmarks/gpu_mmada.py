"""One update of MMaDA on one GPU, part by part: rollouts, learner, publish, and the released samplers on the same model.

    python benchmarks/gpu_mmada.py                             # the 8B architecture with random weights, made on the GPU: no download
    python benchmarks/gpu_mmada.py --size tiny --device cpu    # the same script in seconds

Rollout worker, learner, adapter and publish are those of a run; worker and learner have a policy each, as where they share a GPU. Step
rewards are off. Prints a table and then JSON: seconds, samples per second, model FLOP utilisation, and bytes beside those that
``pararl/plan/memory.py`` plans. Utilisation takes the operations of ``pararl/plan/costs.py``, nothing computed again, against the rate of
large products in the same dtype on the same device. The released samplers go row by row (``benchmarks/released_rows.py``). Takes no more
than eight minutes on an H100 by its operations; on no GPU has it been run yet.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import released_rows
from pararl import adapter, sync
from pararl.arms import ARM_SPECS
from pararl.config import LearnerConfig, PreferConfig, RolloutConfig
from pararl.learner.learner import Learner
from pararl.learner.prefer import prefer
from pararl.learner.tables import step_table
from pararl.options import Sampling
from pararl.plan.costs import gradient_flops, rollout_cost
from pararl.plan.memory import learner_pass, rollout_pass
from pararl.plan.shapes import ModelShape
from pararl.rollout.workers import Request, RolloutWorker, WorkerSettings, place
from pararl.sampling import sampling_of
from pararl.types import Judgement, Kind, Prompt, Score
from policies import Policy, cpu
from policies.backbones.llada import MMadaConfig, MMadaModelLM
from policies.families.mmada import MMADA
from policies.image.magvitv2 import MAGVITv2, MAGVITv2Config
from policies.settings import Settings
from policies.text import SPECIAL_TOKENS, word_tokenizer

GUIDANCE = 3.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What is built and how much is done with it; by default the released model."""

    backbone: Mapping[str, int] = field(default_factory=dict)
    images: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What differs from the released backbone, image tokenizer and text windows."""
    text_rows: int = 126349
    """len(tokenizer)."""
    rank: int = 64
    words: int = 60
    """Of a prompt."""
    prompts: int = 2
    group: int = 4
    steps: int = 15
    """Of t2i."""
    joint: int = 4
    """Interleaved outputs."""
    joint_steps: int = 32
    image_steps: int = 8
    recorded: int = 4
    micro: int = 4
    product: int = 8192
    """Side of the matrices whose product is the ceiling."""


LEVELS = {"ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": [0, 0, 0, 0], "z_channels": 6}
TINY = Size(
    backbone={"d_model": 64, "n_layers": 2, "n_heads": 2, "mlp_hidden_size": 192, "embedding_size": 200},
    images={"encoder": LEVELS, "decoder": LEVELS, "quantize": {"codebook_dim": 6}, "norm_groups": 4},
    settings={"grid": (4, 4), "text_tokens": 16, "text_block": 4},
    text_rows=120,
    rank=4,
    words=6,
    steps=8,
    joint_steps=8,
    image_steps=4,
    recorded=2,
    product=512,
)
SIZES = {"8b": Size(), "tiny": TINY}


@dataclass(frozen=True, slots=True)
class Part:
    """What was measured of one part of an update."""

    name: str
    seconds: float
    samples: int = 0
    flops: float = 0.0
    peak_bytes: int = 0
    """Largest allocation on the GPU during the part; on a CPU all that the process ever held, which says nothing of the part."""
    taken_bytes: int = 0
    """Of it, what was not there before the part."""
    planned_bytes: float = 0.0
    """What ``pararl/plan/memory.py`` expects that to be at most on a GPU; 0 = it does not say."""


@dataclass
class Bench:
    """A worker and a learner with the same random policy on one device."""

    size: Size
    device: str
    dtype: str
    parts: list[Part] = field(default_factory=list)

    def __post_init__(self) -> None:
        size, settings = self.size, WorkerSettings("random", self.size.rank, self.size.rank, 1, self.device, self.dtype)
        policy, other = (build(size, self.device, self.dtype) for _ in range(2))
        place(policy, settings)
        place(other, settings)
        other.model.load_state_dict(policy.model.state_dict())
        self.worker = RolloutWorker(settings, "rollout", policy)
        self.policy = policy
        config = LearnerConfig(micro=size.micro, gradient_checkpointing=True, reference_every=1, lr=1e-4)
        self.learner = Learner(other, adapter.attach(other, size.rank, size.rank, seed=0), config, ARM_SPECS["online_dpo"])
        self.sent: sync.AdapterBuffer | None = None
        s, model = policy.settings, policy.model.config
        self.shape = ModelShape(
            width=model.d_model,
            layers=model.n_layers,
            heads=model.n_heads,
            kv_heads=model.n_kv_heads,
            mlp=model.mlp_hidden_size,
            rows=model.embedding_size,
            codes=policy.layout.images.module.codebook_size,
            image_tokens=s.grid[0] * s.grid[1],
            text_tokens=s.text_tokens,
            text_block=s.text_block,
            prompt_tokens=size.words,
        )
        self.bytes = next(policy.model.parameters()).itemsize

    def measure(self, name: str, work: Callable[[], Any], **facts: Any) -> Any:
        """Run ``work`` once and note it; returns its result."""
        before = self._allocated()
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self._wait()
        start = time.perf_counter()
        result = work()
        self._wait()
        seconds = time.perf_counter() - start
        peak = torch.cuda.max_memory_allocated() if self.device == "cuda" else self._allocated()
        self.parts.append(Part(name, seconds, peak_bytes=peak, taken_bytes=peak - before, **facts))
        return result

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def _allocated(self) -> int:
        return torch.cuda.memory_allocated() if self.device == "cuda" else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def ceiling(self) -> float:
        """Operations per second of a product of large square matrices in the dtype of the backbone: the best of five passes of four."""
        side = self.size.product
        a, b = (torch.randn(side, side, device=self.device, dtype=getattr(torch, self.dtype)) for _ in range(2))
        best = float("inf")
        for _ in range(5):
            self._wait()
            start = time.perf_counter()
            for _ in range(4):
                a @ b
            self._wait()
            best = min(best, (time.perf_counter() - start) / 4)
        return 2.0 * side**3 / best

    def rollout(self, name: str, kind: Kind, prompts: int, plan: RolloutConfig) -> list[Any]:
        """Sample as the fleet does, from the published adapter, after a sample of few steps to warm up."""
        asked = [Request(prompt(self.size, i, kind), k, 1000 * i + k) for i in range(prompts) for k in range(plan.group)]
        plan, sampling = replace(plan, chunk=len(asked)), replace(sampling_of(plan), guesses=0)
        version = self.sent.version if self.sent else 0
        warm = Sampling(steps=self.policy.settings.text_tokens // self.policy.settings.text_block, guidance=sampling.guidance)
        self.worker.generate(asked, warm, self.sent, version)
        flops = len(asked) * rollout_cost(self.shape, kind, plan, self.size.rank if self.sent else 0).flops
        planned = rollout_pass(self.shape, kind, len(asked), 2, self.bytes)
        facts = {"samples": len(asked), "flops": flops, "planned_bytes": planned}
        return self.measure(name, lambda: self.worker.generate(asked, sampling, self.sent, version), **facts)

    def learn(self, rollouts: list[Any]) -> None:
        """One update on pairs of random rewards."""
        rewards = np.random.default_rng(0).random(len(rollouts))
        judged = [Judgement(Score(float(value)), (None,) * self.size.recorded) for value in rewards]
        feedback = prefer(rollouts, judged, ARM_SPECS["online_dpo"], PreferConfig(), 0.0, keep=self.size.group)
        step_table(self.learner.policy, self.learner.policy.prepare(rollouts[:1])).logprob.sum().backward()
        sequences, share = len(rollouts) * self.size.recorded, 1 / self.size.steps
        flops = sequences * gradient_flops(self.shape, "t2i", self.size.rank, share, checkpointing=False)
        at_once = max(self.size.micro, self.size.recorded)
        planned = learner_pass(self.shape, "t2i", at_once, self.bytes, self.size.rank, checkpointing=True)
        planned += 4 * 4 * self.shape.adapter_parameters(self.size.rank)  # gradients, moments, and what AdamW makes on the way
        facts = {"samples": len(rollouts), "flops": flops, "planned_bytes": planned}
        self.metrics = self.measure("learner update", lambda: self.learner.update(rollouts, feedback), **facts)

    def publish(self) -> None:
        """The adapter into one buffer, into the worker's model, and its receipt."""

        def work() -> sync.AdapterBuffer:
            sent = sync.pack(adapter.tensors(self.learner.peft), self.learner.version)
            sync.verify([self.worker.load(sent)], sent, [self.worker.name])
            return sent

        self.sent = self.measure("publish", work)

    def released(self) -> None:
        """The released samplers on the worker's policy, a row each, after one step to warm up."""
        size, policy = self.size, self.policy
        alone, joint = prompt(size, 0, "t2i"), prompt(size, 0, "interleaved")
        released_rows.t2i(policy, alone, 1, GUIDANCE)()
        self.measure("released t2i, a row", released_rows.t2i(policy, alone, size.steps, GUIDANCE), samples=1)
        for name, work in zip("MA", released_rows.parallel(policy, joint, size.joint_steps, size.image_steps), strict=True):
            self.measure(f"released -{name}, a row", work, samples=1)


def prompt(size: Size, index: int, kind: Kind) -> Prompt:
    """A prompt of so many words of the vocabulary."""
    return Prompt(f"{kind}-{index}", "t2i" if kind == "t2i" else "interleaved", " ".join(f"w{index + i}" for i in range(size.words)))


def build(size: Size, device: str, dtype: str) -> Policy:
    """A policy with random weights, its backbone made on the device in its dtype. The words of its vocabulary are w0, w1, ..."""
    tokenizer, specials = word_tokenizer([f"w{i}" for i in range(size.text_rows - len(SPECIAL_TOKENS) - 1)])
    torch.manual_seed(0)
    images = MAGVITv2(MAGVITv2Config(**size.images))
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(device):
            model = MMadaModelLM(MMadaConfig(**size.backbone, mask_token_id=specials.mask))
    finally:
        torch.set_default_dtype(before)
    return MMADA.policy(model, tokenizer, images, Settings(**{**size.settings, "specials": specials}))


def table(parts: list[Part], ceiling: float) -> str:
    """One line a part."""
    lines = [f"{'':28}{'s':>9}{'samples/s':>11}{'TFLOP/s':>10}{'MFU':>7}{'peak GB':>9}{'taken GB':>10}{'planned GB':>12}"]
    for part in parts:
        rate = f"{part.samples / part.seconds:.3g}" if part.samples else ""
        done = part.flops / part.seconds
        work = (f"{done / 1e12:.3g}", f"{done / ceiling:.1%}") if part.flops else ("", "")
        planned = f"{part.planned_bytes / 1e9:.3f}" if part.planned_bytes else ""
        memory = (f"{part.peak_bytes / 1e9:.2f}", f"{part.taken_bytes / 1e9:.3f}")
        lines.append(
            f"{part.name:28}{part.seconds:9.3f}{rate:>11}{work[0]:>10}{work[1]:>7}{memory[0]:>9}{memory[1]:>10}{planned:>12}".rstrip()
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(SIZES), default="8b")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("this machine has no GPU that torch can use; --size tiny --device cpu shows the script at work")
    began, size = time.perf_counter(), SIZES[asked.size]
    cpu.use(1)
    bench = Bench(size, asked.device, asked.dtype)
    ceiling, built = bench.ceiling(), time.perf_counter() - began
    t2i = RolloutConfig(group=size.group, steps=size.steps, recorded=size.recorded, guidance=GUIDANCE)
    rollouts = bench.rollout("t2i rollout, base", "t2i", size.prompts, t2i)
    bench.learn(rollouts)
    bench.publish()
    bench.rollout("t2i rollout, adapter", "t2i", size.prompts, t2i)
    joint = replace(t2i, group=1, steps=size.joint_steps, image_steps=size.image_steps)
    bench.rollout("parallel rollout, adapter", "interleaved", size.joint, joint)
    bench.released()
    name = torch.cuda.get_device_name() if asked.device == "cuda" else "CPU"
    print(f"{asked.size}, {asked.dtype}, {name}, torch {torch.__version__}; products of {size.product}: {ceiling / 1e12:.4g} TFLOP/s")
    print(f"t2i: {size.steps} steps; parallel: {size.joint_steps} steps, image at {size.image_steps}; prompts of {size.words} words\n")
    print(table(bench.parts, ceiling))
    total = time.perf_counter() - began
    facts = {"size": asked.size, "dtype": asked.dtype, "device": name, "torch": torch.__version__, "ceiling_flops": ceiling}
    facts |= {"built_seconds": built, "total_seconds": total, "logprob_gap": bench.metrics["sync/logprob_gap"]}
    print("\n" + json.dumps(facts | {"parts": [asdict(part) for part in bench.parts]}))


if __name__ == "__main__":
    main()
