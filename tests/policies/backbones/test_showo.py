"""Show-o's backbone is the released one: names, shapes, logits; what it keeps of a sequence; where an adapter goes."""

import copy
import json
import re
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from policies import Policy
from policies.backbones.showo import Showo, ShowoConfig
from policies.cpu import computing
from policies.families.showo import SHOWO
from policies.weights import read_model
from tests.wording import telling

TARGETS = {"q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"}


@pytest.fixture(scope="module")
def released() -> Showo:
    """The 1.3B model without memory."""
    with torch.device("meta"):
        return Showo(ShowoConfig())


@pytest.fixture(params=["torch", "workers"])
def products(request: pytest.FixtureRequest) -> Iterator[None]:
    """Float32 products as torch does them by itself, and as the workers have them done."""
    with computing(1) if request.param == "workers" else nullcontext():
        yield


def causal(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Who sees whom among ids [batch, length] of text alone, and their positions."""
    batch, length = ids.shape
    return torch.ones(length, length, dtype=torch.bool).tril().expand(batch, -1, -1), torch.arange(length).expand(batch, -1)


# ---- the release


def test_parameter_names_and_shapes_are_the_released_ones_at_1_3b(released: Showo, golden: Path) -> None:
    listed = json.loads((golden / "released_keys" / "showo_1.3b.json").read_text())
    assert {k: list(v.shape) for k, v in released.state_dict().items()} == {k: shape for k, (shape, _) in listed.items()}
    assert len(listed) == 437


@torch.no_grad()
@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("name", ["t2i", "mmu", "lm"])
def test_logits_equal_the_recorded_ones_under_the_recorded_masks(golden: Path, name: str) -> None:
    """The masks are those of the recording, and so are the positions, which count every column."""
    model, t = recorded_model(golden), load_file(golden / "showo" / "cases.safetensors")
    ids, seen = t[f"{name}.input_ids"], t[f"{name}.mask_allowed"][:, 0].bool()
    places = torch.arange(ids.shape[1]).expand(len(ids), -1)
    assert torch.allclose(model(ids, seen, places), t[f"{name}.logits"], rtol=0, atol=2e-5)


def recorded_model(golden: Path) -> Showo:
    model = Showo(ShowoConfig(**json.loads((golden / "showo" / "config.json").read_text()), phi=phi(golden)))
    model.load_state_dict(load_file(golden / "showo" / "model.safetensors"))
    return model.eval()


def phi(golden: Path) -> dict[str, Any]:
    return json.loads((golden / "showo" / "phi_config.json").read_text())


def test_fields_of_the_released_config_are_accepted_and_kept(golden: Path) -> None:
    raw = json.loads((golden / "showo" / "config.json").read_text())
    config = ShowoConfig(**raw)
    assert {k: getattr(config, k) for k in raw} == raw and {"llm_model_path", "load_from_showo", "_class_name"} <= raw.keys()
    assert config.embedding_size == raw["vocab_size"] and ShowoConfig().mask_token_id == 58497


@pytest.mark.parametrize("asked", [False, True])
def test_queries_and_keys_are_normalised_whatever_the_config_of_phi_says(golden: Path, asked: bool) -> None:
    given = phi(golden)
    assert given["qk_layernorm"] is False, "as the configuration beside the release has it"
    model = Showo(ShowoConfig(vocab_size=175, phi={**given, "qk_layernorm": asked}))
    assert sum(name.endswith("_layernorm.weight") and "self_attn" in name for name in model.state_dict()) == 4


def test_weights_without_the_norms_of_queries_and_keys_are_an_error(showo: Policy, tmp_path: Path) -> None:
    """Plain Phi has none: transformers would fill them in and go on."""
    showo.model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "self_attn.q_layernorm" not in k}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=telling("Showo", 4, "showo.model.layers.0.self_attn.q_layernorm.bias")):
        read_model(Showo, tmp_path)


def test_a_release_that_reads_clip_features_is_refused(golden: Path) -> None:
    raw = json.loads((golden / "showo" / "config.json").read_text())
    with pytest.raises(ValueError, match=telling("w_clip_vit")):
        ShowoConfig(**{**raw, "w_clip_vit": True})


def test_a_saved_model_loads_as_it_was(showo: Policy, tmp_path: Path) -> None:
    showo.model.save_pretrained(tmp_path)
    loaded: Any = Showo.from_pretrained(tmp_path, output_loading_info=True)
    model, info = loaded
    assert {name: len(keys) for name, keys in info.items()} == dict.fromkeys(info, 0) and "missing_keys" in info
    before, after = showo.model.state_dict(), model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(model.eval()(ids, *causal(ids)), showo.model(ids, *causal(ids)))


# ---- its halves


@torch.no_grad()
@pytest.mark.usefixtures("products")
def test_a_sequence_read_in_parts_is_the_sequence_read_at_once(showo: Policy) -> None:
    ids = torch.randint(0, 23, (3, 12), generator=torch.Generator().manual_seed(0))
    seen, places = causal(ids)
    cache, parts = DynamicCache(), []
    for part in (slice(0, 5), slice(5, 6), slice(6, 12)):
        parts.append(showo.model.states(ids[:, part], seen[:, part, : part.stop], places[:, part], cache))
    assert torch.allclose(torch.cat(parts, 1), showo.model.states(ids, seen, places), rtol=0, atol=1e-5)
    assert cache.get_seq_length() == 12


@torch.no_grad()
def test_hidden_keys_and_positions_are_what_they_say(showo: Policy) -> None:
    ids = torch.randint(0, 23, (1, 9), generator=torch.Generator().manual_seed(1))
    seen, places = causal(ids)
    without = seen.clone()
    without[:, :, 3] = torch.eye(9, dtype=torch.bool)[:, 3]
    others = torch.cat((ids[:, :3], ids[:, 4:]), 1)
    gone = torch.tensor([i for i in range(9) if i != 3])
    plain = showo.model(others, *causal(others))
    assert torch.allclose(showo.model(ids, without, places.clamp_max(3) + (places - 4).clamp_min(0))[:, gone], plain, rtol=0, atol=1e-5)
    assert not torch.allclose(showo.model(ids, without, places)[:, gone], plain, atol=1e-2), "positions matter"


def test_gradient_checkpointing_gives_the_same_gradients(showo: Policy) -> None:
    ids = torch.arange(12)[None]
    grads, forwards = [], []
    for enable in (False, True):
        model = copy.deepcopy(showo.model)  # in evaluation mode, as policies learn
        model.gradient_checkpointing = enable
        calls: list[int] = []
        model.showo.model.layers[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        model(ids, *causal(ids)).logsumexp(-1).sum().backward()
        grads.append({n: p.grad for n, p in model.named_parameters()})
        forwards.append(len(calls))
    assert forwards == [1, 2], "a checkpointed layer runs again in the backward pass"
    plain, checkpointed = grads
    for name, grad in plain.items():
        again = checkpointed[name]
        assert grad is not None and again is not None and torch.allclose(grad, again, atol=1e-5), name


@torch.no_grad()
def test_a_checkpointing_model_that_samples_runs_every_layer_once(showo: Policy) -> None:
    model = copy.deepcopy(showo.model)
    showo_like = SHOWO.policy(model, showo.layout.text.tokenizer, showo.layout.images.module, showo.settings)
    showo_like.checkpoint_gradients(True)
    calls: list[int] = []
    model.showo.model.layers[1].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    ids = torch.arange(12)[None]
    cache = DynamicCache()
    hidden = model.states(ids, *causal(ids), cache)
    assert calls == [1] and cache.get_seq_length() == 12
    assert torch.equal(hidden, showo.model.states(ids, *causal(ids)))


# ---- where an adapter goes


def test_an_adapter_wraps_the_six_projections_of_every_layer_and_never_the_head(showo: Policy) -> None:
    adapted: nn.Module = get_peft_model(copy.deepcopy(showo.model), LoraConfig(r=2, lora_alpha=4, target_modules=showo.lora_targets))
    wrapped = [name.removesuffix(".lora_A.default") for name, _ in adapted.named_modules() if name.endswith(".lora_A.default")]
    inner = {"q_proj": "self_attn", "k_proj": "self_attn", "v_proj": "self_attn", "dense": "self_attn", "fc1": "mlp", "fc2": "mlp"}
    layers = [f"base_model.model.showo.model.layers.{i}.{inner[target]}.{target}" for i in range(2) for target in TARGETS]
    assert sorted(wrapped) == sorted(layers)


def test_an_adapter_wraps_144_modules_of_the_released_model(released: Showo) -> None:
    names = [n for n, m in released.named_modules() if isinstance(m, nn.Linear) and re.fullmatch(SHOWO.lora_targets, n)]
    assert len(names) == 6 * 24 and {n.split(".")[-1] for n in names} == TARGETS
