"""Copies of the released Show-o and Show-o2 in the layout that the hub has: real ids, pickled weights, text tokenizers of their own."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from policies.backbones.showo import Showo, ShowoConfig
from policies.backbones.showo2 import Showo2
from policies.backbones.showo2_config import Showo2Config

BLANKS = [*(" " * n for n in range(31, 1, -1)), *("\t" * n for n in range(9, 1, -1))]
"""The 38 tokens that Phi's tokenizer adds behind <|endoftext|>, which are not special."""
PARTS = ("im", "object_ref", "box", "quad", "vision")
QWEN = [
    "<|endoftext|>",
    *(f"<|{part}_{side}|>" for part in PARTS for side in ("start", "end")),
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
"""Qwen2.5's special tokens, from id 151643 on."""
QWEN_PLAIN = [
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
]
"""Those behind them, which are not special."""


def tokenizer(directory: Path, words: int, special: Sequence[str], plain: Sequence[str], **named: Any) -> Path:
    """A tokenizer whose word "w5" is id 5; behind the words its special tokens, and behind these others that are no words either."""
    listed = [*(f"w{i}" for i in range(words)), *special, *plain]
    core = Tokenizer(WordLevel({word: i for i, word in enumerate(listed)}, unk_token="w0"))
    core.pre_tokenizer = WhitespaceSplit()
    core.add_special_tokens([AddedToken(token, special=True) for token in special])
    core.add_tokens([AddedToken(token, normalized=False) for token in plain])
    PreTrainedTokenizerFast(tokenizer_object=core, **named).save_pretrained(directory)
    return directory


def phi(directory: Path) -> Path:
    """``microsoft/phi-1_5``: 50295 ids."""
    end = "<|endoftext|>"
    return tokenizer(directory, 50256, [end], BLANKS, bos_token=end, eos_token=end, unk_token=end)


def qwen(directory: Path) -> Path:
    """``Qwen/Qwen2.5-*-Instruct``: 151665 ids."""
    named = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "extra_special_tokens": QWEN[1:]}
    return tokenizer(directory, 151643, QWEN, QWEN_PLAIN, **named)


def pickled(model: nn.Module, directory: Path, config: Mapping[str, Any], shards: int = 1) -> Path:
    """Weights and configuration as diffusers' library of the release writes them."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"_diffusers_version": "0.30.1", **config}))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    if shards == 1:
        torch.save(state, directory / "pytorch_model.bin")
        return directory
    places: dict[str, str] = {}
    for i in range(shards):
        part: dict[str, Tensor] = {name: state[name] for name in sorted(state)[i::shards]}
        file = f"pytorch_model-{i + 1:05d}-of-{shards:05d}.bin"
        torch.save(part, directory / file)
        places |= dict.fromkeys(part, file)
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return directory


def showo(directory: Path, tokens: int) -> Path:
    """A folder of ``showlab/show-o*``, whose Phi is a few numbers wide, which a real one does not say."""
    torch.manual_seed(2)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "partial_rotary_factor": 0.5}
    released = {
        "_class_name": "Showo",
        "codebook_size": 8192,
        "llm_model_path": "microsoft/phi-1_5",
        "llm_vocab_size": 50295,
        "load_from_showo": False,
        "mask_token_id": 58497,
        "num_vq_tokens": tokens,
        "vocab_size": 58498,
        "w_clip_vit": False,
    }
    return pickled(spread(Showo(ShowoConfig(num_vq_tokens=tokens, phi=sizes))), directory, released | {"phi": sizes})


def showo2(directory: Path, side: int = 27, large: bool = False) -> Path:
    """A folder of ``showlab/show-o2-*`` with narrow parts, of which a real one names but their origin."""
    torch.manual_seed(3)
    llm = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    sizes = {
        "hidden_size": 16,
        "clip_latent_dim": 16,
        "num_diffusion_layers": 1,
        "llm_config": llm,
        "clip_config": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2},
        "head_config": {"hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
    }
    released = {
        "_class_name": "Showo2Qwen2_5",
        "add_qk_norm": True,
        "add_time_embeds": True,
        "clip_pretrained_model_path": "google/siglip-so400m-patch14-384",
        "image_latent_dim": 16,
        "image_latent_height": side,
        "image_latent_width": side,
        "llm_model_path": f"Qwen/Qwen2.5-{'7B' if large else '1.5B'}-Instruct",
        "llm_vocab_size": 151669,
        "load_from_showo": False,
        "num_refiner_layers": 10,
        "patch_size": 2,
        "video_latent_height": 27,
        "video_latent_width": 27,
    }
    fields: dict[str, Any] = {key: value for key, value in (released | sizes).items() if key != "_class_name"}
    return pickled(spread(Showo2(Showo2Config(**fields))), directory, released | sizes, shards=2)


def spread(model: nn.Module) -> nn.Module:
    """The model with nothing at 0, so that what it sees changes what it says."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def wan(directory: Path, channels: int = 16) -> Path:
    """A narrow Wan 2.1 VAE, as ``Wan-AI/Wan2.1-*-Diffusers`` has it in its folder ``vae``."""
    import diffusers

    torch.manual_seed(4)
    numbers = {"latents_mean": [0.1] * channels, "latents_std": [1.5] * channels}
    model: Any = diffusers.AutoencoderKLWan(base_dim=4, z_dim=channels, dim_mult=[1, 1, 1, 1], num_res_blocks=1, **numbers)
    model.save_pretrained(directory)
    return directory
