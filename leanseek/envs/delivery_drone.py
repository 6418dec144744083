"""delivery_drone: fly parcels to their places, round no-fly zones, in wind, on one battery that can be charged."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from dataclasses import replace
from typing import Any

from leanseek.envs.environment import Problem
from leanseek.envs.worlds.skills import Argument, Call, Skill
from leanseek.envs.worlds.world import State, Step, World

# A unit of the map is 10 m. The drone flies at 1.2 units/s through the air and takes up speed within seconds.
SPEED, RESPONSE_S, STEP_S = 1.2, 1.5, 0.5
# Where it may be off and still set down or pick up; how far the expert keeps from zones.
NEAR, MARGIN = 1.0, 2.0
# Power in per cent of a full battery per second: to hover, more for every parcel, and against the air.
HOVER, PARCEL, DRAG = 0.10, 0.05, 0.10
# A leg that takes longer than this is given up: the wind is too strong.
LONGEST_LEG_S = 300.0
# Parcels, zones, strength of wind and charge at the start, by level.
LEVELS = {1: (1, 0, 0, 90), 2: (1, 1, 3, 80), 3: (2, 2, 5, 60), 4: (3, 3, 6, 50)}
RESERVE = 3.0
Point = tuple[int, int]
Zone = tuple[int, int, int]


class DeliveryDrone(World):
    """The prompt lists the base, parcels with where they are and go to, zones with their radius, wind and charge."""

    name = "delivery_drone"
    description = "deliver parcels by drone in wind, round no-fly zones, before the battery is empty"
    levels = tuple(LEVELS)
    most_calls = 40
    intro = (
        "You fly a drone by calling skills. Take each parcel where it lies and drop it at its place, one at a time. "
        "Coordinates are in tens of metres. A straight way must not lead through a no-fly circle. The charge, in per "
        "cent, must not run out; wind from ahead takes more of it."
    )
    skills = (
        Skill(
            "fly",
            "Fly straight to a place.",
            (Argument("x", 0, 99, "east, 10 m"), Argument("y", 0, 99, "north, 10 m")),
        ),
        Skill("pick", "Take a parcel that lies here; one at a time.", (Argument("parcel", 1, 9, "its number"),)),
        Skill("drop", "Set the parcel down here."),
        Skill("charge", "Charge the battery; at the base only."),
    )

    def propose(self, level: int, rng: random.Random) -> Problem:
        """Draw any map."""
        parcels, zones, wind, charge = LEVELS[level]
        data: dict[str, Any] = {"base": _point(rng), "charge": charge}
        data["parcels"] = tuple((_point(rng), _point(rng)) for _ in range(parcels))
        data["zones"] = tuple((*_point(rng), rng.randint(6, 14)) for _ in range(zones))
        data["wind"] = (rng.randint(-wind, wind), rng.randint(-wind, wind))
        return Problem(self.name, level, _prompt(data), data, _prompt(data))

    def finished(self, problem: Problem) -> Problem | None:
        """Return the map if the expert can do it."""
        steps = _route(problem.data)
        if not (0 < len(steps) <= self.most_calls and self._reaches(problem, steps)):
            return None
        return replace(problem, data={**problem.data, "route": tuple(steps)})

    def open(self, problem: Problem) -> State:
        """Return the drone at its base."""
        return Flight(problem.data)

    def expert(self, problem: Problem) -> list[Step]:
        """Return the shortest ways round the zones, with a charge before a parcel that would empty the battery."""
        return [Step(call) for call in problem.data["route"]]


class Flight:
    """A day of deliveries under way.

    Args:
        data: of the problem.
    """

    def __init__(self, data: Any) -> None:
        self.data = data
        self.x, self.y = map(float, data["base"])
        self.charge = float(data["charge"])
        self.places: list[Point | None] = [start for start, _ in data["parcels"]]
        self.done = [False] * len(self.places)
        self.carried: int | None = None
        self.won = self.over = False

    @property
    def progress(self) -> float:
        """Parcels that are where they go to; one that only left where it lay counts half, even if it was dropped."""
        moved = [place != start for place, (start, _) in zip(self.places, self.data["parcels"], strict=True)]
        return 0.5 * (moved.count(True) + self.done.count(True)) / len(moved)

    def act(self, call: Call) -> str:
        """Carry a skill out and return where the drone then is and what is left."""
        text: str = getattr(self, f"_{call[0]}")(*call[1])
        return f"{text}, at {round(self.x)} {round(self.y)}, charge {max(0, math.floor(self.charge))}"

    def _fly(self, x: int, y: int) -> str:
        east = north = seconds = 0.0
        wind_x, wind_y = (0.1 * part for part in self.data["wind"])
        power = HOVER + (PARCEL if self.carried is not None else 0.0)
        while (left := math.hypot(x - self.x, y - self.y)) > NEAR / 2:
            # It heads into the wind so that its way over ground leads to the place, slower as it comes near.
            wanted = min(SPEED, left / 2)
            air_x = (x - self.x) / left * wanted - wind_x
            air_y = (y - self.y) / left * wanted - wind_y
            air = math.hypot(air_x, air_y)
            if air > SPEED:
                air_x, air_y, air = air_x / air * SPEED, air_y / air * SPEED, SPEED
            share = STEP_S / RESPONSE_S
            east += share * (air_x + wind_x - east)
            north += share * (air_y + wind_y - north)
            self.x += STEP_S * east
            self.y += STEP_S * north
            seconds += STEP_S
            self.charge -= STEP_S * (power + DRAG * (air / SPEED) ** 3)
            if any(math.hypot(self.x - zx, self.y - zy) < radius for zx, zy, radius in self.data["zones"]):
                self.over = True
                return "in a no-fly zone, grounded"
            if self.charge <= 0:
                self.over = True
                return "the battery is empty"
            if seconds > LONGEST_LEG_S:
                return "the wind is too strong"
        return "there"

    def _pick(self, parcel: int) -> str:
        place = self.places[parcel - 1] if parcel <= len(self.places) else None
        if self.carried is not None:
            return "there is a parcel on board"
        if place is None or not self._near(place):
            return f"no parcel {parcel} here"
        self.carried, self.places[parcel - 1] = parcel - 1, None
        return f"parcel {parcel} on board"

    def _drop(self) -> str:
        if self.carried is None:
            return "nothing on board"
        number, self.carried = self.carried, None
        if self._near(self.data["parcels"][number][1]):
            self.done[number] = True
            self.won = self.over = all(self.done)
            return f"parcel {number + 1} delivered"
        self.places[number] = (round(self.x), round(self.y))
        return f"parcel {number + 1} set down"

    def _charge(self) -> str:
        if not self._near(self.data["base"]):
            return "not at the base"
        self.charge = 100.0
        return "charged"

    def _near(self, place: Point) -> bool:
        return math.hypot(place[0] - self.x, place[1] - self.y) <= NEAR


def _point(rng: random.Random) -> Point:
    return rng.randint(5, 94), rng.randint(5, 94)


def _prompt(data: Any) -> str:
    lines = ["base {} {}".format(*data["base"])]
    for number, (start, end) in enumerate(data["parcels"], 1):
        lines.append(f"parcel {number} at {start[0]} {start[1]} to {end[0]} {end[1]}")
    lines += ["no-fly {} {} radius {}".format(*zone) for zone in data["zones"]]
    return "\n".join([*lines, "wind {} {}".format(*data["wind"]), f"charge {data['charge']}"])


def _route(data: Any) -> list[Call]:
    """Return the expert's calls; [] where a place cannot be reached."""
    flight, calls = Flight(data), list[Call]()

    def legs(places: list[Point]) -> list[Call] | None:
        found: list[Call] = []
        for start, end in itertools.pairwise(places):
            way = _way(start, end, data["zones"])
            if way is None:
                return None
            found += [("fly", point) for point in way]
        return found

    at: Point = data["base"]
    for number, (start, end) in enumerate(data["parcels"], 1):
        for detour in (False, True):  # by way of the base, where the charge would not last
            first = legs([at, data["base"]]) if detour else []
            fetch = legs([data["base"] if detour else at, start])
            bring, home = legs([start, end]), legs([end, data["base"]])
            if first is None or fetch is None or bring is None or home is None:
                return []
            part = [*first, *([("charge", ())] if detour else []), *fetch, ("pick", (number,)), *bring, ("drop", ())]
            if detour or _lasts(flight, [*part, *home]):
                break
        for call in part:
            flight.act(call)
        calls += part
        at = end
    return calls


