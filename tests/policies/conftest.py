"""Random policies of a few thousand parameters, and the recorded reference models."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from policies import Policy
from policies.backbones.llada import MMadaConfig, MMadaModelLM
from policies.backbones.showo import Showo, ShowoConfig
from policies.canvas import Canvas
from policies.families.mmada import MMADA
from policies.families.showo import SHOWO
from policies.heads.base import Branch, Scene
from policies.heads.masked import MaskedHead
from policies.image.magvitv2 import MAGVITv2, MAGVITv2Config
from policies.sampling.denoise import Logits
from policies.sampling.look import whole
from policies.settings import Settings
from policies.text import SHOWO_TOKENS, word_tokenizer

WORDS = ("red", "blue", "green", "circle", "square", "above")
SPARE_ROWS = 4
"""Embedding rows behind the image codes, as the releases have: nothing may ever yield them."""

DEFAULTS = {
    "grid": (2, 3),
    "prompt_tokens": 8,
    "text_tokens": 8,
    "text_block": 4,
    "answer_tokens": 6,
    "answer_block": 3,
    "dialogue": "{text}",
}

MakePolicy = Callable[..., Policy]
MakeShowo = Callable[..., Policy]


def build_images() -> MAGVITv2:
    """A random image tokenizer of eight codes, from where torch's generator stands."""
    levels = {"ch": 4, "ch_mult": [1, 1], "num_res_blocks": [1, 1], "z_channels": 3}
    images = MAGVITv2(MAGVITv2Config(levels, levels, {"codebook_dim": 3}, norm_groups=2))
    for parameter in images.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    with torch.no_grad():  # every bit of a code set for half of all images, so that images differ in their codes
        noise = torch.rand(64, 3, 4, 6) * 2 - 1
        images.encoder.quant_conv.bias -= images.encoder(noise).mean((0, 2, 3))
    return images


def build_policy(seed: int = 0, **settings: Any) -> Policy:
    """A random policy over six words and eight image codes. Its weights are wide, so that what it sees changes what it says."""
    torch.manual_seed(seed)
    tokenizer, specials = word_tokenizer(WORDS)
    images = build_images()
    rows = len(tokenizer) + images.codebook_size + SPARE_ROWS
    sizes = {"d_model": 32, "n_layers": 2, "n_heads": 4, "mlp_hidden_size": 48, "max_sequence_length": 64}
    model = MMadaModelLM(MMadaConfig(**sizes, embedding_size=rows, init_std=0.3))
    return MMADA.policy(model, tokenizer, images, Settings(**{**DEFAULTS, **settings}, specials=specials))


def build_showo(seed: int = 0, **settings: Any) -> Policy:
    """The same of Show-o's kind. Its MASK is the row behind the codes, as in the releases; no bias is 0 and no scale 1."""
    torch.manual_seed(seed)
    mask = len(word_tokenizer(WORDS, SHOWO_TOKENS, 0)[0]) + 8
    tokenizer, specials = word_tokenizer(WORDS, SHOWO_TOKENS, mask)
    images = build_images()
    phi = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
    model = Showo(ShowoConfig(vocab_size=mask + 1, codebook_size=images.codebook_size, num_vq_tokens=6, phi=phi))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            torch.nn.init.normal_(parameter, mean=float("norm.weight" in name), std=0.3)
    return SHOWO.policy(model, tokenizer, images, Settings(**{**DEFAULTS, **settings}, specials=specials))


def masked_head(policy: Policy) -> MaskedHead:
    """The head that denoises images, where it does."""
    head = policy.heads["image"]
    assert isinstance(head, MaskedHead)
    return head


def logits_of(policy: Policy, blank: Canvas, branches: Sequence[Branch] = ()) -> Logits:
    """What ``denoise`` is given to call, of sequences in which every token sees every other."""
    return masked_head(policy).logits(whole(Scene(policy.layout, blank, tuple(branches)), policy.model), branches)


@pytest.fixture
def make_policy() -> MakePolicy:
    """``build_policy``: for tests that need other settings or their own copy."""
    return build_policy


@pytest.fixture(scope="session")
def policy() -> Policy:
    """One shared random policy. Tests must leave it as it is."""
    return build_policy()


@pytest.fixture
def make_showo() -> MakeShowo:
    """``build_showo``: for tests that need other settings or their own copy."""
    return build_showo


@pytest.fixture(scope="session")
def showo() -> Policy:
    """One shared random policy of Show-o's kind. Tests must leave it as it is."""
    return build_showo()


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of recorded reference outputs."""
    return Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def mmada_cases(golden: Path) -> dict[str, Tensor]:
    """Recorded inputs and outputs of the reference MMaDA class."""
    return load_file(golden / "mmada" / "cases.safetensors")


@pytest.fixture(scope="session")
def mmada_model(golden: Path) -> MMadaModelLM:
    """Our backbone with the recorded weights."""
    return MMadaModelLM.from_pretrained(golden / "mmada").eval()


@pytest.fixture(scope="session")
def magvit_model(golden: Path) -> MAGVITv2:
    """Our image tokenizer with the recorded weights."""
    return MAGVITv2.from_pretrained(golden / "magvitv2").eval()
