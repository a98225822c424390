"""What the table of traits says of a family is what its classes do, and nobody else names a family."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import policies
from pararl.releases import RELEASES
from pararl.types import Latents, Prompt
from policies import FAMILIES
from policies.traits import TRAITS

ROOT = Path(__file__).resolve().parents[2]
OTHERS = ("pararl", "rewards", "pipelines")
"""Rooms that ask the traits of a family in place of its name."""


def test_every_family_has_a_row() -> None:
    assert list(TRAITS) == list(FAMILIES)
    assert {json.loads(file.read_text())["family"] for file in RELEASES.values()} <= TRAITS.keys()


def test_the_table_loads_no_torch() -> None:
    code = "import sys, policies.traits; assert not {'torch', 'transformers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("name", ["scenes-mmada", "scenes-showo", "scenes-showo2"])
def test_heads_are_those_that_the_policy_has(name: str) -> None:
    policy = policies.load(name)
    traits, sampling = TRAITS[policy.family], replace(policy.sampling, steps=4)
    rollouts = policy.generate([Prompt("a", "interleaved", "two red circles")], [0], sampling)
    draws = policy.draws(rollouts, 8, torch.Generator().manual_seed(0))
    assert draws.masks["text"].any() == (traits.text == "masked")
    assert draws.masks["image"].any() == (traits.image == "masked")
    assert isinstance(rollouts[0].segment("image"), Latents) == (traits.image == "flow")
    with nullcontext() if traits.text_guided else pytest.raises(ValueError, match="text_guidance"):
        policy.generate([rollouts[0].prompt], [0], replace(sampling, text_guidance=1.0))


@pytest.mark.parametrize("family", FAMILIES)
def test_no_other_program_names_a_family(family: str) -> None:
    assert list(named(family, OTHERS)) == []


def named(family: str, rooms: Sequence[str]) -> Iterator[str]:
    """Where a family's name stands alone as text in the code of some rooms, ``file:line``."""
    for room in rooms:
        for file in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and node.value == family:
                    yield f"{file.relative_to(ROOT)}:{node.lineno}"


def test_the_search_finds_names() -> None:
    assert any(place.startswith("policies/traits.py") for place in named("showo2", ("policies",))), "its own row names it"
