"""Released Show-o and Show-o2 checkpoints load by what they are, with their ids and with a text tokenizer from elsewhere."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import PreTrainedTokenizerFast

import policies
from pararl.options import Sampling
from pararl.readers import FileError
from pararl.types import Prompt, Task
from policies import FAMILIES, Policy, sources
from policies.families.showo2 import SHOWO2
from policies.text import read_tokenizer
from tests.policies import releases, showo_releases
from tests.wording import telling

NAMES = ("show-o", "show-o-512x512", "show-o2-1.5B", "show-o2-7B", "show-o2-1.5B-HQ")
END, PAD, SOI, EOI, T2I, MMU, MASK = 50256, 50295, 50296, 50297, 50300, 50301, 58497
START, STOP, VISION, VISION_END, IMAGE = 151644, 151645, 151652, 151653, 151655


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders as somebody has them who fetched the repositories."""
    pytest.importorskip("diffusers")
    folder = tmp_path_factory.mktemp("hub")
    releases.image_tokenizer(folder / "magvitv2")
    showo_releases.wan(folder / "vae")
    showo_releases.phi(folder / "phi-1_5")
    showo_releases.qwen(folder / "qwen")
    showo_releases.showo(folder / "show-o", 256)
    showo_releases.showo(folder / "show-o-512x512", 1024)
    showo_releases.showo2(folder / "show-o2-1.5B")
    showo_releases.showo2(folder / "show-o2-7B", large=True)
    showo_releases.showo2(folder / "show-o2-1.5B-HQ", side=32)
    return folder


def parts(hub: Path, name: str) -> dict[str, Path]:
    second = "show-o2" in name
    return {"image_tokenizer": hub / ("vae" if second else "magvitv2"), "text_tokenizer": hub / ("qwen" if second else "phi-1_5")}


def load(hub: Path, name: str) -> Policy:
    found = policies.load(hub / name, **parts(hub, name))  # type: ignore[arg-type]
    assert isinstance(found, Policy if "show-o2" in name else Policy)
    return found


def replaced(policy: Policy, **settings: Any) -> Policy:
    """The same parts under other settings."""
    parts = policy.model, policy.layout.text.tokenizer, policy.layout.images.module
    return FAMILIES[policy.family].policy(*parts, replace(policy.settings, **settings))


def black(policy: Policy) -> np.ndarray:
    return np.zeros((*policy.layout.images.size, 3), np.uint8)


def held(folder: Path) -> dict[str, Tensor]:
    """What the pickled files of a folder hold."""
    files = [torch.load(file, weights_only=True) for file in folder.glob("*.bin")]
    return {name: value for file in files for name, value in file.items()}


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_is_known_by_its_folder_and_holds_what_its_pickled_files_hold(hub: Path, name: str) -> None:
    policy, files = load(hub, name), held(hub / name)
    state = policy.model.state_dict()
    assert state.keys() == files.keys() and all(torch.equal(state[k], files[k]) for k in state)
    pixels = {"show-o": 256, "show-o-512x512": 512, "show-o2-1.5B-HQ": 512}.get(name, 432)
    assert policy.layout.images.size == (pixels, pixels) and len(policy.tokens.text_bias) == (151669 if "show-o2" in name else 50305)


@pytest.mark.parametrize("name", NAMES)
def test_added_tokens_have_the_released_ids_in_the_released_order(hub: Path, name: str) -> None:
    """Upstream adds them to a tokenizer of 50295 or 151665 ids one after the other, the padding first."""
    policy = load(hub, name)
    if "show-o2" in name:
        first, added = 151665, ["[PAD]", "<image>", "<|vid_start|>", "<|vid_end|>"]
        named = {"mask": "<|image_pad|>", "bos": "<|im_start|>", "eos": "<|im_end|>", "soi": "<|vision_start|>", "eoi": "<|vision_end|>"}
    else:
        first, added = 50295, ["[PAD]", *(f"<|{t}|>" for t in ("soi", "eoi", "sov", "eov", "t2i", "mmu", "t2v", "v2v", "lvg"))]
        named = {"bos": "<|endoftext|>", "eos": "<|endoftext|>", "soi": "<|soi|>", "eoi": "<|eoi|>", "t2i": "<|t2i|>", "mmu": "<|mmu|>"}
    assert policy.layout.text.tokenizer.convert_ids_to_tokens(list(range(first, len(policy.layout.text.tokenizer)))) == added
    specials = policy.settings.specials
    assert specials.pad == policy.layout.text.tokenizer.pad_token_id == first
    for field, token in named.items():
        assert policy.layout.text.tokenizer.convert_tokens_to_ids(token) == getattr(specials, field), field


