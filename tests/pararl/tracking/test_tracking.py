"""The tracker against real offline W&B files, read back with wandb's own inspector in another process."""

import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pararl.config import TrackConfig
from pararl.files import read_lines
from pararl.tracking.pictures import Sample, SampleRow
from pararl.tracking.tracking import Tracker, caption, logged_in
from tests.wording import telling

ROOT = Path(__file__).resolve().parents[3]
RESOLVED = {"learner": {"lr": 0.001, "beta": 0.3}, "run": {"seed": 7}}

KILLED = """
import os, signal, sys
from pathlib import Path
from pararl.config import TrackConfig
from pararl.tracking.tracking import Tracker
tracker = Tracker(Path(sys.argv[1]), TrackConfig(mode="offline"), "night", {})
tracker.start("pararl")
for update in range(7):
    tracker.log(update, {"reward/mean": 0.1 * update, "kl/total": 0.5}, samples=128 * update)
os.kill(os.getpid(), signal.SIGKILL)
"""

DISABLED = """
import sys
from pathlib import Path
import numpy as np
from pararl.config import TrackConfig
from pararl.tracking.pictures import Sample, SampleRow
from pararl.tracking.tracking import Tracker
adapter = Path(sys.argv[1]) / "adapter"
adapter.mkdir(parents=True)
(adapter / "a.bin").write_bytes(b"1")
tracker = Tracker(Path(sys.argv[1]), TrackConfig(mode=sys.argv[2]), "night", {})
tracker.start("pararl")
tracker.log(1, {"reward/mean": 0.5}, samples=8)
tracker.images(1, [SampleRow("a circle", (Sample(np.zeros((4, 4, 3), np.uint8)),))])
tracker.artifact("pararl", adapter, 1, {})
tracker.finish("pararl")
print(tracker.mode, tracker.ids(), "wandb" in sys.modules)
"""

MODES = """
import json, os, sys
from pararl.tracking.tracking import resolve_mode
def outcome(mode, environ):
    try:
        return resolve_mode(mode, environ)
    except ValueError as error:
        return str(error)
print(json.dumps([outcome(mode, environ) for mode, environ in json.loads(sys.argv[1])]))
"""

MANY = {f"eval/split_{i}": i / 200 for i in range(200)}
"""More metrics than W&B takes keys of metadata."""


def python(code: str, *arguments: str, home: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process that knows neither this user's login nor settings."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_") and name != "NETRC"}
    environ |= {"HOME": str(home), "PYTHONPATH": str(ROOT), **extra}
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environ, cwd=home, check=False)


def inspect(run: Path, *options: str) -> str:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", *options, "--json", str(run)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in inspect(run).splitlines()]


def history(run: Path) -> list[dict[str, Any]]:
    return [record["history"]["item"] for record in records(run) if record["type"] == "history"]


def only_run(run_dir: Path, run_id: str) -> Path:
    (run,) = (run_dir / "wandb").glob(f"offline-run-*-{run_id}")
    return run


def tracker_of(run_dir: Path, mode: Any = "disabled", **more: Any) -> Tracker:
    return Tracker(run_dir, TrackConfig(mode=mode), "night", RESOLVED, **more)


def scene(shade: int) -> np.ndarray:
    return np.full((32, 32, 3), shade, np.uint8)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tracker, str]:
    """A run folder in which two arms were tracked offline, the tracker, and what it printed."""
    run_dir = tmp_path_factory.mktemp("finished") / "night"
    adapter = run_dir / "adapters" / "pararl"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    patch = pytest.MonkeyPatch()
    lines: list[str] = []
    patch.setattr("builtins.print", lambda *words, **_: lines.append(" ".join(map(str, words))))
    tracker = tracker_of(run_dir, "offline")
    for arm, gain in (("pararl", 1 / 3), ("offline_dpo", 0.01)):
        tracker.start(arm)
        for update in range(6):
            tracker.log(update, {"reward/mean": gain * update / 7, "perf/learn_s": 0.25}, samples=128 * update)
            if update in (0, 5):
                tracker.log(update, {"eval/id_strict": 0.3 + gain * update / 10}, samples=128 * update)
                rows = [
                    SampleRow("two circles", (Sample(scene(update), 0.5, False, ("expected circle = 2, found 3",)),)),
                    SampleRow("a square", (Sample(scene(99), None, None, text="A square."),)),
                ]
                tracker.images(update, rows)
        if arm == "pararl":
            tracker.artifact(arm, adapter, 5, MANY)
        tracker.finish(arm)
    patch.undo()
    return run_dir, tracker, "\n".join(lines)


