"""What a policy can read of a prompt is told from its files, and is what the policy itself reads."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import BPE

import policies
from pararl.config import Config, ConfigError, CurriculumConfig, EvalConfig, PolicyConfig, RewardConfig
from pararl.data.fits import Texts, image_size
from pararl.data.own import Own, in_both
from pararl.policy_files import image_shape
from pararl.releases import RELEASES
from pararl.types import Prompt
from policies import Policy


def problem(texts: Texts, prompt: Prompt) -> str:
    try:
        texts.check(prompt)
    except ValueError as error:
        return str(error)
    return ""


def test_texts_that_are_too_long_are_those_that_the_policy_refuses() -> None:
    directory = policies.CHECKPOINTS / "scenes-mmada"
    black = np.zeros((32, 32, 3), np.uint8)
    fits = [Prompt("a", "t2i", "red " * 32), Prompt("b", "i2t", "red " * 31, image=black), Prompt("c", "edit", "red", image=black)]
    texts = Texts(directory)
    for prompt in fits:
        texts.check(prompt)
    policy = policies.load(directory)
    assert isinstance(policy, Policy)
    policy.layout.canvas(fits[:1]), policy.layout.canvas(fits[1:2])
    for prompt in (Prompt("a", "t2i", "red " * 33), Prompt("b", "i2t", "red " * 32, image=black)):
        with pytest.raises(ValueError, match=f"prompt {prompt.id} has"):
            texts.check(prompt)
        with pytest.raises(ValueError, match=f"prompt {prompt.id}"):
            policy.layout.canvas([prompt])


def test_the_length_of_a_prompt_is_what_show_o2_reads_its_text_and_its_dialogue_apart(tmp_path: Path) -> None:
    """A tokenizer that joins the mark at the text's end with the line break behind it counts one token less."""
    bpe = Tokenizer(BPE({"a": 0, "?": 1, "\n": 2, "?\n": 3}, [("?", "\n")]))
    bpe.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "image_tokenizer").mkdir()
    vae = {"model_type": "continuous_vae", "encoder": {"ch_mult": [1]}, "decoder": {"ch": 1, "ch_mult": [1]}}
    told = {}
    for family in ("showo2", "mmada"):
        settings = {"grid": [1, 1], "dialogue": "{text}\n", "prompt_tokens": 2}
        for name, content in (
            ("policy.json", {"family": family, "settings": settings}),
            ("tokenizer_config.json", {}),
            ("config.json", {"patch_size": 1}),
            ("image_tokenizer/config.json", vae),
        ):
            (tmp_path / name).write_text(json.dumps(content))
        told[family] = problem(Texts(tmp_path), Prompt("p", "i2t", "a?", image=np.zeros((1, 1, 3), np.uint8)))
    assert not told["mmada"] and "prompt p has 3 tokens, more than the 2" in told["showo2"]


def test_the_length_of_a_prompt_that_is_a_message_is_that_with_its_system_message(tmp_path: Path) -> None:
    Tokenizer(BPE({"a": 0, "b": 1}, [])).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "image_tokenizer").mkdir()
    settings = {"grid": [1, 1], "dialogue": "{system}{text}", "prompt_tokens": 3, "system_new": "b", "system_edit": "bb"}
    for name, content in (
        ("policy.json", {"family": "mmada_parallel_a", "settings": settings}),
        ("tokenizer_config.json", {}),
        ("image_tokenizer/config.json", {"_class_name": "VQModel", "block_out_channels": [1], "num_vq_embeddings": 1}),
    ):
        (tmp_path / name).write_text(json.dumps(content))
    shown = np.zeros((1, 1, 3), np.uint8)
    texts = Texts(tmp_path)
    assert not problem(texts, Prompt("p", "t2i", "aa")) and not problem(texts, Prompt("q", "edit", "a", image=shown))
    assert problem(texts, Prompt("p", "t2i", "aaa")).startswith("prompt p has 4 tokens")
    assert problem(texts, Prompt("q", "edit", "aa", image=shown)).startswith("prompt q has 4 tokens")


