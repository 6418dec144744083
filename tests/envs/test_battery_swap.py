"""What goes wrong in the swap goes wrong by physics."""

from __future__ import annotations

import importlib.util

import pytest

from leanseek.envs.battery_swap import BatterySwap, Swap
from leanseek.envs.environment import Problem

if importlib.util.find_spec("mujoco") is None:  # not imported here: how it draws is settled when it is imported
    pytest.skip("battery_swap needs the package mujoco (extra worlds)", allow_module_level=True)
NEAR = {"pack": (12, -3), "bay": (-10, 6), "spring": 30}
WHOLE = NEAR | {"stand": (150, 120, 40), "start": (-80, 30, 20), "pull": 220}
END = [("grasp", (12, -3)), ("align", (10, -6)), ("insert", (42,)), ("latch", ())]
BEGINNING = [("walk_to", (150, 120, 40)), ("unlatch", ()), ("pull", (220,)), ("release", ())]


def played(calls, data=NEAR, level=1) -> tuple[Swap, list[str]]:
    swap = Swap(Problem("battery_swap", level, "", data, ""))
    said = []
    for call in calls:
        if swap.over:
            break
        said.append(swap.act(call))
    return swap, said


def with_call(calls, number: int, *arguments: int):
    return [(name, arguments) if i == number else (name, given) for i, (name, given) in enumerate(calls)]


def test_a_swap_from_the_walk_to_the_latch():
    swap, said = played(BEGINNING + END, WHOLE, 2)
    assert swap.won and said[0].startswith("at the station") and said[-1].startswith("latched")
    charges = [int(text.rsplit(" ", 1)[1]) for text in said]
    assert charges == sorted(charges, reverse=True) and 0 < charges[-1] < charges[0] < 100


def test_the_same_calls_give_the_same_bits():
    one, other = (played(BEGINNING + END, WHOLE, 2)[0].scene.data.qpos.tobytes() for _ in range(2))
    assert one == other


def test_progress_grows_by_what_the_pack_does():
    ends = [
        END[:1],
        END[:2],
        END[:3],
        END,
        with_call(END, 0, 30, -3),
        with_call(END, 1, 22, -6),
        with_call(END, 2, 120),
    ]
    assert [played(calls)[0].progress for calls in ends] == [0.25, 0.5, 0.75, 1.0, 0.0, 0.25, 0.5]


def test_attempts_that_share_what_was_simulated_say_and_reach_what_one_alone_does():
    world = BatterySwap("bare")
    problem = next(world.problems("train", 0, [4]))
    right = [step.call for step in world.expert(problem)]
    plays = [right, with_call(right, 6, 20), right[:5] + right, with_call(right, 4, -60, 30), right]
    for calls in plays:
        alone, shared = Swap(problem), world.open(problem)
        for call in calls:
            if alone.over:
                break
            assert shared.act(call) == alone.act(call)
        assert (shared.over, shared.won) == (alone.over, alone.won)


@pytest.mark.parametrize(
    ("number", "arguments", "said"),
    [
        (0, (30, -3), "missed"),  # beside the fin: the fingers come down on it, or on nothing
        (1, (22, -6), "to go"),  # 12 mm off: it runs against the bay's wall
        (1, (10, 4), "to go"),  # turned by 10 degrees: it jams
        (2, (20,), "not latched"),  # the spring keeps it out
        (2, (120,), "contacts bent"),
    ],
)
def test_misalignment_and_wrong_forces_fail(number: int, arguments: tuple[int, ...], said: str):
    swap, texts = played(with_call(END, number, *arguments))
    assert not swap.won
    assert any(said in text for text in texts)


def test_an_empty_hand_pushes_nothing_and_costs_only_the_call():
    swap, said = played([("align", (10, -6)), ("insert", (42,))])
    assert [text.split(",")[0] for text in said] == ["nothing held"] * 2 and swap.calls == 2
    assert swap.scene.seconds == Swap(Problem("battery_swap", 1, "", NEAR, "")).scene.seconds


def test_an_offset_that_the_clearance_takes_does_not_matter():
    for dy, angle in ((12, -6), (8, -6), (10, -5), (10, -7)):
        assert played(with_call(END, 1, dy, angle))[0].won, (dy, angle)


def test_a_pack_that_is_still_latched_stays():
    swap, _ = played([BEGINNING[0], BEGINNING[2]], WHOLE, 2)
    assert abs(swap.scene.in_bay("old")[0]) < 0.01 and swap.scene.latched()


def test_a_pack_let_go_beside_the_table_falls():
    # The robot stands half a metre too far back: the tray is out of reach.
    swap, said = played([("walk_to", (100, 100, 40)), *BEGINNING[1:]], WHOLE, 2)
    assert swap.over and not swap.won and said[-1].startswith("the old pack fell")


def test_the_battery_empties():
    swap, said = played([("walk_to", (150, 120, 40)), ("walk_to", (0, 0, 180))] * 20, WHOLE, 4)
    assert swap.over and said[-1] == "the battery is empty, charge 0"


def test_skills_out_of_order_are_survived():
    for skill in BatterySwap.skills:
        arguments = tuple(one.high for one in skill.arguments)
        swap, said = played([(skill.name, arguments)] * 5)
        assert said and not swap.won


@pytest.mark.slow
def test_a_film_moves():
    image = pytest.importorskip("PIL.Image", reason="films need the package pillow (extra worlds)")
    import io

    from leanseek.errors import TaskError

    task = BatterySwap()
    problem = next(task.problems("test", 0, [1]))
    try:
        data = task.film(problem, [step.call for step in task.expert(problem)])
    except TaskError as error:
        pytest.skip(str(error))
    film = image.open(io.BytesIO(data))
    assert film.format == "WEBP" and film.n_frames > 20
    first = film.convert("RGB").tobytes()
    film.seek(film.n_frames - 1)
    assert film.convert("RGB").tobytes() != first
