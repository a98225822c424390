"""MMaDA-Parallel-A: its copy on disk, its prompts and its samples, against recorded ones and by hand."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import policies
from pararl.options import Sampling
from pararl.types import Output, Prompt
from policies import Policy
from policies.families.parallel_a import MMADA_PARALLEL_A, ParallelASettings
from policies.layout import Shown
from policies.pretraining import supervised_loss
from policies.sequences import Sequences
from policies.settings import Part
from tests.policies import releases
from tests.policies.conftest import logits_of
from tests.wording import telling

MASK = 126336


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the copy of the repository."""
    return tmp_path_factory.mktemp("hub")


def layout_of_a(golden: Path, hub: Path) -> tuple[Policy, ParallelASettings, dict[str, torch.Tensor]]:
    recorded = load_file(golden / "mmada_parallel_a" / "cases.safetensors")
    directory = hub / "MMaDA-Parallel-A"
    if not directory.exists():
        releases.backbone(directory, parallel_a=True)
        shutil.copytree(golden / "amused_vq", directory / "vqvae", ignore=shutil.ignore_patterns("cases*", "README*"))
    found = policies.load(directory)
    assert isinstance(found.settings, ParallelASettings)
    return found, found.settings, recorded


def test_prompts_of_parallel_a_equal_the_recorded_ones(golden: Path, hub: Path) -> None:
    policy, settings, recorded = layout_of_a(golden, hub)
    released = settings.specials
    assert (released.mask, released.newline, released.soi, released.eoi) == (126336, 126084, 126349, 126350)
    assert (released.answer_start, released.answer_end) == (126354, 126355)
    prompt, free = recorded["a.uncon_image"][0].tolist(), recorded["a.uncon_text"][0].tolist()
    ids = recorded["a.input_ids"][0].tolist()
    shown = [i for i in ids[ids.index(121) + 1 : ids.index(122)] if i != 111]
    spell = lambda row: " ".join(f"w{i}" for i in row)  # noqa: E731
    nobody = free[: free.index(121)]
    settings = replace(
        settings,
        grid=(4, 4),
        text_tokens=12,
        dialogue="{text} " + spell(prompt[-1:]),
        nobody=spell(nobody),
        specials=replace(released, mask=110, newline=111, soi=121, eoi=122, answer_start=126, answer_end=127),
    )
    own = MMADA_PARALLEL_A.policy(policy.model, policy.layout.text.tokenizer, policy.layout.images.module, settings)
    asked = Prompt("x", "interleaved", spell(prompt[:-1]), image=np.zeros((16, 16, 3), np.uint8))
    rows = len(shown) // 4
    assert rows * 4 == len(shown) and own.layout.prefix(asked, shown, without="image") == prompt
    assert own.layout.prefix(asked, shown) + list(own.layout.tail("interleaved").ids) == ids
    assert own.layout.prefix(asked, shown, without="text") == free
    (blank,) = own.layout.canvases([asked], [None], [Shown(tuple(shown))])
    image, text = blank.spans
    assert (text.start, text.stop) == (49, 61) and blank.ids[0, image.columns].eq(110).all() and len(image) == 16


def test_a_copy_of_parallel_a_without_its_image_tokenizer_says_what_is_missing(golden: Path, hub: Path, tmp_path: Path) -> None:
    layout_of_a(golden, hub)
    shutil.copytree(hub / "MMaDA-Parallel-A", tmp_path / "MMaDA-Parallel-A", ignore=shutil.ignore_patterns("vqvae"))
    with pytest.raises(FileNotFoundError, match=telling(tmp_path / "MMaDA-Parallel-A", "vqvae")):
        policies.load(tmp_path / "MMaDA-Parallel-A")


def test_parallel_a_puts_its_system_message_and_its_tags_in_front(golden: Path, hub: Path) -> None:
    policy, settings, _ = layout_of_a(golden, hub)
    system = [0] * len(settings.system_new.split())
    assert policy.layout.prefix(Prompt("x", "t2i", "w5")) == [126352, *system, 126353, 7, 5, 8]
    assert policy.layout.prefix(Prompt("x", "t2i", "w5"), without="text") == [126352, *system, 126353, 7, 126351, 8]


