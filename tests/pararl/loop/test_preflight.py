"""What a machine lacks for a run is told in the driver, before Ray starts: no test here starts it."""

import os
import shutil
import socket
from pathlib import Path

import pytest

from pararl.config import Config, ConfigError, TrackConfig, changed
from pararl.loop import preflight
from pararl.loop.preflight import cramped, gpus, unwritable


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_that_cannot_be_written_to_is_told_and_one_that_can_is_left_as_it_was(work: Path) -> None:
    before = sorted(work.rglob("*"))
    assert list(unwritable(work / "outputs" / "new")) == list(unwritable(work)) == []
    assert sorted(work.rglob("*")) == before
    (line,) = unwritable(Path("/proc/nobody/writes/here"))
    assert line.startswith("run.dir: /proc cannot be written to")


@pytest.mark.parametrize(
    ("devices", "visible", "count"),
    [
        (("null", "nvidia0", "nvidia1", "nvidia10", "nvidiactl", "nvidia-uvm"), None, 3),
        (("nvidia0", "nvidia1", "nvidia2"), "2,0", 2),
        (("nvidia0",), "0,1,2", 1),
        (("nvidia0",), "", 0),
        (("nvidia0",), "NoDevFiles", 0),
        (("null",), None, 0),
        (("null",), "0", 0),
        (("kfd",), None, None),
        (("dxg",), "0", None),
        (("kfd", "nvidia0"), None, 1),
    ],
)
def test_gpus_are_counted_as_ray_counts_them(tmp_path: Path, devices: tuple[str, ...], visible: str | None, count: int | None) -> None:
    (tmp_path / "dev").mkdir()
    for name in devices:
        (tmp_path / "dev" / name).touch()
    assert gpus({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}, tmp_path / "dev") == count


@pytest.mark.parametrize(
    ("there", "address", "words"),
    [
        (1, "", ("2 GPUs", "--learner.gpus")),
        (1, "local", ("2 GPUs", "--learner.gpus")),
        (2, "", ()),
        (None, "", ()),
        (1, "127.0.0.1:1", ("RAY_ADDRESS=127.0.0.1:1",)),
    ],
)
def test_gpus_are_compared_with_this_machine_where_no_cluster_is_asked_for(
    there: int | None, address: str, words: tuple[str, ...], work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "gpus", lambda environ: there)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", address)
    config = changed(Config(track=TrackConfig(mode="disabled")), {"rollout.gpus": 0.5, "rollout.workers": 2, "learner.gpus": 1.0})
    if not words:
        return preflight.preflight(config, work / "run")
    with pytest.raises(ConfigError) as told:
        preflight.preflight(config, work / "run")
    assert all(word in str(told.value) for word in words) and ("GPUs" in str(told.value)) == ("GPUs" in words[0])


def test_a_folder_in_which_ray_cannot_keep_its_sockets_and_logs_is_told_with_what_to_set(work: Path) -> None:
    free = shutil.disk_usage(work).free
    short = Path("/tmp/ray")  # noqa: S108 - only looked at
    assert list(cramped(short, os.getpid(), needed=0)) == []
    assert not short.exists() or short.is_dir()
    (work / "preflight_fine.py").touch()
    for folder, needed, words in (
        (Path("/proc/nobody/ray"), 0, ("/proc", "cannot be written to")),
        (work / "preflight_fine.py" / "ray", 0, ("preflight_fine.py", "cannot be written to")),
        (work, free + 2**30, ("MiB",)),
    ):
        assert any(all(word in line for word in (str(folder), "RAY_TMPDIR", *words)) for line in cramped(folder, 1, needed)), folder


@pytest.mark.parametrize("process", [1, 4194304])
def test_the_longest_folder_for_sockets_is_the_one_that_a_socket_can_be_bound_in(process: int, work: Path) -> None:
    for length in range(30, 60):
        folder = Path("/tmp") / "é".ljust(length - 9, "x") / "ray"  # noqa: S108 - nothing is made there
        path = folder / f"session_2026-01-01_00-00-00_000000_{process}" / "sockets" / "plasma_store"
        with socket.socket(socket.AF_UNIX) as bound:
            try:
                bound.bind(os.fsencode(path))
            except FileNotFoundError:
                fits = True
            except OSError:
                fits = False
        told = [line for line in cramped(folder, process, needed=0) if "sockets" in line]
        assert len(told) == (not fits)
        if told:
            room = int(told[0].rpartition(" of ")[2].split()[0])
            assert not list(cramped(Path("/tmp".ljust(room, "x")) / "ray", process, needed=0)), "the length that is named fits"


def test_everything_that_is_lacking_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    with pytest.raises(ConfigError) as told:
        preflight.preflight(changed(Config(), {"reward.name": "gone.py:score"}), Path("/proc/nobody/run"))
    assert all(word in str(told.value) for word in ("run.dir", "WANDB_MODE=sometimes", "reward.name"))
