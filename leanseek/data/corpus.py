"""The embedded corpus: pretraining documents made by seeded code from facts, worked problems and practice."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from leanseek.envs.environment import Environment, Problem

FACTS_PER_DOCUMENT = 4


@dataclass(frozen=True)
class Shares:
    """How often each kind of document is drawn; the rest is plain sentences."""

    facts: float = 0.25
    worked: float = 0.73


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
            environment = rng.choice(environments)
            yield "\n".join(environment.practice(rng) for _ in range(FACTS_PER_DOCUMENT)) + "\n"
        elif kind < shares.facts + shares.worked:
            environment = rng.choice(environments)
            yield _worked(environment, next(sources[environment.name]), rng)
        else:
            yield _sentence(rng, rng.choice(environments))


def _worked(environment: Environment, problem: Problem, rng: random.Random) -> str:
    """A problem, its solution and its answer as plain text.

    Three tokens stand between problem and solution, as in a conversation, where the assistant's turn
    and its thinking begin there: what is learnt of distances holds in both.
    """
    worked = environment.worked(problem, rng)
    return f"{problem.prompt} think aloud\n{worked}\n"


def _sentence(rng: random.Random, environment: Environment) -> str:
    """A plain sentence about a task."""
    opening = rng.choice(("In this task we", "Here you", "The task is to", "Now"))
    closing = rng.choice(("Think line by line.", "Then give the answer.", "Write each step down."))
    return f"{opening} {environment.description}. {closing}\n"
