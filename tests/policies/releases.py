"""Copies of the released checkpoints in the layout that the hub has, with their real ids and a backbone a few numbers wide."""

import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from policies.backbones.llada import LLaDAConfig, LLaDAForMultiModalGeneration, MMadaConfig, MMadaModelLM
from policies.image.magvitv2 import MAGVITv2, MAGVITv2Config

SPELLED = {
    "<|startoftext|>": 126080,
    "<|endoftext|>": 126081,
    "<|reserved_token_0|>": 126084,
    "<|mdm_mask|>": 126336,
    "<|start_header_id|>": 126346,
    "<|end_header_id|>": 126347,
    "<|eot_id|>": 126348,
}
"""Some of the special tokens that LLaDA's tokenizer has; those of MMaDA take the places of its reserved ones, whose spelling stays."""
SPELLED_A = {
    "<uncondition>": 126351,
    "<system>": 126352,
    "</system>": 126353,
    "<answer>": 126354,
    "</answer>": 126355,
    "<user>": 7,
    "</user>": 8,
}
"""Further ones of -A, as far as they are known; ids of a prompt's own tags are made up."""


def text_tokenizer(size: int, special: dict[str, int]) -> PreTrainedTokenizerFast:
    """A tokenizer of ``size`` ids, whose word "w5" is id 5, with special tokens in their places."""
    names = {i: token for token, i in special.items()}
    core = Tokenizer(WordLevel({names.get(i, f"w{i}"): i for i in range(size)}, unk_token="w0"))
    core.pre_tokenizer = WhitespaceSplit()
    core.add_special_tokens([AddedToken(token, special=True) for token in special])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>", mask_token="<|mdm_mask|>")


def image_tokenizer(directory: Path) -> Path:
    """A narrow MAGVIT-v2 with the released codes and factor: config and weights as ``showlab/magvitv2`` has them."""
    torch.manual_seed(0)
    levels = {"ch": 2, "ch_mult": [1] * 5, "num_res_blocks": [1] * 5, "z_channels": 13}
    MAGVITv2(MAGVITv2Config(levels, levels, norm_groups=1)).save_pretrained(directory)
    return directory


def backbone(directory: Path, parallel_a: bool = False) -> Path:
    """Config with the released fields, weights in shards, tokenizer; no ``policy.json``."""
    torch.manual_seed(1)
    size = 126356 if parallel_a else 126349
    rows = size + 8192 + 115
    config, kind = (LLaDAConfig, LLaDAForMultiModalGeneration) if parallel_a else (MMadaConfig, MMadaModelLM)
    # The recorded aMUSEd tokenizer that goes with -A has 64 codes.
    codes = 64 if parallel_a else 8192
    model = kind(config(d_model=8, n_layers=2, n_heads=2, mlp_hidden_size=12, embedding_size=rows, codebook_size=codes, init_std=0.3))
    model.bfloat16().save_pretrained(directory, max_shard_size="3MB")
    text_tokenizer(size, SPELLED | SPELLED_A if parallel_a else SPELLED).save_pretrained(directory)
    raw = json.loads((directory / "config.json").read_text())
    released = {"vocab_size": rows, "new_vocab_size": rows, "llm_vocab_size": 126464, "block_type": "llama", "weight_tying": False}
    (directory / "config.json").write_text(json.dumps(raw | released))
    assert (directory / "model.safetensors.index.json").exists() and len(list(directory.glob("*.safetensors"))) > 1
    return directory
