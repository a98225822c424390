"""What families share whose images are codes of one vocabulary with the text: the layout around them, and the MAGVIT-v2 tokenizer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from pararl.policy_files import REMEDY
from pararl.readers import record_of
from policies.codec import TextCodec
from policies.image.base import ImageTokenizer
from policies.image.codec import CodeImages
from policies.image.magvitv2 import MAGVITv2, MAGVITv2Config
from policies.layout import Layout
from policies.settings import Settings
from policies.weights import load_exactly, read_config

MAGVITV2_FILES = ("model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin")
"""Weights of an image tokenizer, as saved here and as released (``showlab/magvitv2``)."""


def read_magvitv2(directory: Path) -> MAGVITv2:
    """The image tokenizer in a directory. Raises ValueError where its weights are not exactly those of the model."""
    config = read_config(MAGVITv2Config, directory)
    model: MAGVITv2 = record_of(MAGVITv2, config, directory / "config.json", REMEDY)
    load_exactly(model, directory, MAGVITV2_FILES)
    return model


def codes_of(images: ImageTokenizer, config: Any) -> tuple[str, int, int]:
    """What an image tokenizer and a backbone must have equally many of; how many it has, and how many the backbone knows."""
    return "codes", images.codebook_size, config.codebook_size


def code_layout(
    kind: type[Layout], tokenizer: PreTrainedTokenizerFast, images: ImageTokenizer, settings: Settings, ends: Sequence[int]
) -> Layout:
    """A layout whose images are codes behind the rows of the text."""
    text = TextCodec(tokenizer, settings.specials, images.codebook_size, ends)
    return kind(text, CodeImages(images, settings.grid, len(tokenizer)), settings)
