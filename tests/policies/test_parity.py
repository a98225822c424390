"""``python -m policies.parity``: every recorded case holds, and a case that does not is told."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from policies.parity import FAMILIES, compare
from policies.parity.__main__ import main
from policies.parity.case import Comparison
from tests.wording import telling

CASES = (
    "mmada",
    "mmada_parallel_m",
    "mmada_parallel_a",
    "magvitv2",
    "magvitv2_full",
    "amused_vq",
    "showo",
    "showo2",
    "chameleon",
    "taming_vqgan",
    "schedules",
    "prompts",
    "released_keys",
)


def run(*given: Path | str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "policies.parity", *map(str, given)], capture_output=True, text=True)


def changed(case: Path, to: Path, file: str, name: str, change: Tensor | float) -> Path:
    """A copy of a case with something added to one tensor."""
    shutil.copytree(case, to)
    tensors = load_file(to / file)
    tensors[name] = tensors[name] + change
    save_file(tensors, to / file, metadata={"format": "pt"})
    return to


def test_every_recorded_case_holds(golden: Path) -> None:
    done = run("--json", *[golden / name for name in CASES])
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [Path(folder).name for folder in found] == list(CASES)
    for folder, case in found.items():
        assert case["ok"] and all(entry["difference"] <= entry["tolerance"] for entry in case["tensors"].values()), folder
        assert case["unread"] == []


Terminal = Callable[..., tuple[int | str | None, list[str], str]]


@pytest.fixture
def said_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
    """Exit status, lines and errors of the command in this process, which is there at once."""

    def said(*folders: Path) -> tuple[int | str | None, list[str], str]:
        monkeypatch.setattr(sys, "argv", ["policies.parity", *map(str, folders)])
        with pytest.raises(SystemExit) as left:
            main()
        out, errors = capsys.readouterr()
        return left.value.code, out.splitlines(), errors

    return said


def test_the_terminal_has_a_line_for_each_of_the_recorded_folders_and_files(golden: Path, said_of: Terminal) -> None:
    status, lines, _ = said_of(*sorted(golden.iterdir()))
    assert status == 0
    said = dict(line.removeprefix(f"{golden}/").split(": ", 1) for line in lines)
    assert said.pop("README.md") == "passed over, it is no folder"
    assert said.keys() == set(CASES) and all(line.startswith("ok; ") for line in said.values())
    with torch.no_grad():
        found = compare(golden / "mmada")
    share, name = max((x["difference"] / x["tolerance"], name) for name, x in found.tensors.items() if x["tolerance"])
    assert f"({share:.2g} of its tolerance) in {name}; {len(found.tensors)} compared, {len(found.left_out)} left out" in said["mmada"]
    recorded = load_file(golden / "mmada" / "cases.safetensors").keys()
    assert found.left_out.keys() == {name for name in recorded if name.startswith("train_pad.")} != set()


def test_the_terminal_names_what_differs_and_what_nothing_looked_at(golden: Path, tmp_path: Path, said_of: Terminal) -> None:
    codes = changed(golden / "magvitv2", tmp_path / "codes", "cases.safetensors", "a.codes", torch.tensor(1))
    more = without(golden / "amused_vq", tmp_path / "more", extra=torch.zeros(2))
    status, (first, second), _ = said_of(codes, more)
    assert status == 1
    assert first.startswith(f"{codes}: NOT OK; a.codes differs, by ") and first.endswith("; 9 compared, 0 left out")
    assert second.startswith(f"{more}: NOT OK; largest difference ") and second.endswith("; not looked at: extra")


def test_nothing_but_files_is_no_comparison(golden: Path, tmp_path: Path, said_of: Terminal) -> None:
    status, lines, errors = said_of(golden / "README.md")
    assert status == 2 and len(lines) == 1 and "no folder of a recorded case" in errors
    status, lines, errors = said_of(tmp_path / "missing")
    assert status == 2 and lines == [] and "holds no recorded case" in errors


def without(case: Path, to: Path, *names: str, **more: Tensor) -> Path:
    """A copy of a case with some of its tensors gone, and others added."""
    shutil.copytree(case, to)
    tensors = load_file(to / "cases.safetensors")
    save_file({k: v for k, v in tensors.items() if k not in names} | more, to / "cases.safetensors")
    return to


def test_a_recorded_tensor_that_nothing_looks_at_fails_the_case(golden: Path, tmp_path: Path) -> None:
    with torch.no_grad():
        found = compare(without(golden / "mmada", tmp_path / "more", **{"gen_cfg2.output_ids": torch.zeros(2, 26).long()}))
        assert not found.ok and found.unread == ["gen_cfg2.output_ids"]
        fewer = compare(without(golden / "mmada", tmp_path / "fewer", "gen.output_ids", "t2igen.trace_confidence", "fwd.hidden_last"))
    assert not fewer.ok and fewer.unread == ["gen.trace"]
    assert {"gen_cfg.output_ids", "mmu.output_ids", "t2igen.sampled_ids"} <= fewer.tensors.keys(), (
        "the other runs are compared all the same"
    )


def test_a_run_that_the_readme_does_not_list_fails_the_case(golden: Path, tmp_path: Path) -> None:
    to = tmp_path / "case"
    shutil.copytree(golden / "mmada_parallel_m", to)
    text = (to / "README.md").read_text()
    assert text.count('"b": {"text_steps"') == 1
    (to / "README.md").write_text(text.replace('"b": {"text_steps"', '"z": {"text_steps"'))
    with torch.no_grad(), pytest.raises(ValueError, match=telling("z.trace_drawn")):
        compare(to)


def test_sampled_text_is_fed_back(golden: Path, tmp_path: Path) -> None:
    """With noise in its text the recorded choice cannot be repeated: the image is compared behind the recorded text."""
    to = tmp_path / "case"
    shutil.copytree(golden / "mmada_parallel_a", to)
    text = (to / "README.md").read_text()
    (to / "README.md").write_text(text.replace('"text_temperature": 0', '"text_temperature": 0.7'))
    tensors = load_file(to / "cases.safetensors")
    first = int(tensors["b.main_forward_index"][1])
    written = (tensors["b.trace_model_input"][first] != tensors["b.trace_model_input"][0]).nonzero().flatten().tolist()
    place = next(i for i in written if 49 <= i < 61)
    tensors["b.trace_model_input"][1:, place] = 7  # as if noise had chosen another word at the first step
    tensors["b.text_ids"][place - 49] = 7
    save_file(tensors, to / "cases.safetensors")
    with torch.no_grad():
        found = compare(to)
    assert found.tensors["b.text_ids"]["difference"] == found.tensors["b.trace_model_input"]["difference"] == 0
    assert found.tensors["b.text_masked_after_step"]["difference"] == 0
    assert found.tensors["b.trace_confidence"]["difference"] > 2e-5, "the images that were recorded are those of the other word"


@pytest.mark.parametrize("name", ["mmada", "mmada_parallel_m", "mmada_parallel_a", "magvitv2", "showo", "showo2"])
def test_other_weights_are_beyond_the_tolerance(golden: Path, tmp_path: Path, name: str) -> None:
    last = {
        "magvitv2": "decoder.conv_in.bias",
        "showo": "showo.model.final_layernorm.weight",
        "showo2": "diffusion_head_b.norm_final.weight",
    }
    weight = last.get(name, "model.transformer.ln_f.weight")
    with torch.no_grad():
        found = compare(changed(golden / name, tmp_path / name, "model.safetensors", weight, 0.02))
    assert not found.ok and beyond(found)


SHOWO2_INPUTS = ("_tokens", "_tokens_null", "positions", "positions_null", "latents", ".t", "noise", "input_ids", "labels", "image_masks")
"""Ends of the names of the tensors of the case ``showo2`` that went into the reference."""


def test_every_tensor_that_came_out_of_show_o2_is_compared(golden: Path, tmp_path: Path) -> None:
    shutil.copytree(golden / "showo2", tmp_path / "case")
    tensors = load_file(tmp_path / "case" / "cases.safetensors")
    out = {name for name in tensors if not name.endswith(SHOWO2_INPUTS)}
    wrong = {name: tensors[name] + (0.01 if tensors[name].is_floating_point() else 1) for name in out}
    save_file(tensors | wrong, tmp_path / "case" / "cases.safetensors")
    with torch.no_grad():
        found = compare(tmp_path / "case").tensors
    assert found.keys() == out and len(out) == 18
    assert {name for name, entry in found.items() if entry["difference"] > entry["tolerance"]} == out


def test_idle_slots_in_front_and_runs_without_guidance_are_cases_too(golden: Path, tmp_path: Path) -> None:
    """An idle slot in front of an image hides that image's velocity alone; without guidance nobody reads the empty prompts."""
    case = without(golden / "showo2", tmp_path / "case", "idle.logits", "idle.velocity", "ode_a.trajectory", "ode_a.t_calls")
    tensors = load_file(case / "cases.safetensors")
    tensors["idle.modality_positions"] = tensors["multi.modality_positions"].clone()
    tensors["idle.modality_positions"][1] = torch.tensor([[0, 0], [27, 17]])
    tensors["idle.velocity"] = tensors["multi.velocity"][:2].clone()
    tensors["idle.logits"] = tensors["multi.logits"].clone()
    save_file(tensors, case / "cases.safetensors")
    with torch.no_grad():
        found = compare(case)
    assert found.tensors["idle.velocity"]["difference"] < 1e-5 < found.tensors["idle.logits"]["difference"] < float("inf")
    assert found.unread == [] and found.left_out == dict.fromkeys(
        ["ode.text_tokens_null", "ode.modality_positions_null"], "no run is guided"
    )