@pytest.mark.parametrize("name", NAMES)
def test_no_text_position_yields_a_special_token_but_an_end(hub: Path, name: str) -> None:
    """Neither those that upstream adds as ordinary tokens, nor those of the tokenizer that nothing here names."""
    policy = load(hub, name)
    can = (policy.tokens.text_bias == 0).nonzero().flatten().tolist()
    words = range(151643) if "show-o2" in name else [i for i in range(50295) if i != END]
    assert can == sorted({*words, *policy.layout.text.ends})
    width = policy.model.get_input_embeddings().weight.shape[1]
    logits = policy.tokens.rows(torch.randn(3, width), "text")
    assert logits.shape == (3, len(policy.tokens.text_bias)) and logits.isfinite().sum() == 3 * len(can)


@pytest.mark.parametrize("name", ["show-o", "show-o2-1.5B"])
def test_a_saved_release_is_a_policy_like_any_other(hub: Path, name: str, tmp_path: Path) -> None:
    policy = load(hub, name)
    policy.save(tmp_path / "own")
    again = policies.load(tmp_path / "own")
    assert isinstance(again, Policy) and again.settings == policy.settings and again.layout.text.spelled == policy.layout.text.spelled
    assert torch.equal(again.tokens.text_bias, policy.tokens.text_bias) and torch.allclose(
        again.canary(), policy.canary(), rtol=0, atol=1e-5
    )


def test_prompts_of_showo_have_the_released_ids(hub: Path) -> None:
    policy = load(hub, "show-o")
    assert policy.layout.prefix(Prompt("x", "t2i", "w5 w6")) == [T2I, END, 5, 6, END]
    assert policy.layout.prefix(Prompt("x", "t2i", "w5 w6"), without="text") == [T2I, END, END]
    assert list(policy.layout.tail("t2i").ids) == [SOI, *[MASK] * 256, EOI]
    shown = policy.layout.shown([Prompt("x", "i2t", "w5", image=black(policy))])[0].ids
    assert len(shown) == 256 and min(shown) >= 50305 and max(shown) < MASK
    asked = [0, 5, 0]  # "USER:" and "ASSISTANT:" are not words of this tokenizer
    assert policy.layout.prefix(Prompt("x", "i2t", "w5", image=black(policy)), shown) == [MMU, SOI, *shown, EOI, END, *asked]
    blank = policy.layout.canvas([Prompt("x", "t2i", "w5 w6"), Prompt("y", "t2i", "w5")])
    assert blank.ids[1, 0] == PAD and not blank.attention[1, 0] and blank.attention[0].all()


def test_runs_of_blanks_which_the_tokenizer_adds_are_words(hub: Path) -> None:
    policy = load(hub, "show-o")
    assert policy.layout.prefix(Prompt("x", "t2i", "w5  w6\t\tw7")) == [T2I, END, 5, 50286, 6, 50294, 7, END]


def test_the_longest_text_of_showo_fills_the_129_places_of_the_release(hub: Path) -> None:
    policy = load(hub, "show-o-512x512")
    assert len(policy.layout.prefix(Prompt("x", "t2i", "w5 " * 126))) == 129
    with pytest.raises(ValueError, match=telling(127, 126)):
        policy.layout.prefix(Prompt("x", "t2i", "w5 " * 127))


def test_prompts_of_showo2_have_the_released_ids(hub: Path) -> None:
    """An image to be asked about stands in the user's turn, behind the system's; one to be drawn behind the bare text."""
    policy = load(hub, "show-o2-1.5B")
    assert policy.layout.prefix(Prompt("x", "t2i", "w5 w6")) == [START, 5, 6] and policy.layout.prefix(
        Prompt("x", "t2i", "w5"), without="text"
    ) == [START]
    assert list(policy.layout.tail("t2i").ids) == [VISION, *[IMAGE] * 730, VISION_END]
    asked = Prompt("x", "i2t", "w5 w6", image=black(policy))
    shown = policy.layout.shown([asked])[0].ids
    assert shown == (IMAGE,) * 730
    system, user, assistant = [0] * 6, [0], [0]  # none of their words is one of this tokenizer; "\n" is none at all
    said = [START, *system, STOP, START, *user, VISION, *shown, VISION_END, 5, 6, START, *assistant]
    assert policy.layout.prefix(asked, shown) == said
    assert policy.layout.canvas([asked]).latents is not None


