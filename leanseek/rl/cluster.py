"""Cluster: rollouts by workers on other machines, as Ray actors; the trainer sends them what changed in its weights."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from leanseek.checkpoint.directory import empty_model
from leanseek.engine.engine import Engine
from leanseek.engine.request import Output, Params, Progress, Prompts, SamplingParams, params_of_each
from leanseek.engine.shared import SharedEngine
from leanseek.errors import EngineError, RunError
from leanseek.joining import join_ray, ray_for
from leanseek.log import say
from leanseek.model.config import ModelConfig
from leanseek.model.transformer import Transformer
from leanseek.rl.weights import Update, update_of
from leanseek.tokens.chat import ChatFormat
from leanseek.tokens.tokenizer import Tokenizer

# Calls that a worker answers at once; nearly all of them wait for the worker's one engine.
CALLS = 512


class Worker:
    """What a rollout worker does: engines on copies of the weights, made to go on by a thread of its own.

    Args:
        config, dtype, device: of the model.
        tokenizer: of the model.
        weights: all of them, by name.
        sides: copies of the weights, each with its engine.
        options: of the engines, as `Engine`.
    """

    def __init__(
        self,
        config: ModelConfig,
        dtype: str,
        device: str,
        tokenizer: Tokenizer,
        weights: Mapping[str, torch.Tensor],
        sides: int,
        options: Mapping[str, Any],
    ) -> None:
        torch.set_num_threads(1)
        self._condition = threading.Condition()
        self._sides = []
        for _ in range(sides):
            model = empty_model(config, dtype=dtype, device=device).eval().requires_grad_(False)
            model.load_state_dict(weights)
            self._sides.append(SharedEngine(Engine(model, tokenizer, **options), self._condition))
        threading.Thread(target=self._run, name="rollout worker", daemon=True).start()

    def ready(self) -> bool:
        """Return whether it has come up."""
        return True

    def update(self, side: int, update: Update) -> None:
        """Bring a side's weights up to date; nothing is under way there."""
        update.apply(self._sides[side].model.state_dict())

    def weights(self, side: int) -> dict[str, torch.Tensor]:
        """Return a side's weights."""
        return {name: tensor.cpu() for name, tensor in self._sides[side].model.state_dict().items()}

    def generate(self, side: int, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]) -> list[Output]:
        """Answer prompts by a side's weights."""
        return self._sides[side].generate(prompts, params)

    def _run(self) -> None:
        try:
            while True:
                with self._condition:
                    while not any(side.has_work for side in self._sides):
                        self._condition.wait()
                for side in self._sides:
                    side.advance()
        except BaseException as error:
            for side in self._sides:
                side.fail(error)