def test_offline_wandb_history_is_what_metrics_jsonl_holds(finished: tuple[Path, Tracker, str]) -> None:
    run_dir, tracker, _ = finished
    rows = read_lines(run_dir / "metrics.jsonl")
    for arm in ("pararl", "offline_dpo"):
        seen = history(only_run(run_dir, tracker.ids()[arm]))
        assert [(row["_step"], row["update"], row["samples"]) for row in seen] == [(u, u, 128 * u) for u in range(6)]
        for name, count in (("reward/mean", 6), ("perf/learn_s", 6), ("eval/id_strict", 2)):
            written = [(row["update"], row[name]) for row in rows if row["arm"] == arm and name in row]
            assert len(written) == count
            assert [(row["update"], row[name]) for row in seen if name in row] == written


def test_summary_of_the_offline_run_names_group_arm_config_and_last_value(finished: tuple[Path, Tracker, str]) -> None:
    run_dir, tracker, _ = finished
    run = only_run(run_dir, tracker.ids()["pararl"])
    summary = json.loads(inspect(run, "--summary"))
    assert (summary["name"], summary["project"], summary["state"], summary["exit_code"]) == ("night/pararl", "pararl", "finished", 0)
    assert summary["config"] == RESOLVED
    assert summary["summary"]["reward/mean"] == 1 / 3 * 5 / 7
    started = next(record["run"] for record in records(run) if record["type"] == "run")
    assert (started["run_group"], started["job_type"], started["run_id"]) == ("night", "pararl", tracker.ids()["pararl"])


def test_update_is_the_axis_of_every_section(finished: tuple[Path, Tracker, str]) -> None:
    run_dir, tracker, _ = finished
    metrics = [record["metric"] for record in records(only_run(run_dir, tracker.ids()["pararl"])) if record["type"] == "metric"]
    axes = {metric["glob_name"]: metric["step_metric"] for metric in metrics if "glob_name" in metric}
    assert axes == {f"{section}/*": "update" for section in ("reward", "loss", "learner", "kl", "perf", "sync", "eval", "images")}
    assert {metric["name"] for metric in metrics if "name" in metric} >= {"update", "samples"}


def test_pictures_carry_their_captions_and_the_table_grows(finished: tuple[Path, Tracker, str]) -> None:
    run_dir, tracker, _ = finished
    run = only_run(run_dir, tracker.ids()["pararl"])
    shown = [row for row in history(run) if "images/samples.captions" in row]
    assert [row["update"] for row in shown] == [0, 5]
    expected = ["two circles | reward 0.50 | failed: expected circle = 2, found 3", "a square | no reward | text: A square."]
    assert all(row["images/samples.captions"] == expected for row in shown)
    pixels = np.asarray(Image.open(run / "files" / shown[1]["images/samples.filenames"][0]))
    assert (pixels == np.kron(scene(5), np.ones((5, 5, 1), np.uint8))).all()
    assert [row["images/table.nrows"] for row in shown] == [2, 4]
    assert [len(json.loads((run / "files" / row["images/table.path"]).read_text())["data"]) for row in shown] == [2, 2]


def test_adapter_is_an_artifact_of_the_files_in_the_run_folder(finished: tuple[Path, Tracker, str]) -> None:
    run_dir, tracker, _ = finished
    logged = [record["artifact"] for record in records(only_run(run_dir, tracker.ids()["pararl"])) if record["type"] == "artifact"]
    (adapter,) = [artifact for artifact in logged if artifact["type"] == "model"]
    assert adapter["name"] == "night-pararl"
    assert json.loads(adapter["metadata"]) == {"updates": 5, "metrics": MANY}
    files = {entry["path"]: Path(entry["local_path"]) for entry in adapter["manifest"]["contents"]}
    assert set(files) == {"adapter_config.json", "adapter_model.safetensors"}
    assert all(path.parent == run_dir / "adapters" / "pararl" for path in files.values())
    assert any((run_dir / "wandb" / "artifacts" / "staging").iterdir())


def test_one_line_per_arm_says_where_its_run_is(finished: tuple[Path, Tracker, str]) -> None:
    run_dir, tracker, printed = finished
    lines = printed.splitlines()
    assert len(lines) == 2
    for arm, line in zip(("pararl", "offline_dpo"), lines, strict=True):
        assert arm in line
        assert str(only_run(run_dir, tracker.ids()[arm])) in line


