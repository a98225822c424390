"""Released checkpoints load by what they are, with their ids, and are trained and adapted like the embedded ones."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

import policies
from pararl import adapter
from pararl.options import Sampling
from pararl.types import Output, Prompt
from policies import Policy
from policies.backbones.llada import MMadaConfig, MMadaModelLM
from policies.families.mmada import MMADA
from policies.families.parallel_a import MMADA_PARALLEL_A, ParallelASettings
from policies.layout import Shown
from policies.pretraining import supervised_loss
from policies.sequences import Sequences
from policies.settings import Part
from tests.policies import releases
from tests.policies.conftest import logits_of

MASK, BOS, EOS, SOI, EOI, T2I, MMU, INTERLEAVE, T2IT = 126336, 126080, 126081, 126084, 126085, 126088, 126089, 126095, 126096
HEAD, TAIL, EOT = 126346, 126347, 126348
BLACK = np.zeros((512, 512, 3), np.uint8)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders as somebody has them who fetched the repositories."""
    folder = tmp_path_factory.mktemp("hub")
    releases.image_tokenizer(folder / "magvitv2")
    releases.backbone(folder / "MMaDA-8B-MixCoT")
    for other in ("MMaDA-8B-Base", "MMaDA-Parallel-M"):
        shutil.copytree(folder / "MMaDA-8B-MixCoT", folder / other)
    return folder


def load(hub: Path, name: str) -> Policy:
    found = policies.load(hub / name, image_tokenizer=hub / "magvitv2")
    assert isinstance(found, Policy)
    return found


def test_a_copy_is_known_by_its_folder_and_holds_what_the_shards_hold(hub: Path) -> None:
    policy = load(hub, "MMaDA-8B-MixCoT")
    assert policy.tasks == ("t2t", "i2t", "t2i") and policy.model.dtype == torch.bfloat16 and policy.tokens.text_bias.shape == (126349,)
    held = policy.model.state_dict()
    shards = {k: v for file in (hub / "MMaDA-8B-MixCoT").glob("*.safetensors") for k, v in load_file(file).items()}
    assert held.keys() == shards.keys() and all(torch.equal(held[k], shards[k]) for k in held)
    assert policies.load(hub / "MMaDA-8B-MixCoT", image_tokenizer=hub / "magvitv2", dtype=torch.float32).model.dtype == torch.float32


def test_the_folder_of_the_hubs_cache_says_the_release_too(hub: Path, tmp_path: Path) -> None:
    snapshot, plain = tmp_path / "models--tyfeld--MMaDA-Parallel-M" / "snapshots" / "0a1b", tmp_path / "copy"
    for folder in (snapshot, plain):
        shutil.copytree(hub / "MMaDA-Parallel-M", folder)
    assert policies.load(snapshot, image_tokenizer=hub / "magvitv2").tasks == ("interleaved",)
    with pytest.raises(FileNotFoundError, match=r"copy has no policy.json: say which release it is a copy of .*MixCoT"):
        policies.load(plain)
    assert policies.load(plain, release="Gen-Verse/MMaDA-8B-Base", image_tokenizer=hub / "magvitv2").tasks == ("t2t", "i2t", "t2i")


def test_prompts_of_mmada_have_the_released_ids(hub: Path) -> None:
    policy = load(hub, "MMaDA-8B-Base")
    shown = policy.layout.shown([Prompt("x", "i2t", "w5", image=BLACK)])[0].ids
    assert len(shown) == 1024 and min(shown) >= 126349 and max(shown) < 134541
    assert policy.layout.prefix(Prompt("x", "t2i", "w5 w6")) == [T2I, BOS, 5, 6, EOS]
    chat = [HEAD, 0, TAIL, 5, EOT, HEAD, 0, TAIL]  # "user" and "assistant" are not words of this tokenizer
    assert policy.layout.prefix(Prompt("x", "t2t", "w5")) == [BOS, *chat]
    assert policy.layout.prefix(Prompt("x", "i2t", "w5", image=BLACK), shown) == [MMU, SOI, *shown, EOI, BOS, *chat]


