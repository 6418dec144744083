"""Rollouts: problems -> sampled replies -> rewards -> groups, through the engine that shares the trainer's weights."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from leanseek.engine.engine import Engine
from leanseek.engine.pool import EnginePool
from leanseek.engine.request import SamplingParams
from leanseek.envs.environment import Environment, Problem
from leanseek.errors import TaskError
from leanseek.evals.attempts import Attempt, attempt
from leanseek.model.count import sampling_parts
from leanseek.rl.advantages import group_advantages
from leanseek.rl.cluster import Side
from leanseek.rl.judge import Judge
from leanseek.rl.rewards import reward
from leanseek.sections.grpo import GrpoSettings
from leanseek.train.objectives.cut import Cut
from leanseek.train.objectives.forms import form_of
from leanseek.train.objectives.grpo import Group, GroupBatch
from leanseek.train.trainer import Meter

# Problems of RL are drawn with seeds from here on, all from the training split.
ROLLOUT_SEED = 1_000_000
# Later draws of a step sample with seeds so far apart that no two samples of a run share one.
REFILL_SEED = 1 << 55


@dataclass(frozen=True)
class Rollouts:
    """Makes a training batch for each step; the same step and weights always give the same batch.

    Args:
        engine: on the model that is trained; its outputs carry log-probabilities (and routing, to replay it).
        environments: tasks, taken in turn.
        levels: environment name -> levels used; default: all.
        settings: of the stage.
        seed: of problems and samples.
        meter: sampling is charged to it.
        efforts: of which each prompt asks for one; empty: none is asked for.
        judge: who grades right replies; None: nobody.
    """

    engine: EnginePool | Side
    environments: Sequence[Environment]
    levels: Mapping[str, Sequence[int]]
    settings: GrpoSettings
    seed: int
    meter: Meter
    efforts: Sequence[str] = ()
    judge: Judge | None = None

    def batch(self, step: int) -> GroupBatch:
        """Sample a step's groups; those whose replies differ in reward are what there is to learn from.

        Places of groups that taught nothing are filled with other problems, as often as the settings say.
        """
        start_s = time.monotonic()
        stream = self.stream(step)
        attempts: list[Attempt] = []
        groups: list[Group] = []
        each = self.settings.samples_per_prompt
        for draw in range(1 + self.settings.refill):
            missing = self.settings.prompts_per_step - len(groups)
            if not missing:
                break
            drawn = self._attempts(step, draw, list(itertools.islice(stream, missing)))
            self.refuse(drawn)
            found = [self.group(drawn[at : at + each]) for at in range(0, len(drawn), each)]
            groups += [group for group in found if group is not None]
            self.charge(drawn)
            attempts += drawn
        sample_s = time.monotonic() - start_s
        return self.joined(attempts, groups, sample_s, sample_s)

    def joined(
        self, attempts: Sequence[Attempt], groups: Sequence[Group], sample_s: float, elapsed_s: float
    ) -> GroupBatch:
        """Return a step's groups as a batch, with the figures of all its replies.

        Args:
            attempts: all of the step.
            groups: those of them that there is something to learn from.
            sample_s: seconds that the trainer waited for them.
            elapsed_s: seconds in which so many replies came.
        """
        metrics = _metrics(attempts, self.rewards(attempts)) | {
            "informative_groups": len(groups) / (len(attempts) // self.settings.samples_per_prompt),
            "sample_s": sample_s,
            "samples_per_s": len(attempts) / elapsed_s,
        }
        if self.settings.refill:
            metrics["groups"] = float(len(groups))
        return GroupBatch(groups, metrics, cut=self.cut)

    @property
    def cut(self) -> Cut:
        """Into which optimiser steps and parts a step's batch goes."""
        settings = self.settings
        by_reply = form_of(settings).average != "tokens"
        return Cut(settings.epochs, settings.minibatches, settings.sort_by_length, by_reply)

    def problems(self, step: int) -> list[Problem]:
        """Return the problems of a step's first draw, environments in turn."""
        return list(itertools.islice(self.stream(step), self.settings.prompts_per_step))

    def stream(self, step: int) -> Iterator[Problem]:
        """Return a step's problems without end: first those of the first draw, then others."""
        seed = ROLLOUT_SEED + self.seed * 1_000_003 + step
        sources = [e.problems("train", seed, self.levels.get(e.name)) for e in self.environments]
        # Levels come in turn inside an environment: start each step at another one.
        for source in sources:
            for _ in range(step % 7):
                next(source)
        return (next(source) for source in itertools.cycle(sources))

    def params(self, step: int, draw: int = 0) -> SamplingParams:
        """Return how the replies of a step's draw are drawn; each group's seeds begin where the last one's end."""
        settings = self.settings
        samples = settings.prompts_per_step * settings.samples_per_prompt
        return SamplingParams(
            max_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            n=settings.samples_per_prompt,
            seed=(self.seed * 1_000_003 + step) * samples + draw * REFILL_SEED,
            logprobs=0,
            supports=self._masked,
        )

    @property
    def _masked(self) -> bool:
        settings = self.settings
        return settings.keep_sampling_mask and (settings.top_p < 1 or settings.top_k > 0)

    @property
    def named(self) -> dict[str, Environment]:
        """The environments by name."""
        return {environment.name: environment for environment in self.environments}

    def _attempts(self, step: int, draw: int = 0, problems: Sequence[Problem] | None = None) -> list[Attempt]:
        chosen = self.problems(step) if problems is None else problems
        return self.attempts(self.engine, chosen, self.params(step, draw))

    def attempts(
        self, engine: Engine | EnginePool, problems: Sequence[Problem], params: SamplingParams
    ) -> list[Attempt]:
        """Return the replies to problems, scored, and graded where there is a judge.

        Args:
            engine: that replies.
            problems: that are asked.
            params: of the replies.
        """
        found = attempt(engine, problems, params, environments=self.named, efforts=self.efforts)
        return found if self.judge is None else self.judge.graded(found)

    def rewards(self, attempts: Sequence[Attempt]) -> list[float]:
        """Return what each attempt earned."""
        return [reward(one, self.settings, self.named.get(one.problem.environment)) for one in attempts]

    def group(self, attempts: Sequence[Attempt]) -> Group | None:
        """Return the attempts at one problem as a group; None: there is nothing to learn from them."""
        # A reply that broke off at a number that is not finite has no log-probability to learn from.
        if any(a.output.error is not None for a in attempts):
            return None
        normalise = form_of(self.settings).advantages == "normalised"
        advantages = group_advantages(self.rewards(attempts), normalise=normalise)
        if advantages is None:
            return None
        outputs = [a.output for a in attempts]
        return Group(
            attempts[0].prompt_ids,
            [output.token_ids for output in outputs],
            [(output.logprobs_within if self._masked else output.logprobs) or [] for output in outputs],
            advantages,
            [o.experts for o in outputs] if self.settings.replay_routing and outputs[0].experts is not None else None,
            [output.supports or [] for output in outputs] if self._masked else None,
            sampled=_sampled(attempts),
        )

    def charge(self, attempts: Sequence[Attempt]) -> None:
        """Charge what it took to draw these attempts, whole groups."""
        each = self.settings.samples_per_prompt
        prompts = [len(attempts[at].prompt_ids) for at in range(0, len(attempts), each)]
        first = [a.turns[0][1] if a.turns else len(a.output.token_ids) for a in attempts]
        replies = [first[at : at + each] for at in range(0, len(attempts), each)]
        # What follows in a conversation is read anew for each reply.
        later = [turn for a in attempts for turn in a.turns[1:]]
        prompts += [read for read, _ in later]
        replies += [[drawn] for _, drawn in later]
        self.meter.tokens += sum(prompts) + sum(map(sum, replies))
        for part, flops in sampling_parts(self.engine.config, prompts, replies).items():
            self.meter.add_flops(flops, part=part)

    def refuse(self, attempts: Sequence[Attempt]) -> None:
        """Stop where more rewards failed than the settings allow.

        Raises:
            TaskError: a larger share than `most_reward_errors` of a step's replies could not be scored.
        """
        failed = [a for a in attempts if a.error is not None and a.output.error is None]
        if len(failed) > self.settings.most_reward_errors * len(attempts):
            first = failed[0]
            raise TaskError(
                f"the rewards of {len(failed)} of {len(attempts)} replies of a step failed, more than the share of "
                f"{self.settings.most_reward_errors} that grpo.most_reward_errors allows; the first, of "
                f"{first.problem.environment}: {first.error}"
            )


