"""JSON lines hold prompts without loss, and a bad line is named."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pararl import scenes
from pararl.types import Prompt

ROOT = Path(__file__).parents[2]
GENEVAL = (
    '{"tag":"counting","include":[{"class":"cross","count":2}],"exclude":[{"class":"cross","count":3}],"prompt":"a photo of two crosses"}'
)


def test_prompts_of_every_split_round_trip(tmp_path: Path) -> None:
    prompts = [
        scenes.prompt(split, index, 4, task) for split in scenes.SPLITS for index in range(60) for task in scenes.TASKS[index % 2 :][:1]
    ]
    scenes.write_jsonl(tmp_path / "prompts.jsonl", prompts)
    assert scenes.read_jsonl(tmp_path / "prompts.jsonl") == prompts
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.jsonl"]
    first = json.loads((tmp_path / "prompts.jsonl").read_text().splitlines()[0])
    assert list(first) == ["id", "task", "split", "prompt", "tag", "include", "exclude", "closed", "atoms"]


def test_genevals_own_lines_are_read_and_checked(tmp_path: Path) -> None:
    file = tmp_path / "evaluation_metadata.jsonl"
    file.write_text(f"\n{GENEVAL}\n")
    (prompt,) = scenes.read_jsonl(file)
    assert (prompt.id, prompt.task, prompt.split, prompt.text) == ("line-2", "t2i", "user", "a photo of two crosses")
    shown = scenes.Scene.of([(3, 0, 0, 0), (3, 1, 2, 2), (0, 0, 3, 3)])
    assert scenes.check(prompt.spec, shown).strict


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: Expecting"),
        ("[1]", "line 2: a record must be a JSON object"),
        ('{"include":[{"class":"circle"}]}', "line 2: a record needs a 'prompt'"),
        ('{"prompt":"a dog","include":[{"class":"dog"}]}', r"line 2: spec include\[0\]: unknown class 'dog'"),
        ('{"prompt":"a circle","task":"paint","include":[{"class":"circle"}]}', "line 2: unknown task 'paint'"),
        ('{"prompt":"a circle","task":["t2i"],"include":[{"class":"circle"}]}', "line 2: unknown task"),
        ('{"prompt":"a circle"}', "line 2: the spec asks for nothing"),
        ('{"id":"line-1","prompt":"a circle","include":[{"class":"circle"}]}', "line 2: id 'line-1' was already used in line 1"),
    ],
)
def test_a_bad_record_names_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(f"{GENEVAL}\n{line}\n")
    with pytest.raises(ValueError, match=f"mine.jsonl, {message}") as caught:
        scenes.read_jsonl(file)
    assert "\n" not in str(caught.value)


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="none.jsonl holds no prompt"):
        scenes.read_jsonl(tmp_path / "none.jsonl")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    scenes.write_jsonl(file, [scenes.prompt("id", 0)])
    before = file.read_bytes()
    pictured = Prompt("p", "edit", "add a red circle", {}, image=np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match="input image"):
        scenes.write_jsonl(file, [scenes.prompt("id", 1), pictured])
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "pararl.scenes", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_command_writes_what_prompt_gives(tmp_path: Path) -> None:
    out = tmp_path / "p.jsonl"
    done = run("--split", "ood_rel", "--count", "7", "--seed", "2", "--task", "interleaved", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert scenes.read_jsonl(out) == [scenes.prompt("ood_rel", index, 2, "interleaved") for index in range(7)]


def test_the_command_refuses_in_one_line(tmp_path: Path) -> None:
    for arguments in (("--count", "0", "--out", str(tmp_path / "p")), ("--out", str(tmp_path / "no" / "p"))):
        done = run(*arguments)
        assert done.returncode == 2 and "Traceback" not in done.stderr and done.stderr.strip()


def test_scenes_need_no_torch() -> None:
    code = "import sys, pararl.scenes; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
