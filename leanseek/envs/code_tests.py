"""code_tests: write a Python function that passes hidden tests, run in the sandbox."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from leanseek.envs import sandbox
from leanseek.envs.environment import Environment, Problem
from leanseek.messages import Message

HIDDEN = 12  # tests that decide
SHOWN = 2  # tests of the prompt
LIMITS = sandbox.Limits(seconds=4.0, cpu_seconds=3)
_FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL)
# Inside the sandbox: results go out through a copy of the pipe, so that what the code prints is not among them. What
# is right is not in there: nothing that the code does can make a wrong result right.
_HARNESS = """
import json, os, sys
answers = os.fdopen(os.dup(1), "w")
os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
names = {"__name__": "solution"}
exec(compile(given["code"], "solution.py", "exec"), names)
json.dump([names["solve"](*arguments) for arguments in given["calls"]], answers)
answers.flush()
"""


@dataclass(frozen=True)
class Task:
    """What a function does.

    Args:
        asked: in words, after "Write a Python function".
        head: its parameters.
        body: a reference's lines.
        inputs: draws the arguments of a call.
    """

    asked: str
    head: str
    body: Sequence[str]
    inputs: Callable[[random.Random], list[Any]]

    @property
    def code(self) -> str:
        """The reference as a program."""
        return "\n".join([f"def solve({self.head}):", *(f"    {line}" for line in self.body)])


class CodeTests(Environment):
    """Functions over lists, texts and graphs of numbers, made of parts with constants of their own.

    Levels: 1 and 2 are one and three steps over a list, 3 is an algorithm. The answer is the function, with a code
    fence around it or without.
    """

    name = "code_tests"
    description = "write a Python function that passes hidden tests"
    levels = (1, 2, 3)
    longest_answer = 4000
    exact = False  # a comment after a right program leaves it right
    waits = True

    def draw(self, level: int, rng: random.Random) -> Problem:
        """Draw a function, tests to show and tests to hide."""
        task = rng.choice(_ALGORITHMS)(rng) if level == 3 else _steps(rng, 1 if level == 1 else 3)
        own = random.Random(task.asked)
        calls = [task.inputs(own) for _ in range(SHOWN + HIDDEN)]
        names: dict[str, Any] = {}
        exec(compile(task.code, "reference.py", "exec"), names)  # our own code, from this file
        results = [names["solve"](*json.loads(json.dumps(call))) for call in calls]
        shown = [
            f"solve({', '.join(map(repr, call))}) == {result!r}" for call, result in zip(calls, results, strict=True)
        ]
        prompt = f"Write a Python function solve({task.head}) that {task.asked}\nFor example:\n" + "\n".join(
            shown[:SHOWN]
        )
        data = {"code": task.code, "calls": calls, "results": results, "steps": list(task.body)}
        return Problem(self.name, level, prompt, data, task.asked)

    def solution(self, problem: Problem, rng: random.Random) -> Message:
        """Return the reference, and its lines one by one as thinking."""
        thinking = "\n".join(line.strip() for line in problem.data["steps"])
        return Message("assistant", f"```python\n{problem.data['code']}\n```", thinking)

    def check(self, problem: Problem, answer: str) -> bool:
        """Whether the function gives what the reference gives, for every test.

        Raises:
            TaskError: there is no sandbox here.
        """
        fenced = _FENCED.findall(answer)
        code = fenced[-1] if fenced else answer
        if "def solve" not in code and "solve =" not in code:
            return False
        result = sandbox.run(_HARNESS, {"code": code, "calls": problem.data["calls"]}, LIMITS)
        if result.status != "ended":
            return False
        try:
            # As JSON, so that True is not 1.
            return json.dumps(json.loads(result.output)) == json.dumps(problem.data["results"])
        except (ValueError, RecursionError):
            return False

    def wrong_answer(self, problem: Problem) -> str:
        """Return a function that gives nothing."""
        return "def solve(*arguments):\n    return None"


def _numbers(rng: random.Random) -> list[Any]:
    return [[rng.randint(-30, 60) for _ in range(rng.choice((0, 1, 3, 6, 9, 12)))]]


# A step over the list xs: in words, and as a line.
Step = tuple[str, str]


def _step(rng: random.Random) -> Step:
    k, a, d = rng.randint(2, 9), rng.randint(2, 12), rng.randint(-20, 40)
    return rng.choice(
        (
            (f"drops the numbers that {k} divides", f"xs = [x for x in xs if x % {k}]"),
            (f"keeps the numbers above {d}", f"xs = [x for x in xs if x > {d}]"),
            (f"multiplies each by {a}", f"xs = [x * {a} for x in xs]"),
            (f"adds {d} to each", f"xs = [x + {d} for x in xs]"),
            (f"adds {a} times its place, counted from 0, to each", f"xs = [x + {a} * i for i, x in enumerate(xs)]"),
            (f"takes each modulo {a} as Python does", f"xs = [x % {a} for x in xs]"),
            ("turns the list around", "xs = xs[::-1]"),
            ("sorts it, smallest first", "xs = sorted(xs)"),
            ("keeps the first of numbers that are equal", "xs = list(dict.fromkeys(xs))"),
            (f"keeps every {k}-th number, beginning with the first", f"xs = xs[::{k}]"),
            (f"leaves out the first {k} numbers", f"xs = xs[{k}:]"),
            (f"limits each to at most {d}", f"xs = [min(x, {d}) for x in xs]"),
            (f"puts {d} behind it", f"xs = [*xs, {d}]"),
            ("replaces each number by the sum of all up to it", "xs = [sum(xs[: i + 1]) for i in range(len(xs))]"),
        )
    )


def _end(rng: random.Random) -> Step:
    k, d = rng.randint(2, 9), rng.randint(-20, 40)
    return rng.choice(
        (
            ("returns the list", "return xs"),
            ("returns its sum", "return sum(xs)"),
            (f"returns the largest number, or {d} if there is none", f"return max(xs, default={d})"),
            (f"returns how many are below {d}", f"return sum(x < {d} for x in xs)"),
            (f"returns whether {d} is among them", f"return {d} in xs"),
            (f"returns the sum of those that {k} divides", f"return sum(x for x in xs if x % {k} == 0)"),
        )
    )


def _steps(rng: random.Random, count: int) -> Task:
    steps = [_step(rng) for _ in range(count)]
    words, end = [step[0] for step in steps], _end(rng)
    asked = "takes a list of whole numbers, " + ", then ".join(words) + f", and {end[0]}."
    return Task(asked, "xs", [*(step[1] for step in steps), end[1]], _numbers)


def _text(rng: random.Random) -> list[Any]:
    return ["".join(rng.choice("aabbcdxyz AB 123") for _ in range(rng.randint(0, 20)))]


def _coins(rng: random.Random) -> Task:
    coins = sorted(rng.sample(range(2, 40), rng.randint(2, 4)))
    body = ["ways = [1] + [0] * n", f"for coin in {coins}:", "    for i in range(coin, n + 1):"]
    body += ["        ways[i] += ways[i - coin]", "return ways[n]"]
    asked = f"returns in how many ways n is a sum of the numbers {coins}, each as often as wanted, whatever the order."
    return Task(asked, "n", body, lambda r: [r.randint(0, 90)])


def _intervals(rng: random.Random) -> Task:
    gap = rng.randint(0, 400)
    body = ["merged = []", "for start, end in sorted(spans):", f"    if merged and start <= merged[-1][1] + {gap}:"]
    body += ["        merged[-1][1] = max(merged[-1][1], end)", "    else:", "        merged.append([start, end])"]
    asked = f"merges a list of [start, end] spans that overlap or are at most {gap} apart, and returns them in order."

    def inputs(r: random.Random) -> list[Any]:
        starts = [r.randint(0, 20 * (gap + 3)) for _ in range(r.randint(0, 8))]
        return [[[start, start + r.randint(0, gap + 9)] for start in starts]]

    return Task(asked, "spans", [*body, "return merged"], inputs)


def _cipher(rng: random.Random) -> Task:
    by, every = rng.randint(1, 25), rng.randint(2, 9)
    body = ["out = ''", "for i, c in enumerate(text):", f"    if 'a' <= c <= 'z' and i % {every}:"]
    body += [f"        c = chr((ord(c) - 97 + {by}) % 26 + 97)", "    out += c", "return out"]
    asked = f"moves each small letter a-z of a text {by} places on in the alphabet, z being followed by a, but for the "
    return Task(asked + f"letters whose place, counted from 0, {every} divides.", "text", body, _text)


def _runs(rng: random.Random) -> Task:
    least, mark = rng.randint(2, 5), rng.choice("*#@%&=+~^")
    body = ["out, i = '', 0", "while i < len(text):", "    j = i", "    while j < len(text) and text[j] == text[i]:"]
    body += [
        "        j += 1",
        f"    out += text[i] + '{mark}' + str(j - i) if j - i >= {least} else text[i:j]",
        "    i = j",
    ]
    asked = f"shortens a text: a run of {least} or more equal characters becomes the character, {mark!r} and the run's "
    inputs = lambda r: ["".join(r.choice("ab") * r.randint(1, 7) for _ in range(r.randint(0, 6)))]  # noqa: E731
    return Task(asked + "length; the rest stays.", "text", [*body, "return out"], inputs)


def _rising(rng: random.Random) -> Task:
    least = rng.randint(1, 300)
    body = ["best = []", "for i, x in enumerate(xs):"]
    body += [f"    best.append(1 + max((best[j] for j in range(i) if x - xs[j] >= {least}), default=0))"]
    asked = (
        f"returns how many numbers of a list can be kept, in their order, so that each is at least {least} above the "
    )
    inputs = lambda r: [[r.randint(0, 6 * least) for _ in range(r.randint(0, 12))]]  # noqa: E731
    return Task(asked + "one kept before it.", "xs", [*body, "return max(best, default=0)"], inputs)


def _chain(rng: random.Random) -> Task:
    a, b, m, most = rng.randint(2, 30), rng.randint(1, 90), rng.randint(20, 400), rng.randint(50, 90)
    body = ["seen = {}", f"for step in range({most * 10}):", "    if n in seen:", "        return step - seen[n]"]
    body += ["    seen[n] = step", f"    n = (n * {a} + {b}) % {m}", "return 0"]
    asked = f"replaces n by (n * {a} + {b}) modulo {m} again and again and returns how long the cycle is that it enters"
    return Task(f"{asked}; 0 if none is met in {most * 10} steps.", "n", body, lambda r: [r.randint(0, m)])


def _grid(rng: random.Random) -> Task:
    climb, fall = rng.randint(1, 60), rng.randint(1, 60)
    body = ["rows, columns = len(grid), len(grid[0])", "steps, todo = {(0, 0): 0}, [(0, 0)]", "for r, c in todo:"]
    body += ["    for y, x in ((r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)):"]
    body += ["        if 0 <= y < rows and 0 <= x < columns and (y, x) not in steps:"]
    body += [f"            if -{fall} <= grid[y][x] - grid[r][c] <= {climb}:"]
    body += ["                steps[y, x] = steps[r, c] + 1", "                todo.append((y, x))"]
    body += ["return steps.get((rows - 1, columns - 1), -1)"]
    asked = "returns the fewest steps (up, down, left or right) from the first to the last field of a grid of heights, "
    asked += f"where a step climbs at most {climb} and falls at most {fall}; -1 if there is no way."

    def inputs(r: random.Random) -> list[Any]:
        rows, columns = r.randint(1, 4), r.randint(1, 5)
        return [[[r.randint(0, climb + fall) for _ in range(columns)] for _ in range(rows)]]

    return Task(asked, "grid", body, inputs)


_ALGORITHMS = (_coins, _intervals, _cipher, _runs, _rising, _chain, _grid)
