from __future__ import annotations

import ast
import itertools
import random
import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanseek.envs.countdown import LARGEST, Countdown, evaluate
from leanseek.envs.environment import Problem

TASK = Countdown()


def problem(numbers: tuple[int, ...], target: int) -> Problem:
    return Problem("countdown", len(numbers), "", {"numbers": numbers, "target": target, "answer": ""}, "")


@pytest.mark.parametrize(
    ("text", "value", "used"),
    [
        ("7", 7, [7]),
        ("(25-7)*3", 54, [25, 7, 3]),
        ("25-7*3", 4, [25, 7, 3]),
        ("8-3-2", 3, [8, 3, 2]),
        ("12/2/3", 2, [12, 2, 3]),
        ("12/(2/3)", 18, [12, 2, 3]),
        ("1/3", Fraction(1, 3), [1, 3]),
        ("3-(2*(4+1))/5", 1, [3, 2, 4, 1, 5]),
        (" ( 1 + 2 ) * 3 ", 9, [1, 2, 3]),
        ("2-9", -7, [2, 9]),
        ("0*5", 0, [0, 5]),
    ],
)
def test_expressions_are_evaluated_exactly(text: str, value: Fraction, used: list[int]):
    assert evaluate(text) == (value, used)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "+",
        "-1",
        "1+",
        "*2",
        "1 2",
        "(1",
        "1)",
        "()",
        "(1)(2)",
        "1+(2",
        "2**3",
        "9**9**9",
        "1//2",
        "1/0",
        "1/(2-2)",
        "007",
        "1.5",
        "1e3",
        "٣+1",
        "½",
        "a",
        "1\n+2",
        "1+2=3",
        "1,2",
        "+" * 100,
        "(" * 200,
        "--1",
        "1_0",
        "0x1",
    ],
)
def test_what_is_no_expression_is_none(text: str):
    assert evaluate(text) is None


def trees() -> st.SearchStrategy[str]:
    leaf = st.integers(0, 99).map(str)
    return st.recursive(
        leaf,
        lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner, st.booleans()).map(
            lambda t: f"({t[0]}{t[1]}{t[2]})" if t[3] else f"{t[0]}{t[1]}{t[2]}"
        ),
        max_leaves=12,
    )


def oracle(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant):
        return Fraction(node.value)
    assert isinstance(node, ast.BinOp)
    left, right = oracle(node.left), oracle(node.right)
    return {ast.Add: left.__add__, ast.Sub: left.__sub__, ast.Mult: left.__mul__, ast.Div: left.__truediv__}[
        type(node.op)
    ](right)


@given(trees())
def test_the_parser_agrees_with_pythons(text: str):
    try:
        wanted = oracle(ast.parse(text, mode="eval").body)
    except ZeroDivisionError:
        assert evaluate(text) is None
        return
    assert evaluate(text) == (wanted, [int(number) for number in re.findall(r"\d+", text)])


@given(st.text(alphabet="0123456789+-*/() \n.", max_size=200))
def test_no_text_breaks_the_checker(text: str):
    assert TASK.check(problem((3, 4), 7), text) in (True, False)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("(25-7)*3", True),
        ("3*(25-7)", True),
        ("54", False),  # the target itself is not a given number
        ("25+25+3+1", False),  # twice the same number
        ("(25-7)*3+0", False),  # a number that was not given
        ("(25-7)*3*1", False),
        ("25*3-7*3", False),
        ("25+7", False),
        ("(25-7)*3=54", False),
    ],
)
def test_an_answer_uses_each_given_number_at_most_once(answer: str, right: bool):
    assert TASK.check(problem((25, 7, 3), 54), answer) is right


def test_a_number_given_twice_may_be_used_twice_and_one_may_stay_out():
    assert TASK.check(problem((5, 5, 9), 10), "5+5")
    assert not TASK.check(problem((5, 6, 9), 10), "5+5")


