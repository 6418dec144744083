"""Rules: what a request asks of the logits of its reply: penalties, biases, a grammar; and the likeliest tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from leanseek.engine.grammar import GrammarCompiler, GrammarState
from leanseek.engine.request import Request, SamplingParams, TopLogprobs
from leanseek.errors import EngineError


def rule_of(
    request: Request,
    compiler: GrammarCompiler | None,
    *,
    vocab_size: int,
    starts_in_thinking: bool = False,
    end_think_id: int | None = None,
    think_id: int | None = None,
) -> Rule | None:
    """Return the rule of one of a request's replies; None where it asks for nothing special.

    Args:
        request: each of its replies needs a rule of its own.
        compiler: of the engine; None where it has no tokenizer.
        vocab_size: of the model.
        starts_in_thinking: whether the prompt opened the thinking (`in_thinking`).
        end_think_id, think_id: of `GrammarCompiler.compile`.
    Raises:
        EngineError: a bias for a token that does not exist, or a grammar that cannot be used.
    """
    params = request.params
    outside = [token for token, _ in params.logit_bias if not 0 <= token < vocab_size]
    if outside:
        raise EngineError(f"logit_bias has token {outside[0]}: tokens from 0 to {vocab_size - 1} are accepted")
    state = None
    if params.grammar is not None:
        if compiler is None:
            raise EngineError("this engine has no tokenizer, which a grammar needs")
        state = compiler.compile(params.grammar, starts_in_thinking, end_think_id, think_id)
    penalised = params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1
    if state is None and not penalised and not params.logit_bias:
        return None
    return Rule(params, request.prompt_ids, state)


def in_thinking(prompt_ids: Sequence[int], think_id: int | None, end_think_id: int | None) -> bool:
    """Return whether a prompt leaves its thinking open, so that the reply starts inside."""
    if think_id is None:
        return False
    for token in reversed(prompt_ids):
        if token in (think_id, end_think_id):
            return token == think_id
    return False


class Rule:
    """How one reply's logits are changed before each draw, and what that depends on.

    It belongs to the sample, not to its row: a sample that had to give its row up goes on with it.

    Args:
        params: what is asked for.
        prompt_ids: count for the repetition penalty.
        state: of the grammar, if there is one.
    """

    def __init__(self, params: SamplingParams, prompt_ids: Iterable[int], state: GrammarState | None) -> None:
        self._params, self._state = params, state
        self._repeats = params.repetition_penalty != 1
        self._counts = bool(params.presence_penalty or params.frequency_penalty) or self._repeats
        self._place: dict[int, int] = {}
        self._seen_N = torch.empty(64, dtype=torch.int64)
        self._times_N = torch.zeros(64)  # in the reply
        if self._repeats:
            for token in dict.fromkeys(prompt_ids):
                self._place_of(token)
        self._biased = torch.tensor([token for token, _ in params.logit_bias], dtype=torch.int64)
        self._biases = torch.tensor([float(bias) for _, bias in params.logit_bias])

    @property
    def ended(self) -> bool:
        """Whether the reply must end here: its grammar is complete, or failed."""
        return self._state is not None and (self._state.complete or self._state.error is not None)

    @property
    def error(self) -> str | None:
        """Why the reply cannot be held to its grammar; None: it can."""
        return None if self._state is None else self._state.error

    def adjust(self, logits_W: Tensor) -> None:
        """Change a row's logits: repetition, presence and frequency, biases, then the grammar's mask.

        Args:
            logits_W: float32, changed in place.
        """
        if self._place:
            self._penalise(logits_W)
        if len(self._biased):
            logits_W.index_add_(0, self._biased.to(logits_W.device), self._biases.to(logits_W.device))
        if self._state is not None:
            self._state.mask_(logits_W)

    def note(self, token_id: int) -> None:
        """Take the token that was drawn."""
        if self._counts:
            place = self._place_of(token_id)  # may grow the tensors
            self._times_N[place] += 1
        if self._state is not None:
            self._state.note(token_id)

    def _penalise(self, logits_W: Tensor) -> None:
        params, count = self._params, len(self._place)
        seen_N = self._seen_N[:count].to(logits_W.device)
        times_N = self._times_N[:count].to(logits_W.device)
        values_N = logits_W[seen_N]
        if self._repeats:
            by = params.repetition_penalty
            values_N = torch.where(values_N > 0, values_N / by, values_N * by)
        values_N -= params.frequency_penalty * times_N + params.presence_penalty * (times_N > 0)
        logits_W[seen_N] = values_N

    def _place_of(self, token_id: int) -> int:
        """Return where a token is counted."""
        place = self._place.setdefault(token_id, len(self._place))
        if place == len(self._seen_N):
            self._seen_N = torch.cat([self._seen_N, torch.empty_like(self._seen_N)])
            self._times_N = torch.cat([self._times_N, torch.zeros_like(self._times_N)])
        self._seen_N[place] = token_id
        return place


def top_logprobs(logits_SW: Tensor, temperature_S: Tensor, counts: Sequence[int | None]) -> list[TopLogprobs | None]:
    """Return the most likely tokens of each row that asks, with log-probabilities as `sampler.sample` means them.

    Args:
        logits_SW: as sampled from, any float dtype.
        temperature_S: of each row; 0 counts as 1.
        counts: how many tokens a row wants; None: it does not ask.
    Returns:
        For each row its (token, log-probability) pairs, best first, without what a grammar excludes; or None.
    """
    found: list[TopLogprobs | None] = [None if count is None else () for count in counts]
    rows = [row for row, count in enumerate(counts) if count]
    if not rows:
        return found
    chosen = torch.tensor(rows, device=logits_SW.device)
    scale_S = temperature_S[chosen].float()
    scale_S = torch.where(scale_S > 0, scale_S, 1.0)
    scaled_SW = logits_SW[chosen].float() / scale_S[:, None]
    most = min(max(count for count in counts if count), scaled_SW.shape[1])
    best, tokens = scaled_SW.topk(most, dim=-1)
    best = best - scaled_SW.logsumexp(dim=-1, keepdim=True)
    for row, values, ids in zip(rows, best.tolist(), tokens.tolist(), strict=True):
        pairs = zip(ids[: counts[row]], values, strict=False)
        found[row] = tuple((token, value) for token, value in pairs if value > float("-inf"))
    return found
