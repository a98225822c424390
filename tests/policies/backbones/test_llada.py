"""The backbone is the released one: names, shapes, logits; padding never changes a logit; an adapter wraps what it should."""

import copy
import json
import re
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from policies import Policy
from policies.backbones.llada import MMadaConfig, MMadaModelLM
from policies.cpu import computing
from policies.families.mmada import MMADA

TARGETS = {"q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out"}


@pytest.fixture(scope="module")
def released() -> MMadaModelLM:
    """The 8B model without memory."""
    with torch.device("meta"):
        return MMadaModelLM(MMadaConfig())


# ---- parity with the recorded reference


@pytest.fixture(params=["torch", "workers"])
def products(request: pytest.FixtureRequest) -> Iterator[None]:
    """Float32 products as torch does them by itself, and as the workers have them done."""
    with computing(1) if request.param == "workers" else nullcontext():
        yield


@torch.no_grad()
@pytest.mark.usefixtures("products")
def test_logits_and_last_hidden_states_equal_the_recorded_ones(mmada_model: MMadaModelLM, mmada_cases: dict[str, Tensor]) -> None:
    ids = mmada_cases["fwd.input_ids"]
    assert torch.allclose(mmada_model(ids), mmada_cases["fwd.logits"], rtol=0, atol=1e-5)
    assert torch.allclose(mmada_model.states(ids), mmada_cases["fwd.hidden_last"], rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.usefixtures("products")
def test_logits_of_a_padded_batch_equal_the_recorded_ones_at_real_positions(
    mmada_model: MMadaModelLM, mmada_cases: dict[str, Tensor]
) -> None:
    mask = mmada_cases["t2i.attention_mask"]
    assert 0 < int((mask == 0).sum()), "the case has padding"
    logits = mmada_model(mmada_cases["t2i.input_ids"], mask)
    assert torch.allclose(logits[mask.bool()], mmada_cases["t2i.logits"][mask.bool()], rtol=0, atol=1e-5)


def test_parameter_names_and_shapes_are_the_released_ones_at_8b(released: MMadaModelLM, golden: Path) -> None:
    listed = json.loads((golden / "released_keys" / "mmada_8b.json").read_text())
    assert {k: list(v.shape) for k, v in released.state_dict().items()} == {k: shape for k, (shape, _) in listed.items()}
    assert len(listed) == 291


def test_fields_of_the_released_config_are_accepted_and_kept(golden: Path) -> None:
    raw = json.loads((golden / "mmada" / "config.json").read_text())
    config = MMadaConfig.from_pretrained(golden / "mmada")
    # transformers owns its bookkeeping fields
    ours = {k: v for k, v in raw.items() if k not in ("architectures", "model_type", "use_cache")}
    assert {k: getattr(config, k) for k in ours} == ours
    assert {"block_type", "llm_vocab_size", "rope_full_precision"} <= ours.keys(), "fields of the release that we do not use"


def test_defaults_that_are_no_sizes_are_the_released_ones(golden: Path) -> None:
    raw = json.loads((golden / "mmada" / "config.json").read_text())
    assert all(getattr(MMadaConfig(), name) == raw[name] for name in ("rope_theta", "rms_norm_eps", "init_std"))


def test_loading_leaves_no_key_over_and_none_missing(golden: Path) -> None:
    loaded: Any = MMadaModelLM.from_pretrained(golden / "mmada", output_loading_info=True)
    info = loaded[1]
    assert {name: len(keys) for name, keys in info.items()} == dict.fromkeys(info, 0) and "missing_keys" in info


# ---- attention


@torch.no_grad()
@pytest.mark.parametrize("width", [1, 5, 40])
def test_left_padding_of_any_width_never_changes_a_logit(policy: Policy, width: int) -> None:
    model = policy.model
    ids = torch.randint(0, model.config.embedding_size, (3, 11), generator=torch.Generator().manual_seed(1))
    padded = torch.cat((torch.full((3, width), policy.settings.specials.pad), ids), 1)
    mask = torch.arange(width + 11).expand(3, -1) >= width
    assert torch.allclose(model(padded, mask)[:, width:], model(ids), rtol=0, atol=1e-5)
    assert not torch.allclose(model(padded)[:, width:], model(ids), rtol=0, atol=1e-2), "padding is seen where it is not masked"


@torch.no_grad()
def test_batch_mates_of_other_lengths_never_change_a_logit(policy: Policy) -> None:
    model = policy.model
    generator = torch.Generator().manual_seed(2)
    rows = [torch.randint(0, model.config.embedding_size, (n,), generator=generator) for n in (3, 17, 8, 12)]
    ids = torch.stack([torch.cat((torch.full((17 - len(r),), policy.settings.specials.pad), r)) for r in rows])
    mask = torch.stack([torch.arange(17) >= 17 - len(r) for r in rows])
    for kind in (mask, mask.long(), mask.float()):
        logits = model(ids, kind)
        for i, row in enumerate(rows):
            assert torch.allclose(logits[i, 17 - len(row) :], model(row[None])[0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_attention_is_bidirectional_with_and_without_padding(policy: Policy) -> None:
    ids = torch.randint(0, 16, (2, 9), generator=torch.Generator().manual_seed(3))
    other = ids.clone()
    other[:, -1] = (other[:, -1] + 1) % 16
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, :3] = False
    for m in (None, mask):
        change = (policy.model(ids, m) - policy.model(other, m))[:, 3].abs().amax(-1)
        assert (change > 1e-3).all(), "the last token is seen from position 3"


@torch.no_grad()
@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("shared", [True, False], ids=["one order", "an order for each row"])
def test_columns_may_come_in_any_order_with_their_positions(policy: Policy, shared: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, policy.model.config.embedding_size, (3, 11), generator=generator)
    mask = torch.ones(3, 11, dtype=torch.bool)
    mask[0, :4], mask[2, 6] = False, False
    order = torch.stack([torch.randperm(11, generator=generator) for _ in range(3)])
    order = order[:1].expand(3, -1) if shared else order
    expected = policy.model.states(ids, mask).gather(1, order[..., None].expand(-1, -1, policy.model.config.d_model))
    real = mask.gather(1, order)
    shuffled = policy.model.states(ids.gather(1, order), real, positions=order[0] if shared else order)
    assert torch.allclose(shuffled[real], expected[real], rtol=0, atol=1e-5)
    kept = policy.model.states(ids.gather(1, order), real, torch.tensor([2, 7]), order)
    assert torch.allclose(kept[real[:, [2, 7]]], expected[:, [2, 7]][real[:, [2, 7]]], rtol=0, atol=1e-5)
    assert (policy.model.states(ids.gather(1, order), real) - expected)[real].abs().max() > 1e-2, "without them the order counts"
    assert torch.equal(policy.model.states(ids, mask, positions=torch.arange(11)), policy.model.states(ids, mask))
    shifted = policy.model.states(ids, mask, positions=torch.arange(11) + 100)
    assert torch.allclose(shifted[mask], policy.model.states(ids, mask)[mask], rtol=0, atol=1e-4)


@torch.no_grad()
def test_grouped_queries_are_full_attention_with_repeated_keys_and_values() -> None:
    torch.manual_seed(4)
    sizes: dict[str, Any] = {"d_model": 16, "n_layers": 1, "n_heads": 4, "mlp_hidden_size": 24, "embedding_size": 20, "init_std": 0.3}
    grouped, full = MMadaModelLM(MMadaConfig(**sizes, n_kv_heads=2)), MMadaModelLM(MMadaConfig(**sizes))
    weights = grouped.state_dict()
    for name in ("k_proj", "v_proj"):
        key = f"model.transformer.blocks.0.{name}.weight"
        weights[key] = weights[key].view(2, 1, 4, 16).expand(2, 2, 4, 16).reshape(16, 16)
    full.load_state_dict(weights)
    ids = torch.arange(10)[None]
    assert torch.allclose(grouped(ids), full(ids), rtol=0, atol=1e-5)


def test_gradient_checkpointing_gives_the_same_gradients(policy: Policy) -> None:
    ids = torch.arange(12)[None]
    grads, forwards = [], []
    for enable in (False, True):
        model = copy.deepcopy(policy.model)  # in evaluation mode, as policies learn
        model.gradient_checkpointing = enable
        calls: list[int] = []
        model.model.transformer["blocks"][0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        model(ids).logsumexp(-1).sum().backward()
        grads.append({n: p.grad for n, p in model.named_parameters()})
        forwards.append(len(calls))
    assert forwards == [1, 2], "a checkpointed block runs again in the backward pass"
    plain, checkpointed = grads
    for name, grad in plain.items():
        again = checkpointed[name]
        assert grad is not None and again is not None and torch.allclose(grad, again, atol=1e-5), name


def test_peft_and_trl_may_ask_by_the_old_name_whether_a_backbone_checkpoints(policy: Policy) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model: Any = with_adapter(policy)
        assert not model.is_gradient_checkpointing
        model.activation_checkpointing_enable()
        assert model.is_gradient_checkpointing and model.is_activation_checkpointing


# ---- where an adapter goes


def with_adapter(policy: Policy) -> nn.Module:
    config = LoraConfig(r=2, lora_alpha=4, target_modules=policy.lora_targets)
    return get_peft_model(copy.deepcopy(policy.model), config)


def test_an_adapter_wraps_the_seven_projections_of_every_block_and_never_the_head(policy: Policy) -> None:
    wrapped = [name.removesuffix(".lora_A.default") for name, _ in with_adapter(policy).named_modules() if name.endswith(".lora_A.default")]
    blocks = [f"base_model.model.model.transformer.blocks.{i}.{target}" for i in range(2) for target in TARGETS]
    assert sorted(wrapped) == sorted(blocks)


def test_an_adapter_wraps_224_modules_of_the_released_model(released: MMadaModelLM) -> None:
    names = [n for n, m in released.named_modules() if isinstance(m, nn.Linear) and re.fullmatch(MMADA.lora_targets, n)]
    assert len(names) == 7 * 32 and {n.split(".")[-1] for n in names} == TARGETS
    assert all(".blocks." in n for n in names)


def test_adapter_off_is_the_base_exactly_and_every_target_gets_a_gradient(policy: Policy) -> None:
    adapted = with_adapter(policy)
    ids = torch.arange(12)[None]
    base = policy.model(ids)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    assert not torch.allclose(adapted(ids), base, atol=1e-3)
    with adapted.disable_adapter():  # type: ignore[operator]
        assert torch.equal(adapted(ids), base)
    adapted(ids).logsumexp(-1).sum().backward()
    grads = {n: p.grad for n, p in adapted.named_parameters() if "lora_" in n}
    assert len(grads) == 2 * 2 * len(TARGETS)
    assert all(g is not None and float(g.abs().max()) > 0 for g in grads.values())


@torch.no_grad()
def test_some_columns_alone_are_those_of_all(policy: Policy) -> None:
    ids, attention = torch.randint(10, 24, (3, 12), generator=torch.Generator().manual_seed(0)), torch.ones(3, 12, dtype=torch.bool)
    attention[1, :4] = False
    columns = torch.tensor([11, 5, 6])
    assert torch.allclose(policy.model.states(ids, attention, columns), policy.model.states(ids, attention)[:, columns], rtol=0, atol=1e-5)
