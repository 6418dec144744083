"""countdown: reach a target from a few numbers with + - * /, each used at most once."""

from __future__ import annotations

import itertools
import operator
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import lru_cache

from leanseek.envs.environment import LABELS, Environment, Problem
from leanseek.messages import Message

LARGEST = 99  # of every value that a worked solution passes through
RANGES = {2: 49, 3: 20, 4: 12}  # level -> largest number given: fewer numbers, larger ones, so that none run out
HIT = 0.4  # chance that a line of practice shows a hit
MOST_FAILURES = 12  # that a worked solution writes: all there are with three numbers, some of those with four
OPERATIONS: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
_JOIN = re.compile(r"([a-j])[0-9]+ ([a-j])[0-9]+ ([-+*/])[0-9]+ .*")
_TOKEN = re.compile(r" *([0-9]+|[-+*/()]) *")

# A labelled value and the expression that it came from.
Item = tuple[str, int, str]
# Which two labels are joined, larger value first, by which operation.
Merge = tuple[str, str, str]


class Countdown(Environment):
    """Lines `a25`, then `make 54`. All given numbers are needed, as far as whole numbers up to 99 go.

    The thinking is a list of tries, in a fixed order: the first two numbers by + - * /, then the first and the third,
    and so on, leaving out what makes nothing new. So the next try follows from the last, and none comes twice.
    `a25 b7 -18 d18` joins two numbers into a new one, and restates what is left if
    that is more than two; once two are left, `d18 c3 +21 -15 *54 /6 |54 *` writes all that they make, the target
    beside it, and the operation that hits it, or `no`. Larger first, always; x is no whole number up to 99.
    """

    name = "countdown"
    description = "reach a target from a few numbers with + - * /"
    levels = (2, 3, 4)

    def draw(self, level: int, rng: random.Random) -> Problem:
        """Draw `level` numbers and a target that takes all of them."""
        while True:
            numbers = tuple(rng.randint(1, RANGES[level]) for _ in range(level))
            items = _items(numbers)
            while len(items) > 1:
                steps = [(x, y, op) for x, y in _pairs(items) for op in _useful(x[1], y[1])]
                if not steps:
                    break
                items = _join(items, *rng.choice(steps))
            if len(items) == 1 and items[0][1] not in _fewer(tuple(sorted(numbers))):
                break
        target, answer = items[0][1], items[0][2].removeprefix("(").removesuffix(")")
        lines = [*(f"{LABELS[i]}{number}" for i, number in enumerate(numbers)), f"make {target}"]
        key = " ".join(map(str, sorted(numbers))) + f" = {target}"
        data = {"numbers": numbers, "target": target, "answer": answer}
        return Problem(self.name, level, "\n".join(lines), data, key)

    def solution(self, problem: Problem, rng: random.Random) -> Message:
        """Write the tries up to the first that succeeds; where too many fail, some of them, in their order."""
        start, target = _items(problem.data["numbers"]), problem.data["target"]
        failures: list[list[Merge]] = []
        for merges, (x, y) in _tries(start):
            if target in _values(x[1], y[1]).values():
                break
            failures.append(merges)
        shown = sorted(rng.sample(range(len(failures)), min(len(failures), MOST_FAILURES)))
        lines = [line for place in shown for line in _write(start, failures[place], target)[0]]
        success, expression = _write(start, merges, target)
        return Message("assistant", expression, "\n".join(lines + success))

    def check(self, problem: Problem, answer: str) -> bool:
        """Whether the answer is an expression of the given numbers, each at most once, that makes the target."""
        parsed = evaluate(answer)
        if parsed is None:
            return False
        value, used = parsed
        return value == problem.data["target"] and not Counter(used) - Counter(problem.data["numbers"])

    def wrong_answer(self, problem: Problem) -> str:
        """Return the sum of the first two numbers, or their difference where the sum is right."""
        a, b = problem.data["numbers"][:2]
        return f"{a}+{b}" if a + b != problem.data["target"] else f"{a}-{b}"

    def practice(self, rng: random.Random) -> str:
        """Return a target and a finishing line: what two numbers make, and whether one of them is the target."""
        while True:
            a, b = rng.randint(1, LARGEST), rng.randint(1, RANGES[3])
            first, second = rng.sample(LABELS[:6], 2)
            x, y = (first, max(a, b), ""), (second, min(a, b), "")
            made = [v for v in _values(x[1], y[1]).values() if v]
            target = rng.choice(made) if rng.random() < HIT else rng.randint(1, LARGEST)
            # The line is all the thinking that a problem of level 2 needs, so held-out ones are left out.
            if Problem(self.name, 2, "", {}, f"{y[1]} {x[1]} = {target}").split == "train":
                return f"make {target}\n{_finish(x, y, target)[0]}"

    def audit(self, problem: Problem, reasoning: str) -> bool:
        """Whether every try joins what is there, computes and judges it right, and the last alone succeeds."""
        start = _items(problem.data["numbers"])
        items = start
        target = problem.data["target"]
        lines = reasoning.split("\n")
        for number, line in enumerate(lines):
            if len(items) > 2:
                joined = _read_join(items, line)
                if joined is None:
                    return False
                items = joined
                continue
            orders = [(x, y) for x, y in itertools.permutations(items) if x[1] >= y[1]]
            hits = [op for op, value in _values(orders[0][0][1], orders[0][1][1]).items() if value == target]
            shown, _, said = line.rpartition(" ")
            if shown not in (_finish(x, y, target)[0].rpartition(" ")[0] for x, y in orders):
                return False
            if said not in (hits or ["no"]) or bool(hits) != (number == len(lines) - 1):
                return False
            items = start
        return items is start


