"""A reward that is unknown, broken or called otherwise, and a policy whose files are, are one line before anything starts."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from pararl.cli.input_checks import check_inputs, reward_problems
from pararl.config import Config, ConfigError, changed
from rewards import check
from rewards.check import imported, look

ROOT = Path(__file__).resolve().parents[3]
MODULES = {
    "fine": "def score(prompts, completions, **columns):\n    return [0.0 for _ in completions]\n",
    "answers": "def score(completions, answer, **kwargs):\n    return [0.0 for _ in completions]\n",
    "texts": "def score(completions: list[str], **kwargs):\n    return [0.0 for _ in completions]\n",
    "broken": "import a_module_that_nobody_has\n",
    "wrong": "def score(:\n",
    "leaves": "import sys\nsys.exit('set MY_API_KEY')\n",
    "divides": "x = 1 / 0\n",
    "number": "score = 3\n",
    "narrow": "def score(prompts, completions):\n    return []\n",
    "position": "def score(prompts, completions, /, **columns):\n    return []\n",
    "trainer": "def score(completions, completion_ids, **columns):\n    return []\n",
    "odd": "def score(completions: list[int], **columns):\n    return []\n",
    "heavy": "from rewards import Reward\n\nclass score(Reward):\n    def __init__(self):\n        raise RuntimeError('made')\n",
}


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of files which, like those of a user, is the current one and not on the path."""
    for name, text in MODULES.items():
        (tmp_path / f"asked_{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("asked_fine.py:score", ()),
        ("asked_heavy.py:score", ()),
        ("asked_answers.py:score", ()),
        ("asked_gone.py:score", ("there is no file asked_gone.py",)),
        ("asked_gone:score", ("no module 'asked_gone'", "FILE.py:function")),
        ("asked_fine.py:other", ("has no 'other'",)),
        ("asked_number.py:score", ("is a int",)),
        ("asked_broken.py:score", ("a_module_that_nobody_has", "asked_broken.py, line 1")),
        ("asked_wrong.py:score", ("SyntaxError", "asked_wrong.py, line 1")),
        ("asked_leaves.py:score", ("SystemExit: set MY_API_KEY", "asked_leaves.py, line 2")),
        ("asked_divides.py:score", ("ZeroDivisionError", "asked_divides.py, line 1")),
        ("asked_narrow.py:score", ("takes no **columns", "def reward(prompts, completions, **columns)")),
        ("asked_position.py:score", ("prompts, completions by position only",)),
        ("asked_trainer.py:score", ("completion_ids=None",)),
        ("asked_odd.py:score", ("list[str]", "list[Output]")),
        (":score", ("':score'",)),
        ("asked_fine.py:", ("'asked_fine.py:'",)),
    ],
)
def test_a_reward_that_cannot_be_called_is_told_with_its_place(name: str, words: tuple[str, ...]) -> None:
    problem = imported(name).problem
    assert (problem is None) is not bool(words) and "\n" not in (problem or "")
    assert [word for word in words if word not in (problem or "")] == [], problem


@pytest.mark.parametrize("key", ["reward.name", "eval.reward"])
@pytest.mark.parametrize(
    ("code", "word"),
    [
        ("import torch\nx = 1 / 0", "ZeroDivisionError"),
        ("import os\nos._exit(3)", "exit code 3"),
        ("import os, signal, sys\nprint('out of luck', file=sys.stderr, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)", "out of luck"),
    ],
    ids=["torch", "exit", "killed"],
)
def test_whatever_an_import_does_it_does_in_a_process_of_its_own(key: str, code: str, word: str, work: Path) -> None:
    (work / "mine.py").write_text(code)
    loaded, began = set(sys.modules), time.monotonic()
    (line,) = reward_problems(changed(Config(), {key: "mine.py:score"}))
    assert line.startswith(f"{key}: ") and f"set --{key}" in line and word in line
    assert time.monotonic() - began < 30 and not {name for name in set(sys.modules) - loaded if name.startswith(("mine", "torch"))}


def test_an_import_that_takes_for_ever_is_left_to_the_workers(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "PATIENCE", 0.2)
    (work / "slow.py").write_text("import time\ntime.sleep(1000)")
    assert look("slow.py:score").problem is None


def test_a_module_is_found_where_a_worker_finds_it_and_the_path_is_left_alone(work: Path) -> None:
    before = list(sys.path)
    assert look("asked_fine:score").problem is None and sys.path == before
    (work / "elsewhere").mkdir()
    (work / "elsewhere" / "mine.py").write_text("from beside import score\n")
    (work / "elsewhere" / "beside.py").write_text(MODULES["answers"])
    assert look("elsewhere/mine.py:score").wanted == ("answer",)


def test_a_column_that_the_prompts_do_not_have_is_told(work: Path) -> None:
    (work / "mine.jsonl").write_text('{"prompt": "two red circles", "answer": "3"}\n{"prompt": "a blue square"}\n')
    config = changed(Config(), {"reward.name": "asked_answers.py:score"})
    (line,) = reward_problems(config)
    assert "reward.name: " in line and "needs the column answer" in line and "the scene world" in line and "tag" in line
    (line,) = reward_problems(changed(config, {"curriculum.file": "mine.jsonl"}))
    assert "the scene world" in line, "which still measures"
    assert not list(reward_problems(changed(config, {"curriculum.file": "mine.jsonl", "eval.file": "mine.jsonl"})))


def test_a_reward_of_texts_is_refused_where_outputs_have_none() -> None:
    (line,) = reward_problems(changed(Config(), {"reward.name": "asked_texts.py:score"}))
    assert "an output of kind t2i has none" in line
    assert not list(reward_problems(changed(Config(), {"reward.name": "asked_texts.py:score", "curriculum.tasks": ("i2t", "t2t")})))


@pytest.mark.parametrize(
    ("name", "word"),
    [("scenes", ""), ("scenes-clip", ""), ("clip:nobody/has-this", "hf download nobody/has-this"), ("clip:gone/", "neither a directory")],
)
def test_a_clip_model_that_cannot_be_had_is_told(name: str, word: str) -> None:
    assert word in (look(name).problem or "") and (look(name).problem is None) is not bool(word)


def test_files_of_a_policy_are_told_beside_its_reward(work: Path, tiny_policy_dir: Path) -> None:
    check_inputs(changed(Config(), {"policy.name": str(tiny_policy_dir)}))
    (work / "policy.json").write_bytes((tiny_policy_dir / "policy.json").read_bytes())
    with pytest.raises(ConfigError, match=r"policy.name: .*config.json is missing.*; reward.name: .*no module 'nobody'"):
        check_inputs(changed(Config(), {"policy.name": str(work), "reward.name": "nobody:score"}))


def test_the_program_tells_of_a_broken_reward_within_seconds(work: Path) -> None:
    began = time.monotonic()
    command = [sys.executable, str(ROOT / "pipelines" / "pararl.py"), "--reward.name", "asked_leaves.py:score"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stdout == ""
    assert "SystemExit: set MY_API_KEY" in done.stderr and "asked_leaves.py, line 2" in done.stderr
    assert time.monotonic() - began < 30 and not (work / "outputs").exists()
