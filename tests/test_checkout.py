"""What a checkout holds together: imports, declared versions, what a submitted job uploads."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pathspec
import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "pipelines" / "pararl.py"


def script(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | environment
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("cwd", [ROOT, ROOT / "pipelines", Path("/")], ids=["checkout", "pipelines", "elsewhere"])
def test_the_script_imports_the_package_and_not_itself(cwd: Path, tmp_path: Path) -> None:
    # sitecustomize runs before the script and reports, as the script ends, which file `import pararl` found
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, sys\natexit.register(lambda: print('pararl is', sys.modules['pararl'].__file__))\n", encoding="utf-8"
    )
    ended = script(os.path.relpath(SCRIPT, cwd), "--help", cwd=cwd, PYTHONPATH=str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("usage: ") and f"pararl is {ROOT / 'pararl' / '__init__.py'}" in ended.stdout


@pytest.mark.parametrize("name", ["evaluate", "report", "study"])
def test_every_program_runs_from_elsewhere(name: str) -> None:
    ended = script(str(ROOT / "pipelines" / f"{name}.py"), "--help", cwd=Path("/"))
    assert ended.returncode == 0 and ended.stdout.startswith("usage: "), ended.stderr


def test_the_script_runs_where_python_leaves_its_folder_off_the_path() -> None:
    ended = script("-P", str(SCRIPT), "--help", cwd=Path("/"), PYTHONPATH=str(ROOT))
    assert ended.returncode == 0 and ended.stdout.startswith("usage: "), ended.stderr


def test_all_four_packages_import_from_a_checkout() -> None:
    code = "import pararl, policies, rewards, pipelines; print(*(m.__file__ for m in (pararl, policies, rewards, pipelines)))"
    found = script("-c", code, cwd=ROOT)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == [str(ROOT / name / "__init__.py") for name in ("pararl", "policies", "rewards", "pipelines")]


def test_constraints_lie_within_the_declared_ranges() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.lower().replace("_", "-").split("==") for line in lines if not line.startswith("#"))
    extras = [line for extra in project["optional-dependencies"].values() for line in extra]
    for declared in map(Requirement, [*project["dependencies"], *extras]):
        assert pins[declared.name.lower()] in declared.specifier, declared


def test_a_submitted_job_uploads_the_policies_and_leaves_the_environment_at_home() -> None:
    rules = [line for name in (".gitignore", ".rayignore") for line in (ROOT / name).read_text(encoding="utf-8").splitlines()]
    ignored = pathspec.GitIgnoreSpec.from_lines(rules)
    for needed in (
        "rewards/checkpoints/scenes-clip/model.safetensors",
        "policies/checkpoints/scenes-mmada/model.safetensors",
        "policies/checkpoints/scenes-mmada/config.json",
        "pararl/cli/parse.py",
    ):
        assert not ignored.match_file(needed)
    for local in (
        ".venv/bin/python",
        "outputs/first/config.yaml",
        "wandb/run/x",
        ".git/HEAD",
        "pararl/__pycache__/cli.pyc",
        ".mypy_cache/x",
    ):
        assert ignored.match_file(local)


def test_settings_are_checked_without_loading_torch_or_ray(tmp_path: Path) -> None:
    code = "import sys; from pararl.cli.parse import parse; parse([]); print(*sys.modules)"
    loaded = script("-c", code, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert loaded.returncode == 0, loaded.stderr
    assert "pararl.cli.parse" in loaded.stdout.split()
    assert {"torch", "ray", "transformers", "wandb", "matplotlib"}.isdisjoint(loaded.stdout.split())