class Cluster:
    """Rollout workers as Ray actors, each with all of the weights; any of them may be lost at any time.

    What a lost worker was drawing is drawn by the others, with the same seeds.

    Args:
        model: its weights are sent to each worker once; later, only what changed is.
        tokenizer: of the model.
        workers: how many.
        address: of a running Ray cluster, "auto" for the one that this machine is part of, or "local" to start one
            here. leanseek must be installed on its nodes.
        sides: copies of the weights that may be drawn from at once.
        options: of the workers' engines, as `Engine`.
    Raises:
        ConfigError: Ray is not installed.
        RunError: the workers do not come up.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        *,
        workers: int,
        address: str = "local",
        sides: int = 1,
        options: Mapping[str, Any],
    ) -> None:
        self._ray = ray = ray_for("grpo.cluster")
        self.config, self.tokenizer, self.chat = model.config, tokenizer, ChatFormat(tokenizer)
        self._began = join_ray(ray, address, workers)
        device = model.device.type
        kind = ray.remote(Worker).options(
            num_cpus=1, num_gpus=1 if device == "cuda" else 0, max_concurrency=CALLS, max_restarts=0
        )
        weights = ray.put({name: tensor.detach().cpu() for name, tensor in model.state_dict().items()})
        dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        self._workers = [
            kind.remote(model.config, dtype, device, tokenizer, weights, sides, dict(options)) for _ in range(workers)
        ]
        self._turns = itertools.count()
        self.sent_bytes = 0
        _, late = ray.wait([one.ready.remote() for one in self._workers], num_returns=workers, timeout=300)
        if late:
            self.close()
            raise RunError(
                f"{len(late)} of {workers} rollout workers did not come up in five minutes: the Ray cluster has no "
                "room for them, or leanseek is not installed on its nodes"
            )
        self._each([one.ready.remote() for one in self._workers], self._workers)

    @property
    def workers(self) -> list[Any]:
        """Those that are alive."""
        return list(self._workers)

    def side(self, model: Transformer, condition: threading.Condition, number: int = 0) -> Side:
        """Return a side, which has the weights of `model`, and has them changed by its `take`.

        Args:
            model: equal to what was sent first; kept, to know what the workers have.
            condition: as `SharedEngine`.
            number: which of the workers' copies it is.
        """
        return Side(self, model, condition, number)

    def update(self, side: int, update: Update) -> None:
        """Bring a side of every worker up to date."""
        shared = self._ray.put(update)
        workers = self.workers
        self._each([one.update.remote(side, shared) for one in workers], workers)
        self.sent_bytes += update.bytes * len(workers)

    def generate(
        self, side: int, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams], done: Callable[[int], None]
    ) -> list[Output]:
        """Have prompts answered, dealt among the workers; what one that is lost had, the others get."""
        found: dict[int, list[Output]] = {}
        while missing := [place for place in range(len(prompts)) if place not in found]:
            workers = self.workers
            first = next(self._turns)
            dealt = [missing[at :: len(workers)] for at in range(min(len(workers), len(missing)))]
            chosen = [workers[(first + at) % len(workers)] for at in range(len(dealt))]
            calls = [
                one.generate.remote(side, [prompts[place] for place in places], [params[place] for place in places])
                for one, places in zip(chosen, dealt, strict=True)
            ]
            for places, outputs in zip(dealt, self._each(calls, chosen), strict=True):
                if outputs is None:
                    continue
                at = 0
                for place in places:
                    found[place] = outputs[at : at + params[place].n]
                    at += params[place].n
                done(sum(map(len, found.values())))
        return [output for place in range(len(prompts)) for output in found[place]]

    def close(self) -> None:
        """Let the workers go."""
        for one in self._workers:
            self._ray.kill(one)
        self._workers = []
        if self._began:
            self._ray.shutdown()

    def _each(self, calls: Sequence[Any], workers: Sequence[Any]) -> list[Any]:
        """Return what calls gave, None for those of a worker that was lost.

        Raises:
            RunError: no worker is left.
        """
        found: list[Any] = []
        for call, worker in zip(calls, workers, strict=True):
            try:
                found.append(self._ray.get(call))
            except self._ray.exceptions.RayActorError:
                found.append(None)
                if worker in self._workers:
                    self._workers = [one for one in self._workers if one is not worker]
                    say(f"a rollout worker is lost; its samples are drawn by the {len(self._workers)} left")
            except self._ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, EngineError) else RunError(str(error)) from error
        if not self._workers:
            raise RunError("every rollout worker is lost: see what became of the Ray cluster's nodes, then go on")
        return found


class Side:
    """One copy of the weights on every worker; to those who ask, an engine as `SharedEngine` is.

    Args:
        cluster: the workers.
        model: the weights as the workers have them.
        condition: guards what is asked for.
        number: which of the workers' copies it is.
    """

    has_work = False  # what is asked is done elsewhere

    def __init__(self, cluster: Cluster, model: Transformer, condition: threading.Condition, number: int) -> None:
        self.cluster, self.model, self.number, self._condition = cluster, model, number, condition
        self.config, self.tokenizer, self.chat = cluster.config, cluster.tokenizer, cluster.chat
        self.asked = 0

    def take(self, source: Transformer) -> None:
        """Copy the weights of another model, here and on every worker; nothing is under way."""
        known = self.model.state_dict()
        update = update_of(known, source.state_dict())
        self.cluster.update(self.number, update)
        update.apply(known)

    def generate(
        self,
        prompts: Prompts,
        params: Params,
        *,
        on_progress: Progress | None = None,
    ) -> list[Output]:
        """Answer prompts, as `Engine.generate`.

        Raises:
            EngineError: a prompt cannot be served.
            RunError: every worker is lost.
        """
        each = params_of_each(params, prompts)
        ids = [self._ids(prompt) for prompt in prompts]
        asked = sum(one.n for one in each)
        with self._condition:
            self.asked += asked
        try:
            return self.cluster.generate(self.number, ids, each, on_progress or (lambda finished: None))
        finally:
            with self._condition:
                self.asked -= asked
                self._condition.notify_all()

    def advance(self) -> None:
        """Do nothing: the workers go on by themselves."""

    def fail(self, error: BaseException) -> None:
        """Do nothing: who waits learns it from the workers."""

    def _ids(self, prompt: str | Sequence[int]) -> Sequence[int]:
        if isinstance(prompt, str):
            return [*self.tokenizer.beginning, *self.tokenizer.encode(prompt)]
        return prompt
