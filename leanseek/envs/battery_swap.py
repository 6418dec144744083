"""battery_swap: a robot swaps its own battery in simulated physics, before its charge runs out."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from leanseek.envs.environment import Problem
from leanseek.envs.worlds.battery_scene import BatteryScene, Setup
from leanseek.envs.worlds.film import film
from leanseek.envs.worlds.skills import Argument, Call, Skill, written
from leanseek.envs.worlds.world import State, Step, World

# What the push must exceed the bay's spring by: friction, and the way that the contacts give.
PUSH_MARGIN_N = 12
# Seconds of charge, by level: about four times what the expert takes, at the last level a little more than it takes.
CHARGE_S = {1: 14.0, 2: 30.0, 3: 14.0, 4: 11.0}
# What a call costs by itself, in seconds of charge: thinking takes power too.
CALL_S = 0.2
MM = 1000.0
# A pack this high has been lifted; one is in its place so near to the bay's end, and before it straight within these.
LIFTED_M, HOME_M, STRAIGHT_M, STRAIGHT_RAD = 0.99, 0.006, 0.004, math.radians(2)
# Problems of which it is remembered what was simulated: a group's attempts begin one after the other.
REMEMBERED = 16


class BatterySwap(World):
    """The prompt has what was measured: `pack 12 -3` (mm and degrees off its tray), `bay -7 5`, `spring 30`.

    Levels: 1: the old pack is out, numbers to be copied; 2: the whole swap, from the walk on; 3 and 4: as 1 and 2,
    but the camera's numbers and the hand's must be taken from one another, and level 4's charge is short.
    """

    name = "battery_swap"
    description = "swap a robot's own battery, in MuJoCo's physics"
    levels = (1, 2, 3, 4)
    most_calls = 16
    extra = "worlds"
    intro = (
        "You are a robot whose battery runs low; swap it at the station by calling skills. stand: where to walk to, "
        "in cm and degrees. pull: how far the old pack must come out, in mm. pack: how far the fresh pack lies off its "
        "tray's middle, in mm and degrees; with four numbers, where the camera sees the pack and the hand along "
        "y, then their angles. bay: the same of the pack in your hand before the bay, to be made up for. spring: what "
        f"the bay's contacts push back with, in newtons; push {PUSH_MARGIN_N} N harder, more bends them. Then latch."
    )
    skills = (
        Skill(
            "walk_to",
            "Walk to a place on the floor, and turn.",
            (
                Argument("x", 0, 400, "cm"),
                Argument("y", 0, 400, "cm"),
                Argument("heading", 0, 359, "degrees"),
            ),
        ),
        Skill("unlatch", "Draw the pin that holds the pack in the bay."),
        Skill("pull", "Grip the pack in the bay and draw it out.", (Argument("mm", 0, 400, "how far"),)),
        Skill("release", "Put what the hand holds on the free tray."),
        Skill(
            "grasp",
            "Take the fresh pack from its tray, the hand moved and turned from the tray's middle.",
            (Argument("dy", -60, 60, "mm"), Argument("angle", -30, 30, "degrees")),
        ),
        Skill(
            "align",
            "Bring the pack before the bay, moved and turned from where the arm would hold it.",
            (Argument("dy", -60, 60, "mm"), Argument("angle", -30, 30, "degrees")),
        ),
        Skill("insert", "Push the pack into the bay.", (Argument("force", 0, 200, "newtons"),)),
        Skill("latch", "Drive the pin up behind the pack."),
    )

    def propose(self, level: int, rng: random.Random) -> Problem:
        """Draw how far all is off."""
        data: dict[str, tuple[int, ...] | int] = {
            "pack": (rng.choice((-1, 1)) * rng.randint(9, 25), rng.choice((-1, 1)) * rng.randint(1, 9)),
            "bay": (rng.choice((-1, 1)) * rng.randint(7, 19), rng.choice((-1, 1)) * rng.randint(4, 9)),
            "spring": rng.randint(20, 45),
        }
        if level in (2, 4):
            data |= {"stand": (rng.randint(100, 199), rng.randint(100, 199), rng.randint(10, 80))}
            data |= {"start": (-rng.randint(60, 90), rng.randint(-40, 40), rng.randint(-40, 40))}
            data |= {"pull": rng.randint(18, 25) * 10}
        if level > 2:
            data |= {"hand": tuple(rng.randint(30, 60) for _ in range(4))}
        prompt = _prompt(level, data)
        return Problem(self.name, level, prompt, data, f"{level} {prompt} {data.get('start', '')}")

    def open(self, problem: Problem) -> State:
        """Return the scene as it begins; attempts that begin alike share what was simulated."""
        return Attempted(_beginning(problem))

    def film(self, problem: Problem, calls: Sequence[Call]) -> bytes:
        """Return a film of what calls do, as an animated WebP.

        Raises:
            TaskError: no picture can be drawn on this machine.
        """
        swap, captions = Swap(problem, record=True), []
        for call in calls[: self.most_calls]:
            if swap.over:
                break
            start = swap.scene.seconds
            captions.append((start, f"{written(call)}: {swap.act(call)}"))
        return film(swap.scene, captions)

    def expert(self, problem: Problem) -> list[Step]:
        """Copy or compute every argument from what was measured."""
        data, whole = problem.data, problem.level in (2, 4)
        (pack, turn), (bay, twist) = data["pack"], data["bay"]
        spring, force = data["spring"], data["spring"] + PUSH_MARGIN_N
        thoughts = [f"{pack} {turn}", f"{-bay} {-twist}"]
        if "hand" in data:
            a, b, c, d = data["hand"]
            thoughts = [
                f"{a + pack}-{a}={pack} {b + turn}-{b}={turn}",
                f"{c}-{c + bay}={-bay} {d}-{d + twist}={-twist}",
            ]
        steps = [
            Step(("grasp", (pack, turn)), thoughts[0]),
            Step(("align", (-bay, -twist)), thoughts[1]),
            Step(("insert", (force,)), f"{spring}+{PUSH_MARGIN_N}={force}"),
            Step(("latch", ())),
        ]
        if whole:
            opening = [
                Step(("walk_to", data["stand"])),
                Step(("unlatch", ())),
                Step(("pull", (data["pull"],))),
                Step(("release", ())),
            ]
            steps = opening + steps
        return steps


class Attempted:
    """An attempt at a swap: what other attempts did before is looked up, for the same calls give the same bits.

    A group's samples mostly begin alike, and the physics are the dearer half of a rollout.

    Args:
        beginning: of the problem; calls that were not made before are added to it.
    """

    def __init__(self, beginning: Branch) -> None:
        self._at = beginning

    @property
    def won(self) -> bool:
        """Whether the goal is reached."""
        return self._at.swap.won

    @property
    def over(self) -> bool:
        """Whether nothing more can be done."""
        return self._at.swap.over

    @property
    def progress(self) -> float:
        """How much of the goal is reached."""
        return self._at.swap.progress

    def act(self, call: Call) -> str:
        """Carry a skill out, where no attempt has yet, and return what sensors and camera say."""
        known = self._at.then
        if call not in known:
            swap = self._at.swap.copy()
            text = swap.act(call)
            known[call] = text, Branch(swap)
        text, self._at = known[call]
        return text


class Branch:
    """A swap as it is after some calls, never to be changed, and what is known of further ones."""

    def __init__(self, swap: Swap) -> None:
        self.swap = swap
        self.then: dict[Call, tuple[str, Branch]] = {}


class Swap:
    """A swap under way: numbers to the physics, and what is seen back as text.

    Args:
        problem: what is off by how much.
        record: whether poses are kept for a film.
    """

    def __init__(self, problem: Problem, *, record: bool = False) -> None:
        data = problem.data
        self.stand = data.get("stand", (0, 0, 0))
        ahead, left, turned = data.get("start", (0, 0, 0))
        setup = Setup(
            start=(ahead / 100, left / 100, math.radians(turned)),
            fresh=(data["pack"][0] / MM, math.radians(data["pack"][1])),
            bias=(data["bay"][0] / MM, math.radians(data["bay"][1])),
            spring_n=float(data["spring"]),
            drawn="stand" not in data,
        )
        self.scene = BatteryScene(setup, record=record)
        self.budget_s, self.calls = CHARGE_S[problem.level], 0
        self.won = self.over = False

    def copy(self) -> Swap:
        """Return the swap as it now is, to go on by itself."""
        copied = copy.copy(self)
        copied.scene = self.scene.copy()
        return copied

    @property
    def charge(self) -> int:
        """What is left, in per cent."""
        spent = self.scene.seconds + CALL_S * self.calls
        return max(0, round(100 * (1 - spent / self.budget_s)))

    @property
    def progress(self) -> float:
        """A quarter for each: the fresh pack is off its tray, stands straight before the bay, is all the way in."""
        scene = self.scene
        if self.won or scene.height("fresh") < LIFTED_M:
            return float(self.won)
        to_go, off, turn = scene.in_bay("fresh")
        straight = abs(off) < STRAIGHT_M and abs(turn) < STRAIGHT_RAD
        return 0.25 + 0.25 * straight + 0.25 * (straight and abs(to_go) < HOME_M and not scene.bent)

    def act(self, call: Call) -> str:
        """Carry a skill out and return what sensors and camera say."""
        self.calls += 1
        name, numbers = call
        text = getattr(self, f"_{name}")(*numbers)
        scene = self.scene
        if (pack := scene.fallen()) is not None:
            self.over, text = True, f"the {pack} pack fell"
        elif scene.bent:
            self.over, text = True, "pushed too hard: contacts bent"
        elif self.charge == 0:
            self.over, text = True, "the battery is empty"
        elif name == "latch" and scene.pin_up() and abs(scene.in_bay("fresh")[0]) < HOME_M:
            self.won = self.over = True
        return f"{text}, charge {self.charge}"

    def _walk_to(self, x: int, y: int, heading: int) -> str:
        dx, dy = (x - self.stand[0]) / 100, (y - self.stand[1]) / 100
        turn = math.radians(self.stand[2])
        ahead = math.cos(turn) * dx + math.sin(turn) * dy
        left = -math.sin(turn) * dx + math.cos(turn) * dy
        off = math.remainder(math.radians(heading - self.stand[2]), 2 * math.pi)
        if ahead > 0.05:
            ahead = 0.05  # there the table is: it stops the robot
        self.scene.walk(ahead, left, off)
        gx, gy, _ = self.scene.base()
        return "at the station" if math.hypot(gx, gy) < 0.05 else "not at the station"

    def _unlatch(self) -> str:
        self.scene.unlatch()
        return "pin stuck" if self.scene.pin_up() else "pin down"

    def _pull(self, mm: int) -> str:
        self.scene.pull(mm / MM)
        held = self.scene.held()
        if held is None:
            return "nothing held"
        return f"{held} pack out {round(MM * self.scene.in_bay(held)[0])}"

    def _release(self) -> str:
        held = self.scene.held()
        self.scene.release()
        return f"{held} pack put down" if held else "nothing was held"

    def _grasp(self, dy: int, angle: int) -> str:
        if self.scene.held() is not None:
            return "the hand is full"
        self.scene.grasp(dy / MM, math.radians(angle))
        if self.scene.held() is not None:
            bay, twist = self.scene.setup.bias
            return f"held, bay {round(MM * bay)} {round(math.degrees(twist))}"
        off, turn = self.scene.on_tray("fresh")
        return f"missed, pack {round(MM * off)} {round(math.degrees(turn))}"

    def _align(self, dy: int, angle: int) -> str:
        if self.scene.held() is None:
            return "nothing held"
        self.scene.align(dy / MM, math.radians(angle))
        held = self.scene.held()
        if held is None:
            return "nothing held"
        _, off, turn = self.scene.in_bay(held)
        return f"bay {round(MM * off)} {round(math.degrees(turn))}"

    def _insert(self, force: int) -> str:
        if self.scene.held() is None:
            return "nothing held"
        self.scene.insert(float(force))
        pack = self.scene.held()
        return f"to go {max(0, round(MM * self.scene.in_bay(pack)[0]))}" if pack else "nothing held"

    def _latch(self) -> str:
        self.scene.latch()
        return "latched" if self.scene.latched() else "not latched"


@lru_cache(maxsize=REMEMBERED)
def _beginning(problem: Problem) -> Branch:
    return Branch(Swap(problem))


def _prompt(level: int, data: Mapping[str, Any]) -> str:
    (pack, turn), (bay, twist), spring = data["pack"], data["bay"], data["spring"]
    lines = []
    if level in (2, 4):
        lines += ["stand " + " ".join(map(str, data["stand"])), f"pull {data['pull']}"]
    if level < 3:
        lines += [f"pack {pack} {turn}", f"bay {bay} {twist}"]
    else:
        a, b, c, d = data["hand"]
        lines += [f"pack {a + pack} {a} {b + turn} {b}", f"bay {c + bay} {c} {d + twist} {d}"]
    return "\n".join([*lines, f"spring {spring}"])