def test_resume_after_a_kill_leaves_one_history_with_one_value_per_update(tmp_path: Path) -> None:
    run_dir = tmp_path / "night"
    killed = python(KILLED, str(run_dir), home=tmp_path)
    (first,) = (run_dir / "wandb").glob("offline-run-*")
    assert (killed.returncode, killed.stderr) == (-signal.SIGKILL, "")
    assert killed.stdout == f"W&B offline, arm pararl: {first} (see it with `wandb leet`, upload it with `wandb sync`)\n"
    run_id = first.name.rpartition("-")[2]
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"arm": "pararl", "upd')  # what a kill within a write leaves

    tracker = tracker_of(run_dir, "offline")
    assert tracker.ids() == {"pararl": run_id}
    assert tracker.truncate("pararl", 4) == 2
    tracker.start("pararl")
    for update in range(5, 9):
        tracker.log(update, {"reward/mean": 0.1 * update + 0.01, "kl/total": 0.6}, samples=128 * update)
    tracker.finish("pararl")

    expected = [(u, 0.1 * u if u <= 4 else 0.1 * u + 0.01) for u in range(9)]
    assert [(row["update"], row["reward/mean"]) for row in read_lines(run_dir / "metrics.jsonl")] == expected
    seen = history(only_run(run_dir, run_id))
    assert [(row["_step"], row["reward/mean"]) for row in seen] == expected
    assert [path.name for path in (run_dir / "wandb-superseded").iterdir()] == [first.name]


def test_resume_ids_of_a_checkpoint_win_and_other_arms_keep_their_rows(tmp_path: Path) -> None:
    tracker = tracker_of(tmp_path, resume_ids={"pararl": "abc12345"})
    for arm in ("online_dpo", "pararl"):
        tracker.start(arm)
        for update in range(4):
            tracker.log(update, {"reward/mean": 0.5}, samples=update)
        tracker.finish(arm)
    assert tracker.ids() == {"pararl": "abc12345"}
    assert tracker.truncate("pararl", 1) == 2
    assert [(row["arm"], row["update"]) for row in read_lines(tracker.metrics_path)] == [("online_dpo", u) for u in range(4)] + [
        ("pararl", 0),
        ("pararl", 1),
    ]
    assert tracker.truncate("pararl", -1) == 2
    assert {row["arm"] for row in read_lines(tracker.metrics_path)} == {"online_dpo"}


def test_a_resumed_online_run_gets_only_the_steps_that_the_server_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    class Server:
        """Stands for an online run whose server holds the steps 0 to 5."""

        starting_step = 6
        url = "https://example.org/run"

        def __init__(self) -> None:
            self.sent: list[int] = []

        def define_metric(self, name: str, step_metric: str | None = None) -> None:
            pass

        def log(self, values: dict[str, Any], step: int) -> None:
            self.sent.append(step)

    asked: dict[str, Any] = {}
    server = Server()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(wandb, "init", lambda **options: asked.update(options) or server)
    before = tracker_of(tmp_path)
    before.start("pararl")
    for update in range(8):
        before.log(update, {"reward/mean": 0.1}, samples=0)
    tracker = tracker_of(tmp_path, "online", resume_ids={"pararl": "abc12345"})
    tracker.truncate("pararl", 3)
    tracker.start("pararl")
    for update in range(4, 9):
        tracker.log(update, {"reward/mean": 0.1}, samples=0)
    assert (asked["id"], asked["resume"]) == ("abc12345", "allow")
    assert server.sent == [6, 7, 8]


@pytest.mark.parametrize(
    ("metrics", "error", "tokens"),
    [
        ({"reward/mean": 0.5, "kl/image": float("nan")}, ValueError, (3, "'kl/image'", math.nan)),
        ({"perf/learn_s": float("inf")}, ValueError, (3, "'perf/learn_s'", math.inf)),
        ({"reward/mean": None}, TypeError, (3, "'reward/mean'", None)),
        ({"loss": 0.5}, ValueError, ("'loss'", "loss/")),
        ({"preference/loss": 0.5}, ValueError, ("'preference/loss'", "loss/")),
    ],
)
def test_a_bad_metric_is_refused_by_name_and_nothing_is_written(
    tmp_path: Path, metrics: dict[str, Any], error: type[Exception], tokens: tuple[object, ...]
) -> None:
    tracker = tracker_of(tmp_path)
    tracker.start("pararl")
    tracker.log(2, {"reward/mean": 0.1}, samples=1)
    with pytest.raises(error, match=telling("pararl", *tokens)):
        tracker.log(3, metrics, samples=2)
    assert len(read_lines(tracker.metrics_path)) == 1


def test_no_update_gets_two_values_of_a_metric(tmp_path: Path) -> None:
    tracker = tracker_of(tmp_path)
    tracker.start("pararl")
    tracker.log(2, {"reward/mean": 0.1}, samples=1)
    tracker.log(2, {"eval/id_strict": 0.3}, samples=1)
    with pytest.raises(ValueError, match=telling("pararl", "update 2", "reward/mean")):
        tracker.log(2, {"reward/mean": 0.2}, samples=1)
    with pytest.raises(ValueError, match=telling(1, 2, "truncate")):
        tracker.log(1, {"reward/mean": 0.2}, samples=1)
    with pytest.raises(ValueError, match=telling(0, 2, "truncate")):
        tracker.images(0, [])
    again = tracker_of(tmp_path)
    again.start("pararl")
    with pytest.raises(ValueError, match=telling("pararl", "update 2", "reward/mean")):
        again.log(2, {"reward/mean": 0.1}, samples=1)