def evaluate(text: str) -> tuple[Fraction, list[int]] | None:
    """Return an expression's exact value and the numbers in it, or None where it is not an expression.

    Whole numbers without leading zeros, + - * /, brackets and spaces; no sign in front of a number. Nothing
    recurses and nothing is executed, so that any text can be given.
    """
    values: list[Fraction] = []
    waiting: list[str] = []
    used: list[int] = []
    at, wants_value = 0, True
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            return None
        token, at = match[1], match.end()
        if wants_value:
            if token == "(":
                waiting.append(token)
                continue
            if not token.isdigit() or (token[0] == "0" and token != "0"):
                return None
            used.append(int(token))
            values.append(Fraction(used[-1]))
            wants_value = False
            continue
        if token == "(" or token.isdigit():
            return None
        while waiting and waiting[-1] != "(" and (token in "+-)" or waiting[-1] in "*/"):
            if not _apply(values, waiting.pop()):
                return None
        if token == ")":
            if not waiting:
                return None
            waiting.pop()
        else:
            waiting.append(token)
            wants_value = True
    if wants_value:
        return None
    return (values[0], used) if all(_apply(values, op) for op in reversed(waiting)) else None


def _apply(values: list[Fraction], op: str) -> bool:
    """Join the last two values; False for a bracket that was never closed and for a division by zero."""
    if op == "(":
        return False
    right, left = values.pop(), values.pop()
    if op == "/" and right == 0:
        return False
    values.append(OPERATIONS[op](left, right))
    return True


def _items(numbers: tuple[int, ...]) -> list[Item]:
    return [(LABELS[i], number, str(number)) for i, number in enumerate(numbers)]


def _pairs(items: list[Item]) -> Iterator[tuple[Item, Item]]:
    """Yield every two items, larger first."""
    for i, one in enumerate(items):
        for other in items[i + 1 :]:
            yield (one, other) if one[1] >= other[1] else (other, one)


def _values(larger: int, smaller: int) -> dict[str, int | None]:
    """Return what two numbers, neither of them 0, make by each operation; None for no whole number up to LARGEST."""
    total, product = larger + smaller, larger * smaller
    return {
        "+": total if total <= LARGEST else None,
        "-": larger - smaller,
        "*": product if product <= LARGEST else None,
        "/": larger // smaller if larger % smaller == 0 else None,
    }


def _useful(larger: int, smaller: int) -> list[str]:
    """Return the operations that make something new: neither nothing nor one of the two again."""
    return [op for op, v in _values(larger, smaller).items() if v and v not in (larger, smaller)]