def test_every_row_of_a_parallel_a_image_ends_behind_its_columns(golden: Path, hub: Path) -> None:
    whole, _, _ = layout_of_a(golden, hub)
    policy = MMADA_PARALLEL_A.policy(
        whole.model,
        whole.layout.text.tokenizer,
        whole.layout.images.module,
        replace(whole.settings, grid=(2, 3), text_tokens=2, text_block=2),
    )
    tail = policy.layout.tail("interleaved")
    assert list(tail.ids) == [126354, 126349, *[MASK] * 3, 126084, *[MASK] * 3, 126084, 126350, MASK, MASK, 126355]
    assert torch.tensor(tail.ids)[tail.spans[0].columns].tolist() == [MASK] * 6 and (tail.spans[1].start, tail.spans[1].stop) == (11, 13)
    given = policy.layout.prefix(Prompt("x", "interleaved", "w5", image=np.zeros((8, 12, 3), np.uint8)), [21, 22, 23, 24, 25, 26])
    start = given.index(126349)
    assert given[start:] == [126349, 21, 22, 23, 126084, 24, 25, 26, 126084, 126350, 8]


def test_prompts_of_parallel_a_dropped_in_training_are_those_that_guidance_compares_with(
    golden: Path, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _, _ = layout_of_a(golden, hub)
    settings = replace(whole.settings, grid=(2, 3), text_tokens=2, text_block=2)
    policy = MMADA_PARALLEL_A.policy(whole.model.float(), whole.layout.text.tokenizer, whole.layout.images.module, settings)
    given: list[torch.Tensor] = []
    hidden = policy.model.hidden

    def watched(sequences: Sequences, columns: torch.Tensor) -> torch.Tensor:
        given.append(sequences.ids.clone())
        return hidden(sequences, columns)

    monkeypatch.setattr(policy.model, "hidden", watched)
    image = np.zeros((8, 12, 3), np.uint8)
    asked = [Prompt(text, "interleaved", text, image=image) for text in ("w5 w6", "w5 w6 w7 w9")]
    supervised_loss(policy, asked, [Output("w5", image)] * 2, torch.Generator().manual_seed(0), drop=1.0)
    (free,) = policy.layout.canvases(asked, ["text"], policy.layout.shown(asked))
    assert torch.equal(given[0][:, : free.prefix], free.ids[:, : free.prefix]) and (free.ids == 126351).any(1).all()


@torch.no_grad()
def test_parallel_a_samples_with_three_branches_as_three_forwards_would(golden: Path, hub: Path) -> None:
    policy, _, _ = layout_of_a(golden, hub)
    policy = MMADA_PARALLEL_A.policy(
        policy.model.float(),
        policy.layout.text.tokenizer,
        policy.layout.images.module,
        replace(policy.settings, grid=(2, 3), text_tokens=4, text_block=4),
    )
    rng = np.random.default_rng(0)
    asked = [Prompt(f"{i}", "interleaved", "w5 " * (i + 1), image=rng.integers(0, 256, (8, 12, 3), dtype=np.uint8)) for i in range(3)]
    sampling = Sampling(steps=2, guidance=2.5, input_guidance=4.0)
    scene = policy.sampler.scene(asked, sampling)
    blank = scene.blank
    assert [dict(b.scales) for b in scene.branches] == [{"image": 2.5, "text": 0.0}, {"image": 4.0, "text": 0.0}]
    (_, image), (text, same) = logits_of(policy, blank, scene.branches)(blank.ids, blank.spans)
    assert torch.equal(text, same)
    shown, span = policy.layout.shown(asked), blank.spans[0]
    parts: tuple[Part | None, ...] = (None, "text", "image")
    for row, prompt in enumerate(asked):
        behind = list(policy.layout.tail("interleaved").ids)
        logits = []
        for part in parts:
            prefix = policy.layout.prefix(prompt, shown[row].ids, without=part)
            whole = policy.model(torch.tensor([prefix + behind]))[0]
            logits.append(
                whole[len(prefix) + 2 :][: 2 * 4]
                .unflatten(0, (2, 4))[:, :3]
                .flatten(0, 1)[:, 126356 : 126356 + policy.layout.images.module.codebook_size]
            )
        expected = logits[0] + 2.5 * (logits[0] - logits[1]) + 4.0 * (logits[0] - logits[2])
        assert torch.allclose(image[row], expected, rtol=0, atol=1e-4)
    assert len(span) == 6
    rollouts = policy.generate(asked, [1, 2, 3], sampling)
    assert all(r.output.image is not None and r.output.image.shape == (8, 12, 3) for r in rollouts)
    alone = policy.generate(asked[2:], [3], sampling)[0]
    assert all(np.array_equal(a.tokens, b.tokens) for a, b in zip(alone.segments, rollouts[2].segments, strict=True))
