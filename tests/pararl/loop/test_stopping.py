"""A signal ends a run behind the update at work; a second one, and one at any other moment, at once."""

import os
import signal
import threading
import time

import pytest

from pararl.loop import stopping
from pararl.loop.stopping import Stop


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_an_update_at_work_ends_first(number: signal.Signals) -> None:
    said: list[str] = []
    with Stop(said.append).listening() as stop:
        with stop.update():
            assert stop.asked is None
            os.kill(os.getpid(), number)
            time.sleep(0.01)
            ended = True
        assert ended and stop.asked == number and stop.code == 128 + number and len(said) == 1
        assert signal.getitimer(signal.ITIMER_REAL) == (0, 0), "nothing interrupts the checkpoint that follows"


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_elsewhere_it_is_an_interrupt_at_once(number: signal.Signals) -> None:
    with Stop(pytest.fail).listening() as stop:
        with stop.update():
            pass
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
            time.sleep(1)
        assert stop.code == 128 + number


def test_a_second_one_does_not_wait() -> None:
    with Stop(lambda line: None).listening() as stop, pytest.raises(KeyboardInterrupt), stop.update():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_an_update_that_takes_too_long_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "GRACE", 0.05)
    began = time.monotonic()
    with Stop(lambda line: None).listening() as stop, pytest.raises(KeyboardInterrupt), stop.update():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
    assert time.monotonic() - began < 20 and stop.code == 143


def test_handlers_are_as_they_were_behind_it_and_untouched_in_other_threads() -> None:
    numbers = (*stopping.SIGNALS, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]
    found: list[list[object]] = []

    def beside() -> None:
        with Stop().listening():
            found.append([signal.getsignal(number) for number in numbers])

    thread = threading.Thread(target=beside)
    thread.start()
    thread.join()
    with Stop().listening():
        assert [signal.getsignal(number) for number in numbers] != before
    assert [signal.getsignal(number) for number in numbers] == before == found[0]
