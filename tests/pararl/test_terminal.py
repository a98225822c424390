"""A log file gets no bar of a library, a terminal does, and what the user has set stands."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

from pararl.terminal import NO_BARS

ROOT = Path(__file__).resolve().parents[2]
DRAWS = """
from pararl.terminal import no_bars_in_logs
no_bars_in_logs()
from tqdm.auto import tqdm
from transformers.utils.logging import tqdm as of_transformers
import datasets, huggingface_hub
for bar in (tqdm, of_transformers, datasets.utils.tqdm, huggingface_hub.utils.tqdm):
    for _ in bar(range(3), desc="DRAWN"):
        pass
"""


def drawn(stderr: int, **environment: str) -> None:
    env = {name: value for name, value in os.environ.items() if name not in NO_BARS} | {"PYTHONPATH": str(ROOT)} | environment
    subprocess.run([sys.executable, "-c", DRAWS], stdout=subprocess.DEVNULL, stderr=stderr, env=env, check=True, timeout=120)


def test_no_bar_of_a_library_reaches_a_log_file(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        drawn(log.fileno())
    assert b"DRAWN" not in (tmp_path / "log").read_bytes() and b"\r" not in (tmp_path / "log").read_bytes()


def test_all_of_them_are_drawn_on_a_terminal_and_where_the_user_asks_for_them(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    drawn(slave)
    os.close(slave)
    assert os.read(master, 1 << 16).count(b"DRAWN") >= 4
    os.close(master)
    with (tmp_path / "log").open("wb") as log:
        drawn(log.fileno(), TQDM_DISABLE="", HF_HUB_DISABLE_PROGRESS_BARS="0", HF_DATASETS_DISABLE_PROGRESS_BARS="0")
    assert b"DRAWN" in (tmp_path / "log").read_bytes()