def test_half_a_line_left_by_a_kill_spoils_no_later_row(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"arm": "online_dpo", "update": 0, "samples": 0}\n{"arm": "out')
    tracker = tracker_of(tmp_path)
    tracker.start("pararl")
    tracker.log(0, {"reward/mean": 0.5}, samples=8)
    assert [row["arm"] for row in read_lines(tracker.metrics_path)] == ["online_dpo", "pararl"]


def test_calls_out_of_order_are_refused(tmp_path: Path) -> None:
    tracker = tracker_of(tmp_path)
    with pytest.raises(RuntimeError, match=telling("log", "start")):
        tracker.log(0, {}, samples=0)
    tracker.start("pararl")
    with pytest.raises(RuntimeError, match=telling("'online_dpo'", "'pararl'")):
        tracker.start("online_dpo")
    with pytest.raises(RuntimeError, match=telling("finish", "online_dpo", "pararl")):
        tracker.finish("online_dpo")
    with pytest.raises(RuntimeError, match=telling("truncate('pararl')")):
        tracker.truncate("pararl", 0)
    with pytest.raises(FileNotFoundError, match=telling(tmp_path / "nowhere", "pararl")):
        tracker.artifact("pararl", tmp_path / "nowhere", 1, {})
    with pytest.raises(ValueError, match=telling("pararl", "'a circle'")):
        tracker.images(0, [SampleRow("a circle", ())])


@pytest.mark.parametrize(("mode", "environ"), [("disabled", {}), ("auto", {"WANDB_MODE": "disabled"})])
def test_disabled_writes_metrics_and_never_imports_wandb(tmp_path: Path, mode: str, environ: dict[str, str]) -> None:
    run_dir = tmp_path / "night"
    done = python(DISABLED, str(run_dir), mode, home=tmp_path, **environ)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "disabled {} False\n"
    assert read_lines(run_dir / "metrics.jsonl") == [{"arm": "pararl", "update": 1, "samples": 8, "reward/mean": 0.5}]
    assert sorted(path.name for path in run_dir.iterdir()) == ["adapter", "metrics.jsonl"]


def test_auto_is_online_only_for_a_user_who_is_logged_in(tmp_path: Path) -> None:
    own = tmp_path / "netrc"
    own.write_text("machine api.wandb.ai login user password " + "0" * 40 + "\n")
    other = tmp_path / "other"
    other.write_text("machine example.org login user password secret\n")
    cases = [
        ("auto", {"NETRC": str(tmp_path / "missing")}, "offline"),
        ("auto", {"NETRC": str(other)}, "offline"),
        ("auto", {"NETRC": str(own)}, "online"),
        ("auto", {"WANDB_API_KEY": "0" * 40}, "online"),
        ("auto", {"WANDB_API_KEY": "0" * 40, "WANDB_MODE": "offline"}, "offline"),
        ("auto", {"WANDB_API_KEY": "0" * 40, "WANDB_MODE": "dryrun"}, "offline"),
        ("offline", {"WANDB_API_KEY": "0" * 40, "WANDB_MODE": "online"}, "offline"),
        ("online", {"NETRC": str(own), "WANDB_MODE": "offline"}, "online"),
        ("online", {"NETRC": str(other)}, "W&B online needs a login"),
        ("auto", {"NETRC": str(other), "WANDB_MODE": "online"}, "W&B online needs a login"),
        ("auto", {"WANDB_MODE": "shared"}, "WANDB_MODE=shared is not known"),
    ]
    done = python(MODES, json.dumps([(mode, environ) for mode, environ, _ in cases]), home=tmp_path)
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    assert [re.match(re.escape(expected), outcome) is not None for (_, _, expected), outcome in zip(cases, outcomes, strict=True)] == [
        True
    ] * len(cases), outcomes


def test_a_login_elsewhere_is_no_login_at_a_self_hosted_server(tmp_path: Path) -> None:
    path = tmp_path / "netrc"
    path.write_text("machine api.wandb.ai login user password " + "0" * 40 + "\n")
    assert logged_in({"NETRC": str(path)}, "https://api.forge.coreweave.com")
    assert not logged_in({"NETRC": str(path)}, "https://wandb.example.org")


def test_caption_tells_prompt_reward_and_every_failed_atom() -> None:
    row = SampleRow("three stars", (Sample(scene(0), 0.25, False, ("found 2", "no red")),))
    assert caption(row) == "three stars | reward 0.25 | failed: found 2; no red"