def test_a_difference_ends_in_status_1_and_is_named(golden: Path, tmp_path: Path) -> None:
    case = changed(golden / "magvitv2", tmp_path / "case", "cases.safetensors", "c.decoded", 0.5)
    done = run("--json", golden / "schedules", case)
    assert done.returncode == 1
    entry = json.loads(done.stdout)[str(case)]
    assert not entry["ok"] and 0.49 < entry["tensors"]["c.decoded"]["difference"] < 0.51


def test_what_is_no_case_is_one_clear_error(golden: Path, tmp_path: Path) -> None:
    done = run("--json", tmp_path, golden / "schedules")
    assert done.returncode == 2 and "holds no recorded case" in done.stderr and "Traceback" not in done.stderr
    found = json.loads(done.stdout)
    assert "holds no recorded case" in found[str(tmp_path)]["error"] and found[str(golden / "schedules")]["ok"]
    shutil.copytree(golden / "mmada", tmp_path / "case")
    (tmp_path / "case" / "README.md").unlink()
    done = run(tmp_path / "case")
    assert done.returncode == 2 and "README.md" in done.stderr and "Traceback" not in done.stderr


def test_nothing_compared_is_not_right_and_neither_is_nan() -> None:
    found = Comparison()
    assert not found.ok
    found.close("nan", torch.tensor([float("nan")]), torch.zeros(1), 1.0)
    found.equal("shape", [1, 2], [1])
    found.close("nothing", torch.zeros(0), torch.zeros(0), 1.0)
    found.equal("none", [], [])
    assert not found.ok and {entry["difference"] for entry in found.tensors.values()} == {float("inf")}
    with pytest.raises(ValueError, match=telling("none")):
        found.equal("none", [1], [1])