def test_a_question_is_tokenized_apart_from_the_dialogue_around_it(hub: Path) -> None:
    """As upstream does, whose ids are those of four texts: a tokenizer that joins a mark and a line break joins none here."""
    policy = load(hub, "show-o2-1.5B")
    letters = sorted(ByteLevel.alphabet())
    core = Tokenizer(BPE({token: i for i, token in enumerate([*letters, "?Ċ"])}, [("?", "Ċ")]))
    core.pre_tokenizer, core.decoder = ByteLevel(add_prefix_space=False, use_regex=False), ByteLevelDecoder()
    core.add_special_tokens([AddedToken(token, special=True) for token in showo_releases.QWEN])
    own = SHOWO2.policy(policy.model, PreTrainedTokenizerFast(tokenizer_object=core), policy.layout.images.module, policy.settings)
    assert own.layout.text.encode("?\n") == [len(letters)]
    ids = own.layout.prefix(Prompt("x", "i2t", "why?", image=black(policy)))
    assert ids.count(len(letters)) == 0 and ids.count(own.layout.text.encode("?")[0]) == 1


@pytest.mark.parametrize("name", ["show-o", "show-o2-7B"])
def test_a_text_cannot_spell_a_special_token(hub: Path, name: str, tmp_path: Path) -> None:
    """The released tokenizers are byte-level ones, in which special tokens are no words: spelled in a prompt they are bytes."""
    policy, second = load(hub, name), "show-o2" in name
    letters = sorted(ByteLevel.alphabet())
    core = Tokenizer(BPE({letter: i for i, letter in enumerate(letters)}, []))
    core.pre_tokenizer, core.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    core.add_special_tokens([AddedToken(token, special=True) for token in (showo_releases.QWEN if second else ["<|endoftext|>"])])
    core.add_tokens(showo_releases.QWEN_PLAIN if second else showo_releases.BLANKS)
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>" if second else "<|endoftext|>").save_pretrained(tmp_path)
    added = sources.find(hub / name, None, **parts(hub, name)).added
    tokenizer = read_tokenizer(tmp_path, added)
    specials: dict[str, Any] = {
        field: tokenizer.convert_tokens_to_ids(policy.layout.text.tokenizer.convert_ids_to_tokens(getattr(policy.settings.specials, field)))
        for field in ("bos", "eos", "pad", "soi", "eoi")
    }
    settings = replace(policy.settings, specials=replace(policy.settings.specials, **specials))
    own = FAMILIES[policy.family].policy(policy.model, tokenizer, policy.layout.images.module, settings)
    spelled = [token for token in tokenizer.get_added_vocab() if token.strip()]
    assert len(spelled) == (26 if second else 11)
    for token in spelled:
        ids = own.layout.text.encode(f"a {token} b")
        assert max(ids) < len(letters) and own.layout.text.decode(ids) == f"a {token} b"


@pytest.mark.parametrize(("name", "task"), [("show-o", "t2i"), ("show-o", "i2t"), ("show-o2-1.5B", "t2i"), ("show-o2-1.5B", "i2t")])
def test_a_release_samples_images_and_text_of_its_rows_alone(hub: Path, name: str, task: Task) -> None:
    policy = load(hub, name)
    policy = replaced(policy, answer_tokens=6)
    image = black(policy) if task == "i2t" else None
    (rollout,) = policy.generate([Prompt("x", task, "w5 w6", image=image)], [3], Sampling(steps=2, guidance=1.5))
    (segment,) = rollout.segments
    if task == "i2t":
        assert set(segment.tokens) <= {*range(151643 if "show-o2" in name else 50295), *policy.layout.text.ends}
    else:
        assert rollout.output.image is not None and rollout.output.image.shape == (*policy.layout.images.size, 3)
        tokens = segment.tokens
        assert tokens.shape == (729, 64) if "show-o2" in name else ((tokens >= 50305) & (tokens < MASK)).all()


