"""EnginePool: several engines on one model, a worker thread each, for large batches of prompts known beforehand."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from leanseek.engine.engine import Engine
from leanseek.engine.request import Output, Params, Progress, Prompts, params_of_each
from leanseek.engine.shares import engines_for, rows_of
from leanseek.kernels.threads import run_all
from leanseek.model.transformer import Transformer
from leanseek.tokens.tokenizer import Tokenizer


class EnginePool:
    """Answers prompts as one `Engine.generate` would, in `workers` threads that meet only at the end.

    Args:
        workers: engines; prompts are dealt in turn to as many of them as have enough to do (`engine.shares`).
        model, tokenizer, max_batch, max_context_tokens, drafts, record_experts: as `Engine`; the batch is shared out.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        *,
        workers: int = 1,
        max_batch: int = 64,
        max_context_tokens: int | None = None,
        drafts: int = 0,
        record_experts: bool = False,
    ) -> None:
        self._options: dict[str, Any] = {
            "max_context_tokens": max_context_tokens,
            "drafts": drafts,
            "record_experts": record_experts,
        }
        self._max_batch = max_batch
        rows = rows_of(max_batch, workers)
        self.engines = [Engine(model, tokenizer, max_batch=rows, **self._options) for _ in range(workers)]
        self.config, self.model, self.tokenizer, self.chat = model.config, model, tokenizer, self.engines[0].chat

    @property
    def options(self) -> dict[str, Any]:
        """Of one engine for the whole batch, in the pool's place."""
        return {"max_batch": self._max_batch, **self._options}

    def generate(
        self,
        prompts: Prompts,
        params: Params,
        *,
        on_progress: Progress | None = None,
    ) -> list[Output]:
        """Answer prompts; return the replies in order, each prompt's n side by side. As `Engine.generate`.

        Without a seed a reply depends on the engine that drew it: give one where replies must repeat. After a
        failure or Ctrl-C every engine stops with the next reply that it finishes.
        """
        each = params_of_each(params, prompts)
        count = engines_for(sum(one.n for one in each), len(self.engines))
        done = [0] * count
        stopping, noting = threading.Event(), threading.Lock()

        def task(worker: int) -> Callable[[], list[Output]]:
            def note(finished: int) -> None:
                if stopping.is_set():
                    raise _Stopped
                with noting:
                    done[worker] = finished
                    if on_progress is not None:
                        on_progress(sum(done))

            return lambda: self.engines[worker].generate(prompts[worker::count], each[worker::count], on_progress=note)

        parts = run_all([task(worker) for worker in range(min(count, max(len(prompts), 1)))], stopping.set)
        outputs: list[Output] = []
        taken = [0] * count
        for index, one in enumerate(each):
            worker = index % count
            outputs += parts[worker][taken[worker] : taken[worker] + one.n]
            taken[worker] += one.n
        return outputs


class _Stopped(Exception):
    """Ends an engine whose fellow has failed; nobody sees it."""
