"""A saved policy is the policy, in safetensors and JSON only, and loads without noise."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import policies
from pararl.options import Sampling
from pararl.readers import FileError
from pararl.types import TASKS, Prompt
from policies import Policy
from policies.image.magvitv2 import MAGVITv2
from tests.policies.conftest import MakePolicy
from tests.wording import telling


@pytest.fixture(scope="module")
def saved(policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoints") / "tiny"
    policy.save(directory)
    return directory


def test_a_save_that_fails_leaves_the_old_policy_and_one_that_does_not_leaves_what_else_is_there(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "own"
    shutil.copytree(saved, directory)
    (directory / "policy.png").touch()
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    own = policies.load(directory)
    with torch.no_grad():
        next(own.model.parameters()).add_(1.0)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(MAGVITv2, "save_pretrained", full)
        own.save(directory)
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before
    own.save(directory)  # over the files that it was read from
    after = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    weights = [path for path in after if path.suffix == ".safetensors"]
    assert after.keys() == before.keys() and {path.parent.name for path in weights} == {"own", "image_tokenizer"}
    assert [path.parent.name for path in weights if after[path] != before[path]] == ["own"]


def test_settings_that_are_not_the_default_survive_saving(make_policy: MakePolicy, tmp_path: Path) -> None:
    own = make_policy(tasks=("i2t", "edit"), dialogue="say {text} \n", answer_tokens=4, answer_block=2)
    own.save(tmp_path)
    loaded = policies.load(tmp_path)
    assert isinstance(loaded, Policy) and loaded.settings == own.settings


def test_a_policy_is_cast_in_its_backbone_alone(make_policy: MakePolicy) -> None:
    own = make_policy()
    before = {name: x.dtype for name, x in own.layout.images.module.state_dict().items()}
    assert own.to("cpu", torch.bfloat16) is own
    assert {p.dtype for p in own.model.parameters()} == {torch.bfloat16}
    assert {name: x.dtype for name, x in own.layout.images.module.state_dict().items()} == before
    own.to("cpu")
    assert {p.dtype for p in own.model.parameters()} == {torch.bfloat16}, "as it is"


def test_a_backbone_without_the_switch_cannot_be_told_to_checkpoint_gradients(make_policy: MakePolicy) -> None:
    own = make_policy()
    own.model = torch.nn.Linear(1, 1)
    own.checkpoint_gradients(False)
    del own.model.gradient_checkpointing
    with pytest.raises(ValueError, match=telling("Linear", "learner.gradient_checkpointing", "false")):
        own.checkpoint_gradients(True)


def test_the_embedded_checkpoint_does_the_tasks_that_it_was_trained_for() -> None:
    embedded = policies.load("scenes-mmada")
    assert isinstance(embedded, Policy) and embedded.settings.tasks
    wanted = embedded.settings.tasks
    black = np.zeros((32, 32, 3), np.uint8)
    for task in TASKS:
        prompt = Prompt("x", task, "a red circle", image=black if task in ("i2t", "edit") else None)
        if task in wanted:
            assert embedded.generate([prompt], [0], Sampling(steps=2))[0].segments
        else:
            with pytest.raises(ValueError, match=telling(*wanted, task)):
                embedded.generate([prompt], [0], Sampling(steps=2))


def test_saving_and_loading_print_nothing(
    make_policy: MakePolicy, tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    make_policy().save(tmp_path)
    policies.load(tmp_path)
    assert capfd.readouterr() == ("", "") and not recwarn.list


def test_an_embedded_checkpoint_loads_by_name(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies.sources, "CHECKPOINTS", saved.parent)
    assert policies.load("tiny").family == "mmada"


@pytest.mark.parametrize("name", ["no-such-policy", Path("no/such/directory")])
def test_an_unknown_name_is_an_error_that_lists_the_known_ones(name: str | Path, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies.sources, "CHECKPOINTS", saved.parent)
    with pytest.raises(FileNotFoundError, match=telling(f"'{name}'", "policy.json", "'tiny'")):
        policies.load(name)


def test_a_directory_without_a_policy_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=telling(tmp_path)):
        policies.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda w: w.pop("model.transformer.blocks.1.k_proj.weight"), "model.transformer.blocks.1.k_proj.weight"),
        (lambda w: w.update({"model.transformer.blocks.7.k_proj.weight": torch.zeros(1)}), "model.transformer.blocks.7.k_proj.weight"),
    ],
    ids=["missing", "left over"],
)
def test_weights_that_do_not_fit_are_an_error(
    make_policy: MakePolicy, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None], key: str
) -> None:
    make_policy().save(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=telling("MMadaModelLM", 1, key)):
        policies.load(tmp_path)


def test_an_unknown_family_is_an_error_that_lists_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text(json.dumps({"family": "gpt", "settings": {}}))
    with pytest.raises(
        ValueError, match=telling(tmp_path / "policy.json", "'gpt'", "mmada", "mmada_parallel_a", "showo", "showo2", "chameleon")
    ):
        policies.load(tmp_path)


def test_words_outside_a_closed_vocabulary_are_an_error_and_case_and_marks_are_not() -> None:
    policy = policies.load("scenes-mmada")
    assert isinstance(policy, Policy)
    assert policy.layout.text.encode("Two Red Circles.") == policy.layout.text.encode("two red circles .")
    with pytest.raises(ValueError, match=telling("'hippos'", "'dance'")):
        policy.sample("two hippos that dance")


def test_weights_that_are_not_safetensors_are_not_read(tmp_path: Path) -> None:
    directory = tmp_path / "pickled"
    shutil.copytree(policies.CHECKPOINTS / "scenes-mmada", directory)
    (directory / "model.safetensors").unlink()
    torch.save({}, directory / "pytorch_model.bin")
    with pytest.raises(FileError, match=r"holds no weights: .*pytorch_model.bin is a pickle"):
        policies.load(directory)
