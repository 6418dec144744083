"""Skills: what can be done in a world, as tools with whole-number arguments; hostile calls become sentences."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from leanseek.messages import Message, ToolCall, ToolSpec

Call = tuple[str, tuple[int, ...]]
# A number as plans have it: few digits, so that nothing overflows.
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,3})", re.ASCII)
# Longest text of a call's arguments that is looked at.
LONGEST = 300


@dataclass(frozen=True)
class Argument:
    """A whole number between two bounds, both accepted."""

    name: str
    low: int
    high: int
    meaning: str


@dataclass(frozen=True)
class Skill:
    """Something that can be done: a name, its arguments, and what it does."""

    name: str
    meaning: str
    arguments: tuple[Argument, ...] = ()

    def spec(self) -> ToolSpec:
        """Return the skill as a tool, for chat formats and servers."""
        properties = {
            one.name: {"type": "integer", "minimum": one.low, "maximum": one.high, "description": one.meaning}
            for one in self.arguments
        }
        schema = {
            "type": "object",
            "properties": properties,
            "required": [one.name for one in self.arguments],
            "additionalProperties": False,
        }
        return ToolSpec(self.name, self.meaning, schema)

    def numbers(self, values: Mapping[str, object]) -> tuple[int, ...]:
        """Return checked arguments in order.

        Raises:
            ValueError: one is missing, unknown, no whole number or out of bounds; the message is for the model.
        """
        known = [one.name for one in self.arguments]
        if list(sorted(values)) != sorted(known):
            raise ValueError(f"{self.name} takes {', '.join(known) or 'no arguments'}")
        found = []
        for one in self.arguments:
            value = values[one.name]
            if isinstance(value, float) and value.is_integer() and abs(value) < 1e6:
                value = int(value)
            if isinstance(value, bool) or not isinstance(value, int) or not one.low <= value <= one.high:
                raise ValueError(f"{self.name}: {one.name} must be a whole number from {one.low} to {one.high}")
            found.append(value)
        return tuple(found)


def read_plan(text: str, skills: Sequence[Skill], most: int) -> list[Call] | None:
    """Return the calls of a plan, a line each such as `grasp 12 -3`; None where a line is none, or of too many."""
    named = {skill.name: skill for skill in skills}
    lines = text.split("\n")
    if not 0 < len(lines) <= most:
        return None
    calls = []
    for line in lines:
        name, *words = line.split(" ")
        if name not in named or any(_NUMBER.fullmatch(word) is None for word in words):
            return None
        skill = named[name]
        if len(words) != len(skill.arguments):
            return None
        try:
            given = {one.name: int(word) for one, word in zip(skill.arguments, words, strict=True)}
            calls.append((name, skill.numbers(given)))
        except ValueError:
            return None
    return calls


def read_call(call: ToolCall, skills: Sequence[Skill]) -> Call:
    """Return what a tool call asks for.

    Raises:
        ValueError: an unknown skill or arguments that it does not take; the message is for the model.
    """
    skill = next((one for one in skills if one.name == call.name), None)
    if skill is None:
        raise ValueError(f"no such skill; there are {', '.join(one.name for one in skills)}")
    if len(call.arguments) > LONGEST:
        raise ValueError(f"{skill.name}: the arguments are too long")
    try:
        values = json.loads(call.arguments or "{}")
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise ValueError(f"{skill.name}: the arguments must be a JSON object")
    return skill.name, skill.numbers(values)


def written(call: Call) -> str:
    """Return a call as a line of a plan."""
    return " ".join([call[0], *map(str, call[1])])


def tool_call(call: Call, skills: Sequence[Skill], number: int, thought: str = "") -> Message:
    """Return a call as the message of an assistant that makes it.

    Args:
        call: what is done.
        skills: among which it is.
        number: of the call, for its id.
        thought: what is thought before.
    """
    skill = next(one for one in skills if one.name == call[0])
    arguments = {one.name: value for one, value in zip(skill.arguments, call[1], strict=True)}
    made = ToolCall(f"call_{number}", call[0], json.dumps(arguments, separators=(",", ":")))
    return Message("assistant", "", thought, (made,))
