"""Texts and images in turn, for as long as a policy goes on, from a causal text head and an image head."""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from pararl.options import Sampling
from pararl.types import Output, Prompt
from policies.canvas import Span
from policies.heads.base import drawn
from policies.heads.causal import CausalHead, check_guidance
from policies.layout import extended

if TYPE_CHECKING:
    from policies.policy import Policy


@torch.no_grad()
def mixed(policy: "Policy", prompt: Prompt, seed: int, sampling: Sampling, images: int) -> list[Output]:
    """Texts and images as the policy alternates them, each an output of its own, for a prompt of the task ``interleaved``.

    An image follows a text that ends in ``<|soi|>``, and everything behind the image sees it. Any other end is the end of all, and so is
    the text behind the last of at most ``images`` images. Raises what ``generate`` raises. Another task, a policy whose text is not written
    token by token, and fewer than 0 images are a ValueError.
    """
    layout, writer, painter = policy.layout, policy.heads["text"], policy.heads["image"]
    if images < 0:
        raise ValueError(f"at most {images} images: give 0 or more")
    if prompt.task != "interleaved":
        raise ValueError(f"prompt {prompt.id}: texts and images in turn are made of interleaved prompts, not of {prompt.task}")
    if not isinstance(writer, CausalHead):
        raise ValueError(f"a policy of family {policy.family} makes one text and one image at once: use generate or sample")
    check_guidance(sampling)
    tail = layout.tail("interleaved")
    text, image = tail.spans
    words = len(text)
    scene = policy.sampler.scene([prompt], sampling).changed(lambda canvas: canvas.front(canvas.prefix))
    generator = torch.Generator().manual_seed(seed)
    parts: list[Output] = []
    while True:
        noise, chance = drawn([(writer, (text,)), (painter, (image,))], generator, sampling)
        ids = writer.write(layout, scene.blank, "text", noise[None].to(policy.device), sampling.temperature)[0][0].tolist()
        said = layout.text.written(ids)
        parts += [Output(text=layout.text.decode(said))] if said else []
        opened = len(said) < words and ids[len(said)] == layout.settings.specials.soi
        if not opened or not images:
            return parts
        images -= 1
        scene = scene.changed(lambda front, said=said: extended(front, said))  # type: ignore[misc]
        place = scene.blank.ids.shape[1] + image.start - words
        span = Span("image", place, place + len(image))
        whole = scene.changed(lambda front, span=span: extended(front, tail.ids[words:], (span,)))  # type: ignore[misc]
        tokens = painter.sample(whole, [span], [chance], sampling, [()])[0].tokens
        parts.append(Output(image=layout.images.decode(tokens)[0]))
        scene = scene.changed(lambda front, tokens=tokens: replace(layout.with_image(front, tokens), spans=()))  # type: ignore[misc]
