"""The embedded corpus: the same from the same seed, true, and without a held-out problem."""

from __future__ import annotations

from collections import Counter

import pytest

from leanseek.data.corpus import FACTS_PER_DOCUMENT, Shares, documents
from leanseek.envs.environment import environments, load_environment
from leanseek.errors import TaskError
from leanseek.evals.accuracy import distinct_problems

TASKS = [load_environment(name) for name in ("running_total", "largest", "grid_walk")]
BETWEEN = " think aloud\n"


def only(**shares: float) -> Shares:
    """Return shares of the kinds named; the rest is sentences."""
    return Shares(**({"facts": 0.0, "worked": 0.0} | shares))


def watch(monkeypatch):
    """Note every problem that a solution is made for, and the solution."""
    seen = []
    for task in TASKS:

        def watched(self, problem, rng, _real=type(task).solution):
            solution = _real(self, problem, rng)
            seen.append((problem, solution))
            return solution

        monkeypatch.setattr(type(task), "solution", watched)
    return seen


def test_the_seed_decides():
    first = list(documents(3, 200, TASKS))
    assert first == list(documents(3, 200, TASKS)) and len(first) == 200
    assert first != list(documents(4, 200, TASKS))
    assert first[:50] == list(documents(3, 50, TASKS)), "more documents go on where fewer stop"
    assert all(text.endswith("\n") and text.strip() for text in first)


def test_facts_are_lines_of_solutions_of_training_problems(monkeypatch):
    seen = watch(monkeypatch)
    texts = list(documents(0, 100, TASKS, shares=only(facts=1.0)))
    lines = [line for text in texts for line in text.splitlines()]
    assert {text.count("\n") for text in texts} == {FACTS_PER_DOCUMENT} and len(seen) == len(lines)
    for line, (problem, solution) in zip(lines, seen, strict=True):
        assert line in solution.reasoning_content.split("\n") and problem.split == "train"
    assert min(Counter(problem.environment for problem, _ in seen).values()) > 100
    assert {problem.level for problem, _ in seen} == {level for task in TASKS for level in task.levels}


def test_worked_problems_are_solved_right_and_never_held_out(monkeypatch):
    seen = watch(monkeypatch)
    texts = list(documents(0, 300, TASKS, shares=only(worked=1.0)))
    assert len(seen) == len(texts) == 300
    assert {problem.split for problem, _ in seen} == {"train"}
    by_name = {task.name: task for task in TASKS}
    assert {problem.environment for problem, _ in seen} == by_name.keys()
    for text, (problem, _) in zip(texts, seen, strict=True):
        prompt, _, rest = text.partition(BETWEEN)
        *thinking, answer = rest.rstrip("\n").split("\n")
        task = by_name[problem.environment]
        assert prompt == problem.prompt
        assert task.check(problem, answer) and task.audit(problem, "\n".join(thinking))


def given_away(text: str, held_out: set[str]) -> list[str]:
    """Return the lines of a document that ask a held-out problem, or answer one as `question=answer`.

    A longer problem may well begin with a shorter one: only what is asked or answered counts.
    """
    prompt, asked, _ = text.partition(BETWEEN)
    lines = [prompt] if asked else []
    return [line for line in (*lines, *text.splitlines()) if line.partition("=")[0] in held_out]


@pytest.mark.parametrize("name", environments(adapters=False))
def test_no_held_out_problem_is_asked_and_none_is_answered_in_a_line(name):
    task = load_environment(name)
    # Some take tens of milliseconds a problem.
    slow = name in ("countdown", "battery_swap", "delivery_drone", "smart_home")
    splits, problems = ("test", "development"), 51 if slow else 300
    held_out = {p.prompt for split in splits for p in distinct_problems(task, problems, 0, None, split)}
    assert len(held_out) > 100
    for text in documents(0, 20 if slow else 1500, [task]):
        assert given_away(text, held_out) == []


def test_what_gives_a_problem_away_is_found():
    held_out = {"56+2+7", "1\n2"}
    assert given_away("56+2+7 think aloud\n56+2=58\n58+7=65\n65\n", held_out) == ["56+2+7"]
    assert given_away("1\n2 think aloud\n3\n", held_out) == ["1\n2"]
    assert given_away("56+2+7+3 think aloud\n56+2+7=65\n65+3=68\n68\n", held_out) == ["56+2+7=65"]
    assert given_away("56+2+7+3 think aloud\n56+2=58\n58+7=65\n65+3=68\n68\n", held_out) == []


def test_levels_narrow_the_worked_problems():
    texts = documents(0, 60, TASKS[1:2], {"largest": (3,)}, only(worked=1.0))
    assert {text.partition(BETWEEN)[0].count(",") for text in texts} == {2}
    with pytest.raises(TaskError, match="largest has no level 99"):
        list(documents(0, 5, TASKS[1:2], {"largest": (99,)}, only(worked=1.0)))


def test_the_rest_are_sentences():
    for text in documents(0, 30, TASKS, shares=only()):
        assert any(task.description in text for task in TASKS) and text.count("\n") == 1


def test_shares_are_about_kept():
    counts = Counter()
    for text in documents(1, 2000, TASKS):
        lines = text.count("\n")
        counts["worked" if BETWEEN in text else "sentence" if lines == 1 else "facts"] += 1
    shares = Shares()
    for kind, share in (
        ("facts", shares.facts),
        ("worked", shares.worked),
        ("sentence", 1 - shares.facts - shares.worked),
    ):
        assert counts[kind] / 2000 == pytest.approx(share, abs=0.04)