def brute(numbers: tuple[int, ...]) -> set[int]:
    """All that some or all numbers make with whole values up to LARGEST, by trying everything."""
    found = set(numbers)
    for a, b in itertools.permutations(range(len(numbers)), 2):
        rest = tuple(numbers[i] for i in range(len(numbers)) if i not in (a, b))
        x, y = numbers[a], numbers[b]
        made = [x + y, x - y, x * y] + ([x // y] if y and x % y == 0 else [])
        for value in made:
            if 0 < value <= LARGEST:
                found |= brute((*rest, value))
    return found


@pytest.mark.parametrize("level", TASK.levels)
def test_a_problem_needs_all_its_numbers(level: int):
    rng = random.Random(level)
    for _ in range(25):
        one = TASK.draw(level, rng)
        numbers, target = one.data["numbers"], one.data["target"]
        assert len(numbers) == level and 0 < target <= LARGEST
        assert TASK.check(one, one.data["answer"])
        for fewer in itertools.combinations(numbers, level - 1):
            assert target not in brute(fewer)


def test_the_key_does_not_depend_on_the_order_of_the_numbers():
    rng = random.Random(0)
    keys = {}
    for _ in range(4000):
        one = TASK.draw(2, rng)
        same = (tuple(sorted(one.data["numbers"])), one.data["target"])
        assert keys.setdefault(same, one.key) == one.key
    assert len(set(keys.values())) == len(keys)


@pytest.mark.parametrize("level", TASK.levels)
def test_solutions_try_and_fail_before_they_succeed(level: int):
    rng = random.Random(1)
    tries = []
    for _ in range(150):
        one = TASK.draw(level, rng)
        solution = TASK.solution(one, rng)
        tries.append(solution.reasoning_content.count("|"))
        assert TASK.check(one, solution.content) and TASK.audit(one, solution.reasoning_content)
        joins = [line for line in solution.reasoning_content.split("\n") if "|" not in line]
        assert level != 3 or len(set(joins)) == len(joins), "no try comes twice"
    most, mean = {2: (1, 1), 3: (12, 3.5), 4: (13, 11)}[level]
    assert max(tries) <= most and mean / 3 < sum(tries) / len(tries) <= mean


@pytest.mark.parametrize(
    "text",
    [
        "a25 b7 -18 d18\nd18 c3 +21 -15 *54 /6 |54 *",
        "a25 c3 -22 d22\nd22 b7 +29 -15 *x /x |54 no\na25 b7 -18 d18\nd18 c3 +21 -15 *54 /6 |54 *",
    ],
)
def test_the_audit_passes_sound_thinking(text: str):
    assert TASK.audit(problem((25, 7, 3), 54), text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "d18 c3 +21 -15 *54 /6 |54 *",  # 18 from nowhere
        "a25 b7 -19 d19\nd19 c3 +22 -16 *57 /x |54 no",  # a wrong difference
        "a25 c7 -18 d18\nd18 c3 +21 -15 *54 /6 |54 *",  # c is not 7
        "a25 b7 -18 d19\nd19 c3 +22 -16 *57 /x |54 no",  # copied wrong
        "a25 b7 -18 d18\nd18 b7 +25 -11 *x /x |54 no",  # b is used up
        "a25 b7 -18 e18\ne18 c3 +21 -15 *54 /6 |54 *",  # the next label is d
        "b7 a25 -18 d18\nd18 c3 +21 -15 *54 /6 |54 *",  # the larger comes first
        "a25 b7 -18 d18\nc3 d18 +21 -15 *54 /6 |54 *",
        "a25 a25 -0 d0\nc3 d0 +3 -3 *0 /x |54 no",
        "a25 b7 -18 d18\nd18 c3 +21 -15 *54 /6 |54 no",  # a hit called a miss
        "a25 b7 -18 d18\nd18 c3 +21 -15 *54 /6 |54 +",  # the wrong operation
        "a25 b7 -18 d18\nd18 c3 +21 -15 *54 /6 |21 +",  # not the target
        "a25 b7 -18 d18\nd18 c3 +21 -15 *56 /6 |54 no",  # a wrong product
        "a25 c3 -22 d22\nd22 b7 +29 -15 *x /x |54 no",  # ends without success
        "a25 c3 -22 d22\nd22 b7 +29 -15 *x /x |54 *",  # a miss called a hit
        "a25 b7 -18 d18",
        "a25 b7 -18 d18\nd18 c3 +21 -15 *54 /6 |54 *\na25 b7 -18 d18",
    ],
)
def test_the_audit_stops_at_the_first_fault(text: str):
    assert not TASK.audit(problem((25, 7, 3), 54), text)


@pytest.mark.parametrize(
    ("text", "sound"),
    [
        ("a8 c7 +15 b11 d4 e15\nb11 d4 *44 f44\nf44 e15 +59 -29 *x /x |59 +", True),
        ("a8 c7 +15 e15\nb11 d4 *44 f44\nf44 e15 +59 -29 *x /x |59 +", False),  # what is left is not restated
        ("a8 c7 +15 b11 d4 e15\nf44 e15 +59 -29 *x /x |59 +", False),
    ],
)
def test_four_numbers_take_two_joins(text: str, sound: bool):
    assert TASK.audit(problem((8, 11, 7, 4), 59), text) is sound


def test_of_equal_numbers_either_may_come_first():
    for text in ("a5 b5 +10 -0 *25 /1 |25 *", "b5 a5 +10 -0 *25 /1 |25 *"):
        assert TASK.audit(problem((5, 5), 25), text)


def test_practice_is_true_and_holds_no_held_out_problem():
    rng = random.Random(0)
    hits = 0
    for _ in range(300):
        asked, line = TASK.practice(rng).split("\n")
        larger, smaller = (int(item[1:]) for item in line.split()[:2])
        target = int(asked.removeprefix("make "))
        one = problem((larger, smaller), target)
        line = re.sub(r"^[a-j](\d+) [a-j]", r"a\1 b", line)
        hit = not line.endswith(" no")
        hits += hit
        assert TASK.audit(one, line) is hit
        assert Problem("countdown", 2, "", {}, f"{smaller} {larger} = {target}").split == "train"
    assert 60 < hits < 200


@pytest.mark.parametrize(("numbers", "target"), [((3, 4), 7), ((3, 4), 12), ((3, 4, 5), 17)])
def test_a_wrong_answer_is_wrong_and_well_formed(numbers: tuple[int, ...], target: int):
    wrong = TASK.wrong_answer(problem(numbers, target))
    assert evaluate(wrong) is not None and not TASK.check(problem(numbers, target), wrong)
