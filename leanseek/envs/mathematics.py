"""mathematics: school problems at six levels, or a file's own, with answers checked exactly."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from leanseek.envs.environment import Environment, Problem, Split
from leanseek.envs.expressions import MOST_CHARACTERS, exact, is_number, same
from leanseek.envs.rows import in_turn
from leanseek.errors import DataError
from leanseek.messages import Message

# A problem as it is made: what is asked, the answer, and the lines that lead there.
Made = tuple[str, str, list[str]]
# What a line of a file may call its parts.
_ASKED, _ANSWERED, _WORKED = ("problem", "question", "prompt"), ("answer", "solution_answer", "target"), ("solution",)


class Mathematics(Environment):
    """Levels: 1 arithmetic, 2 fractions, 3 linear equations, 4 divisors and remainders, 5 quadratics, 6 in words.

    An answer is right if its value is: 3/4, 0.75 and 75/100 are the same, so are x+1 and 1+x. What has
    a number for an answer is not answered by what is still to be computed, nor a sum of powers by a product.

    Args:
        file: JSON lines with a `problem` and its `answer` each (`question` and `prompt` do as well; of an answer that
            has `####` in it, as GSM8K's have, what follows is the answer), and a `level` and a `solution` if wanted.
    Raises:
        DataError: the file cannot be read, or a line is not as above.
    """

    name = "mathematics"
    description = "school problems, from sums to quadratics, or those of a file"
    levels: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    option = "a file of problems, one a line as JSON"

    def __init__(self, file: str | None = None) -> None:
        self._rows: list[Problem] = []
        if file is not None:
            self.name = f"mathematics:{file}"
            self._rows = _read(self.name, Path(file))
            self.levels = tuple(sorted({row.level for row in self._rows}))
            self.description = f"the {len(self._rows)} problems of {file}"

    def draw(self, level: int, rng: random.Random) -> Problem:
        """Draw a problem of a level; of a file, any that has it."""
        if self._rows:
            return rng.choice([row for row in self._rows if row.level == level])
        asked, answer, lines = rng.choice(_MADE[level])(rng)
        return Problem(self.name, level, asked, {"answer": answer, "lines": lines}, asked)

    def problems(self, split: Split, seed: int, levels: Sequence[int] | None = None) -> Iterator[Problem]:
        """Yield problems; of a file, those of a split again and again, in an order of their own each time.

        Raises:
            TaskError: a level that there is not, or a split of a file that has no problem of a level.
        """
        chosen = tuple(levels or self.levels)
        if not self._rows or not set(chosen) <= set(self.levels):
            yield from super().problems(split, seed, levels)
            return
        yield from in_turn(self.name, self._rows, split, seed, chosen)

    def solution(self, problem: Problem, rng: random.Random) -> Message:
        """Return the lines that lead to the answer, or a file's solution."""
        return Message("assistant", problem.data["answer"], "\n".join(problem.data["lines"]))

    def check(self, problem: Problem, answer: str) -> bool:
        """Whether the answer has the right value, and is as far worked out as the right one."""
        gold = problem.data["answer"]
        if is_number(gold) and not is_number(answer):
            return False
        return answer.count("(") <= gold.count("(") and same(answer, gold)

    def wrong_answer(self, problem: Problem) -> str:
        """Return one more than what is right."""
        gold = problem.data["answer"]
        value = exact(gold)
        return str(value + 1) if value is not None else f"{gold}+1" if same(f"{gold}+1-1", gold) else "wrong"


def _read(name: str, file: Path) -> list[Problem]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as text ({error})") from None
    found: dict[str, Problem] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise DataError(f"{file}, line {number}: a JSON object is needed, as {{'problem': ..., 'answer': ...}}")
        asked, answer = _part(row, _ASKED), _part(row, _ANSWERED)
        if asked is None or answer is None:
            raise DataError(
                f"{file}, line {number}: it has {', '.join(row) or 'nothing'}; problem and answer are needed"
            )
        worked, _, last = answer.rpartition("####")
        answer, worked = last.strip(), _part(row, _WORKED) or worked.strip()
        if not 0 < len(answer) <= MOST_CHARACTERS:
            raise DataError(
                f"{file}, line {number}: its answer has {len(answer)} characters, not 1 to {MOST_CHARACTERS}"
            )
        level = row.get("level", 1)
        if not isinstance(level, int):
            raise DataError(f"{file}, line {number}: level = {level!r}: a whole number is needed")
        found[asked] = Problem(name, level, asked, {"answer": answer, "lines": worked.split("\n")}, asked)
    if not found:
        raise DataError(f"{file} has no problems in it")
    return list(found.values())


def _part(row: dict[str, Any], names: Sequence[str]) -> str | None:
    value = next((row[name] for name in names if name in row), None)
    return None if value is None or isinstance(value, dict | list) else str(value).strip()


def _shown(value: Fraction | int) -> str:
    return str(Fraction(value))


def _arithmetic(rng: random.Random) -> Made:
    a, b, c = rng.randint(2, 99), rng.randint(2, 99), rng.randint(2, 12)
    op = rng.choice("+-")
    inner = a + b if op == "+" else a - b
    if rng.random() < 0.5:
        return (
            f"What is ({a} {op} {b}) * {c}?",
            str(inner * c),
            [f"{a} {op} {b} = {inner}", f"{inner} * {c} = {inner * c}"],
        )
    total = a + b * c if op == "+" else a - b * c
    return f"What is {a} {op} {b} * {c}?", str(total), [f"{b} * {c} = {b * c}", f"{a} {op} {b * c} = {total}"]


def _division(rng: random.Random) -> Made:
    a, b, c = rng.randint(2, 30), rng.randint(2, 15), rng.randint(2, 99)
    total = a + c
    return f"What is {a * b} / {b} + {c}?", str(total), [f"{a * b} / {b} = {a}", f"{a} + {c} = {total}"]


def _fractions(rng: random.Random) -> Made:
    one, other = (Fraction(rng.randint(1, 12), rng.randint(2, 12)) for _ in range(2))
    op = rng.choice("+-*/")
    value = {"+": one + other, "-": one - other, "*": one * other, "/": one / other}[op]
    asked = f"What is {_shown(one)} {op} {_shown(other)}, as a fraction?".replace("/ ", ": ")
    if op in "+-":
        below = math.lcm(one.denominator, other.denominator)
        above = [x.numerator * below // x.denominator for x in (one, other)]
        total = above[0] + above[1] if op == "+" else above[0] - above[1]
        lines = [f"{above[0]}/{below} {op} {above[1]}/{below} = {total}/{below}"]
    else:
        second = other if op == "*" else 1 / other
        lines = [f"{one.numerator} * {second.numerator} = {one.numerator * second.numerator}"]
        lines += [f"{one.denominator} * {second.denominator} = {one.denominator * second.denominator}"]
    return asked, _shown(value), [*lines, f"= {_shown(value)}"]


def _linear(rng: random.Random) -> Made:
    a, c = rng.sample(range(2, 15), 2)
    b, d = rng.randint(-30, 30), rng.randint(-30, 30)
    x = Fraction(d - b, a - c)
    lines = [
        f"{a}x - {c}x = {d} - {b}" if b >= 0 else f"{a}x - {c}x = {d} + {-b}",
        f"{a - c}x = {d - b}",
        f"x = {_shown(x)}",
    ]
    return f"Solve {a}x {_signed(b)} = {c}x {_signed(d)} for x.", _shown(x), lines


def _signed(value: int) -> str:
    return f"+ {value}" if value >= 0 else f"- {-value}"


def _divisor(rng: random.Random) -> Made:
    common, a, b = rng.randint(2, 30), rng.randint(2, 20), rng.randint(2, 20)
    x, y = common * a, common * b
    gcd, lines, left, right = math.gcd(x, y), [], x, y
    while right:
        lines.append(f"{left} mod {right} = {left % right}")
        left, right = right, left % right
    if rng.random() < 0.5:
        return f"What is the greatest common divisor of {x} and {y}?", str(gcd), [*lines, f"gcd = {gcd}"]
    lcm = x * y // gcd
    return f"What is the least common multiple of {x} and {y}?", str(lcm), [*lines, f"{x} * {y} / {gcd} = {lcm}"]


def _remainder(rng: random.Random) -> Made:
    a, e, m = rng.randint(2, 30), rng.randint(3, 9), rng.randint(5, 60)
    value, lines = 1, []
    for _ in range(e):
        lines.append(f"{value} * {a} = {value * a}, mod {m}: {value * a % m}")
        value = value * a % m
    return f"What is the remainder when {a}^{e} is divided by {m}?", str(value), lines


def _quadratic(rng: random.Random) -> Made:
    p, q = rng.sample(range(-15, 16), 2)
    larger = max(p, q)
    asked = f"What is the larger solution of x^2 {_signed(-(p + q))}x {_signed(p * q)} = 0?"
    return asked, str(larger), [f"{p} + {q} = {p + q}", f"{p} * {q} = {p * q}", f"larger: {larger}"]


def _expansion(rng: random.Random) -> Made:
    a, c = rng.randint(1, 9), rng.randint(1, 9)
    b, d = rng.randint(-12, 12), rng.randint(-12, 12)
    asked = f"Expand ({a}x {_signed(b)})({c}x {_signed(d)})."
    gold = f"{a * c}x^2 {_signed(a * d + b * c)}x {_signed(b * d)}"
    lines = [f"{a} * {c} = {a * c}", f"{a} * {d} + {b} * {c} = {a * d + b * c}", f"{b} * {d} = {b * d}"]
    return asked, gold, lines


_NAMES = ("Ada", "Ben", "Chidi", "Dana", "Emre", "Fay", "Gus", "Hana", "Ivo", "Jun")
_THINGS = ("apples", "books", "cards", "eggs", "pens", "seeds", "shells", "stamps", "tiles", "beads")


def _shopping(rng: random.Random) -> Made:
    who, thing = rng.choice(_NAMES), rng.choice(_THINGS)
    count, price, more, paid = rng.randint(2, 20), rng.randint(2, 15), rng.randint(2, 40), 500
    spent = count * price + more
    asked = (
        f"{who} buys {count} {thing} for {price} coins each and a box for {more} coins, and pays with {paid} coins. "
    )
    lines = [
        f"{count} * {price} = {count * price}",
        f"{count * price} + {more} = {spent}",
        f"{paid} - {spent} = {paid - spent}",
    ]
    return asked + "How many coins come back?", str(paid - spent), lines


def _sharing(rng: random.Random) -> Made:
    one, other = rng.sample(_NAMES, 2)
    thing, each, people, given = rng.choice(_THINGS), rng.randint(3, 25), rng.randint(2, 9), rng.randint(1, 30)
    total = each * people
    asked = (
        f"{one} has {total + given} {thing}, gives {other} {given} of them and shares the rest evenly among {people} "
    )
    return (
        asked + "people. How many does each get?",
        str(each),
        [f"{total + given} - {given} = {total}", f"{total} / {people} = {each}"],
    )


def _travel(rng: random.Random) -> Made:
    who, slow, fast = rng.choice(_NAMES), rng.randint(3, 20), rng.randint(21, 90)
    one, other = rng.randint(1, 6), rng.randint(1, 6)
    way, hours = slow * one + fast * other, one + other
    asked = f"{who} cycles {one} hours at {slow} km an hour and rides a train {other} hours at {fast} km an hour. "
    lines = [
        f"{slow} * {one} + {fast} * {other} = {way}",
        f"{one} + {other} = {hours}",
        f"{way} / {hours} = {_shown(Fraction(way, hours))}",
    ]
    return asked + "What is the mean speed of the whole way, in km an hour?", _shown(Fraction(way, hours)), lines


_MADE: dict[int, tuple[Callable[[random.Random], Made], ...]] = {
    1: (_arithmetic, _division),
    2: (_fractions,),
    3: (_linear,),
    4: (_divisor, _remainder),
    5: (_quadratic, _expansion),
    6: (_shopping, _sharing, _travel),
}
