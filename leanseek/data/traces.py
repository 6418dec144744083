"""Traces: worked solutions as training conversations, for SFT's cold start."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import torch

from leanseek.data.batches import Batch, packed_examples
from leanseek.envs.environment import Environment, Problem, demonstrate
from leanseek.messages import Message
from leanseek.tokens.chat import ChatFormat
from leanseek.tokens.effort import effort_of, with_effort

# SFT, RL and the corpus draw from the training split with seeds of their own.
TRACE_SEED = 500_000

Example = tuple[list[int], list[bool]]


def traces(
    chat: ChatFormat,
    environments: Sequence[Environment],
    count: int,
    *,
    levels: Mapping[str, Sequence[int]],
    seed: int,
    hasty: float,
    efforts: Sequence[str] = (),
) -> list[Example]:
    """Return `count` conversations per environment, environments in turn.

    Args:
        chat: turns messages into ids.
        environments: whose training problems are solved.
        count: per environment.
        levels: environment name -> levels used; default: all.
        seed: the same seed gives the same traces.
        hasty: chance, after each line of thinking but the last, that it breaks off and the answer is given
            at once. Such a trace teaches to guess; RL finds out by itself that thinking to the end pays.
        efforts: of which each prompt asks for one; empty: none is asked for.
    """
    rng = random.Random(f"traces/{seed}")
    sources = [(e, e.problems("train", TRACE_SEED + seed, levels.get(e.name))) for e in environments]
    examples = []
    for _ in range(count):
        for environment, problems in sources:
            problem = next(problems)
            examples.append(_trace(chat, environment, problem, rng, hasty, efforts))
    return examples


def _trace(
    chat: ChatFormat,
    environment: Environment,
    problem: Problem,
    rng: random.Random,
    hasty: float,
    efforts: Sequence[str],
) -> Example:
    if environment.multi_turn:
        said, _ = demonstrate(environment, problem, rng)
        return chat.dialogue(with_effort(said, effort_of(problem.key, efforts)), tools=environment.start(problem).tools)
    solution = _cut_short(environment.solution(problem, rng), rng, hasty)
    episode = environment.start(problem)
    prompt = with_effort(episode.messages, effort_of(problem.key, efforts))
    return chat.example([*prompt, solution], tools=episode.tools)


def _cut_short(solution: Message, rng: random.Random, hasty: float) -> Message:
    lines = (solution.reasoning_content or "").split("\n")
    for count in range(1, len(lines)):
        if rng.random() < hasty:
            return Message(solution.role, solution.content, "\n".join(lines[:count]))
    return solution


class TraceBatches:
    """Shuffled batches of conversations; the same step always gives the same batch.

    Args:
        examples: all conversations.
        batch: conversations of one batch; at most all of them.
        seed: of the order; every pass has its own.
    """

    def __init__(self, examples: Sequence[Example], batch: int, seed: int) -> None:
        self.examples, self.rows, self.seed = examples, min(batch, len(examples)), seed
        self.batches_per_pass = len(examples) // self.rows

    def batch(self, step: int) -> Batch:
        """Return the batch of a step."""
        return packed_examples(self.chosen(step))

    def chosen(self, step: int) -> list[Example]:
        """Return the conversations of a step."""
        return [self.examples[i] for i in self.places(step)]

    def places(self, step: int) -> list[int]:
        """Return which conversations those are."""
        epoch, index = divmod(step, self.batches_per_pass)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.examples), generator=generator)
        chosen: list[int] = order[index * self.rows : (index + 1) * self.rows].tolist()
        return chosen