def test_a_wrong_entry_of_a_table_is_not_hidden_by_a_right_one(golden: Path, tmp_path: Path) -> None:
    tables = json.loads((golden / "schedules" / "schedules.json").read_text())
    right = tables["maskgit_partially_known"][0]
    wrong = right | {"mask_len_after_step": [0] * right["T"]}
    (tmp_path / "schedules.json").write_text(json.dumps({"maskgit_partially_known": [wrong, right], "maskgit_cubic": []}))
    found = compare(tmp_path)
    assert [entry["difference"] > 0 for entry in found.tensors.values()] == [True, False] and found.unread == ["maskgit_cubic"]


def with_prompts(golden: Path, to: Path, change: Callable[[dict[str, Any]], None]) -> Comparison:
    """What comparing the recorded prompts finds when something in them is changed."""
    recorded = json.loads((golden / "prompts" / "prompts.json").read_text())
    change(recorded)
    to.mkdir(exist_ok=True)
    (to / "prompts.json").write_text(json.dumps(recorded))
    return compare(to)


def beyond(found: Comparison) -> set[str]:
    return {name for name, entry in found.tensors.items() if entry["difference"] > entry["tolerance"]}


PROMPTS = [
    *(("mmada", kind, "input_ids") for kind in ("t2i_gen", "t2i", "mmu", "lm", "lm_chat")),
    *(("showo", kind, "input_ids") for kind in ("t2i_gen", "t2i", "mmu", "lm")),
    ("mmada", "t2i_gen", "attention_mask"),
    ("mmada", "t2i", "attention_mask"),
    ("mmada", "lm", "attention_mask"),
    ("mmada", "lm_chat", "prompt_mask"),
]


