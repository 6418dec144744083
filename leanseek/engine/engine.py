"""Engine: continuous batching over one model; prompts are read in chunks, finished rows leave the batch."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from leanseek.checkpoint.packed import open_model
from leanseek.engine.blocks import Blocks
from leanseek.engine.disk import Disk
from leanseek.engine.endings import NOT_FINITE, Endings
from leanseek.engine.grammar import GrammarCompiler
from leanseek.engine.paged_cache import PagedCache
from leanseek.engine.prefix import Prefixes
from leanseek.engine.request import (
    Event,
    Grammar,
    Output,
    Params,
    Progress,
    Prompts,
    Request,
    SamplingParams,
    params_of_each,
)
from leanseek.engine.rows import Rows
from leanseek.engine.rules import Rule, in_thinking, rule_of
from leanseek.engine.runner import Runner
from leanseek.engine.sampler import sample_within
from leanseek.engine.scheduler import Copy, Reading, Sample, Scheduler
from leanseek.engine.speculative import Drawn, Gain, Speculation
from leanseek.engine.telling import adjusted, note_supports, tell_prompts
from leanseek.errors import EngineError
from leanseek.kernels.invariance import invariant as invariant_operators
from leanseek.model.experts import Routing
from leanseek.model.segments import Segments
from leanseek.model.transformer import Transformer
from leanseek.tokens.chat import ChatFormat
from leanseek.tokens.replay import Replays
from leanseek.tokens.tokenizer import Tokenizer

# Prompt tokens of one call: enough to keep the processor busy, little enough to bound memory.
PREFILL_TOKENS = 8192
# The same while others wait for their next token: what they wait longer for is this much reading.
CHUNK_TOKENS = 512
# Tokens of a block of the cache, where texts share the room: few enough that little of a block is left empty and
# that beginnings are found again closely, enough that gathering them is quick.
BLOCK_TOKENS = 32

# Of what was said in other tokens than encoding would give, beside the blocks.
REPLAYS = "replays.jsonl"


class Engine:
    """Serves requests on a model that may be training in the same process; one thread owns it.

    Args:
        model: its weights are read, never copied.
        tokenizer: to take and give text; None where ids are enough.
        max_batch: samples that run at once.
        max_context_tokens: longest prompt and reply together; None: what the model can.
        cache_bytes: room for the texts' latents, which they share: a text takes what it needs, beginnings in common
            are kept once and remembered, and who finds no room waits. None: every sample has room for the longest
            text, side by side; nothing is remembered, and reading the cache is quickest.
        disk: where what is remembered is kept besides, over a restart too; goes with `cache_bytes`.
        drafts: tokens that the MTP layer drafts at once, where that is found to pay; 0: none. The replies are the same.
        invariant: whether a reply's tokens and log-probabilities have the same bits whatever else runs, however its
            text is read, sent back to wait or found again, drafted or not; on a CPU. It costs speed
            where the native decoder does not run (`bench/invariance.py`). None: where `cache_bytes` is given, as a
            server does.
        record_experts: whether outputs carry the routing used (for keep-routing in RL).
    Raises:
        EngineError: the model has no MTP layer to draft with; `cache_bytes` is not enough for two blocks; or routing
            is to be recorded where beginnings are remembered, whose routing is not.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer | None = None,
        *,
        max_batch: int = 64,
        max_context_tokens: int | None = None,
        cache_bytes: int | None = None,
        disk: Disk | None = None,
        drafts: int = 0,
        invariant: bool | None = None,
        record_experts: bool = False,
    ) -> None:
        self.model, self.tokenizer, self.config = model, tokenizer, model.config
        self.chat = ChatFormat(tokenizer) if tokenizer is not None else None
        self.max_context_tokens = min(max_context_tokens or 1 << 30, self.config.max_position_embeddings)
        moe_layers = len(model.moe_layers) if record_experts else 0
        self.record_experts = moe_layers > 0
        wanted = cache_bytes is not None if invariant is None else invariant
        self.invariant = wanted and model.device.type == "cpu"
        if drafts and model.mtp_layer is None:
            raise EngineError(f"drafts = {drafts}: the model has no MTP layer, which would draft")
        specs = model.cache_specs()[: self.config.num_hidden_layers + bool(drafts)]
        prefixes = None
        if cache_bytes is None:
            blocks = Blocks(max_batch, self.max_context_tokens)
        else:
            if self.record_experts:
                raise EngineError("routing is recorded only where nothing is remembered: leave cache_bytes out")
            block_bytes = BLOCK_TOKENS * PagedCache.bytes_per_token(specs)
            blocks = Blocks(cache_bytes // block_bytes, BLOCK_TOKENS)
            if blocks.count < 2:
                raise EngineError(f"cache_bytes = {cache_bytes}: {2 * block_bytes} are the least for this model")
            if tokenizer is not None and self.chat is not None:
                self.chat.replays = Replays(tokenizer, None if disk is None else disk.folder / REPLAYS)
            prefixes = Prefixes(
                blocks,
                disk,
                lambda block, tokens, data: self.runner.cache.restore(block, tokens, data),
                lambda block, tokens: self.runner.cache.payload(block, tokens),
            )
            # A text alone must always find room: that is what keeps the others from waiting for ever.
            self.max_context_tokens = min(self.max_context_tokens, blocks.count * BLOCK_TOKENS)
        self.prefixes = prefixes
        self.scheduler = Scheduler(blocks, prefixes, max_batch, whole_texts=cache_bytes is None)
        self.runner = Runner(
            model,
            specs,
            blocks,
            whole_texts=cache_bytes is None,
            drafts=drafts,
            record_experts=self.record_experts,
        )
        self._gain = Gain()
        self._drawn: Drawn | None = None
        per_token = self.config.num_experts_per_tok
        self._rows = Rows(max_batch, self.max_context_tokens, moe_layers, per_token, model.device)
        self._endings = Endings(self._rows, self.config.eos_token_ids, tokenizer)
        self._finished: list[Output] = []
        self._compiler = (
            GrammarCompiler(tokenizer, self.config.vocab_size, self.config.eos_token_ids) if tokenizer else None
        )
        self._logprobs_S = torch.empty(0)  # of the newest tokens
        self._names = itertools.count()
        self._seeds = itertools.count(1)
        self._room = 0  # tokens that every row's blocks still have room for, at least
        self._read_last = False

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        weights: str = "fp32",
        device: str = "cpu",
        max_batch: int = 64,
        cache_bytes: int | None = None,
    ) -> Engine:
        """Open a checkpoint folder for serving.

        Args:
            folder: a Hugging Face directory.
            weights: what the weights are kept in: "fp32" or "bf16"; on a CPU also "fp8", "int8" or "int4".
            device: "cpu" or "cuda".
            max_batch: samples that run at once.
            cache_bytes: as of the class.
        Raises:
            CheckpointError: the folder cannot be loaded.
            ConfigError: an unknown form of weights, or one that the device does not take.
        """
        model = open_model(folder, weights, device=device)
        return cls(model, Tokenizer.load(folder), max_batch=max_batch, cache_bytes=cache_bytes)

    @property
    def speculation(self) -> Speculation | None:
        """The MTP layer's drafting, if it is to draft."""
        return self.runner.speculation

    @property
    def running(self) -> int:
        """Replies that are being drawn."""
        return len(self._rows)

    @property
    def queued(self) -> set[str]:
        """Requests with a reply that waits for its first turn, while none of their prompts is being read."""
        return self.scheduler.queued

    def compile(self, grammar: Grammar) -> None:
        """Compile a grammar ahead of its request, which then finds it ready; from any thread.

        Raises:
            EngineError: the grammar cannot be used, or the engine has no tokenizer.
        """
        if self._compiler is None or self.chat is None:
            raise EngineError("this engine has no tokenizer, which a grammar needs")
        self._compiler.compile(grammar, grammar.after_thinking, self.chat.end_think_id, self.chat.think_id)

    @property
    def has_work(self) -> bool:
        """Whether any request is waiting or running."""
        return bool(self.scheduler.waiting or self.scheduler.reading) or len(self._rows) > 0

    def add(
        self, prompt_ids: Sequence[int], params: SamplingParams, request_id: str | None = None, scope: str = ""
    ) -> str:
        """Queue a request; return its name.

        Args:
            prompt_ids: at least one.
            params: how to draw the reply.
            request_id: its name; None: the engine gives one.
            scope: requests of other scopes never see what the cache remembers of this one.
        Raises:
            EngineError: an empty prompt, a token that the vocabulary lacks, a prompt that leaves no room for a reply,
                or a bias or a grammar that cannot be used.
        """
        if not prompt_ids:
            raise EngineError("the prompt is empty: at least one token is needed")
        if min(prompt_ids) < 0 or max(prompt_ids) >= self.config.vocab_size:
            raise EngineError(f"the prompt has a token outside the vocabulary of {self.config.vocab_size}")
        if len(prompt_ids) >= self.max_context_tokens:
            raise EngineError(
                f"the prompt has {len(prompt_ids)} tokens; the context of {self.max_context_tokens} leaves no room"
            )
        request = Request(request_id or f"request-{next(self._names)}", tuple(prompt_ids), params, scope)
        samples = [Sample(request, index, rule=self._rule(request)) for index in range(params.n)]
        for one in samples:
            one.seed = self._seed(one)
        self.scheduler.waiting.extend(samples)
        return request.request_id

    def cancel(self, request_id: str) -> None:
        """Drop a request wherever it is; its rows and blocks are free at once."""
        self.scheduler.drop(request_id)
        rows = [row for row, s in enumerate(self._rows.samples) if s.request.request_id == request_id]
        self._leave({row: "cancelled" for row in rows})
        self._finished.clear()  # nobody waits for what was cancelled

    def check_integrity(self) -> None:
        """See that no block of the cache is lost or held by anybody who is gone.

        Raises:
            EngineError: it is not so.
        """
        self.scheduler.check_integrity(self._rows.samples)

    def step(self) -> list[Event]:
        """Call the model once: to read a piece of the prompts that wait, or one token for every running sample."""
        rows = self._rows
        start = self._advance()
        if start is None:
            return []
        if self._drawn is not None:
            events = self._settle_drawn()
            self._finished.clear()
            return events
        samples = rows.samples[start:]
        last, logprobs = rows.last[start : len(rows)].tolist(), self._logprobs_S.tolist()
        places = rows.place[start : len(rows)].tolist()
        reasons = self._settle(start)
        events = []
        for offset, one in enumerate(samples):
            reason = reasons.get(start + offset)
            failed = reason == "error"
            first = places[offset] == 1
            events.append(
                Event(
                    one.request.request_id,
                    one.index,
                    None if failed else last[offset],
                    None if failed else logprobs[offset],
                    reason,
                    self._endings.why(start + offset) if failed else None,
                    one.top_logprobs[-1] if one.top_logprobs and not failed else None,
                    one.cached_tokens if first else 0,
                    one.prompt_logprobs if first else None,
                    one.prompt_top_logprobs if first else None,
                )
            )
        self._finished.clear()
        return events

    def advance(self) -> list[Output]:
        """Call the model once, as `step`; return the replies that ended with it, whole."""
        start = self._advance()
        if self._drawn is not None:
            self._settle_drawn()
        elif start is not None:
            self._settle(start)
        finished, self._finished = self._finished, []
        return finished

    def generate(
        self,
        prompts: Prompts,
        params: Params,
        *,
        on_progress: Progress | None = None,
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
        each = params_of_each(params, prompts)
        order: dict[tuple[str, int], int] = {}
        outputs: dict[int, Output] = {}
        try:
            for prompt, one in zip(prompts, each, strict=True):
                name = self.add(self.ids(prompt), one)
                for index in range(one.n):
                    order[name, index] = len(order)
            while self.has_work:
                finished = self.advance()
                for output in finished:
                    outputs[order[output.request_id, output.index]] = output
                if finished and on_progress is not None:
                    on_progress(len(outputs))
        except BaseException:
            self.drop_all()
            raise
        return [outputs[place] for place in range(len(order))]

    def drop_all(self) -> None:
        """Make the engine idle: nobody is left who waits for a reply."""
        for name in {s.request.request_id for s in self.scheduler.waiting} | {
            s.request.request_id for reading in self.scheduler.reading for s in reading.samples
        }:
            self.scheduler.drop(name)
        self._leave(dict.fromkeys(range(len(self._rows)), "cancelled"))
        self._finished.clear()

    def ids(self, prompt: str | Sequence[int]) -> Sequence[int]:
        """Return a prompt's tokens; before those of a text comes BOS."""
        if not isinstance(prompt, str):
            return prompt
        if self.tokenizer is None:
            raise EngineError("this engine has no tokenizer: give token ids")
        return [*self.tokenizer.beginning, *self.tokenizer.encode(prompt)]

    @torch.inference_mode()
    def _advance(self) -> int | None:
        """Call the model once; return the first row that got a token, or None if none did."""
        with invariant_operators(self.invariant):
            return self._advanced()

    def _advanced(self) -> int | None:
        scheduler, rows = self.scheduler, self._rows
        # In turn, so that whoever runs does not wait for a long prompt, nor the prompt for whoever runs.
        limit = CHUNK_TOKENS if len(rows) and not scheduler.whole_texts else PREFILL_TOKENS
        if scheduler.waiting and not (self._read_last and len(rows) and not scheduler.whole_texts):
            self.runner.copy(scheduler.admit(len(rows), limit))
        if scheduler.reading and not (self._read_last and len(rows) and not scheduler.whole_texts):
            self._read_last = True
            return self._read(scheduler.chunk(limit))
        self._read_last = False
        if len(rows) and self._may_speculate():
            self._make_room(self.speculation.drafts + 1)
            if len(rows):
                began_s = time.perf_counter()
                rows.settle()
                self._drawn = self.runner.speculate(rows)
                self._gain.note(len(rows), True, sum(self._drawn.counts), time.perf_counter() - began_s)
                return 0
        if len(rows):
            self._make_room()
        if len(rows):
            began_s = time.perf_counter()
            logits_SW = self.runner.decode(rows)
            self._room -= 1
            self._take(0, logits_SW)
            if self.speculation is not None:
                self._follow_no_more(rows.samples)
                self._gain.note(len(rows), False, len(rows), time.perf_counter() - began_s)
            return 0
        return None

    def _may_speculate(self) -> bool:
        """Whether the next step is to draft: every row can, none would be too long, and it pays."""
        speculation, rows = self.speculation, self._rows
        if speculation is None or rows.ruled or rows.supported or not speculation.knows(rows.samples):
            return False
        # The last tokens before a limit are drawn one by one: what is drafted must have room in the cache.
        fits = rows.longest + speculation.drafts + 1 <= self.max_context_tokens
        return fits and self._gain.pays(len(rows))

    def _follow_no_more(self, samples: Sequence[Sample]) -> None:
        if self.speculation is not None:
            self.speculation.forget(samples)

    def _read(self, parts: Sequence[tuple[Reading, int, int]]) -> int | None:
        """Read pieces of prompts; the samples whose prompt is read become rows and get their first token."""
        hidden_TD, segments, routing = self.runner.read(parts)
        tell_prompts(self.runner.forward, parts, hidden_TD, segments)
        ended: list[tuple[int, Reading]] = []
        for place, (reading, _, end) in enumerate(parts):
            reading.done = end
            if end == len(reading.ids):
                ended.append((place, reading))
        if not ended:
            return None
        return self._begin(ended, hidden_TD, segments, routing)

    def _begin(
        self, ended: Sequence[tuple[int, Reading]], hidden_TD: Tensor, segments: Segments, routing: Routing | None
    ) -> int:
        """Make rows of the samples whose text has been read, and draw each one's next token."""
        scheduler, rows, start = self.scheduler, self._rows, len(self._rows)
        entries: list[tuple[Sample, int]] = []
        copies: list[Copy] = []
        for place, reading in ended:
            scheduler.reading.remove(reading)
            scheduler.keep(reading.samples[0], reading.ids)
            copies += scheduler.fork(reading)
            entries += [(one, place) for one in reading.samples]
        self.runner.copy(copies)
        if scheduler.whole_texts:
            entries.sort(key=lambda entry: entry[0].blocks[0])
        length_of = {place: len(reading.ids) for place, reading in ended}
        lengths = [length_of[place] for _, place in entries]
        limits = [self._limit(one) for one, _ in entries]
        rows.append([one for one, _ in entries], lengths, limits)
        if routing is not None:
            stacked = routing.stacked().to(torch.int16)
            for row, (_, place) in enumerate(entries, start):
                first = segments.starts[place]
                rows.experts[row, : segments.lengths[place]] = stacked[first : first + segments.lengths[place]]
        self._changed()
        row_M = torch.tensor([place for _, place in entries], device=hidden_TD.device)
        logits_SW = self.runner.forward.logits(hidden_TD.index_select(0, segments.last_S)).index_select(0, row_M)
        self._take(start, logits_SW)
        if self.speculation is not None:
            for one, token in zip(rows.samples[start:], rows.last[start : len(rows)].tolist(), strict=True):
                self.speculation.said(one, token)
        return start

    def _make_room(self, tokens: int = 1) -> None:
        """See that every row has room for its next tokens; rows for which there is none are sent back to wait."""
        if self.scheduler.whole_texts or self._room >= tokens:
            return
        rows = self._rows
        positions = rows.position[: len(rows)].tolist()
        running = list(zip(rows.samples, positions, strict=True))
        sent_back = self.scheduler.grow(running, tokens, self._wait)
        if sent_back:
            self._follow_no_more(sent_back)
            self._remove([row for row, one in enumerate(rows.samples) if one in sent_back])
        self._changed()

    def _wait(self, one: Sample) -> None:
        """Let a sample know what it has said, which the rows know."""
        rows = self._rows
        rows.settle()
        row = rows.samples.index(one)
        count = int(rows.place[row])
        one.said = rows.tokens[row, :count].tolist()
        one.said_logprobs = rows.logprobs[row, :count].tolist()

    def _take(self, start: int, logits_SW: Tensor) -> None:
        """Sample a token for the rows from `start` on and note it."""
        rows = self._rows
        if rows.ruled:
            logits_SW = adjusted(logits_SW, rows, start)
        sampling = rows.sampling(start)
        draws_S = None if start or sampling.greedy else rows.draws()
        tokens_S, self._logprobs_S, kept_SW = sample_within(logits_SW, sampling, draws_S)
        if rows.supported:
            note_supports(rows, start, tokens_S, kept_SW)
        rows.take(start, tokens_S, self._logprobs_S)

    def _changed(self) -> None:
        """Note that rows came, went, or got blocks."""
        rows, size = self._rows, self.scheduler.blocks.tokens
        self.runner.changed(rows.samples)
        if not self.scheduler.whole_texts:
            positions = rows.position[: len(rows)].tolist()
            room = (len(one.blocks) * size - at for one, at in zip(rows.samples, positions, strict=True))
            self._room = min(room, default=0)

    def _limit(self, one: Sample) -> int:
        """Return how long a sample's reply may be."""
        prompt = len(one.request.prompt_ids)
        return min(one.request.params.max_tokens, self.max_context_tokens - prompt)

    def _settle(self, start: int) -> dict[int, str]:
        """Let the rows leave that ended with their newest token, and say why each did."""
        reasons = self._endings.of_step(start, self._logprobs_S)
        self._leave(reasons)
        return reasons

    def _settle_drawn(self) -> list[Event]:
        """Take up what a speculative step drew: row by row, token by token, until the reply ends."""
        drawn, rows = self._drawn, self._rows
        assert drawn is not None
        self._drawn = None
        self._endings.wrong.clear()
        tokens, logprobs = drawn.tokens_SJ.tolist(), drawn.logprobs_SJ.tolist()
        events, reasons = [], {}
        if drawn.experts_SJNK is not None:
            rows.note_experts(drawn.experts_SJNK)
        for row, one in enumerate(rows.samples):
            name = one.request.request_id
            for token, logprob in zip(tokens[row][: drawn.counts[row]], logprobs[row], strict=False):
                rows.take_one(row, token, logprob)
                reason = self._endings.of_token(row, token, logprob)
                failed = reason == "error"
                said = (None, None) if failed else (token, logprob)
                events.append(Event(name, one.index, *said, reason, NOT_FINITE if failed else None))
                if reason is not None:
                    reasons[row] = reason
                    break
        rows.recount()
        self._leave(reasons)
        self._changed()
        return events

    def _leave(self, reasons: dict[int, str]) -> None:
        """Hand finished rows' outputs over and close the gaps."""
        if not reasons:
            return
        rows = self._rows
        rows.settle()
        for row in sorted(reasons):
            self._finished.append(self._output(row, reasons[row]))
            if self.chat is not None and self.chat.replays is not None:
                self.chat.replays.remember(self._finished[-1].token_ids)
        scheduler = self.scheduler
        for row, reason in reasons.items():
            one = rows.samples[row]
            if reason == "error":
                # NaN left behind would spoil a shorter text there, which masks but multiplies.
                if scheduler.prefixes is not None:
                    scheduler.prefixes.distrust(one.blocks)
                alone = [block for block in one.blocks if scheduler.blocks.holders(block) == 1]
                self.runner.cache.clear(alone, again=True)
            elif scheduler.prefixes is not None:
                said = rows.tokens[row, : int(rows.place[row])].tolist()
                scheduler.keep(one, (*one.request.prompt_ids, *said)[: int(rows.position[row])])
            scheduler.release(one)
        self._follow_no_more([rows.samples[row] for row in reasons])
        self._remove(list(reasons))

    def _remove(self, gone: Sequence[int]) -> None:
        """Take rows whose blocks were given back out of the batch."""
        rows, width = self._rows, self._rows.longest
        moves = rows.remove(list(gone))
        if self.scheduler.whole_texts and moves:
            self.scheduler.moved([rows.samples[target] for _, target in moves])
            self.runner.cache.copy([source for source, _ in moves], [target for _, target in moves], width)
        self._changed()

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
            self._endings.why(row) if reason == "error" else None,
            one.cached_tokens,
            one.top_logprobs or None,
            one.prompt_logprobs,
            one.prompt_top_logprobs,
            one.supports[:kept] if params.supports else None,
            one.logprobs_within[:kept] if params.supports else None,
        )

    def _rule(self, request: Request) -> Rule | None:
        chat = self.chat
        think_id, end_think_id = (None, None) if chat is None else (chat.think_id, chat.end_think_id)
        return rule_of(
            request,
            self._compiler,
            vocab_size=self.config.vocab_size,
            starts_in_thinking=in_thinking(request.prompt_ids, think_id, end_think_id),
            end_think_id=end_think_id,
            think_id=think_id,
        )

    def _seed(self, one: Sample) -> int:
        seed = one.request.params.seed
        return (next(self._seeds) << 20) + one.index if seed is None else seed + one.index
