"""The CLIP reward gives the cosines of transformers' own models, of the text and image that belong together, however they are batched."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPModel,
    CLIPProcessor,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
    SiglipProcessor,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

import rewards
from pararl import scenes
from pararl.types import Output, Prompt, Rollout, Score
from rewards.clip import ClipReward
from rewards.names import CHECKPOINTS, problem
from tests.wording import telling

ROOT = Path(__file__).parents[2]
SHIPPED = CHECKPOINTS / "scenes-clip"


@pytest.fixture(scope="module")
def clip() -> ClipReward:
    return ClipReward(SHIPPED, batch=5)


@pytest.fixture(scope="module")
def siglip_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random SigLIP of two layers; like the released ones it has no attention mask and squares the image."""
    directory = tmp_path_factory.mktemp("models") / "siglip"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(SHIPPED, model_input_names=["input_ids"])
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = sizes | {"vocab_size": len(tokenizer), "max_position_embeddings": 16, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=sizes | {"image_size": 16, "patch_size": 8}))
        for name, parameter in model.named_parameters():
            if "embedding" in name:
                parameter.data.normal_()  # random models hardly tell inputs apart otherwise
    model.save_pretrained(directory)
    SiglipProcessor(SiglipImageProcessorPil(size={"height": 16, "width": 16}), tokenizer).save_pretrained(directory)
    return directory


def example(index: int, kind: str = "t2i") -> scenes.Example:
    return scenes.example("id", index, 0, *scenes.FORMS[kind])  # type: ignore[index]


def score(reward: ClipReward, shown: list[tuple[Prompt, Output]]) -> list[Score | None]:
    return rewards.score_outputs(reward, [prompt for prompt, _ in shown], [output for _, output in shown])


def values(scores: list[Score | None]) -> list[float]:
    return [s.value for s in scores if s is not None]


def expected(text: str, image: np.ndarray) -> float:
    """(1 + cosine) / 2 of one pair by the forward of the model itself."""
    model, processor = CLIPModel.from_pretrained(SHIPPED), CLIPProcessor.from_pretrained(SHIPPED)
    with torch.no_grad():
        out = model(**processor(text=[text], images=[image], return_tensors="pt"))
    return (1 + out.logits_per_image.item() / model.logit_scale.exp().item()) / 2


def test_one_batch_is_every_pair_alone_by_the_model_itself(clip: ClipReward) -> None:
    shown = [(example(i).prompt, example(i + i % 2).output) for i in range(12)]
    found = values(score(clip, shown))
    alone = [expected(prompt.text, output.image) for prompt, output in shown if output.image is not None]
    assert found == pytest.approx(alone, abs=1e-5) and np.std(found) > 0.05


def test_every_task_compares_what_belongs_together(clip: ClipReward) -> None:
    t2i, joint, edited = example(3), example(4, "interleaved"), example(5, "interleaved_edit")
    caption = next(e for i in range(40) if (e := scenes.example("id", i, task="i2t")).prompt.spec["tag"] == "caption")
    plan, picture = "red circle a1 .", example(9).output.image
    assert picture is not None and caption.prompt.image is not None and t2i.output.image is not None and caption.output.text is not None
    shown = [
        (t2i.prompt, t2i.output),
        (joint.prompt, Output(plan, picture)),
        (edited.prompt, Output(plan, picture)),
        (caption.prompt, caption.output),
    ]
    wanted = [
        expected(t2i.prompt.text, t2i.output.image),
        expected(plan, picture),
        expected(plan, picture),
        expected(caption.output.text, caption.prompt.image),
    ]
    assert values(score(clip, shown)) == pytest.approx(wanted, abs=1e-5)


