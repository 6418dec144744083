"""Accuracy: how many held-out problems a model solves, greedily and in k tries, and whether its thinking is sound."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from leanseek.engine.engine import Engine
from leanseek.engine.pool import EnginePool
from leanseek.engine.request import SamplingParams
from leanseek.envs.environment import Environment, Problem, Split
from leanseek.evals.attempts import Attempt, attempt, is_sound
from leanseek.evals.proportion import Proportion, pass_at_k

# Draws without a new problem after which a task's held-out problems count as exhausted, per problem wanted.
PATIENCE = 20


@dataclass(frozen=True)
class Accuracy:
    """What a model can do at one task.

    Args:
        environment: the task's name.
        greedy: share of held-out problems solved by the most likely reply.
        pass_at_k: k -> share of problems that k sampled replies solve (k = 1: the mean sampled reply).
        sound: of the right greedy answers, the share whose thinking is right line by line; of none where the task
            cannot tell.
        formed: share of greedy replies that end their thinking and give an answer.
        levels: level -> `greedy` of that level alone.
        length: mean tokens of the greedy replies.
        attempts: the greedy replies, in the order of the problems, to show some.
        tokens: of all replies, sampled ones too.
    """

    environment: str
    greedy: Proportion
    pass_at_k: Mapping[int, Proportion]
    sound: Proportion
    formed: Proportion
    levels: Mapping[int, Proportion]
    length: float
    attempts: tuple[Attempt, ...]
    tokens: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for JSON, without the attempts."""
        return {
            "environment": self.environment,
            "n": self.greedy.count,
            "greedy": self.greedy.share,
            "interval": list(self.greedy.interval),
            "pass_at_k": {str(k): one.share for k, one in self.pass_at_k.items()},
            "pass_at_k_interval": {str(k): list(one.interval) for k, one in self.pass_at_k.items()},
            "sound": self.sound.share,
            "formed": self.formed.share,
            "length": self.length,
            "levels": {str(level): one.share for level, one in self.levels.items()},
        }


def evaluate(
    engine: Engine | EnginePool,
    environment: Environment,
    *,
    problems: int = 512,
    samples: int = 4,
    seed: int = 0,
    split: Split = "test",
    levels: Sequence[int] | None = None,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    effort: str | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Accuracy:
    """Measure a model on held-out problems; the same seed gives every model the same ones.

    Args:
        engine: idle, with a tokenizer.
        environment: the task.
        problems: how many.
        samples: sampled replies per problem, for pass@k; 0: greedy alone.
        seed: of the problems and of the sampling.
        split: which problems.
        levels: difficulties, in equal parts; None: all.
        max_new_tokens: longest reply.
        temperature: of the sampled replies.
        effort: that the prompts ask for.
        on_progress: called with the number of replies done, of problems x (1 + samples).
    Raises:
        TaskError: a level that the task does not have.
        EngineError: the engine has no tokenizer or is busy.
    """
    chosen = distinct_problems(environment, problems, seed, levels, split)
    known = {environment.name: environment}
    efforts = () if effort is None else (effort,)
    params = SamplingParams(max_tokens=max_new_tokens, temperature=0.0)
    greedy = attempt(engine, chosen, params, environments=known, on_progress=on_progress, efforts=efforts)
    right_of, drawn = [0] * len(chosen), list[Attempt]()
    if samples:
        params = SamplingParams(max_tokens=max_new_tokens, temperature=temperature, n=samples, seed=seed)
        shifted = None if on_progress is None else lambda done: on_progress(len(chosen) + done)
        drawn = attempt(engine, chosen, params, environments=known, on_progress=shifted, efforts=efforts)
        for i, one in enumerate(drawn):
            right_of[i // samples] += one.correct
    right = [one for one in greedy if one.correct]
    judged = [sound for one in right if (sound := is_sound(environment, one)) is not None]
    by_level: dict[int, list[bool]] = {}
    for one in greedy:
        by_level.setdefault(one.problem.level, []).append(one.correct)
    return Accuracy(
        environment.name,
        Proportion.of(len(right), len(greedy)),
        {k: Proportion.mean([pass_at_k(samples, c, k) for c in right_of]) for k in tries(samples)},
        Proportion.of(sum(judged), len(judged)),
        Proportion.of(sum(one.formed for one in greedy), len(greedy)),
        {level: Proportion.of(sum(flags), len(flags)) for level, flags in sorted(by_level.items())},
        sum(len(one.output.token_ids) for one in greedy) / max(len(greedy), 1),
        tuple(greedy),
        sum(len(one.output.token_ids) for one in (*greedy, *drawn)),
    )


def distinct_problems(
    environment: Environment, count: int, seed: int, levels: Sequence[int] | None = None, split: Split = "test"
) -> list[Problem]:
    """Return distinct problems, levels in turn; fewer than `count` where the split has no more.

    Raises:
        TaskError: a level that the task does not have.
    """
    found: dict[str, Problem] = {}
    repeats = 0
    for problem in environment.problems(split, seed, levels):
        if problem.key in found:
            repeats += 1
            if repeats > PATIENCE * count:
                break
            continue
        found[problem.key] = problem
        if len(found) == count:
            break
    return list(found.values())


def tries(samples: int) -> list[int]:
    """Return the k of pass@k that are shown for so many samples: powers of two, and all of them."""
    return sorted(
        {1 << i for i in range(samples.bit_length()) if 1 << i <= samples} | ({samples} if samples else set())
    )
