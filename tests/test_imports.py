"""Every module of ours can be the first that a program imports: there is no circle that only one order of imports gets through."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_every_module_can_be_imported_first() -> None:
    names = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for file in (file for room in ("pararl", "policies", "rewards") for file in sorted((ROOT / room).rglob("*.py")))
    ]
    modules = [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]
    # torch and transformers once, then each module in a fresh table of ours.
    code = """
import importlib, sys, torch, transformers
for name in sys.argv[1:]:
    for loaded in [m for m in sys.modules if m.split(".")[0] in ("pararl", "policies", "rewards")]:
        del sys.modules[loaded]
    try:
        importlib.import_module(name)
    except ImportError as error:
        sys.exit(f"{name}: {error}")
"""
    done = subprocess.run([sys.executable, "-c", code, *modules], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(modules) > 120
