"""How a policy samples, and how the draws of its likelihoods are made: options without torch, for runs and policies alike.

Each option has its meaning here and nowhere else. A policy takes ``Sampling`` and ``Drawing``. The settings of a run, ``RolloutConfig`` and
``LearnerConfig``, hold the same options with the defaults of training.
"""

from dataclasses import dataclass
from typing import Literal

from pararl.steps import Decoding

ImageSampler = Literal["maskgit", "emerge"]
ImageRows = Literal["codes", "all"]
"""Which rows of the vocabulary share the probability of an image token: the image codes, or all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """How outputs are sampled, as a run says it once for all its rollouts."""

    steps: int = 8
    """Denoising steps of one output; of text that is written token by token, new tokens."""
    recorded: int = 0
    """Steps whose committed tokens the learner sees, and whose complete guesses are kept: a random subset, the same within a group."""
    temperature: float = 1.0
    """Temperature of the token draws; 0 = arg-max, which a run cannot learn from."""
    choice_temperature: float = 1.0
    """Gumbel temperature of the confidence that picks which drawn image tokens are committed, annealed linearly to 0."""
    image_sampler: ImageSampler = "maskgit"
    """Which drawn image tokens are committed at a step. maskgit: the most confident. emerge: each by its own chance, as many on average
    (MaskGRPO; groups differ more). choice_temperature has no effect on emerge."""
    flow_noise: float = 0.0
    """Noise level of the sampler of continuous images (Show-o2), 0 to sqrt(2); 0.7 is Flow-GRPO's. Steps of 0 (an ODE) have no density to
    learn from, and need learner.likelihood elbo. Policies whose images are tokens have no use for it."""
    decoding: Decoding = "parallel"
    """How text and image of one output share the steps. parallel: both throughout. sequential: the text in the first half, the image
    in the second. semi_parallel: the text in the first three quarters, the image in the last three. released: as MMaDA-Parallel's code
    does, the text without blocks, the image from a quarter of the steps on."""
    image_steps: int = 0
    """Steps at which the image of such an output advances, spread over those it has; 0 = at all of them."""
    guidance: float = 0.0
    """Classifier-free guidance scale s of images: logits (1 + s) conditional - s unconditional; 0 = one forward, no guidance."""
    text_guidance: float = 0.0
    """The same for the text of outputs that have both. Below 0 it pushes the text away from its prompt, as MMaDA-Parallel's code does by
    default (-2.5)."""
    input_guidance: float = 0.0
    """Scale s of images towards the input image of their prompt; 0 = none. As in MMaDA-Parallel-A's code, s (logits - those of the prompt
    without it) is added."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling(SamplingOptions):
    """How a policy samples one batch."""

    round: int = 0
    """Which random subset of steps is recorded; give another one to a prompt that comes back."""
    guesses: int | None = None
    """How many of the recorded guesses are decoded to outputs, a random subset; None = all. Likelihoods at the recorded steps need none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawingOptions:
    """Which tokens the draws of a likelihood hide, and what shares its probabilities. Policies without masks have no use for it."""

    image_ratio: float | None = None
    """Lowest share of an image's tokens that a draw hides, up to 1 = always all; None (in settings -1) = the policy's own (0.6,
    after MaskGRPO)."""
    text_ratio: float | None = None
    """The same for a text, or for the block of it that a draw is about; None (in settings -1) = the policy's own (0)."""
    text_masks: Literal["random", "block"] = "random"
    """Which text tokens a draw hides. random: any. block: some of one block and all behind it, as the block-wise sampler meets them (SPG);
    those behind it do not count."""
    image_rows: ImageRows = "codes"
    """Whether the probability of an image token of an ELBO is shared with the other image codes alone, or with the whole vocabulary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing(DrawingOptions):
    """How the draws of one likelihood are made."""