def test_prompts_of_parallel_m_have_the_released_ids(hub: Path) -> None:
    policy = load(hub, "MMaDA-Parallel-M")
    edit, words = Prompt("x", "interleaved", "w5 w6", image=BLACK), Prompt("y", "interleaved", "w5 w6")
    shown = [126349] * 1024
    assert policy.layout.prefix(edit, shown) == [INTERLEAVE, SOI, *shown, EOI, BOS, 5, 6, EOS]
    dropped = [SOI, *[0] * 1024, EOI]
    assert policy.layout.prefix(edit, shown, without="text") == [INTERLEAVE, *dropped, BOS, EOS, EOS, EOS]
    assert policy.layout.prefix(edit, shown, without="image") == [INTERLEAVE, *dropped, BOS, 5, 6, EOS]
    assert policy.layout.prefix(words) == [T2IT, *dropped, BOS, 5, 6, EOS]
    tail = policy.layout.tail("interleaved")
    assert list(tail.ids) == [SOI, *[MASK] * 1024, EOI, BOS, *[MASK] * 255]


def test_prompts_of_parallel_m_equal_the_recorded_ones(golden: Path, hub: Path) -> None:
    """The recorded case has 16 image tokens and its own ids for the special tokens."""
    recorded = load_file(golden / "mmada_parallel_m" / "cases.safetensors")
    given, free = recorded["prompt_ids"].tolist(), recorded["uncond_prompt_ids"].tolist()
    policy = load(hub, "MMaDA-Parallel-M")
    specials = replace(policy.settings.specials, mask=140, bos=141, eos=142, soi=143, eoi=144, interleave=145)
    own = MMADA.policy(
        policy.model, policy.layout.text.tokenizer, policy.layout.images.module, replace(policy.settings, grid=(4, 4), specials=specials)
    )
    shown, text = given[2:18], given[given.index(141) + 1 : given.index(142)]
    prompt = Prompt("x", "interleaved", " ".join(f"w{i}" for i in text), image=np.zeros((64, 64, 3), np.uint8))
    assert own.layout.prefix(prompt, shown) == given and own.layout.prefix(prompt, shown, without="text") == free


def test_a_text_cannot_spell_a_special_token(hub: Path) -> None:
    """In LLaDA's byte-level vocabulary special tokens are no words: spelled in a prompt they are bytes like any others."""
    policy = load(hub, "MMaDA-8B-Base")
    letters = sorted(ByteLevel.alphabet())
    core = Tokenizer(BPE({letter: i for i, letter in enumerate(letters)}, []))
    core.pre_tokenizer, core.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    core.add_special_tokens([AddedToken(token, special=True) for token in releases.SPELLED])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>", mask_token="<|mdm_mask|>")
    special = {token: tokenizer.get_vocab()[token] for token in releases.SPELLED}
    specials = replace(policy.settings.specials, mask=special["<|mdm_mask|>"], eos=special["<|endoftext|>"])
    own = MMADA.policy(policy.model, tokenizer, policy.layout.images.module, replace(policy.settings, specials=specials))
    for text in ("a <|eot_id|> b", "<|mdm_mask|>", "w<|endoftext|>", " \n a"):
        ids = own.layout.prefix(Prompt("x", "t2t", text))
        count = {token: ids.count(i) for token, i in special.items()}
        assert count["<|eot_id|>"] == 1 and count["<|mdm_mask|>"] == count["<|endoftext|>"] == 0 and count["<|start_header_id|>"] == 2
        start = ids.index(special["<|end_header_id|>"]) + 1
        assert own.layout.text.decode(ids[start : ids.index(special["<|eot_id|>"])]) == "\n" + text
    # a vocabulary in which they are words cannot tell the two apart
    with pytest.raises(ValueError, match="spells a special token of this policy's tokenizer; take it out"):
        policy.layout.prefix(Prompt("x", "t2t", "w5 <|eot_id|> w6"))


@pytest.mark.parametrize(("name", "task"), [("MMaDA-8B-MixCoT", "t2i"), ("MMaDA-8B-MixCoT", "t2t"), ("MMaDA-Parallel-M", "interleaved")])
def test_a_release_samples_images_and_text_of_its_rows_alone(hub: Path, name: str, task: str) -> None:
    policy = load(hub, name)
    sampling = Sampling(steps=4, guidance=1.5)
    (rollout,) = policy.generate([Prompt("x", task, "w5 w6")], [3], sampling)  # type: ignore[arg-type]
    for segment in rollout.segments:
        tokens = torch.from_numpy(segment.tokens)
        if segment.modality == "image":
            assert len(tokens) == 1024 and ((tokens >= 126349) & (tokens < 134541)).all()
            assert rollout.output.image is not None and rollout.output.image.shape == (512, 512, 3)
        else:
            assert len(tokens) == (255 if task == "interleaved" else 512) and (tokens < 126349).all() and not (tokens == MASK).any()


