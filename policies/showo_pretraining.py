"""The supervised losses of the ``showo`` family."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from pararl.types import Modality, Output, Prompt
from policies.families.showo import ShowoPolicy
from policies.likelihood.masked import hidden_token_logprobs
from policies.mmada_codec import TEXT_ONLY
from policies.pretraining import noise_levels, target_ids


def supervised_loss(
    policy: ShowoPolicy, prompts: Sequence[Prompt], outputs: Sequence[Output], generator: torch.Generator, drop: float = 0.1
) -> dict[str, Tensor]:
    """Losses of a batch of one task: ``{"image": ..., "text": ...}`` for the modalities it has.

    Image: mean cross-entropy over hidden tokens at the ratios of MaskGIT's cosine schedule. Text: mean cross-entropy of the next token, end
    token included. Where an image is produced, the prompt text is dropped with probability ``drop``, which is what guidance needs.
    Source: Show-o, ``Showo.forward`` and ``training/utils.py::mask_or_random_replace_tokens``.
    """
    kept = torch.rand(len(prompts), generator=generator) >= (0.0 if prompts[0].task in TEXT_ONLY else drop)
    asked = [p if keep else replace(p, text="") for p, keep in zip(prompts, kept.tolist(), strict=True)]
    blank = policy.canvas(asked, shown=policy.shown(asked, together=True)).to(policy.device)
    ratio, _ = noise_levels(len(prompts), generator)
    clean: dict[Modality, Tensor] = {}
    counted: dict[Modality, Tensor] = {}
    specials = policy.settings.specials
    end = specials.eos if prompts[0].task in TEXT_ONLY else specials.soi
    for span in blank.spans:
        tokens = clean[span.modality] = target_ids(policy, outputs, span.modality, len(span), end).to(policy.device)
        if span.modality == "image":
            counted["image"] = (torch.rand(tokens.shape, generator=generator) < ratio[:, None]).to(policy.device)
        else:
            counted["text"] = policy.counted(tokens)
    hidden = policy.hidden(*policy.reveal(blank, clean, {m: ~hide for m, hide in counted.items()}), blank.spans)
    losses: dict[str, Tensor] = {}
    for span, own in zip(blank.spans, hidden, strict=True):
        m = span.modality
        logp = hidden_token_logprobs(own, partial(policy.rows, modality=m), clean[m], counted[m], policy.offset(m))
        losses[m] = -logp.sum() / counted[m].sum().clamp_min(1)
    return losses