def _lasts(flight: Flight, calls: list[Call]) -> bool:
    """Whether the charge lasts for calls, with a reserve."""
    trial = Flight(flight.data)
    trial.x, trial.y, trial.charge = flight.x, flight.y, flight.charge - RESERVE
    trial.places = list(flight.places)
    for call in calls:
        trial.act(call)
        if trial.charge <= 0:
            return False
    return True


def _way(start: Point, end: Point, zones: tuple[Zone, ...]) -> list[Point] | None:
    """Return the corners of the shortest way that keeps clear of the zones, its end last; None if there is none."""
    if start == end:
        return []
    corners = [start, end]
    for x, y, radius in zones:
        for turn in range(12):
            reach = (radius + MARGIN) * 1.06
            angle = turn * math.pi / 6
            corner = round(x + reach * math.cos(angle)), round(y + reach * math.sin(angle))
            if 0 <= min(corner) and max(corner) <= 99:
                corners.append(corner)
    best = {start: 0.0}
    before: dict[Point, Point] = {}
    queue = [(0.0, start)]
    while queue:
        length, here = heapq.heappop(queue)
        if here == end:
            way = [end]
            while before[way[-1]] != start:
                way.append(before[way[-1]])
            return way[::-1]
        if length > best[here]:
            continue
        for there in corners:
            farther = length + math.dist(here, there)
            if there != here and farther < best.get(there, math.inf) and _clear(here, there, zones):
                best[there], before[there] = farther, here
                heapq.heappush(queue, (farther, there))
    return None


def _clear(start: Point, end: Point, zones: tuple[Zone, ...]) -> bool:
    """Whether a straight line keeps its distance from every zone."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    square = dx * dx + dy * dy
    for x, y, radius in zones:
        share = 0.0 if not square else min(1.0, max(0.0, ((x - start[0]) * dx + (y - start[1]) * dy) / square))
        if math.hypot(start[0] + share * dx - x, start[1] + share * dy - y) < radius + MARGIN:
            return False
    return True
