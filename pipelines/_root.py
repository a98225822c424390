"""What a program imports first when it runs as a script: the repository root takes the place of this folder on ``sys.path``.

Python puts the folder of a script first, where ``import pararl`` would find ``pipelines/pararl.py`` instead of the package. Ray hands the
driver's path on, so every worker would find it too. A program that is imported as ``pipelines.NAME`` or run under ``python -P`` meets no
such folder.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:] = [str(ROOT), *(entry for entry in sys.path if Path(entry).resolve() not in (ROOT, ROOT / "pipelines"))]
