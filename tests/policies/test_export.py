"""An export has the files, names and dtypes of its base's release, loads as one, and is what the base is with its adapter on."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

import policies
from pararl import adapter
from pararl.cli.parse import parse
from pararl.lora import Lora
from pararl.policy_files import description
from pararl.releases import public_name, release_of
from policies.backbones.llada import MMadaConfig, MMadaModelLM
from policies.export import Base, export
from policies.families.table import FAMILIES
from policies.shards import SHOWO, TRANSFORMERS
from policies.weights import read_model
from tests.policies import releases, showo_releases
from tests.wording import telling

RANK, ALPHA = 2, 6


@dataclass(frozen=True)
class Case:
    """A release, and what its export must have."""

    golden: str
    """Its recorded names of weights; empty where there are none."""
    files: set[str]
    """All that its export holds."""
    depths: dict[str, int]
    """How many layers its narrow copy has, by what stands in front of their numbers."""


MMADA = {"README.md", "config.json", "image_tokenizer", "policy.json", "tokenizer.json", "tokenizer_config.json"}
SHOWO_FILES = {"README.md", "config.json", "image_tokenizer", "policy.json", "text_tokenizer"}
CASES = {
    "MMaDA-8B-MixCoT": Case("mmada_8b", MMADA | {"model.safetensors"}, {"blocks": 2}),
    "MMaDA-Parallel-A": Case("", (MMADA - {"image_tokenizer"}) | {"model.safetensors", "vqvae"}, {"blocks": 2}),
    "show-o": Case("showo_1.3b", SHOWO_FILES | {"pytorch_model.safetensors"}, {"layers": 2}),
    "show-o2-1.5B": Case(
        "showo2_1.5b",
        SHOWO_FILES | {"pytorch_model.safetensors"},
        {"model.layers": 2, "und_trans.layers": 1, "diffusion_head_a": 1},
    ),
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, golden: Path) -> Path:
    """Folders as somebody has them who fetched the repositories, each with the tokenizers that it takes from elsewhere."""
    pytest.importorskip("diffusers")
    folder = tmp_path_factory.mktemp("hub")
    releases.backbone(folder / "MMaDA-8B-MixCoT")
    releases.image_tokenizer(folder / "MMaDA-8B-MixCoT" / "image_tokenizer")
    releases.backbone(folder / "MMaDA-Parallel-A", parallel_a=True)
    shutil.copytree(golden / "amused_vq", folder / "MMaDA-Parallel-A" / "vqvae", ignore=shutil.ignore_patterns("cases*", "README*"))
    showo_releases.showo(folder / "show-o", 256)
    releases.image_tokenizer(folder / "show-o" / "image_tokenizer")
    showo_releases.phi(folder / "show-o" / "text_tokenizer")
    showo_releases.showo2(folder / "show-o2-1.5B")
    showo_releases.wan(folder / "show-o2-1.5B" / "image_tokenizer")
    showo_releases.qwen(folder / "show-o2-1.5B" / "text_tokenizer")
    return folder


def trained(base: Path | str, folder: Path, scale: float = 0.3) -> Path:
    """The folder of an adapter of a base, with numbers as if it had been trained."""
    policy = policies.load(base)
    peft = adapter.attach(policy, RANK, ALPHA)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in adapter.tensors(peft).values():
            tensor.copy_(scale * torch.randn(tensor.shape, generator=generator))
    adapter.save(peft, folder, str(base))
    return folder


@pytest.fixture(scope="module", params=CASES)
def exported(request: pytest.FixtureRequest, hub: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """A release by name, the folder of an adapter of it, and their export."""
    name, folder = request.param, tmp_path_factory.mktemp("exports")
    lora = Lora.read(trained(hub / name, folder / "adapter"))
    export(Base.find(lora.base, lora), lora, folder / "export", {"README.md": b"a card\n"})
    return name, folder / "adapter", folder / "export"


def state(folder: Path) -> dict[str, Tensor]:
    """All weights in the safetensors files of a folder."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def pickled_or_not(folder: Path) -> dict[str, Tensor]:
    found = state(folder)
    for file in folder.glob("*.bin"):
        found |= torch.load(file, weights_only=True)
    return found


def test_an_export_has_the_files_of_its_release_and_what_the_release_takes_from_elsewhere(exported: tuple[str, Path, Path]) -> None:
    name, _, folder = exported
    assert {path.name for path in folder.iterdir()} == CASES[name].files