def test_every_guess_is_held_against_its_own_text(clip: ClipReward) -> None:
    prompt = example(0, "interleaved").prompt
    outputs = [example(i, "interleaved").output for i in range(4)]
    crossed = [Output(outputs[i].text, outputs[(i + 1) % 4].image) for i in range(4)]
    rollout = Rollout(prompt, 0, 0, 0, 4, (0, 1, 2), (), crossed[3], (crossed[0], None, crossed[2]))
    (judged,) = rewards.score_rollouts(clip, [rollout])
    assert judged.steps[1] is None
    found = [judged.final, judged.steps[0], judged.steps[2]]
    wanted = [expected(o.text or "", o.image) for o in (crossed[3], crossed[0], crossed[2]) if o.image is not None]
    assert values(found) == pytest.approx(wanted, abs=1e-5)
    right = values(score(clip, [(prompt, output) for output in outputs]))
    assert min(right) > max(wanted), "a plan fits its own image better than another's"


def test_an_empty_text_fits_nothing(clip: ClipReward) -> None:
    joint = example(1, "interleaved")
    image = joint.output.image
    assert [s and s.value for s in score(clip, [(joint.prompt, Output(text, image)) for text in ("", "  ")])] == [0.0, 0.0]


def test_what_no_image_shows_is_not_scored(clip: ClipReward) -> None:
    question = next(e for i in range(40) if "answer" in (e := scenes.example("id", i, task="i2t")).prompt.spec)
    shown = [*(example(0, kind) for kind in ("edit", "t2t")), question]
    assert score(clip, [(e.prompt, e.output) for e in shown]) == [None, None, None]
    assert score(clip, []) == []


def test_an_output_without_its_modality_is_an_error(clip: ClipReward) -> None:
    for kind, output, what in (("t2i", Output("a"), "image"), ("interleaved", Output(None, example(0).output.image), "text")):
        with pytest.raises(ValueError, match=telling("scenes-clip", what, kind)):
            score(clip, [(example(0, kind).prompt, output)])
    with pytest.raises(ValueError, match=telling("scenes-clip", "task")):
        clip.score(["a red circle"], [example(0).output])


def test_a_text_that_is_too_long_is_cut(clip: ClipReward) -> None:
    image = example(0).output.image
    words = ["red"] * 60
    shown = [(Prompt("p", "t2i", " ".join(words[:n])), Output(None, image)) for n in (38, 60)]
    first, second = values(score(clip, shown))
    assert first == pytest.approx(second, abs=1e-6), "38 words and two marks fill the 40 tokens of the model"


def test_siglip_gives_the_cosine_of_its_own_forward(siglip_directory: Path) -> None:
    model, processor = SiglipModel.from_pretrained(siglip_directory), SiglipProcessor.from_pretrained(siglip_directory)
    reward = rewards.load(f"clip:{siglip_directory}")
    assert isinstance(reward, ClipReward)
    shown = [example(i) for i in range(7)]
    alone = []
    for e in shown:
        text, image = e.prompt.text, e.output.image
        inputs = processor(text=[text], images=[image], padding="max_length", truncation=True, max_length=16, return_tensors="pt")
        with torch.no_grad():
            logit = model(**inputs).logits_per_image.item()
        alone.append((1 + (logit - model.logit_bias.item()) / model.logit_scale.exp().item()) / 2)
    assert values(score(reward, [(e.prompt, e.output) for e in shown])) == pytest.approx(alone, abs=1e-5) and np.std(alone) > 1e-4


def test_the_shipped_model_passes_its_self_test_and_a_blind_one_does_not(tmp_path: Path) -> None:
    reward = rewards.load("scenes-clip")
    assert rewards.self_test(reward) == 3 and reward.name == "scenes-clip"
    blind = CLIPModel.from_pretrained(SHIPPED)
    blind.visual_projection.weight.data.zero_()
    blind.visual_projection.weight.data[0] = 1.0
    blind.vision_model.post_layernorm.weight.data.zero_()
    blind.vision_model.post_layernorm.bias.data.fill_(1.0)
    blind.save_pretrained(tmp_path)
    CLIPProcessor.from_pretrained(SHIPPED).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match=telling(f"clip:{tmp_path}")):
        rewards.self_test(rewards.load(f"clip:{tmp_path}"))