@pytest.mark.parametrize(("family", "kind", "name"), PROMPTS)
def test_one_other_id_of_a_recorded_prompt_is_told_wherever_it_stands(
    golden: Path, tmp_path: Path, family: str, kind: str, name: str
) -> None:
    rows = json.loads((golden / "prompts" / "prompts.json").read_text())[family]["cases"][kind]["out"][name]
    for i, place in enumerate((0, len(rows[0]) // 2, len(rows[0]) - 1)):

        def change(recorded: dict[str, Any], i: int = i, place: int = place) -> None:
            recorded[family]["cases"][kind]["out"][name][i][place] += 1

        title = f"{family}.{kind}.{name}"
        found = with_prompts(golden, tmp_path / "case", change)
        assert not found.ok and found.tensors[title]["difference"] == 1
        others = {f"{family}.{kind}.without_text", f"{family}.{kind}.dialogue.0"}  # parts of the same rows
        assert {title} <= beyond(found) <= {title} | others


@pytest.mark.parametrize(("family", "token"), [("mmada", "<|t2i|>"), ("mmada", "<|eot|>"), ("showo", "<|mmu|>")])
def test_another_special_token_of_a_release_is_told(golden: Path, tmp_path: Path, family: str, token: str) -> None:
    def change(recorded: dict[str, Any]) -> None:
        recorded[family]["special"][token] += 1

    assert beyond(with_prompts(golden, tmp_path / "case", change)) == {f"{family}.special"}


def test_a_prompt_of_another_text_or_of_no_known_kind_is_told(golden: Path, tmp_path: Path) -> None:
    def other_text(recorded: dict[str, Any]) -> None:
        recorded["mmada"]["cases"]["lm"]["texts"][1] = "998 249 721 665"

    def other_kind(recorded: dict[str, Any]) -> None:
        recorded["mmada"]["cases"]["t2v"] = recorded["mmada"]["cases"]["t2i"]
        recorded["showo"]["cases"]["lm"]["out"]["positions"] = [[0]]
        recorded["lumina"] = {}

    assert beyond(with_prompts(golden, tmp_path / "text", other_text)) == {"mmada.lm.input_ids"}
    found = with_prompts(golden, tmp_path / "kind", other_kind)
    assert not found.ok and not beyond(found)
    assert found.unread == ["mmada.t2v.input_ids", "mmada.t2v.attention_mask", "showo.lm.positions", "lumina"]


def test_another_name_or_shape_of_a_released_parameter_is_told(golden: Path, tmp_path: Path) -> None:
    shutil.copytree(golden / "released_keys", tmp_path / "case")
    listed = json.loads((tmp_path / "case" / "showo_1.3b.json").read_text())
    listed["showo.lm_head.gain"] = listed.pop("showo.lm_head.bias")
    listed["showo.lm_head.weight"][0][0] += 1
    (tmp_path / "case" / "showo_1.3b.json").write_text(json.dumps(listed))
    (tmp_path / "case" / "lumina.json").write_text("{}")
    found = compare(tmp_path / "case")
    assert found.tensors["showo_1.3b"]["difference"] == 3 and beyond(found) == {"showo_1.3b"} and found.unread == ["lumina"]


def test_every_family_has_its_case() -> None:
    assert set(FAMILIES) == {name.removesuffix("_full") for name in CASES}
