"""The console command ``pararl``: its first word names a program of this folder, which gets the rest of the line.

    pararl train --config scenes_smoke

is ``python pipelines/pararl.py --config scenes_smoke``, from any folder. ``pip install .`` makes the command.
"""

import sys
from importlib import import_module

from pararl.cli.program import COMMAND, version
from pararl.errors import fail, told
from pararl.terminal import no_bars_in_logs

PROGRAMS = {
    "train": ("pararl", "align a policy, next to its offline DPO baseline"),
    "evaluate": ("evaluate", "examine the base and the adapters of a run, or any policy, in detail"),
    "study": ("study", "the same run under several seeds or settings, as one table"),
    "report": ("report", "several evaluations as one table, with intervals over seeds"),
    "export": ("export", "take an adapter home: merged into a checkpoint, or alone with a card"),
    "pretrain": ("pretrain", "make an embedded policy"),
}
"""Of each command its module in this folder, and what it does."""


@told
def main() -> None:
    """Run the program that the command line names."""
    no_bars_in_logs()
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help", "help"):
        return print(overview())
    if name in ("--version", "version"):
        return print(version())
    if name not in PROGRAMS:
        fail(f"{name!r} is no command (there are {', '.join(PROGRAMS)}; settings stand behind one: {COMMAND} train --run.seed 1)")
    # The programs read the command line of the process, and their help shows how they were called.
    sys.argv[:] = [f"{COMMAND} {name}", *rest]
    import_module(f"pipelines.{PROGRAMS[name][0]}").main()


def overview() -> str:
    """What ``pararl --help`` says."""
    lines = [f"  {name:<10}{what}" for name, (_, what) in PROGRAMS.items()]
    usage = f"usage: {COMMAND} COMMAND [--option VALUE ...]"
    return "\n".join([usage, "", "Commands:", *lines, "", f"{COMMAND} COMMAND --help says more; {COMMAND} --version prints {version()}."])
