"""tool_use: problems too hard for the head, with a calculator and Python to call."""

from __future__ import annotations

import json
import random
from bisect import bisect_left
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from leanseek.envs import sandbox
from leanseek.envs.environment import Environment, Episode, Problem, Turn
from leanseek.envs.expressions import MOST_CHARACTERS, exact
from leanseek.messages import Message, ToolCall, ToolSpec

MOST_REPLIES = 8  # of an episode
MOST_CALLS = 4  # that a reply's are done
RESULT_CHARACTERS = 500
LIMITS = sandbox.Limits(seconds=4.0, cpu_seconds=3)
_TEXT = {"type": "string"}
CALCULATOR = ToolSpec(
    "calculator",
    "The exact value of an expression of numbers with + - * / ^ and brackets.",
    {"type": "object", "properties": {"expression": _TEXT}, "required": ["expression"]},
)
PYTHON = ToolSpec(
    "python",
    "Runs a Python program and returns what it prints.",
    {"type": "object", "properties": {"code": _TEXT}, "required": ["code"]},
)


class ToolUse(Environment):
    """Levels: 1 one product of large numbers; 2 two steps, the second with the first's result; 3 a program.

    The model thinks, calls, reads the result, thinks on, and answers with a number alone. `format` asks for thinking
    in every reply and for an answer in the last.
    """

    name = "tool_use"
    description = "work out with a calculator or Python what nobody does in the head"
    levels = (1, 2, 3)
    tools = (CALCULATOR, PYTHON)
    multi_turn = True
    waits = True

    def draw(self, level: int, rng: random.Random) -> Problem:
        """Draw a problem and the calls that an expert makes."""
        asked, answer, steps = {1: _product, 2: _two_steps, 3: _program}[level](rng)
        return Problem(self.name, level, asked, {"answer": answer, "steps": steps}, asked)

    def solution(self, problem: Problem, rng: random.Random) -> Message:
        """Return an expert's first reply."""
        return self.start(problem).expert(rng)

    def check(self, problem: Problem, answer: str) -> bool:
        """Whether the answer is the number."""
        return answer == str(problem.data["answer"])

    def start(self, problem: Problem) -> Episode:
        """Begin an attempt."""
        return ToolLoop(self, problem)


class ToolLoop(Episode):
    """Calls are answered until a reply has none: that one is the answer."""

    def __init__(self, environment: Environment, problem: Problem) -> None:
        super().__init__(environment, problem)
        self._replies, self._formed = 0, True
        self._last = ""  # result, for the expert

    def step(self, reply: Message) -> Turn:
        """Do what a reply calls for, or score it."""
        self._replies += 1
        self._formed &= reply.reasoning_content is not None
        if not reply.tool_calls:
            answer = reply.content.strip()
            formed = self._formed and 0 < len(answer) <= self.environment.longest_answer
            correct = formed and self.environment.check(self.problem, answer)
            return Turn((), True, {"correct": float(correct), "format": float(formed)})
        if self._replies >= MOST_REPLIES:
            return Turn((), True, {"correct": 0.0, "format": 0.0})
        results = tuple(
            Message(
                "tool", _done(call) if i < MOST_CALLS else "error: too many calls", tool_call_id=call.id, name=call.name
            )
            for i, call in enumerate(reply.tool_calls)
        )
        self._last = results[-1].content
        return Turn(results, False, {"correct": 0.0, "format": float(self._formed)})

    def expert(self, rng: random.Random) -> Message:
        """Make the next call, with the last result where it is needed, or give the last result as the answer."""
        steps = self.problem.data["steps"]
        if self._replies >= len(steps):
            return Message("assistant", self._last, f"the result is {self._last}")
        thinking, tool, text = steps[self._replies]
        text = text.replace("LAST", self._last)
        key = "expression" if tool == "calculator" else "code"
        return Message("assistant", "", thinking, (ToolCall("call_0", tool, json.dumps({key: text})),))


def _done(call: ToolCall) -> str:
    """Return a call's result, or what is wrong with it, in words for the model."""
    try:
        arguments = json.loads(call.arguments) if len(call.arguments) <= 20_000 else None
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, Mapping):
        return "error: the arguments are no JSON object"
    if call.name == "calculator":
        return _calculated(arguments.get("expression"))
    if call.name == "python":
        code = arguments.get("code")
        if not isinstance(code, str):
            return "error: code is missing"
        result = sandbox.run(code, limits=LIMITS)
        said = result.output if result.status == "ended" else f"error ({result.status}): {result.errors}"
        return said.strip()[-RESULT_CHARACTERS:]
    return "error: there is no such tool; there are calculator and python"


def _calculated(expression: Any) -> str:
    if not isinstance(expression, str) or len(expression) > MOST_CHARACTERS:
        return "error: expression is missing or too long"
    value = exact(expression)
    return "error: no expression of numbers, or one too large" if value is None else str(value)


# A problem's text, answer and an expert's steps: what is thought, and the call.
_Made = tuple[str, int, list[tuple[str, str, str]]]


def _product(rng: random.Random) -> _Made:
    a, b, c = rng.randint(1000, 99_999), rng.randint(1000, 99_999), rng.randint(100, 9999)
    text = f"{a} * {b} - {c}"
    return f"What is {text}?", a * b - c, [("this is a job for the calculator", "calculator", text)]


def _two_steps(rng: random.Random) -> _Made:
    a, b, m = rng.randint(100, 9999), rng.randint(100, 9999), rng.randint(100, 999)
    first = a * b
    asked = f"Multiply {a} by {b}. Then multiply the result by {m} and add the result again. What do you get?"
    steps = [
        ("first the product", "calculator", f"{a} * {b}"),
        ("now with the result", "calculator", f"LAST * {m} + LAST"),
    ]
    return asked, first * m + first, steps


def _program(rng: random.Random) -> _Made:
    kind, n, d = rng.randrange(3), rng.randint(1000, 9999), rng.randint(3, 97)
    if kind == 0:
        asked = f"How many primes are below {n}?"
        code = f"print(sum(all(k % p for p in range(2, int(k**0.5) + 1)) for k in range(2, {n})))"
        answer = bisect_left(_primes(), n)
    elif kind == 1:
        asked = f"What is the sum of the decimal digits of {d}^{n % 900}?"
        code = f"print(sum(map(int, str({d} ** {n % 900}))))"
        answer = sum(map(int, str(d ** (n % 900))))
    else:
        asked = (
            f"What do the numbers from 1 to {n} that {d} does not divide and whose digits have an even sum add up to?"
        )
        test = "k % {d} and sum(map(int, str(k))) % 2 == 0".replace("{d}", str(d))
        code = f"print(sum(k for k in range(1, {n} + 1) if {test}))"
        answer = sum(k for k in range(1, n + 1) if k % d and sum(map(int, str(k))) % 2 == 0)
    return asked, answer, [("a program can count that", "python", code)]


@lru_cache(maxsize=1)
def _primes() -> list[int]:
    return [k for k in range(2, 10_000) if all(k % p for p in range(2, int(k**0.5) + 1))]
