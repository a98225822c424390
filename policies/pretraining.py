"""The supervised losses that a base is made with before any alignment."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pararl.types import Modality, Output, Prompt
from policies.layout import Layout
from policies.policy import Policy
from policies.settings import TEXT_ONLY


def supervised_loss(
    policy: Policy, prompts: Sequence[Prompt], outputs: Sequence[Output], generator: torch.Generator, drop: float = 0.1
) -> dict[str, Tensor]:
    """Losses of a batch of one task, to be added up.

    ``{"image": ..., "text": ...}`` for the modalities it has (see ``lessons`` of each head), and those that layers of the backbone told
    (``policies.backbones.layers.Telling``). Where an image is produced, the prompt text is dropped with probability ``drop``, and what
    stands there is what guidance compares with.
    """
    layout, task = policy.layout, prompts[0].task
    kept = torch.rand(len(prompts), generator=generator) >= (0.0 if task in TEXT_ONLY else drop)
    shown = layout.shown(prompts, together=True)
    prefixes = [
        layout.prefix(p, image.ids) if keep else layout.undescribed(p, image.ids)
        for p, image, keep in zip(prompts, shown, kept.tolist(), strict=True)
    ]
    canvas = layout.lay_out(task, prefixes, shown).to(policy.device)
    clean = {}
    for place, span in enumerate(canvas.spans):
        parts = [o.parts[place] if o.parts else o for o in outputs]
        followed = place + 1 < len(canvas.spans)
        clean[span] = target_tokens(layout, parts, span.modality, len(span), followed).to(policy.device)
    return policy.lessons(canvas, clean, generator)


def target_tokens(layout: Layout, outputs: Sequence[Output], modality: Modality, length: int, followed: bool) -> Tensor:
    """What the policy should generate: ids int64 [batch, length], or continuous tokens float32 [batch, length, d]. A text ends in ``eos``,
    or, where another segment has ``followed`` it, opens the image behind it if the layout has it so.

    Raises ValueError where the policy never could.
    """
    if modality == "image":
        images = [o.image for o in outputs if o.image is not None]
        if len(images) != len(outputs):
            raise ValueError(f"{len(outputs) - len(images)} of {len(outputs)} outputs have no image, which their task asks for")
        tokens = layout.images.encode(np.stack(images))
        if tokens.shape[1] != length:
            raise ValueError(f"images of {images[0].shape[:2]} pixels make {tokens.shape[1]} tokens, but the policy's grid has {length}")
        return tokens
    text, specials = layout.text, layout.settings.specials
    end = specials.soi if followed and specials.soi in text.ends else specials.eos
    rows = []
    for output in outputs:
        row = text.encode(output.text or "")
        if len(row) > length:
            raise ValueError(f"text of {len(row)} tokens does not fit the window of {length}: {output.text!r}")
        if never := sorted(set(row) & set(text.vocabulary.forbidden)):
            raise ValueError(f"text holds {text.decode(never)!r}, which a text position never yields: {output.text!r}")
        # To the end of the window: sampling begins with all of it masked, which the released training never shows.
        rows.append(row + [end] * (length - len(row)))
    return torch.tensor(rows)
