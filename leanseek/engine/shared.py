"""SharedEngine: one engine that several threads ask at once; another thread, its owner, makes it go on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch

from leanseek.engine.engine import Engine
from leanseek.engine.request import Output, Params, Progress, Prompts, SamplingParams, params_of_each
from leanseek.errors import EngineError
from leanseek.model.transformer import Transformer


class SharedEngine:
    """Answers each caller as `Engine.generate` would; what all of them ask runs in one batch.

    A place in the batch that a finished reply leaves is taken by the next that waits, whoever asked for it.

    Args:
        engine: idle; only the owner of this object may touch it from now on.
        condition: notified when there is something new to do.
    """

    def __init__(self, engine: Engine, condition: threading.Condition) -> None:
        self.engine, self.model, self.config, self.chat = engine, engine.model, engine.config, engine.chat
        self.tokenizer = engine.tokenizer
        self.asked = 0
        self._condition = condition
        self._new: list[_Call] = []
        self._calls: dict[str, _Call] = {}
        self._failure: BaseException | None = None

    def generate(
        self,
        prompts: Prompts,
        params: Params,
        *,
        on_progress: Progress | None = None,
    ) -> list[Output]:
        """Answer prompts, as `Engine.generate`; waits until the owner has had them answered.

        Raises:
            EngineError: a prompt cannot be served, or the engine was closed meanwhile.
        """
        each = params_of_each(params, prompts)
        call = _Call([self.engine.ids(prompt) for prompt in prompts], each, on_progress)
        with self._condition:
            if self._failure is not None:
                raise EngineError(f"the engine has stopped: {self._failure}")
            self.asked += call.missing
            self._new.append(call)
            self._condition.notify_all()
        call.ended.wait()
        if call.error is not None:
            raise call.error
        return [call.outputs[place] for place in range(len(call.outputs))]

    def take(self, source: Transformer) -> None:
        """Copy the weights of another model of the same shape; nothing is under way."""
        known = self.model.state_dict()
        with torch.no_grad():
            for name, tensor in source.state_dict().items():
                known[name].copy_(tensor)

    @property
    def has_work(self) -> bool:
        """Whether anybody waits for a reply; the condition is held."""
        return bool(self._new or self._calls)

    def advance(self) -> None:
        """Take up what is new and call the model once; the owner's."""
        with self._condition:
            new, self._new = self._new, []
        for call in new:
            self._begin(call)
        if not self.engine.has_work:
            return
        for output in self.engine.advance():
            call = self._calls[output.request_id]
            call.outputs[call.places[output.request_id] + output.index] = output
            call.missing -= 1
            with self._condition:
                self.asked -= 1
            if call.on_progress is not None:
                call.on_progress(len(call.outputs))
            if not call.missing:
                self._end(call)

    def fail(self, error: BaseException) -> None:
        """Let everybody who waits know that no reply will come; the owner's."""
        with self._condition:
            self._failure = error
            waiting, self._new = [*self._new, *self._calls.values()], []
        self.engine.drop_all()
        for call in waiting:
            call.error = EngineError(f"the engine has stopped: {error}")
            self._end(call)

    def _begin(self, call: _Call) -> None:
        try:
            for ids, one in zip(call.prompts, call.params, strict=True):
                name = self.engine.add(ids, one)
                call.places[name] = sum(known.n for known in call.params[: len(call.places)])
                self._calls[name] = call
        except EngineError as error:
            for name in call.places:
                self.engine.cancel(name)
            call.error = error
        if call.error is not None or not call.missing:
            with self._condition:
                self.asked -= call.missing
            self._end(call)

    def _end(self, call: _Call) -> None:
        for name in call.places:
            self._calls.pop(name, None)
        call.ended.set()


class _Call:
    """One caller's prompts, and what has been answered of them."""

    def __init__(
        self,
        prompts: list[Sequence[int]],
        params: list[SamplingParams],
        on_progress: Callable[[int], None] | None,
    ) -> None:
        self.prompts, self.params, self.on_progress = prompts, params, on_progress
        self.missing = sum(one.n for one in params)
        self.outputs: dict[int, Output] = {}
        self.places: dict[str, int] = {}  # request's name -> place of its first reply
        self.ended = threading.Event()
        self.error: EngineError | None = None
