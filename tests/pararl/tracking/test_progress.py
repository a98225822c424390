"""Progress is a bar on a terminal, and few whole lines elsewhere."""

import io

from pararl.tracking.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines_of(total: int, seconds: float, done: int = 0) -> list[str]:
    """What a run of `total` updates of `seconds` each prints into a file."""
    stream, now = io.StringIO(), [0.0]
    with Progress(total, "pararl", done=done, stream=stream, clock=lambda: now[0]) as progress:
        for _ in range(total - done):
            now[0] += seconds
            progress.step(0.5, 0.25, 0.0123, seconds)
    return stream.getvalue().splitlines()


def test_a_log_file_gets_the_first_every_tenth_part_and_the_last_update() -> None:
    shown = [int(line.split("update ")[1].split("/")[0]) for line in lines_of(80, seconds=0.5)]
    assert shown == [1, 8, 16, 24, 32, 40, 48, 56, 64, 72, 80]


def test_a_slow_run_is_never_silent_for_long() -> None:
    shown = [int(line.split("update ")[1].split("/")[0]) for line in lines_of(40, seconds=6.0)]
    assert max(later - earlier for earlier, later in zip(shown, shown[1:], strict=False)) == 2


def test_a_line_holds_all_metrics_and_the_time_left() -> None:
    assert lines_of(80, seconds=2.0)[0] == "pararl  update 1/80  reward 0.500  strict 0.250  KL 0.0123  2.0 s/update  2 min 38 s left"


def test_a_resumed_run_counts_on() -> None:
    assert lines_of(80, seconds=1.0, done=78)[0].startswith("pararl  update 79/80 ")


def test_what_was_not_measured_shows_as_a_dash() -> None:
    stream = io.StringIO()
    Progress(1, "online_dpo", stream=stream).step(0.5, None, None, 1.0)
    assert "strict -  KL -" in stream.getvalue()


def test_a_terminal_gets_a_bar_and_notes_stand_on_their_own_line() -> None:
    stream = Terminal()
    with Progress(2, "pararl", stream=stream) as progress:
        progress.step(0.5, 0.25, 0.0123, 2.0)
        progress.note("checkpoint saved")
        progress.step(0.75, 0.5, 0.02, 2.0)
    text = stream.getvalue()
    assert "2/2" in text
    assert "reward 0.750" in text
    assert "checkpoint saved" in text.replace("\r", "\n").splitlines()
