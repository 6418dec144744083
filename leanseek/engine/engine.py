"""Engine: continuous batching over one model; prompts are prefilled once, finished rows leave the batch."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from leanseek.checkpoint.directory import load_model
from leanseek.engine.request import Event, Output, Request, SamplingParams
from leanseek.engine.rows import Rows, Sample
from leanseek.engine.sampler import sample
from leanseek.errors import EngineError
from leanseek.model.cache import ContiguousCache
from leanseek.model.decoder import Decoder
from leanseek.model.experts import Routing
from leanseek.model.segments import Segments
from leanseek.model.transformer import Transformer
from leanseek.tokens.chat import ChatFormat
from leanseek.tokens.tokenizer import Tokenizer

# Prompt tokens of one prefill call: enough to keep the processor busy, little enough to bound memory.
PREFILL_TOKENS = 8192


class Engine:
    """Serves requests on a model that may be training in the same process; one thread owns it.

    Args:
        model: its weights are read, never copied.
        tokenizer: to take and give text; None where ids are enough.
        max_batch: samples that run at once.
        max_context_tokens: longest prompt and reply together; None: what the model can.
        record_experts: whether outputs carry the routing used (for keep-routing in RL).
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer | None = None,
        *,
        max_batch: int = 64,
        max_context_tokens: int | None = None,
        record_experts: bool = False,
    ) -> None:
        self.model, self.tokenizer, self.config = model, tokenizer, model.config
        self.chat = ChatFormat(tokenizer) if tokenizer is not None else None
        self.max_context_tokens = min(max_context_tokens or 1 << 30, self.config.max_position_embeddings)
        moe_layers = len(model.moe_layers) if record_experts else 0
        self.record_experts = moe_layers > 0
        per_token = self.config.num_experts_per_tok
        self._rows = Rows(max_batch, self.max_context_tokens, moe_layers, per_token, model.device)
        specs = model.cache_specs()[: self.config.num_hidden_layers]
        self._cache = ContiguousCache(specs, max_batch, self.max_context_tokens, model.device)
        self._decoder = Decoder(model) if Decoder.suits(model) else None
        self._ends = torch.tensor(self.config.eos_token_ids, device=model.device)
        self._waiting: deque[Sample] = deque()
        self._finished: list[Output] = []
        self._logprobs_S = torch.empty(0)  # of the newest tokens
        self._names = itertools.count()
        self._seeds = itertools.count(1)

    @classmethod
    def load(cls, folder: str | Path, *, weights: str = "fp32", device: str = "cpu", max_batch: int = 64) -> Engine:
        """Open a checkpoint folder for serving.

        Args:
            folder: a Hugging Face directory.
            weights: "fp32" or "bf16", what the weights are kept in.
            device: "cpu" or "cuda".
            max_batch: samples that run at once.
        Raises:
            CheckpointError: the folder cannot be loaded.
            EngineError: an unknown form of weights.
        """
        dtypes = {"fp32": "float32", "bf16": "bfloat16"}
        if weights not in dtypes:
            raise EngineError(f"weights = {weights!r}: accepted are {', '.join(dtypes)}")
        model = load_model(folder, dtype=dtypes[weights], device=device)
        return cls(model, Tokenizer.load(folder), max_batch=max_batch)

    @property
    def has_work(self) -> bool:
        """Whether any request is waiting or running."""
        return bool(self._waiting) or len(self._rows) > 0

    def add(self, prompt_ids: Sequence[int], params: SamplingParams, request_id: str | None = None) -> str:
        """Queue a request; return its name.

        Raises:
            EngineError: an empty prompt, a token that the vocabulary lacks, or a prompt that leaves no
                room for a reply.
        """
        if not prompt_ids:
            raise EngineError("the prompt is empty: at least one token is needed")
        if min(prompt_ids) < 0 or max(prompt_ids) >= self.config.vocab_size:
            raise EngineError(f"the prompt has a token outside the vocabulary of {self.config.vocab_size}")
        if len(prompt_ids) >= self.max_context_tokens:
            raise EngineError(
                f"the prompt has {len(prompt_ids)} tokens; the context of {self.max_context_tokens} leaves no room"
            )
        request = Request(request_id or f"request-{next(self._names)}", tuple(prompt_ids), params)
        self._waiting.extend(Sample(request, index) for index in range(params.n))
        return request.request_id

    def cancel(self, request_id: str) -> None:
        """Drop a request wherever it is; its rows are free at once."""
        self._waiting = deque(s for s in self._waiting if s.request.request_id != request_id)
        rows = [row for row, s in enumerate(self._rows.samples) if s.request.request_id == request_id]
        self._leave({row: "cancelled" for row in rows})
        self._finished.clear()  # nobody waits for what was cancelled

    def step(self) -> list[Event]:
        """Prefill waiting requests if rows are free, else decode one token for every running sample."""
        rows = self._rows
        start = self._advance()
        if start is None:
            return []
        samples = rows.samples[start:]
        last, logprobs = rows.last[start : len(rows)].tolist(), self._logprobs_S.tolist()
        reasons = self._settle(start)
        events = []
        for offset, one in enumerate(samples):
            reason = reasons.get(start + offset)
            failed = reason == "error"
            events.append(
                Event(
                    one.request.request_id,
                    one.index,
                    None if failed else last[offset],
                    None if failed else logprobs[offset],
                    reason,
                    NOT_FINITE if failed else None,
                )
            )
        self._finished.clear()
        return events

    def generate(
        self,
        prompts: Sequence[str] | Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams],
        *,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[Output]:
        """Answer prompts; return the replies in order, each prompt's n side by side.

        Args:
            prompts: texts (BOS is put before them) or token ids.
            params: for all, or one per prompt.
            on_progress: called with the number of replies finished so far.
        Raises:
            EngineError: the engine is busy with other requests, or a prompt cannot be served.
        """
        if self.has_work:
            raise EngineError("generate() needs an idle engine; use add() and step() to share it")
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        order: dict[tuple[str, int], int] = {}
        outputs: dict[int, Output] = {}
        try:
            for prompt, one in zip(prompts, each, strict=True):
                name = self.add(self._ids(prompt), one)
                for index in range(one.n):
                    order[name, index] = len(order)
            while self.has_work:
                start = self._advance()
                if start is not None:
                    self._settle(start)
                for output in self._finished:
                    outputs[order[output.request_id, output.index]] = output
                if self._finished and on_progress is not None:
                    on_progress(len(outputs))
                self._finished.clear()
        except BaseException:
            self._drop_all()
            raise
        return [outputs[place] for place in range(len(order))]

    def _drop_all(self) -> None:
        """Make the engine idle: what `generate` asked for has nobody left who waits for it."""
        self._waiting.clear()
        self._leave(dict.fromkeys(range(len(self._rows)), "cancelled"))
        self._finished.clear()

    def _ids(self, prompt: str | Sequence[int]) -> Sequence[int]:
        if not isinstance(prompt, str):
            return prompt
        if self.tokenizer is None:
            raise EngineError("this engine has no tokenizer: give token ids")
        return [self.tokenizer.bos_id, *self.tokenizer.encode(prompt)]

    @torch.inference_mode()
    def _advance(self) -> int | None:
        """Run the model once; return the first row that got a token, or None if nothing ran."""
        if self._waiting and self._rows.free:
            return self._prefill()
        if len(self._rows):
            self._decode()
            return 0
        return None

    def _prefill(self) -> int:
        """Admit waiting samples; a prompt that several in a row have is read once, then copied to their rows."""
        rows, start = self._rows, len(self._rows)
        admitted: list[Sample] = []
        leaders: list[int] = []  # first row with each prompt
        leader_of: list[int] = []
        tokens: list[int] = []
        lengths: list[int] = []
        previous: tuple[int, ...] = ()
        while self._waiting and len(admitted) < rows.free:
            prompt_ids = self._waiting[0].request.prompt_ids
            if prompt_ids != previous:
                if lengths and len(tokens) + len(prompt_ids) > PREFILL_TOKENS:
                    break
                previous = prompt_ids
                leaders.append(start + len(admitted))
                tokens += prompt_ids
                lengths.append(len(prompt_ids))
            leader_of.append(len(leaders) - 1)
            admitted.append(self._waiting.popleft())
        device = self.model.device
        segments = Segments(tuple(lengths), device=device)
        routing = Routing() if self.record_experts else None
        self._cache.use(torch.tensor(leaders, device=device))
        hidden_TD = self.model(torch.tensor(tokens, device=device), segments, self._cache, routing)
        self._cache.use(None)
        leader_M = torch.tensor(leader_of, device=device)
        followers = [(leaders[g], start + i) for i, g in enumerate(leader_of) if leaders[g] != start + i]
        if followers:
            self._cache.copy_rows([a for a, _ in followers], [b for _, b in followers], max(lengths))
        if routing is not None:
            stacked = routing.stacked().to(torch.int16)
            for row, group in enumerate(leader_of, start):
                first = segments.starts[group]
                rows.experts[row, : lengths[group]] = stacked[first : first + lengths[group]]
        room = [self.max_context_tokens - lengths[g] for g in leader_of]
        limits = [min(s.request.params.max_tokens, r) for s, r in zip(admitted, room, strict=True)]
        rows.append(admitted, [lengths[g] for g in leader_of], limits, [self._seed(s) for s in admitted])
        logits_SW = self.model.logits(hidden_TD.index_select(0, segments.last_S)).index_select(0, leader_M)
        self._take(start, logits_SW)
        return start

    def _decode(self) -> None:
        """Read every row's newest token and sample the next."""
        rows = self._rows
        count = len(rows)
        last_S, position_S, longest = rows.last[:count], rows.position[:count], rows.longest + 1
        routing = Routing() if self.record_experts else None
        if self._decoder is not None:
            logits_SW = self._decoder(last_S, position_S, longest, rows.level, self._cache, routing)
        else:
            segments = Segments.decode(position_S, longest, rows.level)
            logits_SW = self.model.logits(self.model(last_S, segments, self._cache, routing))
        rows.advance(None if routing is None else routing.experts)
        self._take(0, logits_SW)

    def _take(self, start: int, logits_SW: Tensor) -> None:
        """Sample a token for the rows from `start` on and note it."""
        rows = self._rows
        sampling = rows.sampling(start)
        draws_S = None if start or sampling.greedy else rows.draws()
        tokens_S, self._logprobs_S = sample(logits_SW, sampling, draws_S)
        rows.take(start, tokens_S, self._logprobs_S)

    def _settle(self, start: int) -> dict[int, str]:
        """Find the rows that ended with their newest token, let them leave, and say why each did."""
        rows, end = self._rows, len(self._rows)
        reasons: dict[int, str] = {}
        if rows.until_limit <= 0:
            for row in (rows.place[start:end] >= rows.limit[start:end]).nonzero().squeeze(1).tolist():
                reasons[start + row] = "length"
        if rows.any_stops_at_eos:
            last = rows.last[start:end]
            ends = last == self._ends if self._ends.numel() == 1 else torch.isin(last, self._ends)
            at_eos = ends & rows.stops_at_eos[start:end]
            for row in at_eos.nonzero().squeeze(1).tolist():
                reasons[start + row] = "stop"
        if not math.isfinite(float(self._logprobs_S.sum())):
            for row in (~torch.isfinite(self._logprobs_S)).nonzero().squeeze(1).tolist():
                reasons[start + row] = "error"
        for row in rows.watched:
            unsettled = row >= start and reasons.get(row) in (None, "length")
            if unsettled and self._stopped(row, rows.samples[row].request.params):
                reasons[row] = "stop"
        self._leave(reasons)
        return reasons

    def _stopped(self, row: int, params: SamplingParams) -> bool:
        if int(self._rows.last[row]) in params.stop_token_ids:
            return True
        if not params.stop or self.tokenizer is None:
            return False
        self._rows.settle()
        text = self.tokenizer.decode(self._rows.tokens[row, : int(self._rows.place[row])].tolist())
        return any(stop in text for stop in params.stop)

    def _leave(self, reasons: dict[int, str]) -> None:
        """Hand finished rows' outputs over and close the gaps."""
        if not reasons:
            return
        rows = self._rows
        rows.settle()
        for row in sorted(reasons):
            self._finished.append(self._output(row, reasons[row]))
        broken = [row for row, reason in reasons.items() if reason == "error"]
        if broken:
            self._cache.clear_rows(broken)
        width = rows.longest
        moves = rows.remove(list(reasons))
        if moves:
            self._cache.copy_rows([a for a, _ in moves], [b for _, b in moves], width)

    def _output(self, row: int, reason: str) -> Output:
        rows, one = self._rows, self._rows.samples[row]
        params, count = one.request.params, int(self._rows.place[row])
        kept = count - (reason == "error")
        token_ids = rows.tokens[row, :kept].tolist()
        text = "" if self.tokenizer is None else self.tokenizer.decode(token_ids)
        for stop in params.stop:
            text = text.split(stop, 1)[0]
        read = len(one.request.prompt_ids) + count - 1
        return Output(
            one.request.request_id,
            one.index,
            token_ids,
            text,
            rows.logprobs[row, :kept].tolist() if params.logprobs is not None else None,
            rows.experts[row, :read].clone() if self.record_experts else None,
            reason,
            NOT_FINITE if reason == "error" else None,
        )

    def _seed(self, one: Sample) -> int:
        seed = one.request.params.seed
        return (next(self._seeds) << 20) + one.index if seed is None else seed + one.index


NOT_FINITE = "the model's output is not a finite number: the weights or the input are broken"
