"""Training of image tokenizers: reconstruction through a sign quantiser that enters gradually, or through a Gaussian."""

import torch
import torch.nn.functional as F
from torch import Tensor

from policies.image.continuous import ContinuousVAE
from policies.image.magvitv2 import MAGVITv2


def tokenizer_loss(model: MAGVITv2, pixels: Tensor, hardness: float) -> Tensor:
    """Mean squared error of pixels [batch, 3, height, width] in [-1, 1] after the quantiser.

    Each bit is its sign with probability ``hardness`` and its tanh otherwise, with the gradient of tanh either way. At 0 this is a
    continuous auto-encoder, at 1 the tokenizer itself. Starting at 1 lets most bits die before the decoder can use them. MAGVIT-v2's
    entropy term (arXiv 2310.05737, Eq. 4) did not prevent that at this size; the gradual start does without it.
    """
    z = model.encoder(pixels)
    soft = z.tanh()
    hard = torch.where(z > 0, 1.0, -1.0)
    signs = torch.rand_like(z) < hardness
    return F.mse_loss(model.decoder(soft + torch.where(signs, hard - soft, 0.0).detach()), pixels)


def vae_loss(model: ContinuousVAE, pixels: Tensor, kl_weight: float) -> Tensor:
    """Mean squared error of pixels [batch, 3, height, width] in [-1, 1] after a draw from the posterior, plus ``kl_weight`` times a KL.

    The KL is that of the posterior to N(0, I), a mean over latents. It is the ELBO of arXiv 1312.6114 up to factors. With a large weight
    the latents carry little more than the pixels need, and the decoder forgives them noise of that size.
    """
    mean, log_variance = model.posterior(pixels)
    drawn = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
    return F.mse_loss(model.decoder(drawn), pixels) + kl_weight * kl.mean()
