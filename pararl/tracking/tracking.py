"""What a run reports: one writer, in the driver, to `metrics.jsonl` and to one Weights & Biases run per arm.

`metrics.jsonl` is the record; W&B shows it. The W&B runs of a run folder share a group, so the curves of its arms overlay. Every value is
logged at the explicit step `update`.

What a resume does, so that no history holds two values for one update:

- `truncate(arm, update)` drops the rows of `metrics.jsonl` that lie after the checkpoint; the resumed arm writes them anew.
- W&B offline: wandb cannot continue an offline run; it starts a second file whose own step counter is 0 again. The id is kept, the
  file of the killed attempt moves to `wandb-superseded/`, and the rows up to the checkpoint are logged again from `metrics.jsonl`. So
  the one file under `wandb/` holds the whole history, and carries no resume flag: uploading it overwrites what the run held before.
  Pictures and tables logged before the kill are not logged again; they lie in `wandb-superseded/`. W&B's own clock (`_runtime`,
  `_timestamp`) starts with the resume.
- W&B online: the run of that id is continued. The server takes no step earlier than its last. So updates that it holds are not sent again,
  and their first values stay; rows that never reached it are sent.
"""

import math
import netrc
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import urlsplit

from pararl.config import TrackConfig
from pararl.files import METRIC_ROW, append_line, keep_lines, read_lines, write_json
from pararl.readers import read_json
from pararl.tracking.pictures import SampleRow, picture_of

if TYPE_CHECKING:
    import wandb

Mode = Literal["offline", "online", "disabled"]

PREFIXES = ("reward", "loss", "learner", "kl", "perf", "sync", "eval")
"""Sections of the dashboard: every metric is called `<prefix>/<name>`."""

CLOUD_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")
"""Both names of W&B's own cloud: a login to one is a login to the other."""

IMAGE_COLUMNS = ("update", "prompt", "image", "text", "reward", "strict", "failed")


