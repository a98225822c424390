"""What a machine lacks for a run is told in the driver, before Ray starts: no test here starts it."""

from pathlib import Path

import pytest

from pararl.config import Config, ConfigError, TrackConfig, changed
from pararl.loop import preflight
from pararl.loop.preflight import gpus, unwritable
from tests.wording import telling


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


@pytest.mark.parametrize(("there", "environment", "refused"), [(1, "", True), (2, "", False), (None, "", False), (1, "RAY_ADDRESS", False)])
def test_gpus_are_compared_with_this_machine_where_no_cluster_is_asked_for(
    there: int | None, environment: str, refused: bool, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "gpus", lambda environ: there)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)
    if environment:
        monkeypatch.setenv(environment, "127.0.0.1:1")
    config = changed(Config(track=TrackConfig(mode="disabled")), {"rollout.gpus": 0.5, "rollout.workers": 2, "learner.gpus": 1.0})
    if not refused:
        return preflight.preflight(config, work / "run")
    with pytest.raises(ConfigError, match=telling(2, 1, "--rollout.gpus", "--learner.gpus")):
        preflight.preflight(config, work / "run")


def test_everything_that_is_lacking_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    with pytest.raises(ConfigError) as told:
        preflight.preflight(changed(Config(), {"reward.name": "gone.py:score"}), Path("/proc/nobody/run"))
    assert all(word in str(told.value) for word in ("run.dir", "WANDB_MODE=sometimes", "reward.name"))