def _join(items: list[Item], x: Item, y: Item, op: str) -> list[Item]:
    """Return the items with two of them joined; the new one stands last."""
    value = _values(x[1], y[1])[op]
    assert value is not None, "callers take only operations that _values allows"
    left = [item for item in items if item[0] not in (x[0], y[0])]
    return [*left, (_new_label(items), value, f"({x[2]}{op}{y[2]})")]


def _tries(items: list[Item]) -> Iterator[tuple[list[Merge], tuple[Item, Item]]]:
    """Yield every way to join items until two are left, and the two, larger first."""
    if len(items) == 2:
        yield [], next(_pairs(items))
        return
    for x, y in _pairs(items):
        for op in _useful(x[1], y[1]):
            for rest, left in _tries(_join(items, x, y, op)):
                yield [(x[0], y[0], op), *rest], left


def _new_label(items: list[Item]) -> str:
    """Return the label after the last one in use."""
    return LABELS[LABELS.index(items[-1][0]) + 1]


def _write(items: list[Item], merges: list[Merge], target: int) -> tuple[list[str], str]:
    """Return the lines of a try, and the expression it finds, or ""."""
    lines = []
    for first, second, op in merges:
        x, y = next(i for i in items if i[0] == first), next(i for i in items if i[0] == second)
        items, line = _join_line(items, x, y, op)
        lines.append(line)
    x, y = next(_pairs(items))
    line, verdict = _finish(x, y, target)
    return [*lines, line], "" if verdict == "no" else f"{x[2]}{verdict}{y[2]}"


def _join_line(items: list[Item], x: Item, y: Item, op: str) -> tuple[list[Item], str]:
    """Return the items after a join, and its line."""
    joined = _join(items, x, y, op)
    left = joined if len(joined) > 2 else joined[-1:]
    shown = " ".join(f"{item[0]}{item[1]}" for item in left)
    return joined, f"{x[0]}{x[1]} {y[0]}{y[1]} {op}{joined[-1][1]} {shown}"


def _finish(x: Item, y: Item, target: int) -> tuple[str, str]:
    """Return the line that ends a try, and its verdict."""
    values = _values(x[1], y[1])
    verdict = next((op for op, value in values.items() if value == target), "no")
    shown = " ".join(f"{op}{'x' if value is None else value}" for op, value in values.items())
    return f"{x[0]}{x[1]} {y[0]}{y[1]} {shown} |{target} {verdict}", verdict


def _read_join(items: list[Item], line: str) -> list[Item] | None:
    """Return the items after a line that joins two of them, or None where the line is wrong."""
    match = _JOIN.fullmatch(line)
    found = {item[0]: item for item in items}
    if match is None or match[1] == match[2] or match[1] not in found or match[2] not in found:
        return None
    x, y, op = found[match[1]], found[match[2]], match[3]
    if x[1] < y[1] or not _values(x[1], y[1])[op]:
        return None
    joined, wanted = _join_line(items, x, y, op)
    return joined if line == wanted else None


@lru_cache(maxsize=4096)
def _made(numbers: tuple[int, ...]) -> frozenset[int]:
    """Return the whole numbers that take all of some sorted numbers."""
    if len(numbers) == 1:
        return frozenset(numbers)
    made: set[int] = set()
    for i, one in enumerate(numbers):
        for j in range(i + 1, len(numbers)):
            rest = numbers[:i] + numbers[i + 1 : j] + numbers[j + 1 :]
            for value in _values(numbers[j], one).values():
                if value:
                    made |= _made(tuple(sorted((*rest, value))))
    return frozenset(made)


@lru_cache(maxsize=4096)
def _fewer(numbers: tuple[int, ...]) -> frozenset[int]:
    """Return what some sorted numbers make when at least one of them stays out."""
    made: set[int] = set()
    for i in range(len(numbers)):
        rest = numbers[:i] + numbers[i + 1 :]
        made |= _made(rest) | (_fewer(rest) if len(rest) > 1 else frozenset())
    return frozenset(made)
