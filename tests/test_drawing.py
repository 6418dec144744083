"""Drawing: an engine's calls are foretold as an engine makes them, and their seconds follow from the rates."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from leanseek.drawing import Drawing, _turns, decode_speed, drawing_seconds, read_seconds, read_speed, step_seconds
from leanseek.engine import shares
from leanseek.engine.engine import Engine
from leanseek.engine.request import SamplingParams
from leanseek.engine.shares import engines_for, rows_of
from leanseek.model.config import load_preset
from tests.cost.measured import ENGINE, RATES

CONFIG = load_preset("laptop")


@pytest.mark.parametrize(
    ("lengths", "each", "rows"),
    [
        ([4, 4, 4, 4], 1, 8),  # all at once
        ([5, 2, 7, 1, 3, 6, 2, 2, 9], 1, 4),  # rows that become free are taken
        ([3, 3, 3, 3, 3, 3], 1, 2),  # in step with each other
        ([6, 6, 4, 4, 8, 8, 2, 2], 2, 3),  # two replies to a prompt, which may be read twice
        ([1, 1, 1, 1, 1], 1, 2),  # nothing to decode
    ],
)
def test_an_engine_takes_the_turns_that_are_foretold(tiny_model, lengths, each, rows):
    engine = Engine(tiny_model, max_batch=rows, max_context_tokens=32)
    read, decode = engine.runner.read, engine.runner.decode
    calls: dict[str, list[int]] = {"texts": [], "rows": []}

    def reading(parts):
        calls["texts"].append(len(parts))
        return read(parts)

    def decoding(held):
        calls["rows"].append(len(held))
        return decode(held)

    engine.runner.read, engine.runner.decode = reading, decoding
    for number in range(0, len(lengths), each):
        params = SamplingParams(max_tokens=lengths[number], n=each, seed=number, ignore_eos=True)
        engine.add([2 + number, 3, 4], params)
    while engine.has_work:
        engine.advance()
    foretold = _turns(lengths, rows, each)
    assert foretold.reads == len(calls["texts"]) and sum(foretold.steps.values()) == len(calls["rows"])
    assert foretold.row_steps == sum(calls["rows"]) == sum(lengths) - len(lengths)
    assert foretold.changes == sum(a != b for a, b in itertools.pairwise([0, *calls["rows"]]))
    assert foretold.texts == pytest.approx(sum(calls["texts"]), abs=each - 1)


def test_seconds_follow_from_the_rates():
    work = Drawing(prompts=100, each=1, prompt=16, replies=[11.0], rows=100)
    alone = replace(RATES, workers=1)
    found = drawing_seconds(CONFIG, alone, work)
    steps = sum(step_seconds(CONFIG, ENGINE, 100, 16 + n) for n in range(1, 11))
    read_s = read_seconds(CONFIG, ENGINE, 100, 16) + 100 * ENGINE.sample_s
    assert found == pytest.approx(read_s + steps + ENGINE.leave_s)
    kept = drawing_seconds(CONFIG, alone, replace(work, kept=True))
    assert kept - found == pytest.approx(100 * 11 * ENGINE.keep_s)


def test_engines_side_by_side_share_the_work():
    # One engine of each pair has half, and both together are `gain` times as fast as one.
    alike = replace(RATES, read_gain=1.5)
    least = shares.LEAST_SAMPLES
    half, whole = (Drawing(prompts=n, each=1, prompt=16, replies=[11.0], rows=512) for n in (least, 2 * least))
    assert engines_for(half.samples, 2) == 1 and engines_for(whole.samples, 2) == 2
    assert rows_of(512, 2) == 256 and rows_of(least, 2) == least
    one = drawing_seconds(
        CONFIG,
        alike,
        replace(half, rows=least),
    )
    one_engine = drawing_seconds(CONFIG, replace(alike, workers=1), replace(half, rows=least))
    assert one == pytest.approx(one_engine)
    assert drawing_seconds(CONFIG, alike, whole) == pytest.approx(2 / 1.5 * one_engine)


def test_what_is_read_for_late_comers_costs_calls():
    few, many = (Drawing(prompts=64, each=1, prompt=16, replies=[5.0, 9.0, 14.0], rows=n) for n in (8, 64))
    assert drawing_seconds(CONFIG, RATES, few) > 1.5 * drawing_seconds(CONFIG, RATES, many)


def test_speeds_are_those_of_steps_and_calls():
    told_s = step_seconds(CONFIG, ENGINE, 8, 80) + ENGINE.tell_step_s + 8 * ENGINE.tell_s
    assert decode_speed(CONFIG, ENGINE, 8, 64, 31) == pytest.approx(8 / told_s)
    assert read_speed(CONFIG, ENGINE, 64) < 64 / read_seconds(CONFIG, ENGINE, 1, 64)
    assert decode_speed(CONFIG, ENGINE, 8, 500, 31) < decode_speed(CONFIG, ENGINE, 8, 64, 31)
