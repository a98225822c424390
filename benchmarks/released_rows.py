"""The released samplers on a policy of ours, one prompt at a time: what ``benchmarks/gpu_mmada.py`` holds its rollouts against.

As their code does it, every forward gives the logits of the whole vocabulary at every position. The prompt is not padded to the releases'
512 tokens, so that both sides see sequences of the same length.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pararl.types import Prompt
from policies import Policy
from policies.sampling import released

Run = Callable[[], object]


def forward(policy: Policy, ids: Tensor, attention: Tensor | None = None) -> Tensor:
    """Logits float32 [batch, length, vocabulary]."""
    with torch.no_grad():
        return policy.model(ids, attention).float()


def t2i(policy: Policy, asked: Prompt, steps: int, guidance: float) -> Run:
    """MMaDA's ``t2i_generate``: with and without the text as a batch of two."""
    rows, mask = policy.layout.text.vocabulary.rows("image"), policy.settings.specials.mask
    blank, free = policy.layout.canvases([asked], [None, "text"], policy.layout.shown([asked]))
    ids, seen = (torch.cat(pair).to(policy.device) for pair in ((blank.ids, free.ids), (blank.attention, free.attention)))
    columns = blank.spans[0].columns

    def guided(codes: Tensor) -> Tensor:
        both = ids.clone()
        both[:, columns] = torch.where(codes == released.UNKNOWN, mask, codes + rows.start)
        plain, without = forward(policy, both, seen)[:, columns, rows].chunk(2)
        return (1 + guidance) * plain - guidance * without

    start = torch.full((1, len(blank.spans[0])), released.UNKNOWN, device=policy.device)
    return lambda: released.image(guided, start, steps, 1.0, released.Chance())


def parallel(policy: Policy, asked: Prompt, steps: int, image_steps: int) -> tuple[Run, Run]:
    """-M's ``interleave_generate``, two sequences at every step, and -A's ``generate_ti2ti``, three forwards at image steps and else one.

    -A's two prompts without text and without image are both the one without text here.
    """
    blank, free = policy.layout.canvases([asked], [None, "text"], policy.layout.shown([asked]))
    ids, prefix = blank.ids.to(policy.device), free.ids[:, : free.prefix].to(policy.device)
    image, text = blank.span("image"), blank.span("text")
    assert image is not None and text is not None
    plan = released.Parallel(
        image=torch.arange(image.start, image.stop, device=policy.device),
        text=slice(text.start, text.stop),
        codes=policy.layout.text.vocabulary.rows("image"),
        mask=policy.settings.specials.mask,
        text_steps=steps,
        image_steps=image_steps,
        temperature=1.0,
        text_cfg=2.5,
        image_cfg=4.0,
    )

    def logits(given: Tensor) -> Tensor:
        return forward(policy, given)

    return (
        lambda: released.parallel_m(logits, ids, prefix, plan, released.Chance()),
        lambda: released.parallel_a(logits, ids, prefix, prefix, plan, released.Chance(normal=True)),
    )
