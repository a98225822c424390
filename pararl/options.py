"""How a policy samples, and how the draws of its likelihoods are made: options without torch, for runs and policies alike."""

from dataclasses import dataclass
from typing import Literal

from pararl.steps import Decoding

ImageSampler = Literal["maskgit", "emerge"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a policy samples."""

    steps: int = 8
    """Denoising steps; for autoregressive text, new tokens."""
    recorded: int = 0
    """Steps at which complete guesses are kept: a random subset, the same for all rollouts of a prompt."""
    round: int = 0
    """Which random subset; give another one to a prompt that comes back."""
    guesses: int | None = None
    """How many of those guesses are decoded to outputs, a random subset; None = all. Likelihoods at the recorded steps need none."""
    temperature: float = 1.0
    """Temperature of the token draws; 0 = arg-max."""
    choice_temperature: float = 1.0
    """Gumbel temperature of the confidence that picks which drawn image tokens are committed, annealed linearly to 0."""
    image_sampler: ImageSampler = "maskgit"
    """maskgit: the most confident drawn image tokens are committed. emerge: each by its own chance, confident or not (MaskGRPO)."""
    flow_noise: float = 0.0
    """Noise level of the sampler of continuous images, 0 to sqrt(2): 0 = the ODE, whose steps have no density; 0.7 is Flow-GRPO's."""
    decoding: Decoding = "parallel"
    """How text and image of one output share the steps; see ``pararl.steps.shared_steps``."""
    image_steps: int = 0
    """Steps at which the image of a joint output advances, spread over those of its text; 0 = at all of them."""
    guidance: float = 0.0
    """Classifier-free guidance scale s of image tokens: (1 + s) conditional - s unconditional logits."""
    text_guidance: float = 0.0
    """The same for the text of joint outputs; below 0 it pushes the text away from its prompt, as the code of MMaDA-Parallel does by
    default (-2.5)."""
    input_guidance: float = 0.0
    """Guidance scale s of image tokens towards the input image: s (logits - those of the prompt without its image) is added, as in
    MMaDA-Parallel-A's code."""


ImageRows = Literal["codes", "all"]
"""Which rows of the vocabulary share the probability of an image token: the image codes, or all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """How the draws of a likelihood are made. Policies without masks have no use for it."""

    image_ratio: float | None = None
    """Lowest share of an image's tokens that is hidden; None = the policy's own setting."""
    text_ratio: float | None = None
    """The same for a text, or for a block of it."""
    text_masks: Literal["random", "block"] = "random"
    """random: anywhere in a text. block: as the block-wise sampler meets it, within one block, those behind it hidden."""
    image_rows: ImageRows = "codes"