def test_an_export_has_the_released_names_and_loads_strictly(exported: tuple[str, Path, Path], golden: Path, hub: Path) -> None:
    name, _, folder = exported
    found, case = state(folder), CASES[name]
    if case.golden:
        recorded = json.loads((golden / "released_keys" / f"{case.golden}.json").read_text())
        deeper = [rf"\b{re.escape(place)}\.(\d+)\." for place in case.depths]
        kept = {
            key
            for key in recorded
            if all(int(at[1]) < depth for form, depth in zip(deeper, case.depths.values(), strict=True) if (at := re.search(form, key)))
        }
        assert len(kept) > 20 and found.keys() == kept
    kind = FAMILIES[json.loads((folder / "policy.json").read_text())["family"]].backbone
    config: Any = kind.config_class
    kind(config.from_pretrained(hub / name)).load_state_dict(found, strict=True)
    assert (folder / "config.json").read_bytes() == (hub / name / "config.json").read_bytes()


def test_weights_are_those_of_the_base_plus_the_scaled_product_in_the_bases_dtype(exported: tuple[str, Path, Path], hub: Path) -> None:
    name, folder, made = exported
    before, after, changed = pickled_or_not(hub / name), state(made), 0
    halves = load_file(folder / "adapter_model.safetensors")
    for key, weight in before.items():
        layer = f"base_model.model.{key.removesuffix('.weight')}"
        assert after[key].dtype == weight.dtype
        if f"{layer}.lora_A.weight" not in halves:
            assert torch.equal(after[key], weight), key
            continue
        product = halves[f"{layer}.lora_B.weight"].double() @ halves[f"{layer}.lora_A.weight"].double()
        expected = weight.double() + ALPHA / RANK * product
        assert torch.allclose(after[key].double(), expected, rtol=torch.finfo(weight.dtype).eps, atol=1e-6), key
        changed += not torch.equal(after[key], weight)
    assert changed == len(halves) / 2


def test_an_export_loads_by_its_folder_and_says_what_base_and_adapter_say(exported: tuple[str, Path, Path], hub: Path) -> None:
    name, folder, made = exported
    merged, base = (policies.load(place, dtype=torch.float32) for place in (made, hub / name))
    before = base.canary()
    PeftModel.from_pretrained(base.model, folder)
    on = base.canary()
    # Merged weights are rounded to the base's dtype, which bfloat16 does to three digits.
    rounding = 1e-4 if next(iter(state(made).values())).dtype == torch.float32 else 0.03 * float((on - before).abs().max())
    assert (merged.canary() - on).abs().max() < rounding < 0.1 * (on - before).abs().max()
    assert merged.settings == base.settings and merged.layout.text.spelled == base.layout.text.spelled
    assert torch.equal(merged.tokens.text_bias, base.tokens.text_bias)


def test_an_export_says_its_release_whatever_its_folder_is_called_and_its_weights_are_nobody_elses(
    exported: tuple[str, Path, Path], hub: Path
) -> None:
    name, _, folder = exported
    release = release_of(str(folder))
    assert release and release.endswith(f"/{name}") and release == release_of(str(hub / name))
    said = description(str(folder), folder)
    assert said and said["settings"] == json.loads(policies.RELEASES[release].read_text())["settings"]
    assert public_name(str(hub / name)) == (release, None) and public_name(str(folder)) is None


