"""Rejection sampling: the best of a model's own replies to each problem, as conversations for SFT."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from leanseek.data.traces import Example
from leanseek.engine.engine import Engine
from leanseek.engine.pool import EnginePool
from leanseek.engine.request import SamplingParams
from leanseek.envs.environment import Environment, Problem
from leanseek.evals.attempts import Attempt, attempt

# Problems of rejection sampling are drawn with seeds from here on, all from the training split; SFT's worked solutions
# and RL have others.
REJECTION_SEED = 750_000


@dataclass(frozen=True)
class Accepted:
    """What was kept.

    Args:
        attempts: the replies, in the order of their problems, the best of a problem first.
        problems: how many were asked.
        replies: how many were drawn.
    """

    attempts: Sequence[Attempt]
    problems: int
    replies: int

    @property
    def examples(self) -> list[Example]:
        """The conversations as `data.traces` makes them: token by token as sampled, what the model said learnt."""
        return [
            (
                [*one.prompt_ids, *one.output.token_ids],
                [False] * len(one.prompt_ids) + list(one.sampled or [True] * len(one.output.token_ids)),
            )
            for one in self.attempts
        ]

    @property
    def coverage(self) -> float:
        """Share of the problems that a reply was kept of."""
        return len({one.problem.key for one in self.attempts}) / max(self.problems, 1)


def rejection_sample(
    engine: Engine | EnginePool,
    environments: Sequence[Environment],
    count: int,
    *,
    samples: int,
    keep: int = 1,
    easiest: float = 1.0,
    levels: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    on_progress: Callable[[int], None] | None = None,
) -> Accepted:
    """Draw replies to training problems and keep the best right ones of each.

    Args:
        engine: idle, with a tokenizer; on the model that speaks.
        environments: tasks.
        count: problems per environment, each another one.
        samples: replies per problem.
        keep: most replies of a problem that are kept.
        easiest: problems that more than this share of the replies solves are left out; 1 keeps them all.
        levels: environment name -> levels used; default: all.
        seed: of problems and samples; the same gives the same.
        max_new_tokens: longest reply.
        temperature: of the samples.
        on_progress: called with the number of replies finished so far.
    Source: DeepSeek-R1 (arXiv 2501.12948) section 2.3.3.
    """
    problems = training_problems(environments, count, levels=levels or {}, seed=seed)
    params = SamplingParams(max_tokens=max_new_tokens, temperature=temperature, n=samples, seed=seed << 32)
    named = {environment.name: environment for environment in environments}
    drawn = attempt(engine, problems, params, environments=named, on_progress=on_progress)
    kept: list[Attempt] = []
    for at in range(0, len(drawn), samples):
        kept += best(drawn[at : at + samples], keep, easiest)
    return Accepted(kept, len(problems), len(drawn))


def best(attempts: Sequence[Attempt], keep: int = 1, easiest: float = 1.0) -> list[Attempt]:
    """Return the best replies to one problem: right, well formed, ended by themselves, no two alike, shortest first.

    Args:
        attempts: at one problem.
        keep: how many at most.
        easiest: none is returned where a larger share is right.
    """
    right = [one for one in attempts if one.correct]
    if len(right) > easiest * len(attempts):
        return []
    fine = {tuple(one.output.token_ids): one for one in right if one.formed and one.output.finish_reason == "stop"}
    return sorted(fine.values(), key=lambda one: len(one.output.token_ids))[:keep]


def training_problems(
    environments: Sequence[Environment], count: int, *, levels: Mapping[str, Sequence[int]], seed: int
) -> list[Problem]:
    """Return `count` problems of each task, no two alike, from a part of the training split's seeds of their own."""
    problems: list[Problem] = []
    for environment in environments:
        problems += _different(environment, count, REJECTION_SEED + seed, levels.get(environment.name))
    return problems


def _different(environment: Environment, count: int, seed: int, levels: Sequence[int] | None) -> list[Problem]:
    """Return `count` problems with keys of their own, or fewer where a task soon repeats itself."""
    found: dict[str, Problem] = {}
    for drawn, problem in enumerate(environment.problems("train", seed, levels)):
        found.setdefault(problem.key, problem)
        if len(found) == count or drawn >= 20 * count:
            break
    return list(found.values())