def test_transformers_alone_loads_the_shipped_model_as_good_as_its_record_says() -> None:
    facts = json.loads((SHIPPED / "training.json").read_text(encoding="utf-8"))["clip"]["result"]
    model, processor = CLIPModel.from_pretrained(SHIPPED), CLIPProcessor.from_pretrained(SHIPPED)
    right = 0
    for start in range(0, 256, 64):
        shown = [example(start + i) for i in range(64)]
        inputs = processor(text=[e.prompt.text for e in shown], images=[e.output.image for e in shown], padding=True, return_tensors="pt")
        with torch.no_grad():
            nearest = model(**inputs).logits_per_text.argmax(1).tolist()
        right += sum(bool(scenes.check(e.prompt.spec, shown[i].scene).strict) for e, i in zip(shown, nearest, strict=True))
    recorded = facts["retrieval right"]
    assert abs(right / 256 - recorded) < 3.5 * (recorded * (1 - recorded) / 256) ** 0.5
    assert facts["prompts"] >= 1024 and sum(p.stat().st_size for p in SHIPPED.iterdir()) < 6e6
    assert {p.suffix for p in SHIPPED.iterdir()} <= {".safetensors", ".json", ".png"}


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("clip", ("'clip'", "clip:DIRECTORY")),
        ("clip:", ("'clip:'",)),
        ("clip:./gone", ("'clip:./gone'",)),
        ("clip:openai/clip/vit", ("'clip:openai/clip/vit'",)),
        (f"clip:{ROOT}", (ROOT, "config.json")),
        (f"clip:{ROOT / 'policies' / 'checkpoints' / 'scenes-mmada'}", ("'mmada'",)),
        ("clip:nobody/has-this", ("clip:nobody/has-this",)),
        ("clip:nobody/has-this@v1", ("nobody/has-this", "v1")),
    ],
)
def test_a_wrong_name_is_one_clear_error(name: str, tokens: tuple[object, ...]) -> None:
    with pytest.raises(ValueError, match=telling(*tokens)) as caught:
        rewards.load(name)
    assert "\n" not in str(caught.value)


def test_weights_that_are_no_safetensors_are_refused(tmp_path: Path) -> None:
    for file in SHIPPED.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(CLIPModel.from_pretrained(SHIPPED).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=telling(f"clip:{tmp_path}")):
        rewards.load(f"clip:{tmp_path}")


def test_embeddings_that_are_no_numbers_are_an_error_and_no_low_score() -> None:
    broken, prompt = ClipReward(SHIPPED), Prompt("a", "t2i", "a red circle")
    with torch.no_grad():
        broken.model.visual_projection.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=telling(broken.name, "weights")):
        score(broken, [(prompt, Output(image=np.zeros((32, 32, 3), np.uint8)))])


def test_weights_that_are_not_there_are_not_made_up(tmp_path: Path) -> None:
    shutil.copytree(SHIPPED, tmp_path / "clip")
    file = tmp_path / "clip" / "model.safetensors"
    weights = load_file(file)
    del weights["text_projection.weight"]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ValueError, match=telling(1, "text_projection.weight")):
        ClipReward(tmp_path / "clip")


def test_a_broken_configuration_is_one_line(tmp_path: Path) -> None:
    for text in ("{", "[1]", "[" * 10**5):
        (tmp_path / "config.json").write_text(text)
        assert str(tmp_path / "config.json") in str(problem(f"clip:{tmp_path}"))


def test_names_are_read_without_torch_and_directories_reach_other_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys, rewards; print(rewards.names.problem('scenes-clip'), 'torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, timeout=60, check=True)
    assert done.stdout.split() == ["None", "False", "False"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    names: dict[str, Any] = {n: rewards.names.absolute(n) for n in ("scenes", "scenes-clip", "clip:mine", "clip:a/b@v1", "m:f")}
    assert names.pop("clip:mine") == f"clip:{tmp_path / 'mine'}"
    assert all(name == same for name, same in names.items())
