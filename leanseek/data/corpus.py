"""The embedded corpus: pretraining documents made by seeded code from facts, worked problems and practice."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from leanseek.envs.environment import LABELS, Environment, Problem

FACTS_PER_DOCUMENT = 8


@dataclass(frozen=True)
class Shares:
    """How often each kind of document is drawn; the rest is plain sentences."""

    facts: float = 0.35
    worked: float = 0.50
    recall: float = 0.10
    merged: float = 0.3  # of the worked problems, those whose solutions skip steps


def documents(
    seed: int,
    count: int,
    environments: Sequence[Environment],
    levels: Mapping[str, Sequence[int]] | None = None,
    shares: Shares = Shares(),
) -> Iterator[str]:
    """Yield pretraining documents; no held-out problem is among them.

    Args:
        seed: the same seed gives the same documents.
        count: how many.
        environments: the tasks whose problems are worked.
        levels: environment name -> levels used; default: all.
        shares: how often each kind of document is drawn.
    """
    rng = random.Random(f"corpus/{seed}")
    sources = {e.name: e.problems("train", seed, (levels or {}).get(e.name)) for e in environments}
    for _ in range(count):
        kind = rng.random()
        if kind < shares.facts:
            yield "\n".join(_fact(rng) for _ in range(FACTS_PER_DOCUMENT)) + "\n"
        elif kind < shares.facts + shares.worked:
            environment = rng.choice(environments)
            skip = rng.random() if rng.random() < shares.merged else 0.0
            yield _worked(environment, next(sources[environment.name]), rng, skip)
        elif kind < shares.facts + shares.worked + shares.recall:
            yield _recall(rng)
        else:
            yield _sentence(rng, rng.choice(environments))


def _fact(rng: random.Random) -> str:
    """One true line: a sum or difference within 0 .. 99, or the larger of two numbers."""
    if rng.random() < 0.25:
        a, b = rng.sample(range(100), 2)
        return f"{a} |{b} ={max(a, b)}"
    while True:
        a, step = rng.randint(0, 99), rng.choice((1, -1)) * rng.randint(1, 9)
        if 0 <= a + step <= 99:
            return f"{a} {step:+d} ={a + step}"


def _worked(environment: Environment, problem: Problem, rng: random.Random, skip: float) -> str:
    """A problem, its solution and its answer as plain text."""
    solution = environment.solution(problem, rng, skip)
    return f"{problem.prompt}\n{solution.reasoning_content}\n{solution.content}\n"


def _recall(rng: random.Random) -> str:
    """Labelled lines, then some of them again: practice in finding a line by its label."""
    labels = LABELS[: rng.randint(3, 7)]
    steps = {label: rng.choice((1, -1)) * rng.randint(1, 9) for label in labels}
    asked = [rng.choice(labels) for _ in range(5)]
    return "\n".join(f"{label} {steps[label]:+d}" for label in (*labels, *asked)) + "\n"


def _sentence(rng: random.Random, environment: Environment) -> str:
    """A plain sentence about a task."""
    opening = rng.choice(("In this task we", "Here you", "The task is to", "Now"))
    closing = rng.choice(("Think line by line.", "Then give the answer.", "Write each step down."))
    return f"{opening} {environment.description}. {closing}\n"
