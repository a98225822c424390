"""Cycle consistency: whether a caption of the image that was made says what its prompt asked for."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pararl.scenes.sentences import parse_caption
from pararl.scenes.spec import read_spec
from pararl.scenes.verify import verify
from pararl.scenes.world import CELLS, COLOURS, EMPTY, SHAPES, Scene, kind


def cycle(spec: Mapping[str, Any], caption: str) -> tuple[float, bool]:
    """How well a caption agrees with the spec of a description, soft in [0, 1] and strictly.

    The objects that the caption names are checked as an image of them would be. Places and relations are left out, because captions of this
    world tell none. A caption that is no sentence of the grammar, leaves a colour open, or names more objects than a scene holds gets 0.
    Raises ValueError for a malformed spec.
    """
    need = read_spec(spec)
    said = parse_caption(caption)
    if said is None or said.objects > CELLS or any(group.colour is None for group in said.groups):
        return 0.0, False
    kinds = [kind(SHAPES.index(g.shape), COLOURS.index(g.colour or "")) for g in said.groups for _ in range(g.count)]
    scene = Scene.from_cells([*kinds, *[EMPTY] * (CELLS - len(kinds))])
    # The caption's objects lie in any cells, so that a relation would hold or not by accident.
    placeless = replace(need, include=tuple(replace(include, relation=None) for include in need.include))
    found = verify(placeless, scene)
    return found.value, found.strict