# ---- what does not fit


def test_another_text_tokenizer_than_the_releases_is_an_error(hub: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "MMaDA-8B-Base"
    shutil.copytree(hub / "MMaDA-8B-Base", wrong)
    releases.text_tokenizer(126349 - 7, releases.SPELLED).save_pretrained(wrong)
    with pytest.raises(ValueError, match="has 126345 ids, that of the release 126349"):
        policies.load(wrong, image_tokenizer=hub / "magvitv2")


def test_another_image_tokenizer_than_the_backbones_is_an_error(golden: Path, hub: Path) -> None:
    """Its codes would be the first rows of those that the backbone knows, and its images nonsense."""
    with pytest.raises(ValueError, match=r"magvitv2 has 64 codes, the backbone in .*MMaDA-8B-Base was trained on 8192"):
        policies.load(hub / "MMaDA-8B-Base", image_tokenizer=golden / "magvitv2")


def test_keys_and_shapes_that_do_not_fit_are_listed(hub: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "MMaDA-8B-Base"
    shutil.copytree(hub / "MMaDA-8B-Base", wrong)
    index = json.loads((wrong / "model.safetensors.index.json").read_text())
    name = "model.transformer.blocks.1.ff_out.weight"
    file = wrong / index["weight_map"][name]
    weights = load_file(file)
    weights["model.transformer.blocks.1.ff_out.bias"] = weights.pop(name)[0]
    weights["model.transformer.ln_f.weight"] = torch.ones(9, dtype=torch.bfloat16)
    save_file(weights, file, metadata={"format": "pt"})
    index["weight_map"] = {key: place for key, place in index["weight_map"].items() if key != name}
    index["weight_map"] |= {"model.transformer.blocks.1.ff_out.bias": file.name, "model.transformer.ln_f.weight": file.name}
    (wrong / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="MMadaModelLM: ") as told:
        policies.load(wrong, image_tokenizer=hub / "magvitv2")
    for part in (f"missing keys ({name})", "unexpected keys (model.transformer.blocks.1.ff_out.bias)", "mismatched keys"):
        assert part in str(told.value)


def test_a_configuration_of_another_architecture_is_an_error(hub: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "MMaDA-8B-Base"
    shutil.copytree(hub / "MMaDA-8B-Base", wrong)
    raw = json.loads((wrong / "config.json").read_text())
    (wrong / "config.json").write_text(json.dumps(raw | {"weight_tying": True}))
    with pytest.raises(ValueError, match="weight_tying is True in the configuration, which this backbone does not do"):
        policies.load(wrong, image_tokenizer=hub / "magvitv2")


def test_a_name_that_the_hub_does_not_give_says_what_to_do(hub: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code = "import policies; policies.load('Gen-Verse/MMaDA-8B-Base@0123456789abcdef0123456789abcdef01234567')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path)))
    assert "FileNotFoundError: Gen-Verse/MMaDA-8B-Base@0123" in done.stderr and "hf download Gen-Verse/MMaDA-8B-Base" in done.stderr


@pytest.mark.parametrize("form", ["pytorch_model.safetensors", "pytorch_model.bin"])
def test_an_image_tokenizer_is_read_from_the_file_names_of_its_release(hub: Path, tmp_path: Path, form: str) -> None:
    """``showlab/magvitv2`` was saved by a library that calls its files otherwise."""
    folder = tmp_path / "magvitv2"
    folder.mkdir()
    (folder / "config.json").write_text((hub / "magvitv2" / "config.json").read_text())
    weights = load_file(hub / "magvitv2" / "model.safetensors")
    if form.endswith(".bin"):
        torch.save(weights, folder / form)
    else:
        save_file(weights, folder / form)
    ours, other = (policies.load(hub / "MMaDA-8B-Base", image_tokenizer=f) for f in (hub / "magvitv2", folder))
    assert isinstance(ours, Policy) and isinstance(other, Policy)
    assert ours.layout.images.encode(BLACK[None]).tolist() == other.layout.images.encode(BLACK[None]).tolist()


def test_an_image_tokenizer_beside_the_backbone_is_taken(hub: Path, tmp_path: Path) -> None:
    """So that a folder holds all that a run needs, as one that was saved here does."""
    folder = tmp_path / "MMaDA-8B-Base"
    shutil.copytree(hub / "MMaDA-8B-Base", folder)
    shutil.copytree(hub / "magvitv2", folder / "image_tokenizer")
    found = policies.load(folder)
    assert isinstance(found, Policy)
    assert found.layout.images.encode(BLACK[None]).tolist() == load(hub, "MMaDA-8B-Base").layout.images.encode(BLACK[None]).tolist()


# ---- -A


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
    with pytest.raises(FileNotFoundError, match=r"MMaDA-Parallel-A has no folder vqvae with its image tokenizer"):
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


# ---- trained, saved and put on again


def test_an_adapter_of_a_checkpoint_in_the_released_layout_fits_a_fresh_base(tmp_path: Path) -> None:
    """The embedded policy as a release is laid out: shards, the released names, its image tokenizer in a folder of its own."""
    embedded = policies.load("scenes-mmada")
    assert isinstance(embedded, Policy)
    base, images = tmp_path / "base", tmp_path / "tokenizer"
    embedded.model.save_pretrained(base, max_shard_size="1MB")
    embedded.layout.text.tokenizer.save_pretrained(base)
    embedded.layout.images.module.save_pretrained(images)
    shutil.copy(policies.CHECKPOINTS / "scenes-mmada" / "policy.json", base)
    assert len(list(base.glob("*.safetensors"))) > 2

    def fresh() -> Policy:
        return policies.load(base, image_tokenizer=images)

    policy = fresh()
    peft = adapter.attach(policy, 4, 8)
    optimizer = torch.optim.AdamW([p for p in peft.parameters() if p.requires_grad], lr=1e-2)
    asked = [Prompt(f"{i}", "t2i", text) for i, text in enumerate(("two red circles", "a blue square left of a green circle"))]
    sampling = Sampling(steps=8, recorded=4)
    before = policy.generate(asked, [1, 2], sampling)
    loss = -policy.step_tokens(before, [r.recorded for r in before])["image"].logprob.sum()
    loss.backward()
    optimizer.step()
    after = policy.generate(asked, [1, 2], sampling)
    adapter.save(peft, tmp_path / "adapter", "scenes-mmada")

    other = fresh()
    unchanged = other.generate(asked, [1, 2], sampling)
    PeftModel.from_pretrained(other.model, tmp_path / "adapter")
    again = other.generate(asked, [1, 2], sampling)
    for a, b, c, d in zip(before, unchanged, after, again, strict=True):
        assert np.array_equal(a.segments[0].tokens, b.segments[0].tokens)
        assert np.array_equal(c.segments[0].tokens, d.segments[0].tokens)
    assert any(not np.array_equal(a.segments[0].tokens, c.segments[0].tokens) for a, c in zip(before, after, strict=True))


# ---- memory

MEASURE = """
import re, sys
from pathlib import Path
from policies.backbones.llada import MMadaModelLM
from policies.weights import read_model

def held(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1)) * 1024

read_model(MMadaModelLM, Path(sys.argv[1]))  # what the first load of all takes besides
Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
before = held("VmRSS")
model = read_model(MMadaModelLM, Path(sys.argv[2]))
total = sum(float(p.float().sum()) for p in model.parameters())  # every page of the weights is read
print(held("VmHWM") - before, sum(p.numel() * p.element_size() for p in model.parameters()))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks of memory are read from /proc")
def test_loading_and_reading_weights_takes_little_more_memory_than_they_have(tmp_path: Path) -> None:
    for name, width in (("tiny", 8), ("large", 1024)):
        sizes = {"d_model": width, "n_layers": 8, "n_heads": 8, "mlp_hidden_size": 2 * width, "embedding_size": 2000}
        MMadaModelLM(MMadaConfig(**sizes)).bfloat16().save_pretrained(tmp_path / name, max_shard_size="40MB")
    done = subprocess.run([sys.executable, "-c", MEASURE, tmp_path / "tiny", tmp_path / "large"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peak, weights = map(int, done.stdout.split())
    assert weights > 160e6 and peak < 1.2 * weights
