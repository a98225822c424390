"""Copies of the released Chameleon in the layout that the hub has: its real ids, transformers' own class a few numbers wide, shards."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import ChameleonConfig, ChameleonForConditionalGeneration, PreTrainedTokenizerFast

from policies.image.chameleon import ChameleonVQ
from policies.image.chameleon_files import read_vq

SIZE, CODES = 65536, 8192
VQ: dict[str, Any] = {"base_channels": 32, "channel_multiplier": [1] * 5, "num_res_blocks": 1, "latent_channels": 4, "embed_dim": 4}
SHARDS = 2


def name(code: int) -> str:
    return "IMGIMG" + "".join("ABCDEFGHIJ"[int(digit)] for digit in str(code)) + "Z"


def vocabulary() -> dict[str, int]:
    """The released names at their ids, words being made up: "w9000" is id 9000. Codes do not stand in their order."""
    names = ["<s>", "<pad>", "</s>", "<unk>", *(name(code * 4099 % CODES) for code in range(CODES)), "<eoss>", "<racm3:break>"]
    names += [f"<reserved{i - 4:05d}>" for i in range(len(names), 8711)] + ["<image>"]
    return {token: i for i, token in enumerate([*names, *(f"w{i}" for i in range(len(names), SIZE))])}


def release(directory: Path, decoder: bool = False) -> Path:
    """``facebook/chameleon-7b``; with a ``decoder`` of images within it, ``leloy/Anole-7b-v0.1-hf``."""
    torch.manual_seed(3)
    named = vocabulary()
    sizes: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = ChameleonForConditionalGeneration(ChameleonConfig(**sizes, num_key_value_heads=2, vq_config=VQ, vocabulary_map=named))
    model.bfloat16().save_pretrained(directory)
    state = {key: value.contiguous().clone() for key, value in model.state_dict().items()}
    if decoder:
        own = ChameleonVQ(ChameleonVQ.config_class(**VQ)).bfloat16()
        state |= {f"model.vqmodel.{key}": value for key, value in own.state_dict().items() if key.startswith("decoder.")}
    (directory / "model.safetensors").unlink()
    places: dict[str, str] = {}
    for i in range(SHARDS):
        keys = sorted(state)[i::SHARDS]
        file = f"model-{i + 1:05d}-of-{SHARDS:05d}.safetensors"
        save_file({key: state[key] for key in keys}, directory / file, metadata={"format": "pt"})
        places |= dict.fromkeys(keys, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    core = Tokenizer(WordLevel(named, unk_token="<unk>"))
    core.pre_tokenizer = WhitespaceSplit()
    core.add_special_tokens([AddedToken(token, special=True) for token in named if token.startswith("<")])
    PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>").save_pretrained(directory)
    return directory


def whole_vqgan(directory: Path, of: Path) -> Path:
    """A directory of the whole image tokenizer of a release, as ``ChameleonVQ.save_pretrained`` writes it."""
    read_vq(of).save_pretrained(directory)
    return directory