def test_the_weights_of_a_release_may_be_safetensors_under_its_librarys_name(hub: Path, tmp_path: Path) -> None:
    folder = tmp_path / "show-o"
    shutil.copytree(hub / "show-o", folder, ignore=shutil.ignore_patterns("*.bin"))
    save_file(held(hub / "show-o"), folder / "pytorch_model.safetensors", metadata={"format": "pt"})
    found = policies.load(folder, **parts(hub, "show-o"))  # type: ignore[arg-type]
    assert torch.allclose(found.canary(), load(hub, "show-o").canary(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("place", ["text_tokenizer", "."])
def test_tokenizers_beside_the_backbone_are_taken(hub: Path, tmp_path: Path, place: str) -> None:
    """So that a folder holds all that a run needs, as one that was saved here does."""
    folder = tmp_path / "show-o2-1.5B"
    shutil.copytree(hub / "show-o2-1.5B", folder)
    shutil.copytree(hub / "vae", folder / "image_tokenizer")
    shutil.copytree(hub / "qwen", folder / place, dirs_exist_ok=True)
    assert torch.allclose(policies.load(folder).canary(), load(hub, "show-o2-1.5B").canary(), rtol=0, atol=1e-5)


# ---- what does not fit


def test_a_tokenizer_that_the_hub_does_not_give_is_named(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=telling("microsoft/phi-1_5", "hf download microsoft/phi-1_5")):
        policies.load(hub / "show-o", image_tokenizer=hub / "magvitv2")
    with pytest.raises(FileNotFoundError, match=telling("hf download Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "vae")):
        policies.load(hub / "show-o2-1.5B", text_tokenizer=hub / "qwen")


def test_of_another_repository_only_what_is_needed_is_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The repositories of Qwen2.5 and of Wan 2.1 hold many gigabytes besides."""
    asked: list[tuple[str, dict[str, Any]]] = []

    def snapshot(repository: str, **options: Any) -> str:
        asked.append((repository, options))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    found = sources.find("showlab/show-o2-7B@abc")
    assert (found.images, found.text, found.backbone) == (tmp_path / "vae", tmp_path, tmp_path)
    wanted = {repository: (options["revision"], options["allow_patterns"]) for repository, options in asked}
    assert wanted == {
        "showlab/show-o2-7B": ("abc", ["*.json", "*.safetensors", "*.bin"]),
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": (None, ["vae/*.json", "vae/*.safetensors", "vae/*.bin"]),
        "Qwen/Qwen2.5-7B-Instruct": (None, ["*.json"]),
    }


@pytest.mark.parametrize("name", ["show-o", "show-o2-1.5B"])
def test_another_text_tokenizer_than_the_releases_is_an_error(hub: Path, name: str) -> None:
    other = hub / ("phi-1_5" if "show-o2" in name else "qwen")
    with pytest.raises(ValueError, match=telling(other, 151669 if "show-o2" in name else 50305)):
        policies.load(hub / name, image_tokenizer=parts(hub, name)["image_tokenizer"], text_tokenizer=other)


def test_another_vae_than_the_backbones_is_an_error(hub: Path, tmp_path: Path) -> None:
    vae = showo_releases.wan(tmp_path / "vae", channels=4)
    with pytest.raises(ValueError, match=telling(vae, 4, hub / "show-o2-1.5B", 16)):
        policies.load(hub / "show-o2-1.5B", image_tokenizer=vae, text_tokenizer=hub / "qwen")


def test_a_release_that_reads_clip_features_is_an_error(hub: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "show-o"
    shutil.copytree(hub / "show-o", wrong)
    config = (wrong / "config.json").read_text()
    (wrong / "config.json").write_text(config.replace('"w_clip_vit": false', '"w_clip_vit": true'))
    with pytest.raises(ValueError, match=telling("w_clip_vit")):
        policies.load(wrong, **parts(hub, "show-o"))  # type: ignore[arg-type]


Change = Callable[[dict[str, Tensor]], Any]
LAYERS = "showo.model.layers.1.self_attn."


@pytest.mark.parametrize("name", ["show-o", "show-o2-1.5B"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop(f"{LAYERS}q_proj.weight"), f"{LAYERS}q_proj.weight"),
        (lambda w: w.update({"mm_projector.0.weight": torch.ones(2)}), "mm_projector.0.weight"),
        (lambda w: w.update({f"{LAYERS}k_proj.weight": torch.ones(2, 3)}), f"{LAYERS}k_proj.weight"),
    ],
    ids=["missing", "left over", "misshaped"],
)
def test_keys_and_shapes_that_do_not_fit_are_listed(hub: Path, name: str, change: Change, said: str, tmp_path: Path) -> None:
    weights, wrong = held(hub / name), tmp_path / name
    change(weights)
    wrong.mkdir()
    shutil.copy(hub / name / "config.json", wrong)
    torch.save(weights, wrong / "pytorch_model.bin")
    with pytest.raises(ValueError, match=telling("Showo2" if "show-o2" in name else "Showo", 1, said)):
        policies.load(wrong, **parts(hub, name))  # type: ignore[arg-type]


def test_pickled_code_is_not_run(hub: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "show-o"
    shutil.copytree(hub / "show-o", wrong)
    torch.save({"showo.lm_head.bias": Prompt("x", "t2i", "an object")}, wrong / "pytorch_model.bin")
    with pytest.raises(FileError, match=r"show-o does not hold a Showo: its pickle holds more than tensors"):
        policies.load(wrong, **parts(hub, "show-o"))  # type: ignore[arg-type]
