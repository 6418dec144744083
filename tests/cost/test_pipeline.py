"""The simulation finds the bubbles and the memory that the papers state, and no device does two things at once."""

from __future__ import annotations

import itertools

import pytest

from leanseek.cost.orders import FORWARD, FULL, INPUT, PAIR, WEIGHT
from leanseek.cost.pipeline import StageTimes, bubble_formula, simulate
from leanseek.cost.schedules import CHUNKS, SCHEDULES, fits, held_stages, stages_of
from leanseek.errors import UsageError

SIZES = ((2, 8), (4, 20), (8, 40), (16, 120))


def run(schedule, devices, micro_batches, forward=1.0, back=1.0, weight=1.0, pair=None, hop_s=0.0):
    stages = stages_of(schedule, devices)
    pairs = None if pair is None else (lambda ahead, behind: pair)
    times = StageTimes([forward] * stages, [back] * stages, [weight] * stages, pairs, hop_s)
    return simulate(schedule, devices, micro_batches, times)


@pytest.mark.parametrize(("devices", "micro_batches"), [(2, 8), (4, 20), (8, 40), (16, 128)])
@pytest.mark.parametrize("schedule", ["1f1b", "zb1p", *CHUNKS])
@pytest.mark.parametrize(("forward", "back", "weight"), [(1, 1, 1), (1, 1.25, 0.75), (2, 2, 1), (3, 4, 2)])
def test_1f1b_and_zb1p_wait_as_long_as_their_papers_say(schedule, devices, micro_batches, forward, back, weight):
    stated = bubble_formula(schedule, devices, forward, back + weight, weight, 0)
    assert run(schedule, devices, micro_batches, forward, back, weight).bubble_s == pytest.approx(stated)


@pytest.mark.parametrize(("devices", "micro_batches"), SIZES)
@pytest.mark.parametrize("schedule", ["dualpipe", "dualpipev"])
@pytest.mark.parametrize(("forward", "back", "weight"), [(1, 1, 1), (2, 2, 1)])
def test_dualpipe_waits_as_long_as_its_readme_says(schedule, devices, micro_batches, forward, back, weight):
    pair = forward + back + weight
    stated = bubble_formula(schedule, devices, forward, back + weight, weight, pair)
    assert run(schedule, devices, micro_batches, forward, back, weight, pair).bubble_s == pytest.approx(stated)


@pytest.mark.parametrize("pair", [2.5, 2.8, 3.0])
def test_pairs_that_overlap_wait_about_as_long_as_stated(pair):
    stated = bubble_formula("dualpipe", 8, 1, 2, 1, pair)
    assert run("dualpipe", 8, 40, pair=pair).bubble_s == pytest.approx(stated, rel=0.25)


def test_dualpipev_is_dualpipe_on_half_the_devices():
    # Half the devices, with twice the stages on each: as many seconds of bubble, and the same activations.
    whole, half = run("dualpipe", 8, 40), run("dualpipev", 4, 20)
    assert half.bubble_s == pytest.approx(whole.bubble_s)
    assert half.held == whole.held[:4]


@pytest.mark.parametrize(("devices", "micro_batches"), SIZES[1:])
def test_zbv_only_waits_on_the_way_in_where_all_passes_take_as_long(devices, micro_batches):
    assert run("zbv", devices, micro_batches).bubble_s == pytest.approx(devices - 1)
    uneven = run("zbv", devices, micro_batches, 1, 1.2, 0.8).bubble_s
    assert uneven < run("zb1p", devices, micro_batches, 2, 2.4, 1.6).bubble_s + 1e-9


@pytest.mark.parametrize(("devices", "micro_batches"), SIZES[1:])
def test_activations_are_kept_as_the_papers_say(devices, micro_batches):
    assert max(run("1f1b", devices, micro_batches).held) == devices
    assert max(run("zb1p", devices, micro_batches).held) == devices
    assert max(run("zbv", devices, micro_batches).held) <= 2 * devices  # of halves
    for schedule, chunks in CHUNKS.items():
        even = micro_batches - micro_batches % devices
        assert max(run(schedule, devices, even).held) == chunks * devices + devices - 1
    assert set(run("dualpipe", devices, micro_batches).held) == {devices + 1}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("hop_s", [0.0, 0.3])
def test_a_trace_is_one_that_could_happen(schedule, hop_s):
    devices, micro_batches = 4, 12
    trace = run(schedule, devices, micro_batches, 1, 1.5, 0.7, hop_s=hop_s)
    stages, ends, starts = stages_of(schedule, devices), {}, {}
    for device, spans in enumerate(trace.spans):
        assert all(a[2] <= b[1] + 1e-9 for a, b in itertools.pairwise(spans))
        for op, start, end in spans:
            assert op.stage in held_stages(schedule, devices, device)
            given = [(op.kind.replace(FULL, INPUT), op.stage, op.batch)]
            if op.kind == PAIR:
                given = [(FORWARD, op.stage, op.batch), (INPUT, op.back_stage, op.back_batch)]
            for kind, stage, batch in given:
                ends[kind, stage, batch], starts[kind, stage, batch] = end, start
            if op.kind in (WEIGHT, FULL, PAIR):
                key = (op.back_stage, op.back_batch) if op.kind == PAIR else (op.stage, op.batch)
                ends[WEIGHT, *key] = end
    batches = {batch for kind, _, batch in ends if kind == FORWARD}
    assert len(batches) == micro_batches and len(ends) == 3 * stages * micro_batches
    for (kind, stage, batch), start in starts.items():
        if kind == FORWARD and stage:
            assert start >= ends[FORWARD, stage - 1, batch] + hop_s - 1e-9
        if kind == INPUT:
            assert start >= ends[FORWARD, stage, batch] - 1e-9
            if stage < stages - 1:
                assert start >= ends[INPUT, stage + 1, batch] + hop_s - 1e-9
    assert trace.seconds == pytest.approx(max(ends.values()))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_long_steps_are_the_short_ones_drawn_out(schedule):
    first, second = (run(schedule, 4, n, 1, 1.2, 0.9) for n in (200, 300))
    assert second.seconds - first.seconds == pytest.approx(100 * 3.1 * stages_of(schedule, 4) / 4, rel=0.02)
    assert first.bubble_s == pytest.approx(second.bubble_s, rel=0.1, abs=2)


def test_one_device_waits_for_nobody():
    assert run("1f1b", 1, 7).seconds == 21 and run("dualpipe", 1, 7).bubble_s == 0


def test_what_cannot_run_is_told():
    assert "even" in (fits("dualpipe", 4, 9) or "")
    with pytest.raises(UsageError, match="at least 16 micro-batches"):
        run("dualpipev", 8, 10)
    assert "multiple of 4" in (fits("interleaved2", 4, 9) or "")
    with pytest.raises(UsageError, match="did you mean 1f1b"):
        fits("1f1", 4, 4)
