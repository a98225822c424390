"""Take an adapter home: merged into a checkpoint in the layout of its base, or alone with a model card.

    python pipelines/export.py outputs/RUN/adapters/ARM --out DIR              # a checkpoint that policies.load and --policy.name take
    python pipelines/export.py outputs/RUN/adapters/ARM --out DIR --adapter    # the adapter for PEFT
    python pipelines/export.py outputs/RUN/adapters/ARM --out DIR --push owner/name

The checkpoint has the configuration, the names of files and weights and the dtype of the release that it comes from. DIR/README.md is its
model card: base, results, recipe, commit, and the curves of its run. --push puts DIR on the Hub.
"""

import sys
from pathlib import Path

if not (__package__ or sys.flags.safe_path):
    import _root  # noqa: F401

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tqdm import tqdm

from pararl import hub
from pararl.adapter_files import TENSORS
from pararl.card import CARD, PICTURE, Told, adapter_card, checkpoint_card, told_in
from pararl.cli.parse import note
from pararl.cli.program import options
from pararl.config import ConfigError
from pararl.errors import fail, told
from pararl.releases import public_name
from pararl.terminal import no_bars_in_logs

if TYPE_CHECKING:
    from pararl.lora import Lora
    from policies.export import Base


@told
def main() -> None:
    """Export what the command line names."""
    no_bars_in_logs()
    args = arguments()
    if args.push:
        hub.check_name(args.push)
    write = (adapter_alone if args.alone else checkpoint)(args)
    if args.push:
        hub.create(args.push, args.private)
    write()
    print(f"in {args.out}: {', '.join(sorted(path.name for path in args.out.iterdir()))}")
    if args.push:
        print(f"on the Hub: {pushed(args.out, args.push)}")


def arguments() -> argparse.Namespace:
    """The command line, with its mistakes told."""
    parser = options(__doc__)
    parser.add_argument("folder", type=Path, metavar="ADAPTER", help="folder of the adapter, such as outputs/RUN/adapters/ARM")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder for the export; it must not exist")
    parser.add_argument("--adapter", dest="alone", action="store_true", help="the adapter alone, not merged")
    parser.add_argument("--base", default="", metavar="NAME", help="policy that it was trained on; default: what the adapter says")
    parser.add_argument("--push", default="", metavar="owner/name", help="repository of the Hub that gets DIR; made where it is missing")
    parser.add_argument("--private", action="store_true", help="make that repository private")
    args = parser.parse_args()
    if not (args.folder / TENSORS).is_file():
        within = sorted(str(file.parent) for file in args.folder.glob(f"**/{TENSORS}"))
        fail(f"{args.folder} is no adapter, it has no {TENSORS} (name {' or '.join(within) or 'one, such as outputs/RUN/adapters/ARM'})")
    if args.out.exists():
        fail(f"{args.out} exists already and is never overwritten (set --out)")
    if args.private and not args.push:
        fail("--private says how a repository of the Hub is made (set --push owner/name)")
    return args


def checkpoint(args: argparse.Namespace) -> Callable[[], None]:
    """What writes the adapter merged into its base, once both are known to go together."""
    from pararl.lora import Lora
    from policies.export import export

    lora = Lora.read(args.folder)
    base = found(base_of(args, lora.base), lora)
    extras = pictures(args.folder)
    card = checkpoint_card(base.name, told_of(args.folder), args.out.name, bool(extras), base.parts.release)

    def write() -> None:
        with bar(base.bytes) as tell:
            export(base, lora, args.out, {CARD: card.encode(), **extras}, tell)

    return write


def adapter_alone(args: argparse.Namespace) -> Callable[[], None]:
    """What writes the adapter with the name by which others have its base, once it is known to be whole."""
    from pararl.lora import Lora

    lora = Lora.read(args.folder)
    name = base_of(args, lora.base)
    public = public_name(name)
    if Path(name).is_dir() or not (public and "/" in public[0]):  # a release on the Hub is not fetched to look at it
        found(name, lora)
    if public is None:
        problem = f"its base {name} is a folder of this machine, which nobody else has"
        if args.push:
            raise ConfigError(f"--push {args.push}: {problem}: push the merged checkpoint (leave out --adapter)")
        note(f"{problem}: whoever gets the adapter needs that folder too, or the merged checkpoint (leave out --adapter)")
    base, revision = public or (name, None)
    extras = pictures(args.folder)
    card = adapter_card(base, told_of(args.folder), args.push or args.out.name, bool(extras))
    return lambda: lora.export(args.out, base, revision, {CARD: card.encode(), **extras})


def base_of(args: argparse.Namespace, said: str) -> str:
    """The policy that the adapter was trained on."""
    if not (args.base or said):
        raise ConfigError(f"{args.folder} does not say which policy it was trained on (set --base)")
    return str(args.base or said)


def found(name: str, lora: "Lora") -> "Base":
    """The base of an adapter, with which it goes together."""
    from policies.export import Base

    try:
        return Base.find(name, lora)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"the base of {lora.directory} is not here: {error} (set --base where it is elsewhere now)") from error


def told_of(folder: Path) -> Told | None:
    """What the run told of its adapter in the card that it wrote beside it."""
    card = folder / CARD
    found = told_in(card.read_text(encoding="utf-8")) if card.is_file() else None
    if found is None:
        note(f"{folder} has no card of a run: that of the export has neither results nor a recipe")
    return found


def pictures(folder: Path) -> dict[str, bytes]:
    """The curves of the run that the adapter lies in, or those beside an adapter that was exported before."""
    places = [folder / PICTURE, *([folder.parent.parent / PICTURE] if folder.parent.name == "adapters" else [])]
    return {file.name: file.read_bytes() for file in places if file.is_file()}


@contextmanager
def bar(total: int, every_seconds: float = 10.0) -> Iterator[Callable[[int], object]]:
    """A bar of the bytes of weights; in a log a line now and then."""
    if sys.stderr.isatty():
        with tqdm(total=total, desc="merging", unit="B", unit_scale=True, dynamic_ncols=True) as shown:
            yield shown.update
        return
    done, last = 0, time.monotonic()

    def tell(size: int) -> None:
        nonlocal done, last
        done += size
        if time.monotonic() - last >= every_seconds:
            last = time.monotonic()
            print(f"merged {done / total:.0%} of {total / 1e9:.1f} GB", file=sys.stderr, flush=True)

    yield tell


def pushed(folder: Path, name: str) -> str:
    """The address of the repository that has got the folder."""
    try:
        return hub.upload(folder, name)
    except (ConfigError, RuntimeError) as error:
        raise RuntimeError(f"{error}; {folder} is whole: go on with hf upload {name} {folder}") from error


if __name__ == "__main__":
    main()
