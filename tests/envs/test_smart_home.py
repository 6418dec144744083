from __future__ import annotations

import itertools

from leanseek.envs.smart_home import DEVICES, HOURS, Day, SmartHome

DATA = {
    "prices": (30,) * 12 + (10,) * 12,
    "devices": (("washer", 2, 20), ("car", 0, 24)),
    "outside": 5,
    "home": None,
    "budget": 160,
}


def live(data, *calls) -> tuple[Day, str]:
    day = Day(data)
    for call in calls:
        day.act(call)
    return day, day.act(("live", ()))


def test_a_cheap_day_is_a_good_one():
    day, text = live(DATA, ("start", (1, 12)), ("start", (2, 15)))
    assert day.won and text == "all done, cost 160"  # 2 kW x 2 h and 4 kW x 3 h at 10
    day, text = live(DATA, ("start", (1, 11)), ("start", (2, 15)))
    assert day.over and not day.won and text == "it cost 200"


def test_deadlines_the_fuse_and_forgotten_devices():
    assert live(DATA, ("start", (2, 15)))[1] == "the washer was not done in time"
    assert live(DATA, ("start", (1, 19)), ("start", (2, 15)))[1] == "the washer was not done in time"
    assert live(DATA, ("start", (1, 12)), ("start", (2, 23)))[1] == "the car was not done in time"
    three = DATA | {"devices": (("washer", 0, 24), ("car", 0, 24), ("boiler", 0, 24))}
    assert live(three, ("start", (1, 12)), ("start", (2, 12)), ("start", (3, 12)))[1] == "the fuse blew at 12"
    assert Day(DATA).act(("start", (9, 1))) == "there is no device 9"


def test_warmth_leaks_out_and_heating_costs():
    warm = DATA | {"home": (16, 18, 18), "budget": 500}
    both = (("start", (1, 12)), ("start", (2, 19)))
    assert live(warm, *both)[1] == "the house was cold"
    assert live(warm, *both, ("heat", (0, 5)))[1] == "the house was cold", "it has leaked out by then"
    day, text = live(warm, *both, ("heat", (13, 18)))
    assert day.won and text == "all done, cost 310"
    assert not live(warm, *both, ("heat", (18, 13)))[0].won


def test_the_budget_is_near_the_least_that_a_day_can_cost():
    task = SmartHome()
    for problem in itertools.islice(task.problems("train", 0, [1]), 10):
        data, least = problem.data, None
        for starts in itertools.product(range(HOURS), repeat=2):
            day = Day(data | {"budget": 10**9})
            for number, hour in enumerate(starts, 1):
                day.act(("start", (number, hour)))
            day.act(("live", ()))
            if day.won:
                least = day.cost if least is None else min(least, day.cost)
        assert least is not None and least <= data["budget"] <= 1.03 * least + 1
        assert all(name in DEVICES for name, _, _ in data["devices"])