def test_a_run_takes_an_export_wherever_it_takes_its_release(
    exported: tuple[str, Path, Path], hub: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With prompts of the user's own, of which the check before a run reads more of a policy than a release has."""
    name, _, folder = exported
    monkeypatch.chdir(tmp_path)
    kind = "interleaved" if name.endswith("-A") else "t2i"
    Path("mine.jsonl").write_text("".join(json.dumps({"task": kind, "prompt": f"w{i}"}) + "\n" for i in range(64)))
    asked = f"--curriculum.file mine.jsonl --eval.file mine.jsonl --eval.splits id --curriculum.tasks {kind} --reward.name x:y".split()
    for place in (hub / name, folder):  # exits where it cannot be taken
        assert parse([*asked, "--rollout.steps", "64", "--policy.name", str(place)]).config.policy.name == str(place)


def test_an_export_called_like_its_release_loads_as_a_copy_of_it(exported: tuple[str, Path, Path], tmp_path: Path) -> None:
    name, _, folder = exported
    shutil.copytree(folder, tmp_path / name, ignore=shutil.ignore_patterns("policy.json", "README.md"))
    assert torch.equal(policies.load(tmp_path / name).canary(), policies.load(folder).canary())


@pytest.mark.parametrize("name", ["MMaDA-8B-MixCoT", "show-o2-1.5B"])
def test_a_large_export_is_in_shards_that_load_the_same(hub: Path, tmp_path: Path, name: str) -> None:
    lora = Lora.read(trained(hub / name, tmp_path / "adapter"))
    base = Base.find(lora.base, lora)
    for folder, size in (("one", None), ("many", base.bytes // 4)):
        export(base, lora, tmp_path / folder, {}, shard_bytes=size)
    form = TRANSFORMERS if name.startswith("MMaDA") else SHOWO
    files = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(files) >= 3 and [file.name for file in files] == [
        f"{form.stem}-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, 1 + len(files))
    ]
    index = json.loads((tmp_path / "many" / form.index).read_text())
    assert index["metadata"]["total_size"] == base.bytes and index["weight_map"] == {
        key: file.name for file in files for key in load_file(file)
    }
    one, many = (policies.load(tmp_path / folder).model.state_dict() for folder in ("one", "many"))
    assert one.keys() == many.keys() and all(torch.equal(one[key], many[key]) for key in one)


@pytest.mark.parametrize("name", ["scenes-mmada", "scenes-showo", "scenes-showo2"])
def test_the_export_of_an_embedded_policy_is_a_saved_policy_and_a_base_for_another_adapter(name: str, tmp_path: Path) -> None:
    lora = Lora.read(trained(name, tmp_path / "adapter", 0.05))
    export(Base.find(lora.base, lora), lora, tmp_path / "first", {})
    policies.load(name).save(str(tmp_path / "saved"))
    names = {path.relative_to(tmp_path / "first").as_posix() for path in (tmp_path / "first").rglob("*")}
    assert names == {path.relative_to(tmp_path / "saved").as_posix() for path in (tmp_path / "saved").rglob("*")}
    lora = Lora.read(trained(tmp_path / "first", tmp_path / "again", 0.05))
    export(Base.find(lora.base, lora), lora, tmp_path / "second", {})
    twice = policies.load(tmp_path / "first")
    once = twice.canary()
    PeftModel.from_pretrained(twice.model, tmp_path / "again")
    assert (policies.load(tmp_path / "second").canary() - twice.canary()).abs().max() < 1e-4 < 1e-2 * (twice.canary() - once).abs().max()


# ---- what does not fit


def test_a_release_that_is_not_known_is_named(tmp_path: Path) -> None:
    shutil.copytree(policies.CHECKPOINTS / "scenes-mmada", tmp_path / "later")
    said = json.loads((tmp_path / "later" / "policy.json").read_text())
    (tmp_path / "later" / "policy.json").write_text(json.dumps(said | {"release": "somebody/later"}))
    with pytest.raises(ValueError, match=r"policy.json names the release 'somebody/later'; known are Gen-Verse"):
        policies.load(tmp_path / "later")


Change = Callable[[dict[str, Tensor]], Any]
LAYER = "base_model.model.model.transformer.blocks.1.q_proj"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: [w.pop(f"{LAYER}.lora_{half}.weight") for half in "AB"], r"2 missing \(\S+blocks\.1\.q_proj"),
        (lambda w: w.pop(f"{LAYER}.lora_B.weight"), r"A and B of 1 layers do not go together at rank 2: \S+blocks\.1\.q_proj"),
        (lambda w: w.update({f"{LAYER}.lora_A.weight": torch.ones(RANK, 9)}), r"1 of another shape \(\S+blocks\.1\.q_proj"),
        (lambda w: w.update({f"{LAYER}.lora_A.weight": w[f"{LAYER}.lora_A.weight"] * torch.nan}), r"q_proj.lora_A.weight holds NaN"),
        (lambda w: w.update({"base_model.model.x.weight": torch.ones(2, 2)}), "holds base_model.model.x.weight"),
        (
            lambda w: w.update({f"base_model.model.y.lora_{half}.weight": torch.ones(RANK, RANK) for half in "AB"}),
            r"2 left over \(\S+y\.lora_A",
        ),
    ],
    ids=["missing", "half", "misshaped", "nan", "no half", "left over"],
)
def test_an_adapter_that_is_not_whole_or_not_of_the_base_is_named(hub: Path, tmp_path: Path, change: Change, message: str) -> None:
    folder = trained(hub / "MMaDA-8B-MixCoT", tmp_path / "adapter")
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=message):
        lora = Lora.read(folder)
        Base.find(lora.base, lora)


def test_an_adapter_of_another_policy_is_refused(hub: Path, tmp_path: Path) -> None:
    lora = Lora.read(trained("scenes-mmada", tmp_path / "adapter"))
    with pytest.raises(ValueError, match=telling(tmp_path / "adapter", hub / "MMaDA-8B-MixCoT", "28 left over")):
        Base.find(str(hub / "MMaDA-8B-MixCoT"), lora)


