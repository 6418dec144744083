"""Attempts: a model's replies to problems, drawn together by the engine and scored by the environments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from leanseek.engine.engine import Engine
from leanseek.engine.pool import EnginePool
from leanseek.engine.request import Output, SamplingParams
from leanseek.envs.environment import Environment, Problem
from leanseek.errors import EngineError, TaskError
from leanseek.messages import Message


@dataclass(frozen=True, slots=True)
class Attempt:
    """One reply to one problem.

    Args:
        problem: what was asked.
        prompt_ids: the prompt's tokens; the attempts at one problem share the list.
        reply: thinking and answer.
        output: the engine's tokens, log-probabilities and routing.
        rewards: the environment's, each in [0, 1].
        correct: whether the answer is right.
        formed: whether the thinking ends and an answer is there.
        error: why it could not be scored (it then counts as wrong), or None.
    """

    problem: Problem
    prompt_ids: list[int]
    reply: Message
    output: Output
    rewards: Mapping[str, float]
    correct: bool
    formed: bool
    error: str | None = None


def attempt(
    engine: Engine | EnginePool,
    problems: Sequence[Problem],
    params: SamplingParams,
    *,
    environments: Mapping[str, Environment],
    on_progress: Callable[[int], None] | None = None,
) -> list[Attempt]:
    """Let the engine answer problems; return the attempts in order, each problem's `params.n` side by side.

    A checker that raises does not stop the others: its attempt counts as wrong and carries the error.

    Args:
        engine: idle, with a tokenizer.
        problems: of any of the environments.
        params: how to draw. With a seed, problem i draws with seed + i * n, so that no two share their luck.
        environments: by name, as the problems name them.
        on_progress: called with the number of replies finished so far.
    Raises:
        EngineError: the engine has no tokenizer, is busy, or cannot take a prompt.
        TaskError: a problem of an environment that is not among `environments`.
    """
    chat = engine.chat
    if chat is None:
        raise EngineError("this engine has no tokenizer: problems are text, so it needs one")
    for name in {problem.environment for problem in problems}:
        if name not in environments:
            raise TaskError(f"a problem is of environment {name!r}; given are {', '.join(sorted(environments))}")
    prompts = [chat.prompt(environments[problem.environment].start(problem).messages) for problem in problems]
    each = [params] * len(problems)
    if params.seed is not None:
        each = [replace(params, seed=params.seed + i * params.n) for i in range(len(problems))]
    outputs = engine.generate(prompts, each, on_progress=on_progress)
    attempts = []
    for i, output in enumerate(outputs):
        problem = problems[i // params.n]
        reply = chat.parse(output.token_ids)
        rewards, error = _score(environments[problem.environment], problem, reply)
        if output.error is not None:
            rewards, error = UNSCORED, output.error
        correct, formed = rewards.get("correct", 0.0) >= 1.0, rewards.get("format", 0.0) >= 1.0
        attempts.append(Attempt(problem, prompts[i // params.n], reply, output, rewards, correct, formed, error))
    return attempts


def is_sound(environment: Environment, one: Attempt) -> bool:
    """Whether an attempt's thinking is right line by line; thinking that the audit cannot take is not."""
    try:
        return environment.audit(one.problem, one.reply.reasoning_content or "")
    except Exception:  # as in _score: what a model says must not end a run
        return False


UNSCORED: Mapping[str, float] = {"correct": 0.0, "format": 0.0}


def _score(environment: Environment, problem: Problem, reply: Message) -> tuple[Mapping[str, float], str | None]:
    """Return the rewards of a reply, and the error where the environment failed on it."""
    try:
        return environment.start(problem).step(reply).rewards, None
    except Exception as error:  # a bad rollout is data: one faulty checker must not end a run of hours
        return UNSCORED, f"{type(error).__name__}: {error}"
