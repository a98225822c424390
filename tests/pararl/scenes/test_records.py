"""JSON lines hold prompts without loss, and a bad line is named."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pararl import scenes
from pararl.data.prompts import read_prompts
from pararl.types import Task
from tests.wording import telling

ROOT = Path(__file__).parents[3]
GENEVAL = (
    '{"tag":"counting","include":[{"class":"cross","count":2}],"exclude":[{"class":"cross","count":3}],"prompt":"a photo of two crosses"}'
)


def test_prompts_of_every_split_round_trip(tmp_path: Path) -> None:
    prompts = [scenes.prompt(split, index, 4, ("t2i", "interleaved")[index % 2]) for split in scenes.SPLITS for index in range(60)]
    scenes.write_jsonl(tmp_path / "prompts.jsonl", prompts)
    assert read_prompts(str(tmp_path / "prompts.jsonl")) == prompts
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.jsonl"]
    first = json.loads((tmp_path / "prompts.jsonl").read_text().splitlines()[0])
    assert list(first) == ["id", "task", "split", "prompt", "tag", "include", "exclude", "closed", "atoms"]


OWN_IDS: tuple[Task, ...] = ("t2i", "edit", "i2t", "t2t")
"""Every task but interleaved, whose prompts have the ids of those of t2i."""


def test_prompts_of_every_task_round_trip_with_their_images(tmp_path: Path) -> None:
    prompts = [scenes.prompt(split, index, 2, task) for task in OWN_IDS for split in scenes.splits(task) for index in range(12)]
    prompts += [scenes.prompt("ood_ops", index, 2, "interleaved", "edit") for index in range(12)]
    scenes.write_jsonl(tmp_path / "prompts.jsonl", prompts)
    for before, read in zip(prompts, read_prompts(str(tmp_path / "prompts.jsonl")), strict=True):
        assert (read.id, read.task, read.text, read.split) == (before.id, before.task, before.text, before.split)
        assert dict(read.spec) == dict(before.spec)
        assert (read.image is None) == (before.image is None) == (before.task in ("t2i", "t2t") or "include" in before.spec)
        if read.image is not None and before.image is not None:
            assert read.image.dtype == np.uint8 and (read.image == before.image).all()


def test_broken_lines_are_refused_by_file_line_and_entry(tmp_path: Path) -> None:
    file = tmp_path / "evaluation_metadata.jsonl"
    for broken, tokens in (
        ({"include": [{"class": "teddy bear"}]}, ("include[0]", "'teddy bear'")),
        ({"include": [{"class": "circle", "color": "pink"}]}, ("include[0]", "'pink'")),
        ({"include": [{"class": "circle", "count": 0}]}, ("include[0]", "count", 0)),
        ({"include": [{"class": "circle", "position": ["behind", 0]}]}, ("include[0]", "position", "'behind'")),
        ({"include": [], "exclude": []}, ("'include'", "'exclude'")),
        ({"task": "edit", "edit": [], "source": [-1] * 16}, ("edit", "[]")),
    ):
        file.write_text(GENEVAL + "\n" + json.dumps({"prompt": "a circle"} | broken))
        with pytest.raises(ValueError, match=telling("line 2", *tokens)):
            read_prompts(str(file))


def test_genevals_own_lines_are_read_and_checked(tmp_path: Path) -> None:
    file = tmp_path / "evaluation_metadata.jsonl"
    file.write_text(f"\n{GENEVAL}\n")
    (prompt,) = read_prompts(str(file))
    assert (prompt.id, prompt.task, prompt.split, prompt.text) == ("prompt-2", "t2i", "user", "a photo of two crosses")
    shown = scenes.Scene.of([(3, 0, 0, 0), (3, 1, 2, 2), (0, 0, 3, 3)])
    assert scenes.check(prompt.spec, shown).strict


@pytest.mark.parametrize(
    ("line", "tokens"),
    [
        ("{", ()),
        ("[1]", ()),
        ('{"include":[{"class":"circle"}]}', ("'prompt'",)),
        ('{"prompt":"a dog","include":[{"class":"dog"}]}', ("include[0]", "'dog'")),
        ('{"prompt":"a circle","task":"paint","include":[{"class":"circle"}]}', ("'paint'",)),
        ('{"prompt":"a circle","task":["t2i"],"include":[{"class":"circle"}]}', ("['t2i']",)),
        ('{"prompt":"a circle"}', ("'include'", "'exclude'")),
        ('{"prompt":"remove it","task":"edit","include":[{"class":"circle"}]}', ("source",)),
        ('{"prompt":"what is it ?","task":"i2t","answer":"a circle"}', ("source",)),
        ('{"prompt":"one plus one ?","task":"t2t","answer":2}', ("answer", 2)),
        ('{"prompt":"say it :","task":"t2t","text":"a dog"}', ("text", "'a dog'")),
        ('{"prompt":"say it :","task":"t2t"}', ("source",)),
        ('{"id":"prompt-1","prompt":"a circle","include":[{"class":"circle"}]}', ("'prompt-1'",)),
    ],
)
def test_a_bad_record_names_file_and_line(tmp_path: Path, line: str, tokens: tuple[object, ...]) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(f"{GENEVAL}\n{line}\n")
    with pytest.raises(ValueError, match=telling("mine.jsonl", "line 2", *tokens)) as caught:
        read_prompts(str(file))
    assert "\n" not in str(caught.value)


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=telling("none.jsonl")):
        read_prompts(str(tmp_path / "none.jsonl"))


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    scenes.write_jsonl(file, [scenes.prompt("id", 0)])
    before = file.read_bytes()
    edit = scenes.prompt("id", 0, task="edit")
    black = np.zeros((32, 32, 3), np.uint8)
    for pictured in (replace(edit, image=black), replace(edit, image=None), replace(scenes.prompt("id", 1), image=black)):
        with pytest.raises(ValueError, match=telling(pictured.id, "'source'")):
            scenes.write_jsonl(file, [scenes.prompt("id", 1), pictured])
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "pararl.scenes", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_command_writes_what_prompt_gives(tmp_path: Path) -> None:
    out = tmp_path / "p.jsonl"
    done = run("--split", "ood_rel", "--count", "7", "--seed", "2", "--task", "interleaved", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert read_prompts(str(out)) == [scenes.prompt("ood_rel", index, 2, "interleaved") for index in range(7)]


def test_the_command_refuses_in_one_line(tmp_path: Path) -> None:
    out = str(tmp_path / "p")
    for arguments in (
        ("--count", "0", "--out", out),
        ("--out", str(tmp_path / "no" / "p")),
        ("--split", "ood_ops", "--out", out),
        ("--form", "edit", "--out", out),
    ):
        done = run(*arguments)
        assert done.returncode == 2 and "Traceback" not in done.stderr and done.stderr.strip()
    assert run("--split", "ood_ops", "--task", "interleaved", "--form", "edit", "--count", "2", "--out", out).returncode == 0


def test_scenes_need_no_torch() -> None:
    code = "import sys, pararl.scenes; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
