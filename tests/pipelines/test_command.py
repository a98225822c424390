"""The console command: installed as users install it, it runs every program from any folder."""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from pararl import __version__
from pipelines import command

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("pararl", "policies", "rewards", "pipelines")


def called(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/pararl", *words])
    command.main()


def test_every_program_is_a_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    programs = {file.stem for file in (ROOT / "pipelines").glob("*.py") if 'if __name__ == "__main__"' in file.read_text()}
    assert {module for module, _ in command.PROGRAMS.values()} == programs
    for module in programs:
        names = {
            node.name for node in ast.parse((ROOT / "pipelines" / f"{module}.py").read_text()).body if isinstance(node, ast.FunctionDef)
        }
        assert "main" in names
    for words in ((), ("--help",)):
        called(monkeypatch, *words)
        shown = capsys.readouterr().out
        assert all(f"\n  {name} " in shown for name in command.PROGRAMS)


def test_a_command_gets_the_rest_of_the_line_and_its_help_says_how_it_was_called(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("train", "evaluate", "study", "report"):
        with pytest.raises(SystemExit) as stopped:
            called(monkeypatch, name, "--help")
        assert stopped.value.code == 0 and capsys.readouterr().out.startswith(f"usage: pararl {name} ")


def test_versions_are_one(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    called(monkeypatch, "--version")
    for name in ("train", "evaluate", "study", "report"):
        with pytest.raises(SystemExit):
            called(monkeypatch, name, "--version")
    assert set(capsys.readouterr().out.splitlines()) == {f"pararl {__version__}"}


def test_what_is_no_command_is_one_line_with_those_there_are(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for word in ("trian", "--config"):
        with pytest.raises(SystemExit) as stopped:
            called(monkeypatch, word, "scenes_smoke")
        told = capsys.readouterr().err
        assert stopped.value.code == 2 and told.count("\n") == 1 and word in told and all(name in told for name in command.PROGRAMS)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that ``pip install`` filled from a copy of what is checked out, without what pip would build into the checkout."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    quiet = ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "install", *quiet, "--target", str(target), str(source)], check=True, timeout=300)
    return target


def run(installed: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(installed)}
    return subprocess.run(
        [str(installed / "bin" / "pararl"), *words], cwd=folder, env=environment, text=True, capture_output=True, timeout=120, check=False
    )


def test_pip_installs_a_command_that_plans_a_shipped_configuration_from_another_folder(installed: Path, tmp_path: Path) -> None:
    done = run(installed, tmp_path, "train", "--config", "scenes_smoke", "--plan")
    assert done.returncode == 0 and "scenes-mmada" in done.stdout, done.stderr
    assert run(installed, tmp_path, "--version").stdout == f"pararl {__version__}\n"
    assert list(tmp_path.iterdir()) == []
    for name in ("policies/checkpoints/scenes-mmada/model.safetensors", "pipelines/configs/default.yaml", "policies/releases"):
        assert (installed / name).exists()


def test_the_command_and_its_help_load_neither_torch_nor_ray(installed: Path, tmp_path: Path) -> None:
    watch = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr))"
    (tmp_path / "sitecustomize.py").write_text(watch)
    for words in (("--version",), ("--help",), ("train", "--help"), ("train", "--version")):
        environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{installed}"}
        done = subprocess.run(
            [str(installed / "bin" / "pararl"), *words], env=environment, text=True, capture_output=True, timeout=60, check=True
        )
        loaded = set(done.stderr.split())
        assert "pipelines.command" in loaded and loaded.isdisjoint({"torch", "ray", "transformers", "wandb", "matplotlib", "datasets"})


def test_a_reader_that_has_seen_enough_ends_the_command_without_a_traceback(installed: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [str(installed / "bin" / "pararl"), "train", "--plan"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    told = process.stderr.read()
    assert process.wait(timeout=60) == 141 and told == ""


def test_the_project_names_the_function() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    module, _, function = scripts["pararl"].partition(":")
    assert getattr(import_module(module), function) is command.main
