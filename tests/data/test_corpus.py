"""The embedded corpus: the same from the same seed, true, and without a held-out problem."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from leanseek.data.corpus import FACTS_PER_DOCUMENT, Shares, documents
from leanseek.envs.environment import load_environment
from leanseek.errors import TaskError

TASKS = [load_environment(name) for name in ("running_total", "largest", "grid_walk")]
SUM = re.compile(r"[a-j]([+-]\d) (\d+)=(\d+)")
LARGER = re.compile(r"[a-j](\d+) (\d+)=(\d+)")
MOVE = re.compile(r"[a-j] (up|down|left|right)(\d) (\d+),(\d+)=(\d+),(\d+)")
WAYS = {"right": (1, 0), "left": (-1, 0), "up": (0, 1), "down": (0, -1)}


def only(**shares: float) -> Shares:
    return Shares(**{"facts": 0.0, "worked": 0.0, "recall": 0.0, **shares})


def test_the_seed_decides():
    first = list(documents(3, 200, TASKS))
    assert first == list(documents(3, 200, TASKS)) and len(first) == 200
    assert first != list(documents(4, 200, TASKS))
    assert first[:50] == list(documents(3, 50, TASKS)), "more documents go on where fewer stop"
    assert all(text.endswith("\n") and text.strip() for text in first)


def is_true(line: str) -> bool:
    """Whether a line is a fact of one of the three kinds, and right."""
    if match := SUM.fullmatch(line):
        return int(match[2]) + int(match[1]) == int(match[3]) <= 99
    if match := LARGER.fullmatch(line):
        return max(int(match[1]), int(match[2])) == int(match[3]) <= 99
    if match := MOVE.fullmatch(line):
        (x, y), length = WAYS[match[1]], int(match[2])
        return (int(match[3]) + x * length, int(match[4]) + y * length) == (int(match[5]), int(match[6]))
    return False


def test_facts_are_true_and_within_two_digits():
    kinds = Counter()
    for text in documents(0, 100, TASKS, shares=only(facts=1.0)):
        lines = text.splitlines()
        assert len(lines) == FACTS_PER_DOCUMENT
        for line in lines:
            assert is_true(line), line
            kinds[next(kind.pattern for kind in (SUM, LARGER, MOVE) if kind.fullmatch(line))] += 1
    assert len(kinds) == 3 and min(kinds.values()) > 100


def test_worked_problems_are_solved_right_and_never_held_out(monkeypatch):
    """Whatever problem an environment gives out is seen here: none may be of the test split."""
    seen = []
    for task in TASKS:

        def watched(self, problem, rng, skip=0.0, _real=type(task).solution):
            seen.append((problem, skip))
            return _real(self, problem, rng, skip)

        monkeypatch.setattr(type(task), "solution", watched)
    texts = list(documents(0, 300, TASKS, shares=only(worked=1.0)))
    assert len(seen) == len(texts) == 300
    assert {problem.split for problem, _ in seen} == {"train"}
    assert Counter(problem.environment for problem, _ in seen).keys() == {task.name for task in TASKS}
    assert 0.15 < sum(skip > 0 for _, skip in seen) / 300 < 0.45
    by_name = {task.name: task for task in TASKS}
    for text, (problem, _) in zip(texts, seen, strict=True):
        assert text.startswith(problem.prompt + "\n")
        *thinking, answer = text.removeprefix(problem.prompt + "\n").rstrip("\n").split("\n")
        task = by_name[problem.environment]
        assert task.check(problem, answer) and task.audit(problem, "\n".join(thinking))


def test_levels_narrow_the_problems():
    texts = documents(0, 60, TASKS[1:2], {"largest": (3,)}, only(worked=1.0))
    assert {text.split("largest?")[0].count("\n") for text in texts} == {3}
    with pytest.raises(TaskError, match="largest has no level 99"):
        list(documents(0, 5, TASKS[1:2], {"largest": (99,)}, only(worked=1.0)))


def test_recall_lines_repeat_what_stood_above():
    for text in documents(0, 60, TASKS, shares=only(recall=1.0)):
        lines = text.splitlines()
        of_label: dict[str, str] = {}
        new = [of_label.setdefault(line[0], line) is line for line in lines]
        assert all(of_label[line[0]] == line for line in lines), "a label means one thing"
        given = sum(new)
        assert 3 <= given < len(lines) and all(new[:given]), "first all that is given, then what is asked"


def test_the_rest_are_sentences():
    for text in documents(0, 30, TASKS, shares=only()):
        assert any(task.description in text for task in TASKS) and text.count("\n") == 1


def test_shares_are_about_kept():
    counts = Counter()
    for text in documents(1, 2000, TASKS):
        lines = text.splitlines()
        if len(lines) == 1:
            counts["sentence"] += 1
        elif all(is_true(line) for line in lines):
            counts["facts"] += 1
        elif any(line.endswith("?") for line in lines):
            counts["worked"] += 1
        else:
            counts["recall"] += 1
    shares = Shares()
    for kind, share in (("facts", shares.facts), ("worked", shares.worked), ("recall", shares.recall)):
        assert counts[kind] / 2000 == pytest.approx(share, abs=0.04)
    rest = 1 - shares.facts - shares.worked - shares.recall
    assert counts["sentence"] / 2000 == pytest.approx(rest, abs=0.04)
