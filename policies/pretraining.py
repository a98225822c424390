"""The supervised losses of the ``mmada`` family: what its base is made with before any alignment."""

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pararl.types import Modality, Output, Prompt
from policies.families.mmada import MMadaPolicy
from policies.layout import canvas
from policies.likelihood.masked import hidden_token_logprobs
from policies.mmada_codec import TEXT_ONLY


def noise_levels(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mask ratios [batch] of image and text tokens at one shared time u ~ U(0, 1): cos(pi u / 2) and 1 - u.

    One clock for both modalities is what the parallel sampler runs on: image and text reach their ends together. Times are stratified
    over the batch, one in each ``1 / batch`` of (0, 1], which takes most of the variance out of a batch's loss (Kingma et al. 2021,
    arXiv 2107.00630, appendix I.1).
    """
    u = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
    return torch.cos(u * math.pi / 2), (1 - u).clamp_min(1e-3)


def supervised_loss(
    policy: MMadaPolicy, prompts: Sequence[Prompt], outputs: Sequence[Output], generator: torch.Generator, drop: float = 0.1
) -> dict[str, Tensor]:
    """Masked-token losses of a batch of one task: ``{"image": ..., "text": ...}`` for the modalities it has.

    Image: mean cross-entropy over hidden tokens, weight 1. Text: cross-entropy over hidden tokens with weight 1 / t, per token of the
    window (MMaDA-Parallel Eq. 2). Where an image is produced, the prompt text is dropped with probability ``drop``, and what
    stands there is what guidance compares with.
    """
    kept = torch.rand(len(prompts), generator=generator) >= (0.0 if prompts[0].task in TEXT_ONLY else drop)
    shown = policy.shown(prompts, together=True)
    prefixes = [policy.prefix(p, ids, None if keep else "text") for p, ids, keep in zip(prompts, shown, kept.tolist(), strict=True)]
    blank = canvas(prefixes, policy.tail(prompts[0].task), policy.settings.specials.pad)
    image_ratio, text_ratio = noise_levels(len(prompts), generator)
    ids = blank.ids.to(policy.device)
    targets: dict[Modality, tuple[Tensor, Tensor]] = {}
    for span in blank.spans:
        ratio = image_ratio if span.modality == "image" else text_ratio
        clean = target_ids(policy, outputs, span.modality, len(span)).to(ids)
        hide = (torch.rand(len(prompts), len(span), generator=generator) < ratio[:, None]).to(policy.device)
        ids[:, span.columns] = clean.masked_fill(hide, policy.settings.specials.mask)
        targets[span.modality] = (clean, hide)
    hidden = policy.model.hidden(ids, blank.attention.to(policy.device))
    losses: dict[str, Tensor] = {}
    for span in blank.spans:
        clean, hide = targets[span.modality]
        head = partial(policy.rows, modality=span.modality)
        logp = hidden_token_logprobs(hidden[:, span.columns], head, clean, hide, policy.offset(span.modality))
        if span.modality == "image":
            losses["image"] = -logp.sum() / hide.sum().clamp_min(1)
        else:
            losses["text"] = -(logp.sum(-1) / text_ratio.to(logp)).mean() / len(span)
    return losses


def target_ids(policy: MMadaPolicy, outputs: Sequence[Output], modality: Modality, length: int, end: int | None = None) -> Tensor:
    """Vocabulary ids int64 [batch, length] of what the policy should generate; ``end`` (None = eos) fills the place behind a text.

    Raises ValueError where the policy never could.
    """
    if modality == "image":
        images = [o.image for o in outputs if o.image is not None]
        if len(images) != len(outputs):
            raise ValueError(f"{len(outputs) - len(images)} of {len(outputs)} outputs have no image, which their task asks for")
        ids = policy.encode_images(np.stack(images))
        if ids.shape[1] != length:
            raise ValueError(f"images of {images[0].shape[:2]} pixels make {ids.shape[1]} tokens, but the policy's grid has {length}")
        return ids
    rows = []
    for output in outputs:
        row = policy.encode_text(output.text or "")
        if len(row) > length:
            raise ValueError(f"text of {len(row)} tokens does not fit the window of {length}: {output.text!r}")
        if never := sorted(set(row) & set(policy.vocabulary.forbidden)):
            raise ValueError(f"text holds {policy.decode_text(never)!r}, which a text position never yields: {output.text!r}")
        rows.append(row + [policy.settings.specials.eos if end is None else end] * (length - len(row)))
    return torch.tensor(rows)
