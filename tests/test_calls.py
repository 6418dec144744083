"""Calls: an engine is timed call by call, and the rates are those that made the times."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from leanseek import calls
from leanseek.calls import BEGIN, CALLS, KEEP, KINDS, TELL, Calls, Kind, Took, engine_rates
from leanseek.cost.rates import EngineRates
from leanseek.drawing import Drawing, engine_seconds, step_seconds
from leanseek.model.config import load_preset
from tests.cost.measured import ENGINE

CONFIG = load_preset("laptop")


def took(kind: Kind) -> Took:
    """Return the seconds that a kind of work takes an engine with known rates."""
    whole = engine_seconds(CONFIG, ENGINE, Drawing(kind.prompts, kind.each, kind.prompt, kind.replies, kind.rows))
    if kind.replies == (1,) or len(kind.replies) > 1:
        return Took(whole)
    step_s = step_seconds(CONFIG, ENGINE, kind.rows, kind.prompt + kind.replies[0] / 2)
    step_s += kind.rows * ENGINE.keep_s * kind.kept
    return Took(whole, step_s, (step_s + ENGINE.tell_step_s + kind.rows * ENGINE.tell_s) * kind.told)


def test_the_rates_are_found_that_made_the_times():
    found = engine_rates(CONFIG, {kind: took(kind) for kind in KINDS})
    for field in fields(EngineRates):
        ours, theirs = (getattr(one, field.name) for one in (found, ENGINE))
        if field.name == "decode":
            # What one text alone takes is split into a fixed part and its own as with a few texts.
            for own, known in zip(ours[1:], theirs[1:], strict=True):
                assert own.texts == known.texts
                assert own.flops_per_s == pytest.approx(known.flops_per_s, rel=0.01)
            for own, known in zip(ours, theirs, strict=True):
                assert own.attend_flops_per_s == pytest.approx(known.attend_flops_per_s, rel=1e-6)
            continue
        # Of endings is left what reading and decoding do not take.
        assert ours == pytest.approx(theirs, rel=0.05 if field.name == "leave_s" else 0.01), field.name


def test_what_threads_make_no_difference_to_is_taken_over():
    other = replace(ENGINE, text_s=1e-5, sample_s=3e-5, keep_s=2e-6, leave_s=1e-4, tell_s=1.0)
    found = engine_rates(CONFIG, {kind: took(kind) for kind in CALLS}, other)
    for name in ("text_s", "sample_s", "keep_s", "leave_s"):
        assert getattr(found, name) == getattr(other, name)
    assert found.tell_s == pytest.approx(ENGINE.tell_s)
    assert found.tell_step_s == pytest.approx(ENGINE.tell_step_s)
    assert found.read_flops_per_s == pytest.approx(ENGINE.read_flops_per_s, rel=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_a_disturbance_makes_no_rate_negative(kind):
    for factor in (0.1, 10):
        was = took(kind)
        then = Took(*(factor * seconds for seconds in was))
        assert isinstance(engine_rates(CONFIG, {one: took(one) for one in KINDS} | {kind: then}), EngineRates)


@pytest.mark.parametrize("kind", [BEGIN, TELL, KEEP, calls.UNEVEN])
def test_an_engine_does_the_work_of_a_kind(tiny_model, tiny_tokenizer, kind):
    small = replace(kind, prompts=min(kind.prompts, 6), each=min(kind.each, 4), prompt=5)
    seconds = iter(range(10**6))
    timed = Calls(tiny_model, tiny_tokenizer, lambda: float(next(seconds)))
    timed.time(small)
    found = timed.time(small)
    # The clock goes on by a second with each look: one look before a call and one after it.
    assert found.whole_s > 0 and (found.step_s == 1) == (kind.replies != (1,))
    assert (found.told_s == 1) == kind.told
