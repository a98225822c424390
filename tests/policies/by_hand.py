"""Prompts of every kind, and their sequences put together by hand from the documented layouts: what the tests compare the policy with."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pararl.options import ImageRows, Sampling
from pararl.types import MODALITIES, Modality, Prompt, Rollout, Task
from policies import Policy

Kind = Literal["t2t", "i2t", "t2i", "edit", "interleaved", "interleaved+image"]
KINDS: tuple[Kind, ...] = ("t2t", "i2t", "t2i", "edit", "interleaved", "interleaved+image")
"""The tasks; interleaved once without and once with an input image."""
GUIDED: tuple[Kind, ...] = ("t2i", "edit", "interleaved", "interleaved+image")
"""Those that produce an image."""
SPOKEN: tuple[Kind, ...] = ("t2t", "i2t", "interleaved", "interleaved+image")
"""Those that produce text."""
SHOWN: tuple[Kind, ...] = ("i2t", "edit", "interleaved+image")
"""Those that read an image."""
STEPS = 4
"""Denoising steps of ``rollouts``, unless others are asked for."""
TEXTS = ("red circle", "blue square above green circle", "", "green", "red red red blue")
WORDS, CODES = list(range(10, 16)), list(range(16, 24))
"""Ids of the words and of the image codes of the policy of ``conftest``: ten special tokens, then six words, then eight codes."""


def task_of(kind: Kind) -> Task:
    return "interleaved" if kind == "interleaved+image" else kind


def picture(seed: int) -> np.ndarray:
    """An input image of noise, uint8 [4, 6, 3]: 2 x 3 tokens."""
    return np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)


def prompts(kind: Kind, count: int = len(TEXTS)) -> list[Prompt]:
    """Prompts of a kind; the first and the fourth show the same image, so do the second and the fifth, and so on."""
    images = [picture(i % 3) if kind in SHOWN else None for i in range(count)]
    return [Prompt(f"{kind}-{i}", task_of(kind), TEXTS[i % len(TEXTS)], image=image) for i, image in enumerate(images)]


def text_length(policy: Policy, task: Task) -> int:
    """How many text tokens a task produces."""
    s = policy.settings
    return {"t2t": s.answer_tokens, "i2t": s.answer_tokens, "t2i": 0, "edit": 0, "interleaved": s.text_tokens}[task]


def code_ids(policy: Policy, image: np.ndarray) -> list[int]:
    """Vocabulary ids of an image, straight from the image tokenizer."""
    pixels = torch.from_numpy(image.astype(np.float32) / 255 * 2 - 1).permute(2, 0, 1)
    return [len(policy.layout.text.tokenizer) + code for code in policy.layout.images.module.get_code(pixels[None])[0].tolist()]


def prefix(policy: Policy, prompt: Prompt, with_text: bool = True) -> list[int]:
    """Ids in front of the generated part."""
    s = policy.settings.specials
    table = policy.layout.text.tokenizer.get_vocab()
    words = [table[w] for w in prompt.text.split()] if with_text else []
    image = [] if prompt.image is None else [s.soi, *code_ids(policy, prompt.image), s.eoi]
    if prompt.task == "t2t":
        return [s.bos, *words]
    if prompt.task == "i2t":
        return [s.mmu, *image, s.bos, *words]
    return [s.interleave if prompt.task == "interleaved" else s.t2i, *image, s.bos, *words, s.eos]


def sequence(
    policy: Policy, prompt: Prompt, filled: Mapping[Modality, Sequence[int]], with_text: bool = True
) -> tuple[list[int], dict[Modality, int]]:
    """Ids of a whole sequence without padding, and the column at which each generated modality starts."""
    s = policy.settings.specials
    ids = prefix(policy, prompt, with_text)
    starts: dict[Modality, int] = {}
    if "image" in filled:
        starts["image"] = len(ids) + 1
        ids += [s.soi, *filled["image"], s.eoi]
    if "text" in filled:
        ids += [s.bos] if "image" in filled else []
        starts["text"] = len(ids)
        ids += filled["text"]
    return ids, starts


def step_means(policy: Policy, rollouts: Sequence[Rollout], steps: Sequence[Sequence[int]]) -> Tensor:
    """Mean log-probability of the tokens committed at each step, float32 [batch, step, modality]; 0 where none was."""
    found = policy.step_tokens(rollouts, steps)
    out = torch.zeros(len(rollouts), len(steps[0]), len(MODALITIES), device=policy.device)
    for modality, tokens in found.items():
        out[..., MODALITIES.index(modality)] = tokens.logprob.sum(-1) / tokens.committed.sum(-1).clamp_min(1)
    return out


def rollouts(policy: Policy, kind: Kind, group: int = 1, steps: int = STEPS, guidance: float = 0.0) -> list[Rollout]:
    """Rollouts of four prompts, ``group`` of each."""
    asked = [prompt for prompt in prompts(kind, 4) for _ in range(group)]
    return policy.generate(asked, range(len(asked)), Sampling(steps=steps, recorded=2, guidance=guidance))


@torch.no_grad()
def token_logprobs(
    policy: Policy, rollout: Rollout, hidden: dict[Modality, np.ndarray], image_rows: ImageRows = "codes"
) -> dict[Modality, np.ndarray]:
    """Log-probability of every token of a rollout given what is not hidden: one unpadded forward, full logits, float64."""
    mask = policy.settings.specials.mask
    filled = {s.modality: np.where(hidden[s.modality], mask, s.tokens).tolist() for s in rollout.segments}
    ids, starts = sequence(policy, rollout.prompt, filled)
    full = policy.model(torch.tensor([ids]))[0].double()
    out: dict[Modality, np.ndarray] = {}
    words = len(policy.layout.text.tokenizer)
    for modality, start in starts.items():
        segment = rollout.segment(modality)
        assert segment is not None
        if modality == "image":
            first, last = (words, words + policy.layout.images.module.codebook_size) if image_rows == "codes" else (0, full.shape[-1])
            allowed = list(range(first, last))
        else:
            allowed = [i for word, i in policy.layout.text.tokenizer.get_vocab().items() if not word.startswith(("<", "["))]
            allowed.append(policy.settings.specials.eos)
        rows = full[start : start + len(segment.tokens)]
        log_total = rows[:, allowed].logsumexp(-1)
        out[modality] = (rows[range(len(segment.tokens)), segment.tokens.tolist()] - log_total).numpy()
    return out


def draw_one(probabilities: list[float], temperature: float, uniform: float) -> int:
    """Arg-max at temperature 0, else the first index whose running sum exceeds the uniform number."""
    if temperature == 0:
        return max(range(len(probabilities)), key=lambda i: probabilities[i])
    weights = [p ** (1 / temperature) for p in probabilities]
    total, running = sum(weights), 0.0
    for i, weight in enumerate(weights):
        running += weight / total
        if running > uniform:
            return i
    raise AssertionError("the uniform number is below 1")