class Tracker:
    """Writes the metrics, images and adapters of a run, one arm after the other: `start`, then `log` and the rest, then `finish`.

    Lives in the driver only; actors return what they measured.
    """

    def __init__(
        self,
        run_dir: Path,
        config: TrackConfig,
        group: str,
        resolved: Mapping[str, Any],
        resume_ids: Mapping[str, str] | None = None,
    ) -> None:
        """Report into `run_dir` and into the W&B group `group`.

        `resolved` is the whole configuration as nested dictionaries; `resume_ids` are the `ids()` that a checkpoint kept.
        Raises ValueError when `config.mode` cannot be had, before anything is written. Nothing here uses the network.
        """
        self.mode: Mode = resolve_mode(config.mode, os.environ)
        self.metrics_path = run_dir.resolve() / "metrics.jsonl"
        self._run_dir, self._config, self._group, self._resolved = run_dir.resolve(), config, group, resolved
        # The file covers a kill before the first checkpoint: the restarted arm must not appear as a second run.
        self._ids_path = self._run_dir / "wandb" / "ids.json"
        kept = read_json(self._ids_path, "delete it: W&B then shows a new run") if self._ids_path.exists() else {}
        self._ids: dict[str, str] = {**kept, **(resume_ids or {})}
        self._arm = ""
        self._update = -1
        self._names: set[str] = set()
        self._run: wandb.Run | None = None
        self._table: wandb.Table | None = None

    def truncate(self, arm: str, update: int) -> int:
        """Before `start` of a resumed arm: drop its rows later than `update`, that of its checkpoint (-1 when it has none: all its rows).

        Returns how many rows were dropped.
        """
        if self._arm == arm:
            raise RuntimeError(f"truncate({arm!r}) after start: the rows were already sent to W&B; truncate first")
        return keep_lines(self.metrics_path, lambda row: row["arm"] != arm or row["update"] <= update, METRIC_ROW)

    def start(self, arm: str) -> None:
        """Begin or resume reporting `arm`, and print where its W&B run is. Raises RuntimeError while another arm is open."""
        if self._arm:
            raise RuntimeError(f"start({arm!r}) while {self._arm!r} is open: finish it first")
        self._run_dir.mkdir(parents=True, exist_ok=True)
        keep_lines(self.metrics_path, lambda row: True)  # a kill may have left half a line, to which nothing must be appended
        rows = [row for row in read_lines(self.metrics_path, METRIC_ROW) if row["arm"] == arm]
        self._arm = arm
        self._update = max((row["update"] for row in rows), default=-1)
        # More metrics may come for the update that a resume goes on from; those that it has are not logged twice.
        self._names = {name for row in rows if row["update"] == self._update for name in row}
        if self.mode != "disabled":
            self._run = self._open(arm)
            for row in rows:
                self._send(row["update"], {name: value for name, value in row.items() if name != "arm"})

    def log(self, update: int, metrics: Mapping[str, float], samples: int) -> None:
        """Record `metrics` of the open arm after `update` learner updates and `samples` rollouts in all.

        Several calls may add different metrics to one update. Errors are raised before anything is written, and name the metric. A value
        that is no number is a TypeError. A ValueError is one that is not finite, a name without a known prefix, a metric logged twice, and
        an update before the last.
        """
        self._require_open("log")
        values = {name: self._checked(name, value, update) for name, value in metrics.items()}
        self._advance(update)
        twice = sorted(self._names & set(values))
        if twice:
            raise ValueError(f"arm {self._arm}, update {update}: {', '.join(twice)} logged twice")
        self._names |= set(values)
        append_line(self.metrics_path, {"arm": self._arm, "update": update, "samples": samples, **values})
        self._send(update, {"update": update, "samples": samples, **values})

    def images(self, update: int, rows: Sequence[SampleRow]) -> None:
        """Show outputs of the open arm at `update`, one cell per row: as pictures with captions, and as new rows of a table.

        Does nothing when W&B is disabled. Raises ValueError when a row has not exactly one cell.
        """
        self._require_open("images")
        uneven = [row.prompt for row in rows if len(row.cells) != 1]
        if uneven:
            raise ValueError(f"images of arm {self._arm}: one cell per row, that of the arm; not so for {uneven[0]!r}")
        self._advance(update)
        if self._run is None or update < self._run.starting_step or not rows:
            return
        import wandb

        if self._table is None:
            # A table takes no more rows once it was logged, unless it is incremental.
            self._table = wandb.Table(columns=list(IMAGE_COLUMNS), log_mode="INCREMENTAL")
        pictures = [wandb.Image(picture_of(row.cells[0]), caption=caption(row)) for row in rows]
        for row, picture in zip(rows, pictures, strict=True):
            cell = row.cells[0]
            strict = {None: "-", True: "yes", False: "no"}[cell.strict]
            self._table.add_data(update, row.prompt, picture, cell.text or "", cell.value, strict, "; ".join(cell.failed))
        with self._staging_in_run_folder():
            self._send(update, {"images/samples": pictures, "images/table": self._table})

    def alert(self, title: str, text: str) -> None:
        """Warn whoever watches the open run. Does nothing when W&B is disabled."""
        self._require_open("alert")
        if self._run is not None:
            self._run.alert(title, text, level="WARN")

    def artifact(self, arm: str, adapter_dir: Path, updates: int, metrics: Mapping[str, float]) -> None:
        """Attach the files of a PEFT adapter folder to the open run of `arm`, as a W&B artifact of type model.

        Its metadata are the `updates` that it has had and its `metrics`.

        Raises FileNotFoundError when the folder holds no file, in every mode.
        """
        self._require_open("artifact", arm)
        files = sorted(path for path in adapter_dir.rglob("*") if path.is_file())
        if not files:
            raise FileNotFoundError(f"{adapter_dir} holds no file: save the adapter of arm {arm} before it is reported")
        if self._run is None:
            return
        import wandb

        # W&B takes 100 keys at most, at the top: all kinds of prompts on all splits have more metrics.
        metadata = {"updates": updates, "metrics": dict(metrics)}
        # W&B allows no other characters in the name of an artifact.
        artifact = wandb.Artifact(re.sub(r"[^A-Za-z0-9_.-]", "-", f"{self._group}-{arm}"), type="model", metadata=metadata)
        with self._staging_in_run_folder():
            for path in files:
                # "immutable" spares a copy: the adapter of a finished arm changes only where the run gets longer, and this W&B run is then
                # superseded.
                artifact.add_file(str(path.resolve()), name=path.relative_to(adapter_dir).as_posix(), policy="immutable")
            self._run.log_artifact(artifact)

    def finish(self, arm: str, failed: bool = False) -> None:
        """Close the run of `arm`; `failed` marks it so on W&B. Waits for uploads when online."""
        self._require_open("finish", arm)
        if self._run is not None:
            self._run.finish(exit_code=int(failed))
        self._run = self._table = None
        self._arm = ""

    def ids(self) -> dict[str, str]:
        """W&B run id of every arm started so far; keep it in checkpoints and hand it back as `resume_ids`."""
        return dict(self._ids)

    def _open(self, arm: str) -> "wandb.Run":
        import wandb

        if arm in self._ids and self.mode == "offline":
            self._supersede(self._ids[arm])
        self._ids.setdefault(arm, secrets.token_hex(4))
        # Before wandb starts: a kill right behind must not make a second run of the arm.
        write_json(self._ids_path, self._ids)
        mode = cast(Literal["offline", "online"], self.mode)
        run = wandb.init(
            project=self._config.project,
            group=self._group,
            name=f"{self._group}/{arm}",
            job_type=arm,
            id=self._ids[arm],
            resume="allow" if mode == "online" else None,
            dir=str(self._run_dir),
            mode=mode,
            config=dict(self._resolved),
            reinit="create_new",
            settings=wandb.Settings(console="off", silent=True),
        )
        for name in ("update", "samples"):
            run.define_metric(name)
        for prefix in (*PREFIXES, "images"):
            run.define_metric(f"{prefix}/*", step_metric="update")
        where = f"{run.settings.sync_dir} (see it with `wandb leet`, upload it with `wandb sync`)" if mode == "offline" else run.url
        print(f"W&B {self.mode}, arm {arm}: {where}", flush=True)
        return run

    def _advance(self, update: int) -> None:
        # W&B takes no step that lies before its last one.
        if update < self._update:
            raise ValueError(
                f"arm {self._arm}: update {update} after {self._update}; on a resume call truncate(arm, update) before start(arm)"
            )
        if update > self._update:
            self._update, self._names = update, set()

    def _send(self, update: int, values: Mapping[str, Any]) -> None:
        # No commit: wandb collects the calls of one step and writes the row when the next step begins.
        if self._run is not None and update >= self._run.starting_step:
            self._run.log(dict(values), step=update)

    def _supersede(self, run_id: str) -> None:
        for old in sorted((self._run_dir / "wandb").glob(f"offline-run-*-{run_id}")):
            graveyard = self._run_dir / "wandb-superseded"
            graveyard.mkdir(exist_ok=True)
            old.rename(graveyard / old.name)

    @contextmanager
    def _staging_in_run_folder(self) -> Iterator[None]:
        """Offline artifacts wait for `wandb sync` in a data folder, by default in the home of the user: keep them with the run."""
        if "WANDB_DATA_DIR" in os.environ:
            yield
            return
        os.environ["WANDB_DATA_DIR"] = str(self._run_dir / "wandb")
        try:
            yield
        finally:
            del os.environ["WANDB_DATA_DIR"]

    def _checked(self, name: str, value: float, update: int) -> float:
        where = f"arm {self._arm}, update {update}: metric {name!r}"
        if name.partition("/")[0] not in PREFIXES or "/" not in name:
            raise ValueError(f"{where} needs one of the prefixes {', '.join(p + '/' for p in PREFIXES)}")
        if not isinstance(value, Real):
            raise TypeError(f"{where} is {value!r}, not a number; take .item() of a tensor, and leave out what does not apply")
        if not math.isfinite(value):
            raise ValueError(f"{where} is {float(value)}; training has diverged or a mean was taken over nothing")
        return float(value)

    def _require_open(self, what: str, arm: str | None = None) -> None:
        if not self._arm or arm not in (None, self._arm):
            raise RuntimeError(f"{what}: arm {arm or ''} is not open (open: {self._arm or 'none'}); call start(arm) first")


