"""Progress is a bar on a terminal, and few whole lines elsewhere."""

import io

import pytest

from pararl.tracking.progress import Bar, Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines_of(total: int, seconds: float, done: int = 0) -> list[str]:
    """What a run of `total` updates of `seconds` each prints into a file."""
    stream, now = io.StringIO(), [0.0]
    with Progress(total, "pararl", done=done, stream=stream, clock=lambda: now[0]) as progress:
        for _ in range(total - done):
            now[0] += seconds
            progress.update(0.5, 0.25, 0.0123, seconds)
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
    Progress(1, "online_dpo", stream=stream).update(0.5, None, None, 1.0)
    assert "strict -  KL -" in stream.getvalue()


def test_a_terminal_gets_a_bar_and_notes_stand_on_their_own_line() -> None:
    stream = Terminal()
    with Progress(2, "pararl", stream=stream) as progress:
        progress.update(0.5, 0.25, 0.0123, 2.0)
        progress.note("checkpoint saved")
        progress.update(0.75, 0.5, 0.02, 2.0)
    text = stream.getvalue()
    assert "2/2" in text
    assert "reward 0.750" in text
    assert "checkpoint saved" in text.replace("\r", "\n").splitlines()


def test_a_log_of_other_work_has_whole_lines_after_the_seconds_asked_for_and_no_carriage_return() -> None:
    stream, now = io.StringIO(), [0.0]
    with Bar(3000, "clip", "step", stream=stream, every_seconds=60.0, clock=lambda: now[0]) as bar:
        for step in range(3000):
            now[0] += 0.125
            bar.step(f"loss {step}")
    lines = stream.getvalue().splitlines()
    assert [line.split("step ")[1].split("/")[0] for line in lines] == ["480", "960", "1,440", "1,920", "2,400", "2,880"]
    assert "\r" not in stream.getvalue() and lines[0] == "clip  step 480/3,000  loss 479  5 min 15 s left"


def test_steps_that_come_in_chunks_are_told_by_parts_of_the_whole() -> None:
    stream = io.StringIO()
    with Bar(100, "base id", "sample", parts=4, stream=stream, every_seconds=1e9) as bar:
        for _ in range(10):
            bar.step(count=10)
    assert [line.split("sample ")[1].split("/")[0] for line in stream.getvalue().splitlines()] == ["10", "30", "50", "80", "100"]


def test_a_bar_is_drawn_on_a_terminal_whatever_the_libraries_were_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "1")
    stream = Terminal()
    with Bar(2, "clip", "step", stream=stream) as bar:
        bar.step()
        bar.step("loss 0.5")
    assert "2/2" in stream.getvalue() and "loss 0.5" in stream.getvalue()
