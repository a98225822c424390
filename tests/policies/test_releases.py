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
from pararl.types import Prompt
from policies import Policy
from policies.backbones.llada import MMadaConfig, MMadaModelLM
from policies.families.mmada import MMADA
from tests.policies import releases
from tests.wording import telling

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
    with pytest.raises(FileNotFoundError, match=telling(plain, "policy.json", "Gen-Verse/MMaDA-8B-MixCoT")):
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
    with pytest.raises(ValueError, match=telling("<|eot_id|> w6")):
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
    with pytest.raises(ValueError, match=telling(wrong, 126345, 126349)):
        policies.load(wrong, image_tokenizer=hub / "magvitv2")


def test_another_image_tokenizer_than_the_backbones_is_an_error(golden: Path, hub: Path) -> None:
    """Its codes would be the first rows of those that the backbone knows, and its images nonsense."""
    with pytest.raises(ValueError, match=telling(golden / "magvitv2", 64, hub / "MMaDA-8B-Base", 8192)):
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
    with pytest.raises(
        ValueError, match=telling("MMadaModelLM", name, "model.transformer.blocks.1.ff_out.bias", "model.transformer.ln_f.weight")
    ):
        policies.load(wrong, image_tokenizer=hub / "magvitv2")


def test_a_configuration_of_another_architecture_is_an_error(hub: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "MMaDA-8B-Base"
    shutil.copytree(hub / "MMaDA-8B-Base", wrong)
    raw = json.loads((wrong / "config.json").read_text())
    (wrong / "config.json").write_text(json.dumps(raw | {"weight_tying": True}))
    with pytest.raises(ValueError, match=telling("weight_tying", True)):
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
