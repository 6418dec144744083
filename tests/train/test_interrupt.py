"""Ctrl-C as a wish: the first is noted, the second obeyed, and outside the block all is as before."""

from __future__ import annotations

import signal
import threading

import pytest

from leanseek.train.interrupt import Interrupt, interrupts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_is_noted_and_the_second_obeyed(number, capsys):
    before = signal.getsignal(number)
    with interrupts() as interrupt:
        assert not interrupt.wanted
        signal.raise_signal(number)
        assert interrupt.wanted and "stopping after this step" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_handlers_are_put_back_after_a_failure():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError), interrupts():
        raise ValueError
    assert signal.getsignal(signal.SIGINT) is before


def test_another_thread_catches_nothing():
    found: list[tuple[object, object, Interrupt]] = []

    def work() -> None:
        before = signal.getsignal(signal.SIGINT)
        with interrupts() as interrupt:
            found.append((before, signal.getsignal(signal.SIGINT), interrupt))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(20)
    before, inside, interrupt = found[0]
    assert inside is before and not interrupt.wanted
