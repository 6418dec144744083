from __future__ import annotations

from leanseek.envs.delivery_drone import DeliveryDrone, Flight

DATA = {"base": (10, 10), "charge": 90, "parcels": (((30, 10), (50, 10)),), "zones": (), "wind": (0, 0)}


def fly(data, *calls) -> tuple[Flight, str]:
    flight = Flight(data)
    text = ""
    for call in calls:
        text = flight.act(call)
        if flight.over:
            break
    return flight, text


def test_a_parcel_is_delivered():
    flight, text = fly(DATA, ("fly", (30, 10)), ("pick", (1,)), ("fly", (50, 10)), ("drop", ()))
    assert flight.won and text.startswith("parcel 1 delivered, at 50 10")


def test_progress_never_falls_for_a_parcel_that_is_dropped_anywhere():
    calls = [("fly", (30, 10)), ("pick", (1,)), ("fly", (50, 10)), ("drop", ())]
    assert [fly(DATA, *calls[:count])[0].progress for count in range(5)] == [0.0, 0.0, 0.5, 0.5, 1.0]
    elsewhere = [*calls[:2], ("fly", (70, 10)), ("drop", ())]
    assert fly(DATA, *elsewhere)[0].progress == 0.5


def test_wind_from_ahead_costs_more_than_wind_from_behind():
    left = {wind: fly(DATA | {"wind": (wind, 0)}, ("fly", (90, 10)))[0].charge for wind in (-6, 0, 6)}
    assert left[-6] < left[0] < left[6]


def test_a_parcel_on_board_costs_power():
    empty, _ = fly(DATA, ("fly", (30, 10)), ("fly", (90, 10)))
    loaded, _ = fly(DATA, ("fly", (30, 10)), ("pick", (1,)), ("fly", (90, 10)))
    assert loaded.charge < empty.charge


def test_a_no_fly_zone_grounds_and_the_way_round_does_not():
    data = DATA | {"zones": ((40, 10, 6),)}
    flight, text = fly(data, ("fly", (50, 10)))
    assert flight.over and not flight.won and text.startswith("in a no-fly zone")
    assert not fly(data, ("fly", (40, 22)), ("fly", (50, 10)))[0].over


def test_an_empty_battery_ends_it():
    flight, text = fly(DATA | {"charge": 5}, ("fly", (90, 90)))
    assert flight.over and not flight.won and text == "the battery is empty, at " + text.split(" at ")[1]


def test_parcels_are_taken_one_at_a_time_where_they_are():
    data = DATA | {"parcels": (((30, 10), (50, 10)), ((30, 10), (60, 10)))}
    flight, text = fly(data, ("pick", (1,)))
    assert text.startswith("no parcel 1 here")
    flight, text = fly(data, ("fly", (30, 10)), ("pick", (1,)), ("pick", (2,)))
    assert text.startswith("there is a parcel on board")
    flight, text = fly(data, ("fly", (30, 10)), ("pick", (1,)), ("fly", (40, 10)), ("drop", ()), ("pick", (1,)))
    assert text.startswith("parcel 1 on board") and not flight.won
    assert fly(data, ("pick", (9,)))[1].startswith("no parcel 9 here")


def test_charging_is_for_the_base():
    assert fly(DATA, ("charge", ()))[0].charge == 100
    assert fly(DATA, ("fly", (30, 10)), ("charge", ()))[1].startswith("not at the base")


def test_the_expert_charges_when_it_must():
    task = DeliveryDrone()
    problems = [next(task.problems("train", seed, [4])) for seed in range(12)]
    charged = sum(("charge", ()) in [step.call for step in task.expert(problem)] for problem in problems)
    assert charged > 3
