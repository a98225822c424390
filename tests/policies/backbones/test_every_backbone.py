"""What every family's backbone holds to: its head gives some rows too, and its layers work through their calls alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import policies
from pararl.options import Sampling
from policies import FAMILIES
from policies.backbones.layers import Backbone
from tests.policies.subjects import SUBJECTS
from tests.policies.toy_family.family import TOY

every_family = pytest.mark.parametrize("family", SUBJECTS)


def head_of(model: Backbone) -> tuple[str, nn.Linear]:
    """Its name and itself."""
    found = model.get_output_embeddings()
    assert isinstance(found, nn.Linear)
    return next(name for name, module in model.named_modules() if module is found), found


@torch.no_grad()
@every_family
def test_the_head_on_some_rows_is_a_slice_of_the_full_logits(family: str) -> None:
    model = SUBJECTS[family].build().model
    _, head = head_of(model)
    hidden = torch.randn(2, 3, head.in_features, generator=torch.Generator().manual_seed(0))
    by_hand = hidden @ head.weight.T + (0 if head.bias is None else head.bias)
    assert torch.allclose(model.head(hidden), by_hand, rtol=0, atol=1e-5)
    assert torch.allclose(model.head(hidden, slice(5, 9)), by_hand[..., 5:9], rtol=0, atol=1e-5)


@torch.no_grad()
@every_family
def test_an_adapter_on_the_head_counts_in_a_slice_too(family: str) -> None:
    """Users who list target modules may name the head, alone or with layers of the same name."""
    model = SUBJECTS[family].build().model
    name, head = head_of(model)
    hidden = torch.randn(2, 3, head.in_features, generator=torch.Generator().manual_seed(0))
    base = model.head(hidden)
    get_peft_model(model, LoraConfig(r=2, target_modules=name.replace(".", r"\."), init_lora_weights=False))
    full = model.head(hidden)
    assert (full - base)[..., 5:9].abs().max() > 1e-2
    assert torch.allclose(model.head(hidden, slice(5, 9)), full[..., 5:9], rtol=0, atol=1e-6)


@every_family
def test_layers_that_a_device_map_leaves_on_disk_change_nothing(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a layer has its weights only while it is called: weights that are used past their layer would be none."""
    if family == TOY.name:
        monkeypatch.setitem(FAMILIES, family, TOY)
    subject = SUBJECTS[family]
    own = subject.build()
    holders: dict[int, list[str]] = {}
    for name, parameter in own.model.named_parameters(remove_duplicate=False):
        holders.setdefault(id(parameter), []).append(name.rpartition(".")[0])
    # One layer stays where it is. transformers wants layers of one weight in one place, so that those are the ones to stay.
    stay = max(holders.values(), key=len)
    places = {layer: "cpu" if layer in stay else "disk" for layers in holders.values() for layer in layers}
    own.save(tmp_path)
    loaded = policies.load(tmp_path, device_map=places)
    assert sum(not parameter.is_meta for parameter in loaded.model.parameters()) == 1 and loaded.device == torch.device("cpu")
    assert torch.allclose(own.canary(), loaded.canary(), rtol=0, atol=1e-5)
    sampling = Sampling(steps=4, recorded=2, guidance=1.0)
    for kind in subject.kinds:
        asked = subject.prompts(own, kind, 2)
        for a, b in zip(own.generate(asked, range(2), sampling), loaded.generate(asked, range(2), sampling), strict=True):
            for x, y in zip(a.segments, b.segments, strict=True):
                assert np.allclose(x.tokens, y.tokens, rtol=0, atol=1e-4)
                assert np.allclose(x.logprob, y.logprob, rtol=0, atol=subject.rounding, equal_nan=True)