def caption(row: SampleRow) -> str:
    """The words under a picture on W&B: prompt, reward, failed atoms, and the text output where there is one."""
    cell = row.cells[0]
    parts = [row.prompt, "no reward" if cell.value is None else f"reward {cell.value:.2f}"]
    if cell.failed:
        parts.append(f"failed: {'; '.join(cell.failed)}")
    if cell.text is not None:
        parts.append(f"text: {cell.text}")
    return " | ".join(parts)


def resolve_mode(mode: str, environ: Mapping[str, str]) -> Mode:
    """How W&B is used: offline, online or disabled. Asks nobody and uses no network; imports wandb only when that can matter.

    `auto` follows WANDB_MODE in `environ`, then the mode that `wandb offline` or `wandb online` stored, then whether the user is logged in.
    Every other `mode` is meant as it stands. Raises ValueError on a WANDB_MODE that it cannot follow, and on online without a login, where
    wandb would stop to ask.
    """
    wanted = mode
    if mode == "auto" and environ.get("WANDB_MODE"):
        wanted = {"dryrun": "offline", "run": "online"}.get(environ["WANDB_MODE"], environ["WANDB_MODE"])
    if wanted in ("disabled", "offline"):
        return cast(Mode, wanted)
    if wanted not in ("auto", "online"):
        raise ValueError(f"WANDB_MODE={wanted} is not known here: use offline, online or disabled, or set track.mode")
    import wandb

    settings = wandb.setup().settings
    stored = {"dryrun": "offline"}.get(settings.mode, settings.mode)
    if wanted == "auto" and stored in ("offline", "disabled"):
        return cast(Mode, stored)
    if settings.api_key or logged_in(environ, settings.base_url):
        return "online"
    if wanted == "auto":
        return "offline"
    raise ValueError(f"W&B online needs a login at {settings.base_url}: run `wandb login`, set WANDB_API_KEY, or choose track.mode offline")


def logged_in(environ: Mapping[str, str], base_url: str) -> bool:
    """Whether credentials for the W&B server at `base_url` lie in `environ` or in the netrc file that `wandb login` writes."""
    if environ.get("WANDB_API_KEY") or environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    path = Path(environ.get("NETRC") or Path.home() / ".netrc").expanduser()
    if not path.is_file():
        return False
    try:
        entries = netrc.netrc(path).hosts
    except netrc.NetrcParseError as error:
        raise ValueError(f"cannot tell whether you are logged in to W&B: {error}; repair the file or choose track.mode offline") from error
    host = urlsplit(base_url).netloc
    return any(name in entries for name in (CLOUD_HOSTS if host in CLOUD_HOSTS else (host,)))
