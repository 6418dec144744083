from __future__ import annotations

import random
from itertools import islice

import pytest

from leanseek.envs import instructions
from leanseek.envs.instructions import Instructions

ENGLISH = "the river is with that window and it is for this"


@pytest.mark.parametrize(
    ("rule", "kept", "broken"),
    [
        (instructions._language("English"), ENGLISH, "der river und das window ist nicht mit ein wir"),
        (instructions._language("German"), "der und ist nicht mit rain", "wir"),
        (instructions._sentences(2), "It is. So it goes!", "It is. So it goes"),
        (instructions._sentences(2), '"It is. So it goes."', "It is.\nSo it goes."),
        (instructions._list(2), "- a\n- b", "- a\n- b\n- c"),
        (instructions._list(2), "[- a\n- b]", "Here:\n- a\n- b"),
    ],
)
def test_rules_of_form(rule, kept: str, broken: str):
    assert rule[1](kept) and not rule[1](broken)


@pytest.mark.parametrize("make", ["_keyword", "_without", "_start", "_end", "_case", "_wrap", "_length"])
def test_each_rule_is_kept_by_what_is_made_for_it_and_broken_by_something(make: str):
    for seed in range(20):
        rule = getattr(instructions, make)(random.Random(seed))
        text = instructions.Text()
        rule[2](text)
        assert rule[1](instructions._written(text, random.Random(seed)))
        assert not all(
            rule[1](wrong)
            for wrong in ("A sign , : ; ? ! here. And a small green warm plain Word", " ".join(instructions.FILLERS))
        )


def test_a_level_is_the_number_of_rules_beside_language_and_length():
    task = Instructions()
    for level in task.levels:
        problem = next(task.problems("train", 0, [level]))
        assert problem.prompt.count("\n- ") == level + 2


def test_breaking_any_one_rule_is_noticed():
    task = Instructions()
    for problem in islice(task.problems("train", 0, [4]), 30):
        _, rules = instructions._rules(4, random.Random(problem.data["seed"]))
        gold = task.solution(problem, random.Random(0)).content
        assert all(rule[1](gold) for rule in rules) and task.check(problem, gold)
        assert not task.check(problem, gold + "\nhmm, so be it")
