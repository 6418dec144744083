"""Attempts: a model's replies to problems, drawn together by the engine and scored by the environments."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import torch

from leanseek.engine.engine import Engine
from leanseek.engine.pool import EnginePool
from leanseek.engine.request import LARGEST, Output, SamplingParams
from leanseek.envs.environment import Environment, Episode, Problem
from leanseek.errors import EngineError, TaskError
from leanseek.messages import Message
from leanseek.tokens.chat import ChatFormat
from leanseek.tokens.effort import effort_of, with_effort

# Seeds of a conversation's later replies lie so far apart that none has the luck of another's.
TURN_SEED = 1 << 47
# Episodes that wait at once, for a sandbox or another process.
WAITING = 8


@dataclass(frozen=True, slots=True)
class Attempt:
    """One reply to one problem, or one conversation about it.

    Args:
        problem: what was asked.
        prompt_ids: the prompt's tokens; the attempts at one problem share the list.
        reply: thinking and answer; of a conversation, the last reply.
        output: the engine's tokens, log-probabilities and routing; of a conversation, of all that follows the prompt.
        rewards: the environment's, each in [0, 1].
        correct: whether the answer is right.
        formed: whether the thinking ends and an answer is there.
        error: why it could not be scored (it then counts as wrong), or None.
        sampled: of a conversation, which of the output's tokens the model drew; the others were said to it, and
            their log-probabilities are 0. None: all were drawn.
        messages: of a conversation, what was said after the prompt: replies and what they were answered.
        turns: of a conversation, for each reply the tokens read before it and those drawn.
        effort: that the prompt asked for, or None.
    """

    problem: Problem
    prompt_ids: list[int]
    reply: Message
    output: Output
    rewards: Mapping[str, float]
    correct: bool
    formed: bool
    error: str | None = None
    sampled: Sequence[bool] | None = None
    messages: tuple[Message, ...] = ()
    turns: tuple[tuple[int, int], ...] = ()
    effort: str | None = None


def attempt(
    engine: Engine | EnginePool,
    problems: Sequence[Problem],
    params: SamplingParams,
    *,
    environments: Mapping[str, Environment],
    on_progress: Callable[[int], None] | None = None,
    efforts: Sequence[str] = (),
) -> list[Attempt]:
    """Let the engine answer problems; return the attempts in order, each problem's `params.n` side by side.

    An episode that goes on is answered again, its tokens as they were drawn, until it is over or what was said since
    the prompt fills `params.max_tokens`. A checker that raises does not stop the others: its attempt counts as wrong
    and carries the error.

    Args:
        engine: idle, with a tokenizer.
        problems: of any of the environments.
        params: how to draw. With a seed, problem i draws with seed + i * n, so that no two share their luck.
        environments: by name, as the problems name them.
        on_progress: called with the number of attempts finished so far.
        efforts: of which each problem's prompt asks for one; empty: none is asked for.
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
    episodes = [[environments[p.environment].start(p) for _ in range(params.n)] for p in problems]
    asked = [effort_of(problem.key, efforts) for problem in problems]
    firsts = [group[0] for group in episodes]
    prompts = [
        chat.prompt(with_effort(first.messages, effort), tools=first.tools)
        for first, effort in zip(firsts, asked, strict=True)
    ]
    each = [params] * len(problems)
    if params.seed is not None:
        each = [replace(params, seed=params.seed + i * params.n) for i in range(len(problems))]
    several = any(environments[problem.environment].multi_turn for problem in problems)
    outputs = engine.generate(prompts, each, on_progress=None if several else on_progress)
    talks = [
        _Talk(chat, episode, prompts[i], params.max_tokens, i * params.n + j, asked[i])
        for i, group in enumerate(episodes)
        for j, episode in enumerate(group)
    ]
    _hear(talks, outputs)
    turn = 0
    while going := [talk for talk in talks if not talk.over]:
        turn += 1
        if on_progress is not None:
            on_progress(len(talks) - len(going))
        more = [replace(params, n=1, max_tokens=talk.room, seed=_seed(params, turn, talk.place)) for talk in going]
        _hear(going, engine.generate([talk.ids for talk in going], more))
    if several and on_progress is not None:
        on_progress(len(talks))
    return [talk.attempt() for talk in talks]


def is_sound(environment: Environment, one: Attempt) -> bool | None:
    """Whether an attempt's thinking is right line by line; thinking that the audit cannot take is not.

    None: the task cannot tell.
    """
    try:
        return environment.audit(one.problem, one.reply.reasoning_content or "")
    except Exception:  # as in _Talk.hear: what a model says must not end a run
        return False


def score(environment: Environment, problem: Problem, reply: Message) -> tuple[Mapping[str, float], str | None]:
    """Return the rewards of a first reply that came from elsewhere, and the error where the environment failed on it.

    Args:
        environment: the problem's, with episodes of one turn.
        problem: that was asked.
        reply: of the assistant.
    """
    try:
        return _checked(environment.start(problem).step(reply).rewards), None
    except Exception as error:  # as in _Talk.hear
        return UNSCORED, f"{type(error).__name__}: {error}"