@pytest.mark.parametrize("name", ["scenes-mmada", "scenes-showo", "scenes-showo2"])
def test_the_size_of_pictures_is_the_policys_own(name: str) -> None:
    policy = policies.load(name)
    assert isinstance(policy, Policy)
    assert image_size(name, policies.CHECKPOINTS / name) == tuple(policy.layout.images.size)


def test_the_size_of_a_picture_is_its_height_and_its_width(tmp_path: Path) -> None:
    (tmp_path / "image_tokenizer").mkdir()
    (tmp_path / "policy.json").write_text(json.dumps({"family": "mmada", "settings": {"grid": [2, 3]}}))
    raw = {"_class_name": "VQModel", "block_out_channels": [1, 1, 1], "num_vq_embeddings": 1}
    (tmp_path / "image_tokenizer" / "config.json").write_text(json.dumps(raw))
    assert image_size(str(tmp_path), tmp_path) == (8, 12)


def test_the_sizes_of_the_releases_are_those_that_their_makers_give() -> None:
    sizes = {name: image_size(name, Path("not there")) for name in RELEASES}
    others = {"showlab/show-o": (256, 256), "showlab/show-o2-1.5B": (432, 432), "showlab/show-o2-7B": (432, 432)}
    assert sizes == {name: others.get(name, (512, 512)) for name in RELEASES}
    tokenizer = Path(__file__).parents[2] / "golden" / "magvitv2_full"
    assert image_shape(tokenizer).factor == 16, "of showlab/magvitv2"


def write(folder: Path, *sizes: tuple[int, int]) -> str:
    """A file with one question about each of some pictures; the sizes are heights and widths."""
    rows = []
    for place, (height, width) in enumerate(sizes):
        Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(folder / f"{place}.png")
        rows.append({"prompt": "is there a circle ?", "task": "i2t", "image": f"{place}.png"})
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "own.jsonl")


def own(file: str, policy: str, **curriculum: str) -> Config:
    return Config(
        policy=PolicyConfig(name=policy),
        curriculum=CurriculumConfig(tasks=("i2t",), file=file, **curriculum),  # type: ignore[arg-type]
        eval=EvalConfig(file=file, splits=("id",)),
        reward=RewardConfig(name="mine:judge"),
    )


@pytest.mark.parametrize(("policy", "side"), [("scenes-mmada", 32), ("showlab/show-o", 256), ("Gen-Verse/MMaDA-8B-Base", 512)])
def test_pictures_of_another_size_are_refused_by_their_lines_or_made_to_fit(tmp_path: Path, policy: str, side: int) -> None:
    file = write(tmp_path, (side, side), (side, side + 8), (side - 8, side))
    for key in ("curriculum.file", "eval.file"):
        with pytest.raises(ConfigError, match=rf"has 2 problems: line 2: .*\[{side}, {side}\] are read.*; line 3: .*image_fit"):
            Own.of(own(file, policy), key).prompts()
        for how in ("crop", "pad"):
            found = Own.of(own(file, policy, image_fit=how), key).prompts()
            assert [p.image.shape for p in found if p.image is not None] == [(side, side, 3)] * 3
            assert [(p.image == 90).all() for p in found if p.image is not None] == [True, how == "crop", how == "crop"]


def test_prompts_that_are_trained_on_and_measured_are_the_same_text_and_picture_whatever_their_ids() -> None:
    black, white = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)
    trained = [Prompt("a", "t2i", "one circle"), Prompt("b", "i2t", "what ?", image=black)]
    measured = [Prompt("c", "t2i", "one  circle"), Prompt("a", "t2i", "two circles"), Prompt("d", "t2t", "one circle")]
    measured += [Prompt("e", "i2t", "what ?", image=white), Prompt("f", "i2t", "what ?", image=black)]
    assert [p.id for p in in_both(trained, measured)] == ["c", "f"]
