"""Stream: rollouts that go on while the trainer learns, by weights that are a bounded number of steps old."""

from __future__ import annotations

import copy
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from leanseek.engine.request import Output, Params, Prompts, SamplingParams
from leanseek.engine.shared import SharedEngine
from leanseek.envs.environment import Problem
from leanseek.errors import RunError
from leanseek.evals.attempts import Attempt
from leanseek.model.transformer import Transformer
from leanseek.rl.cluster import Side
from leanseek.rl.rollouts import Rollouts
from leanseek.train.objectives.grpo import Group, GroupBatch

# Groups under way at once, as a multiple of a step's: each has a thread, which mostly waits.
MOST_STEPS_OPEN = 4
# Copies of the weights: one that new groups are drawn by, one whose last groups are still under way.
COPIES = 2

Seat = SharedEngine | Side
Check = Callable[[Transformer, GroupBatch], Mapping[str, float]]


class Stream:
    """Gives each step its batch, as `Rollouts.batch` does, but draws it meanwhile and ahead.

    Samples come from a copy of the weights, taken when the trainer asks for a step's batch. A group begins only if
    the copy will be at most `staleness` steps old when the group is learnt from, and all of it is drawn by that one
    copy, so that what the trainer computes can be held against the engine exactly. Places in the engine's batch that
    finished samples leave are taken by the next groups at once, those of later steps too; while the last groups of an
    older copy end, new ones begin by the newer.

    Problems and seeds are those of `Rollouts`. Which copy draws a group depends on the clock, so that a run does not
    repeat bit by bit.

    Args:
        model: that learns; it must not change while `batch` runs.
        rollouts: whose problems, seeds, groups and figures these are.
        seat: (copy of the model, condition, number of the copy) -> an engine on it that several threads may ask.
        staleness: in steps, at least 1.
        check: (copy, one group) -> how well trainer and engine agree on it; called once for each copy that is used.
        steps: of the stage, beyond which nothing is drawn; None: not known.
    """

    def __init__(
        self,
        model: Transformer,
        rollouts: Rollouts,
        seat: Callable[[Transformer, threading.Condition, int], Seat],
        *,
        staleness: int,
        check: Check | None = None,
        steps: int | None = None,
    ) -> None:
        self.model, self.rollouts, self.staleness, self.check, self.steps = model, rollouts, staleness, check, steps
        self._condition = threading.Condition()
        self._slots = [_Slot(seat(copy_of(model), self._condition, number)) for number in range(COPIES)]
        self._newest: _Slot | None = None
        self._expected = -1  # the step that is asked for next
        self._found: defaultdict[int, _Step] = defaultdict(_Step)
        self._jobs: Iterator[_Job] = iter(())
        self._next: _Job | None = None
        self._again: deque[_Job] = deque()  # places of groups that taught nothing
        self._era = 0  # counts beginnings: what an earlier one drew is thrown away
        self._failure: BaseException | None = None
        self._closed = False
        self._given_s = time.monotonic()
        self._threads = torch.get_num_threads()
        self._players: list[threading.Thread] = []
        self._owner = threading.Thread(target=self._run, name="rollouts", daemon=True)
        self._owner.start()

    def batch(self, step: int) -> GroupBatch:
        """Return a step's batch, and let what follows be drawn by the weights as they are now.

        Raises:
            RunError: drawing has failed.
            TaskError: more rewards failed than the settings allow.
        """
        start_s = time.monotonic()
        with self._condition:
            if step != self._expected:
                self._restart(step)
            self._expected = step + 1
            shown = False
            while True:
                if self._failure is not None:
                    raise RunError(f"the rollouts have stopped: {self._failure}") from self._failure
                if not shown:
                    shown = self._show(step)
                if self._found[step].missing == 0:
                    break
                self._condition.wait()
            done = self._found.pop(step)
        attempts = [one for place in sorted(done.attempts) for one in done.attempts[place]]
        groups = [done.groups[place] for place in sorted(done.groups)]
        self.rollouts.refuse(attempts)
        self.rollouts.charge(attempts)
        now_s = time.monotonic()
        batch = self.rollouts.joined(attempts, groups, now_s - start_s, max(now_s - self._given_s, 1e-9))
        self._given_s = now_s
        ages = {"staleness": sum(done.ages) / len(done.ages), "staleness_most": float(max(done.ages))}
        return replace(batch, metrics={**batch.metrics, **ages, **done.agreement})

    def close(self) -> None:
        """End the drawing; what is under way is dropped."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        self._owner.join()
        for player in self._players:
            player.join()

    def _restart(self, step: int) -> None:
        """Begin at a step; nothing that was drawn ahead is kept."""
        self._era += 1
        self._found.clear()
        self._again.clear()
        self._jobs = self._all_jobs(step)
        self._next = next(self._jobs, None)
        for slot in self._slots:
            slot.version = step - 1 - self.staleness  # too old for anything

    def _all_jobs(self, step: int) -> Iterator[_Job]:
        each, places = self.rollouts.settings.samples_per_prompt, self.rollouts.settings.prompts_per_step
        while self.steps is None or step < self.steps:
            stream = self.rollouts.stream(step)
            known = self._found[step]
            known.missing, known.stream = places, stream
            known.draws_left = places * self.rollouts.settings.refill
            params = self.rollouts.params(step)
            for place in range(places):
                assert params.seed is not None, "rollouts have seeds"
                seeded = replace(params, seed=params.seed + place * each)
                yield _Job(self._era, step, place, 0, next(stream), seeded)
            step += 1

    def _show(self, step: int) -> bool:
        """Copy the weights as they are after so many steps, where a copy is free."""
        free = [slot for slot in self._slots if not slot.open]
        if not free:
            return False
        slot = free[0] if free[0] is not self._newest or len(free) == 1 else free[1]
        slot.shared.take(self.model)
        slot.version, slot.checked, self._newest = step, self.check is None, slot
        self._condition.notify_all()
        return True

    def _run(self) -> None:
        """Begin groups and let the engines go on; in a thread of its own."""
        torch.set_num_threads(self._threads)
        try:
            while True:
                with self._condition:
                    while not (self._closed or self._begin() or any(slot.shared.has_work for slot in self._slots)):
                        self._condition.wait()
                    if self._closed:
                        break
                for slot in self._slots:
                    slot.shared.advance()
        except BaseException as error:
            self._fail(error)
        for slot in self._slots:
            slot.shared.fail(self._failure or RunError("it was closed"))

    def _fail(self, error: BaseException) -> None:
        with self._condition:
            self._failure = self._failure or error
            self._closed = True
            self._condition.notify_all()

    def _begin(self) -> bool:
        """Begin groups for which there is room; return whether any was. The condition is held."""
        slot, settings = self._newest, self.rollouts.settings
        if slot is None:
            return False
        each, begun = settings.samples_per_prompt, False
        room = settings.prompts_per_step * each
        while slot.starting + slot.shared.asked < room:
            if sum(one.open for one in self._slots) >= MOST_STEPS_OPEN * settings.prompts_per_step:
                break
            job = self._again[0] if self._again else self._next
            if job is None or job.step > slot.version + self.staleness:
                break
            if self._again:
                self._again.popleft()
            else:
                self._next = next(self._jobs, None)
            slot.open += 1
            slot.starting += each
            player = threading.Thread(target=self._play, args=(slot, job), name="group", daemon=True)
            self._players = [one for one in self._players if one.is_alive()]
            player.start()
            self._players.append(player)
            begun = True
        return begun

    def _play(self, slot: _Slot, job: _Job) -> None:
        """Draw one group and score it; in a thread of its own, which mostly waits for the engine."""
        asker = _Asker(slot, self._condition, job.params.n)
        try:
            torch.set_num_threads(self._threads)
            drawn = self.rollouts.attempts(asker, [job.problem], job.params)
            group = self.rollouts.group(drawn)
            agreement: Mapping[str, float] = {}
            with self._condition:
                first = group is not None and not slot.checked
                slot.checked = slot.checked or first
            if first and group is not None and self.check is not None:
                agreement = self.check(slot.shared.model, GroupBatch([group]))
            with self._condition:
                self._settle(slot, job, drawn, group, agreement)
        except BaseException as error:
            if not self._closed:
                self._fail(error)
        finally:
            with self._condition:
                asker.leave()
                slot.open -= 1
                self._condition.notify_all()

    def _settle(
        self, slot: _Slot, job: _Job, drawn: list[Attempt], group: Group | None, agreement: Mapping[str, float]
    ) -> None:
        """Note what became of a group. The condition is held."""
        if job.era != self._era:
            return
        step = self._found[job.step]
        step.attempts[job.place, job.draw] = drawn
        step.ages.append(job.step - slot.version)
        if agreement:
            step.agreement = {
                name: max(value, step.agreement.get(name, value))
                if name.startswith("logprob")
                else min(value, step.agreement.get(name, value))
                for name, value in agreement.items()
            }
        if group is None and step.draws_left:
            step.draws_left -= 1
            step.redrawn += 1
            params = self.rollouts.params(job.step, step.redrawn)
            self._again.append(_Job(self._era, job.step, job.place, step.redrawn, next(step.stream), params))
            return
        if group is not None:
            step.groups[job.place] = group
        step.missing -= 1


@dataclass(eq=False)
class _Slot:
    """A copy of the weights and the engine on it.

    Args:
        shared: the engine.
        version: how many steps the weights have learnt from.
        open: groups under way.
        starting: samples that are about to be asked for.
        checked: whether trainer and engine were compared on it.
    """

    shared: Seat
    version: int = -1
    open: int = 0
    starting: int = 0
    checked: bool = False


@dataclass(frozen=True, eq=False)
class _Job:
    """A group to be drawn: the place of it in its step, and the how many-th try at that."""

    era: int
    step: int
    place: int
    draw: int
    problem: Problem
    params: SamplingParams


@dataclass(eq=False)
class _Step:
    """What there is of a step so far."""

    missing: int = -1
    draws_left: int = 0
    redrawn: int = 0
    stream: Iterator[Problem] = field(default_factory=lambda: iter(()))
    attempts: dict[tuple[int, int], list[Attempt]] = field(default_factory=dict)
    groups: dict[int, Group] = field(default_factory=dict)
    ages: list[int] = field(default_factory=list)
    agreement: dict[str, float] = field(default_factory=dict)


class _Asker:
    """One group's way to its engine; tells when its samples are no longer about to be asked for."""

    def __init__(self, slot: _Slot, condition: threading.Condition, samples: int) -> None:
        self.chat, self.config, self._slot = slot.shared.chat, slot.shared.config, slot
        self._condition, self._starting = condition, samples

    def generate(
        self,
        prompts: Prompts,
        params: Params,
        **more: Any,
    ) -> list[Output]:
        """Answer as the engine does."""
        with self._condition:
            self.leave()
        return self._slot.shared.generate(prompts, params, **more)

    def leave(self) -> None:
        """Note that nothing more is about to be asked for the first time; the condition is held."""
        self._slot.starting -= self._starting
        self._starting = 0


def copy_of(model: Transformer) -> Transformer:
    """Return a copy of a model that does not learn."""
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    for parameter in copied.parameters():
        parameter.grad = None
    return copied