EMPTY = Message("assistant", "")
UNSCORED: Mapping[str, float] = {"correct": 0.0, "format": 0.0}


@dataclass
class _Talk:
    """An attempt under way."""

    chat: ChatFormat
    episode: Episode
    prompt: list[int]
    most: int  # tokens after the prompt
    place: int  # among all
    effort: str | None = None
    over: bool = False
    error: str | None = None
    reply: Message = EMPTY
    rewards: Mapping[str, float] = field(default_factory=dict)
    said: list[Message] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)  # all of them, the prompt's too
    sampled: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    turns: list[tuple[int, int]] = field(default_factory=list)
    full: bool = False  # whether there was no room for what is said next

    @property
    def room(self) -> int:
        """Tokens that may still follow."""
        return self.most - len(self.sampled)

    def hear(self, output: Output) -> None:
        """Take a reply, and what the episode answers."""
        self.ids = self.ids or list(self.prompt)
        self.turns.append((len(self.ids), len(output.token_ids)))
        self.outputs.append(output)
        self.ids += output.token_ids
        self.sampled += [True] * len(output.token_ids)
        self.logprobs += output.logprobs or []
        self.reply = self.chat.parse(output.token_ids)
        self.said.append(self.reply)
        try:
            turn = self.episode.step(self.reply)
            self.rewards, self.over = _checked(turn.rewards), turn.done
            following = [] if turn.done else self.chat.following(turn.messages, tools=self.episode.tools)
        except Exception as error:  # a bad rollout is data: one faulty checker must not end a run of hours
            self.rewards, self.error, self.over = UNSCORED, f"{type(error).__name__}: {error}", True
        if output.error is not None:
            self.rewards, self.error, self.over = UNSCORED, output.error, True
        if self.over:
            return
        if output.finish_reason != "stop" or len(following) >= self.room:
            self.over = self.full = True
            return
        self.said += turn.messages
        self.ids += following
        self.sampled += [False] * len(following)
        self.logprobs += [0.0] * len(following)

    def attempt(self) -> Attempt:
        """Return what has become of it."""
        correct, formed = self.rewards.get("correct", 0.0) >= 1.0, self.rewards.get("format", 0.0) >= 1.0
        made = Attempt(
            self.episode.problem,
            self.prompt,
            self.reply,
            self.outputs[0],
            self.rewards,
            correct,
            formed,
            self.error,
            effort=self.effort,
        )
        if len(self.outputs) == 1 and not self.full:
            return made
        last = self.outputs[-1]
        output = replace(
            last,
            token_ids=self.ids[len(self.prompt) :],
            text="".join(one.text for one in self.outputs),
            logprobs=None if last.logprobs is None else self.logprobs,
            experts=self._experts(),
            supports=self._supports(),
            logprobs_within=self._within(),
            finish_reason="length" if self.full else last.finish_reason,
            index=self.outputs[0].index,
        )
        said = tuple(self.said)
        return replace(made, output=output, sampled=self.sampled, messages=said, turns=tuple(self.turns))

    def _supports(self) -> list[array[int]] | None:
        """Return what could have been drawn at each place; where nothing was, the token that stands there."""
        if self.outputs[-1].supports is None:
            return None
        drawn = iter([one for output in self.outputs for one in output.supports or []])
        tokens = self.ids[len(self.prompt) :]
        return [next(drawn) if flag else array("q", [i]) for i, flag in zip(tokens, self.sampled, strict=True)]

    def _within(self) -> list[float] | None:
        if self.outputs[-1].logprobs_within is None:
            return None
        drawn = iter([one for output in self.outputs for one in output.logprobs_within or []])
        return [next(drawn) if flag else 0.0 for flag in self.sampled]

    def _experts(self) -> torch.Tensor | None:
        """Return the routing of every token but the last, each as when it was first read."""
        pieces: list[torch.Tensor] = []
        known = 0
        for output in self.outputs:
            if output.experts is None:
                return None
            pieces.append(output.experts[known:])
            known = len(output.experts)
        return torch.cat(pieces)


def _hear(talks: Sequence[_Talk], outputs: Sequence[Output]) -> None:
    """Give each attempt its reply; those whose episodes wait for something wait together."""
    waiting = [talk.episode.environment.waits for talk in talks]
    with ThreadPoolExecutor(WAITING) as pool:
        slow = [pool.submit(t.hear, o) for t, o, waits in zip(talks, outputs, waiting, strict=True) if waits]
        for talk, output, waits in zip(talks, outputs, waiting, strict=True):
            if not waits:
                talk.hear(output)
        for one in slow:
            one.result()


def _seed(params: SamplingParams, turn: int, place: int) -> int | None:
    return None if params.seed is None else (params.seed + place + turn * TURN_SEED) % LARGEST


def _checked(rewards: Mapping[str, float]) -> Mapping[str, float]:
    """Return rewards that are numbers from 0 to 1.

    Raises:
        TaskError: one is not.
    """
    for name, value in rewards.items():
        if not (math.isfinite(value) and 0 <= value <= 1):
            raise TaskError(f"the reward {name} = {value}: a number from 0 to 1 is needed")
    return rewards
