"""The supervised losses of the ``showo2`` family."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pararl.types import Output, Prompt
from policies.families.showo2 import Showo2Policy
from policies.mmada_codec import TEXT_ONLY
from policies.pretraining import target_ids
from policies.sampling import flow


def training_times(batch: int, shift: float, generator: torch.Generator) -> Tensor:
    """Times [batch], logistic-normal and moved towards the noise by the sampler's shift.

    Source: showlab/Show-o, ``show-o2/transport/transport.py`` (``snr_type: lognorm``, ``do_shift``), which shifts by the number of tokens:
    1.8 at 729 of them, 3.2 at 4096. At 16 tokens that gives 1.6, with which the embedded policy learns more slowly what a prompt asks.
    """
    return flow.shifted(torch.randn(batch, generator=generator).sigmoid(), shift)


def supervised_loss(
    policy: Showo2Policy, prompts: Sequence[Prompt], outputs: Sequence[Output], generator: torch.Generator, drop: float = 0.1
) -> dict[str, Tensor]:
    """Losses of a batch of one task: ``{"image": ..., "text": ...}`` for the modalities it has, to be added up.

    Image: mean squared error of the velocities. Text: mean cross-entropy of the next token, end token included. Where an image is produced,
    the prompt text is dropped with probability ``drop``, which is what guidance needs.
    """
    kept = torch.rand(len(prompts), generator=generator) >= (0.0 if prompts[0].task in TEXT_ONLY else drop)
    asked = [p if keep else replace(p, text="") for p, keep in zip(prompts, kept.tolist(), strict=True)]
    blank = policy.canvas(asked).to(policy.device)
    specials = policy.settings.specials
    words, image = blank.span("text"), blank.span("image")
    text = seen = times = clean = noise = None
    if words:
        end = specials.soi if image else specials.eos
        text = target_ids(policy, outputs, "text", len(words), end).to(policy.device)
    if image:
        clean = policy.encode_images(np.stack([o.image for o in outputs if o.image is not None]))
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        times = training_times(len(prompts), policy.settings.time_shift, generator).to(clean)
        seen = flow.between(clean, noise, times)
    hidden, mask, when = policy.states(blank, text, seen, times)
    losses: dict[str, Tensor] = {}
    if text is not None:
        losses["text"] = -policy.text_logprobs(hidden, blank, text).sum() / policy.counted(text).sum()
    if clean is not None and noise is not None and when is not None:
        losses["image"] = (policy.velocities(hidden, mask, when) - (clean - noise)).square().mean()
    return losses
