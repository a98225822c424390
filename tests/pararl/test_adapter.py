"""The LoRA adapter: off = base, version 0 = base, what is saved is what was trained, and PEFT itself loads it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn

import policies
from pararl import adapter, scenes
from policies import Policy, Sampling
from tests.wording import telling

LINEARS_PER_BLOCK, BLOCKS = 7, 2


def randomise(model: PeftModel, seed: int = 0, scale: float = 0.3) -> dict[str, Tensor]:
    """Give the adapter random values, as if it had been trained; returns copies of them."""
    generator = torch.Generator().manual_seed(seed)
    values = {name: scale * torch.randn(t.shape, generator=generator) for name, t in adapter.tensors(model).items()}
    adapter.load_tensors(model, values)
    return values


@pytest.fixture
def policy(tiny_policy_dir: Path) -> Policy:
    return policies.load(tiny_policy_dir)


def test_version_0_equals_the_base_exactly_and_keeps_the_module(policy: Policy, tiny_policy_dir: Path) -> None:
    model_before, training = policy.model, policy.model.training
    adapter.attach(policy, rank=4, alpha=8)
    assert policy.model is model_before and policy.model.training == training
    assert torch.equal(policy.canary(), policies.load(tiny_policy_dir).canary())


def test_adapter_off_is_the_base_exactly_and_on_is_not(policy: Policy, tiny_policy_dir: Path) -> None:
    expected = policies.load(tiny_policy_dir).canary()
    model = adapter.attach(policy, rank=4, alpha=8)
    randomise(model)
    on = policy.canary()
    with adapter.base(model):
        assert torch.equal(policy.canary(), expected)
        with adapter.base(model):
            assert torch.equal(policy.canary(), expected)
        assert torch.equal(policy.canary(), expected), "a nested block must not switch the adapter on at its end"
    assert torch.equal(policy.canary(), on) and not torch.equal(on, expected)


def test_the_adapter_is_on_again_after_an_error(policy: Policy) -> None:
    model = adapter.attach(policy, rank=4, alpha=8)
    randomise(model)
    on = policy.canary()
    with pytest.raises(KeyError), adapter.base(model):
        raise KeyError
    assert torch.equal(policy.canary(), on)


def test_only_the_adapter_is_trainable_and_every_target_gets_a_gradient(policy: Policy) -> None:
    model = adapter.attach(policy, rank=4, alpha=8)
    randomise(model)
    with adapter.base(model):
        pass  # switching must leave the adapter trainable
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trainable) == len(adapter.tensors(model)) == 2 * LINEARS_PER_BLOCK * BLOCKS
    assert all("lora_" in name for name in trainable)
    ids = torch.arange(24).view(2, 12)
    policy.model(ids).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters() if p.requires_grad)


def test_every_linear_of_a_block_is_wrapped_and_the_head_is_not(policy: Policy) -> None:
    linears = {name for name, m in policy.model.named_modules() if isinstance(m, nn.Linear) and ".blocks." in name}
    model = adapter.attach(policy, rank=4, alpha=8)
    prefix, suffix = "base_model.model.", ".lora_A.weight"
    wrapped = {name.removeprefix(prefix).removesuffix(suffix) for name in adapter.tensors(model) if name.endswith(suffix)}
    assert wrapped == linears and len(linears) == LINEARS_PER_BLOCK * BLOCKS


def test_the_seed_alone_decides_the_initial_values(tiny_policy_dir: Path) -> None:
    def initial(seed: int) -> dict[str, Tensor]:
        return adapter.tensors(adapter.attach(policies.load(tiny_policy_dir), rank=4, alpha=8, seed=seed))

    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = initial(1)
    # Loading a policy initialises nothing randomly that stays; attaching must not disturb the caller's stream either.
    torch.manual_seed(6)
    second, other = initial(1), initial(2)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert all((t == 0).all() for name, t in first.items() if "lora_B" in name)
    torch.set_rng_state(state)
    policy = policies.load(tiny_policy_dir)
    before = torch.get_rng_state()
    adapter.attach(policy, rank=4, alpha=8, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_second_adapter_is_refused(policy: Policy) -> None:
    adapter.attach(policy, rank=4, alpha=8)
    with pytest.raises(ValueError, match=telling("adapter", "load_tensors")):
        adapter.attach(policy, rank=4, alpha=8)


def test_loading_copies_in_place_and_reports_the_count(policy: Policy) -> None:
    model = adapter.attach(policy, rank=4, alpha=8)
    own = adapter.tensors(model)
    values = {name: torch.full_like(t, 0.25) for name, t in own.items()}
    assert adapter.load_tensors(model, values) == len(own)
    assert all((t == 0.25).all() for t in own.values()), "the views taken before must show the new values"
    assert list(own) == sorted(own)


@pytest.mark.parametrize(
    ("change", "tokens"),
    [
        (
            lambda v: v.pop("base_model.model.model.transformer.blocks.0.q_proj.lora_A.weight"),
            (1, "base_model.model.model.transformer.blocks.0.q_proj.lora_A.weight"),
        ),
        (lambda v: v.update(stray=torch.zeros(2)), (1, "stray")),
        (
            lambda v: v.update({n: t[:1] for n, t in v.items() if "q_proj.lora_A" in n}),
            ("q_proj.lora_A.weight", "float32 [1, 32]", "float32 [4, 32]"),
        ),
        (
            lambda v: v.update({n: t.bfloat16() for n, t in v.items() if "q_proj.lora_A" in n}),
            ("q_proj.lora_A.weight", "bfloat16 [4, 32]", "float32 [4, 32]"),
        ),
        (lambda v: v.clear(), (28, "...")),
    ],
)
def test_tensors_that_do_not_fit_are_named_and_nothing_is_copied(policy: Policy, change, tokens: tuple[object, ...]) -> None:  # type: ignore[no-untyped-def]
    model = adapter.attach(policy, rank=4, alpha=8)
    before = {name: t.clone() for name, t in adapter.tensors(model).items()}
    values = {name: t + 1 for name, t in before.items()}
    change(values)
    with pytest.raises(ValueError, match=telling(*tokens)):
        adapter.load_tensors(model, values)
    assert all(torch.equal(t, before[name]) for name, t in adapter.tensors(model).items())


def test_a_saved_adapter_loads_with_peft_and_samples_the_same(policy: Policy, tiny_policy_dir: Path, tmp_path: Path) -> None:
    model = adapter.attach(policy, rank=4, alpha=8)
    values = randomise(model)
    directory = tmp_path / "adapters" / "pararl"
    adapter.save(model, directory, str(tiny_policy_dir))
    assert sorted(p.name for p in directory.iterdir()) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert [p.name for p in directory.parent.iterdir()] == ["pararl"], "nothing temporary may be left"
    config = json.loads((directory / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_policy_dir) and config["r"] == 4 and config["lora_alpha"] == 8
    stored = load_file(directory / "adapter_model.safetensors")
    assert stored.keys() == values.keys() and all(torch.equal(stored[name], values[name]) for name in values)

    fresh = policies.load(config["base_model_name_or_path"])
    PeftModel.from_pretrained(fresh.model, directory)
    prompts = [scenes.prompt("train", i) for i in range(3)]
    ours, theirs = (p.generate(prompts, [7, 8, 9], Sampling(steps=4)) for p in (policy, fresh))
    base = policies.load(tiny_policy_dir).generate(prompts, [7, 8, 9], Sampling(steps=4))
    for a, b in zip(ours, theirs, strict=True):
        assert a.output.image is not None and np.array_equal(a.segments[0].tokens, b.segments[0].tokens)
        assert b.output.image is not None and np.array_equal(a.output.image, b.output.image)
    assert any(not np.array_equal(a.segments[0].tokens, b.segments[0].tokens) for a, b in zip(ours, base, strict=True))


def test_saving_again_replaces_the_directory_and_a_failure_leaves_the_old_one(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapter.attach(policy, rank=4, alpha=8)
    directory = tmp_path / "a"
    adapter.save(model, directory, "first")
    new = randomise(model)
    adapter.save(model, directory, "second")
    assert json.loads((directory / "adapter_config.json").read_text())["base_model_name_or_path"] == "second"

    def fails(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(PeftModel, "save_pretrained", fails)
    with pytest.raises(OSError, match="disk full"):
        adapter.save(model, directory, "third")
    stored = load_file(directory / "adapter_model.safetensors")
    assert all(torch.equal(stored[name], new[name]) for name in new)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


class Experts(torch.nn.Module):
    """Three linear maps in one parameter, as fused experts hold them: no layer of their own to wrap."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = torch.nn.Parameter(torch.randn(3, width, width, generator=torch.Generator().manual_seed(0)) * 0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bnd,edh->bneh", x, self.gate).mean(2)


def test_an_adapter_reaches_parameters_that_have_no_layer_of_their_own(tiny_policy_dir: Path) -> None:
    policy = policies.load(tiny_policy_dir)
    norm = policy.model.model.transformer["ln_f"]
    policy.model.experts = Experts(32)
    plain = type(norm).forward
    norm.forward = lambda x: plain(norm, x) + policy.model.experts(x)
    policy.lora_parameters = ("experts.gate",)
    base = policy.canary()
    peft = adapter.attach(policy, rank=2, alpha=4)
    own = [name for name in adapter.tensors(peft) if ".experts." in name]
    assert len(own) == 2 and torch.equal(policy.canary(), base), "a new adapter changes nothing"
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if parameter.requires_grad and ".experts." in name:
                parameter.fill_(0.3)
    assert not torch.allclose(policy.canary(), base, atol=1e-3)
    with adapter.base(peft):
        assert torch.equal(policy.canary(), base)
