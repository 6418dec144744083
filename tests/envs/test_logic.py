from __future__ import annotations

import itertools
from itertools import islice

from leanseek.envs.logic import Logic


def test_one_possibility_alone_fits_and_both_kinds_are_drawn():
    task = Logic()
    kinds = set()
    for problem in islice(task.problems("train", 0), 200):
        kinds.add((problem.level, "queue" in problem.prompt))
        assert problem.data["failed"][-1] is None and None not in problem.data["failed"][:-1]
        if "queue" in problem.prompt:
            people = problem.data["answer"].split(", ")
            right = [p for p in itertools.permutations(people) if task.check(problem, ", ".join(p))]
            assert right == [tuple(people)]
    assert {level for level, _ in kinds} == {2, 3, 4, 5} and {queue for _, queue in kinds} == {True, False}


def test_names_count_and_nothing_else():
    task = Logic()
    problem = next(p for p in task.problems("train", 0, [4]) if "," in p.data["answer"])
    gold = problem.data["answer"]
    for right in (gold, gold.lower(), gold.replace(", ", " ,  ")):
        assert task.check(problem, right)
    for wrong in (gold.replace(",", ""), f"{gold}, ", ", ".join(reversed(gold.split(", "))), f"{gold}."):
        assert not task.check(problem, wrong)


def test_knights_speak_the_truth_by_hand():
    """A puzzle taken apart without the code that made it: each statement of the first kind."""
    task = Logic()
    checked = 0
    for problem in islice(task.problems("train", 5, [2]), 300):
        lines = [line for line in problem.prompt.split("\n")[1:-1]]
        people = [line.split(":")[0] for line in lines]
        knights = set(problem.data["answer"].split(", "))
        for name, line in zip(people, lines, strict=True):
            said = line.split(": ")[1]
            for other in people:
                if said == f"{other} is a knave.":
                    assert (other not in knights) == (name in knights)
                    checked += 1
    assert checked > 20