def _sampled(attempts: Sequence[Attempt]) -> list[Sequence[bool]] | None:
    """Return which tokens the model drew, where some it did not."""
    if all(a.sampled is None for a in attempts):
        return None
    return [[True] * len(a.output.token_ids) if a.sampled is None else a.sampled for a in attempts]


def _metrics(attempts: Sequence[Attempt], rewards: Sequence[float]) -> dict[str, float]:
    def mean(values: Sequence[float]) -> float:
        return sum(values) / max(len(values), 1)

    metrics = {
        "reward": mean(rewards),
        "correct": mean([float(a.correct) for a in attempts]),
        "format": mean([float(a.formed) for a in attempts]),
        "length": mean([float(len(a.output.token_ids)) for a in attempts]),
        "unfinished": mean([float(a.output.finish_reason == "length") for a in attempts]),
    }
    for name in sorted({a.problem.environment for a in attempts}):
        metrics[f"correct_{name}"] = mean([float(a.correct) for a in attempts if a.problem.environment == name])
    if any(a.turns for a in attempts):
        metrics["turns"] = mean([float(len(a.turns) or 1) for a in attempts])
    for effort in dict.fromkeys(a.effort for a in attempts if a.effort is not None):
        metrics[f"length_{effort}"] = mean([float(len(a.output.token_ids)) for a in attempts if a.effort == effort])
    if failed := [a.error for a in attempts if a.error]:
        metrics["checker_errors"] = float(len(failed))
    return metrics