def test_files_that_are_not_whole_are_named(hub: Path, tmp_path: Path) -> None:
    folder = trained(hub / "MMaDA-8B-MixCoT", tmp_path / "adapter")
    for file, content in (("adapter_model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"), ("adapter_config.json", b"{}")):
        shutil.copytree(folder, tmp_path / file)
        (tmp_path / file / file).write_bytes(content)
        with pytest.raises(ValueError, match=file):
            Lora.read(tmp_path / file)
    config = json.loads((folder / "adapter_config.json").read_text())
    for change, message in (({"use_dora": True}, "use_dora is True"), ({"r": 3}, "of 14 layers do not go together at rank 3")):
        (folder / "adapter_config.json").write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=message):
            Lora.read(folder)


def test_a_scale_by_the_root_of_the_rank_is_pefts(tmp_path: Path) -> None:
    folder = trained("scenes-mmada", tmp_path / "adapter", 0.05)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"use_rslora": True}))
    lora = Lora.read(folder)
    export(Base.find("scenes-mmada", lora), lora, tmp_path / "export", {})
    policy = policies.load("scenes-mmada")
    PeftModel.from_pretrained(policy.model, folder)
    assert torch.allclose(policies.load(tmp_path / "export").canary(), policy.canary(), rtol=0, atol=1e-4)
    assert lora.scale == pytest.approx(ALPHA / RANK**0.5)


def test_a_base_with_nan_is_named_as_the_base_and_leaves_no_folder(hub: Path, tmp_path: Path) -> None:
    lora = Lora.read(trained(hub / "show-o", tmp_path / "adapter"))
    shutil.copytree(hub / "show-o", tmp_path / "show-o")
    weights = torch.load(tmp_path / "show-o" / "pytorch_model.bin", weights_only=True)
    weights["showo.model.final_layernorm.weight"][3] = torch.nan
    torch.save(weights, tmp_path / "show-o" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="showo.model.final_layernorm.weight of the base holds NaN"):
        export(Base.find(str(tmp_path / "show-o"), lora), lora, tmp_path / "out" / "export", {})
    assert list((tmp_path / "out").iterdir()) == []


def test_a_sum_beyond_the_range_of_the_dtype_is_an_error_not_an_infinity(tmp_path: Path) -> None:
    lora = Lora.read(trained("scenes-mmada", tmp_path / "adapter"))
    name, (a, b) = next(iter(lora.pairs.items()))
    large = replace(lora, pairs={name: (a * 1e4, b * 1e4)})
    with pytest.raises(ValueError, match=rf"{re.escape(name)} with the adapter .* beyond the range of torch.float16"):
        large.merged(name, torch.zeros(len(b), a.shape[1], dtype=torch.float16))


def test_a_folder_that_is_there_is_left_as_it_is(hub: Path, tmp_path: Path) -> None:
    lora = Lora.read(trained("scenes-mmada", tmp_path / "adapter"))
    base = Base.find(lora.base, lora)
    (tmp_path / "there").mkdir()
    for write in (lambda: export(base, lora, tmp_path / "there", {}), lambda: lora.export(tmp_path / "there", "x", None, {})):
        with pytest.raises(FileExistsError, match="there exists already"):
            write()
    assert not list((tmp_path / "there").iterdir())


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lora = Lora.read(trained("scenes-mmada", tmp_path / "adapter"))
    base = Base.find(lora.base, lora)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=base.bytes - 1))
    with pytest.raises(OSError, match=rf"takes {base.bytes:,} bytes, the disk has {base.bytes - 1:,} left"):
        export(base, lora, tmp_path / "new" / "export", {})
    assert not (tmp_path / "new").exists()


# ---- memory


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_an_export_holds_a_small_part_of_the_weights_at_any_time(tmp_path: Path) -> None:
    sizes = {"d_model": 512, "n_layers": 12, "n_heads": 8, "mlp_hidden_size": 1024, "embedding_size": 512}
    shutil.copytree(policies.CHECKPOINTS / "scenes-mmada", tmp_path / "large")
    MMadaModelLM(MMadaConfig(**sizes, codebook_size=256, mask_token_id=0)).save_pretrained(tmp_path / "large")
    lora = Lora.read(trained(tmp_path / "large", tmp_path / "adapter"))
    base = Base.find(lora.base, lora)
    held = [anonymous()]
    export(base, lora, tmp_path / "export", {}, tell=lambda size: held.append(anonymous()))
    assert base.bytes > 120e6 and max(held) - held[0] < 0.2 * base.bytes
    assert read_model(MMadaModelLM, tmp_path / "export").num_parameters() == sum(t.numel() for t in base.weights.values())


def anonymous() -> int:
    """Bytes of this process's own memory, mapped files left out."""
    found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024
