"""Text completion: OpenAI's older requests, a prompt of text or tokens without a chat, and what answers them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from leanseek.engine.request import Event, SamplingParams, TopLogprobs
from leanseek.server.defaults import SamplingDefaults
from leanseek.server.forms import Formed
from leanseek.server.jsontext import DONE, frame
from leanseek.server.logprobs import LEAST_LOGPROB
from leanseek.server.openai import StreamOptions
from leanseek.server.refusal import ApiError
from leanseek.server.reply import Reply, Said, Scored
from leanseek.server.unserved import Unserved
from leanseek.server.usage import Usage
from leanseek.server.wire import MOST_TOKENS, Drawing, ModelName, Scope, UserId, Whole, whole
from leanseek.tokens.tokenizer import FIM, Tokenizer

MOST_PROMPTS = 1024
# Replies of one request, over all its prompts.
MOST_CHOICES = 2048
USUAL_TOKENS = 16  # OpenAI's


def _prompts(value: Any) -> Any:
    """Return a list of prompts, each a text or a list of token ids, from any of the four ways to give them."""
    accepted = "a text, a list of texts, a list of token ids or a list of such lists is accepted"
    if value is None:
        return [""]
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise PydanticCustomError("prompt", accepted)
    value = [[whole(token) for token in one] if isinstance(one, list) else whole(one) for one in value]
    prompts = [value] if all(_is_id(one) for one in value) else value
    if len(prompts) > MOST_PROMPTS:
        raise PydanticCustomError("prompt", f"at most {MOST_PROMPTS} prompts are accepted")
    for one in prompts:
        of_ids = isinstance(one, list) and 0 < len(one) <= MOST_TOKENS and all(_is_id(token) for token in one)
        if not isinstance(one, str) and not of_ids:
            raise PydanticCustomError("prompt", accepted)
    return prompts


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31


_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": (1 << 31) - 1}, "minItems": 1}
_TEXTS = {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MOST_PROMPTS}
_LISTS = {"type": "array", "items": _IDS, "minItems": 1, "maxItems": MOST_PROMPTS}
PROMPT = {"anyOf": [{"type": "string"}, {"type": "null"}, _TEXTS, _IDS, _LISTS]}


class CompletionRequest(Drawing, Formed, Unserved):
    """The body of POST /v1/completions."""

    prompt: Annotated[Any, BeforeValidator(_prompts), WithJsonSchema(PROMPT)]
    model: ModelName | None = None
    suffix: str | None = None
    max_tokens: Annotated[int, Field(ge=0, le=MOST_TOKENS), Whole] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20), Whole] | None = None
    best_of: Annotated[int, Field(ge=1, le=128), Whole] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user_id: UserId | None = None
    user: Scope | None = None
    cache_salt: Scope | None = None

    @property
    def scope(self) -> str:
        """Whose request it is."""
        return self.user_id or self.cache_salt or self.user or ""

    def check(self) -> None:
        """See that the fields go together.

        Raises:
            ApiError: they do not.
        """
        n = self.n or 1
        wrong = (
            ("n", len(self.prompt) * n > MOST_CHOICES, f"at most {MOST_CHOICES} replies in one request are accepted"),
            ("best_of", (self.best_of or n) != n, "only as many as n are accepted: all replies are returned"),
            ("max_tokens", self.max_tokens == 0 and not self.echo, "0 goes with echo alone"),
            ("suffix", self.suffix and self.echo, "goes not with echo"),
            ("suffix", self.suffix and not all(isinstance(one, str) for one in self.prompt), "needs prompts of text"),
        )
        for param, bad, reason in wrong:
            if bad:
                raise ApiError(422, f"{param}: {reason}", code="invalid_parameter", param=param)

    def prompt_ids(self, tokenizer: Tokenizer) -> list[list[int]]:
        """Return each prompt's tokens; texts get what every text begins with, token ids stay as they are.

        Raises:
            ApiError: a suffix where the vocabulary has no tokens for it.
        """
        start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        if not self.suffix:
            return [start + tokenizer.encode(one) if isinstance(one, str) else one for one in self.prompt]
        marks = [tokenizer.find(text) for text in FIM]
        begin, hole, end = marks
        if begin is None or hole is None or end is None:
            message = f"suffix: the model's vocabulary has no {FIM[marks.index(None)]}, which it needs"
            raise ApiError(400, message, code="unsupported_parameter", param="suffix")
        after = tokenizer.encode(self.suffix)
        return [[*start, begin, *tokenizer.encode(one), hole, *after, end] for one in self.prompt]

    def params(self, defaults: SamplingDefaults, *, room_tokens: int) -> SamplingParams:  # type: ignore[override]
        """Return how to draw.

        Args:
            defaults: the model's, for what the request does not say.
            room_tokens: what the context leaves for a reply.
        """
        asked = USUAL_TOKENS if self.max_tokens is None else self.max_tokens
        return super().params(
            defaults,
            max_tokens=max(min(asked, room_tokens), 1),
            logprobs=self.logprobs,
            prompt_logprobs=self.logprobs if self.echo else None,
            grammar=self.form(),
        )


class TextCompletion:
    """What answers such a request, whole or chunk by chunk.

    Args:
        request: the request.
        prompts: each one's tokens.
        tokenizer: of the model.
        model, fingerprint: which model answers.
    """

    def __init__(
        self,
        request: CompletionRequest,
        prompts: Sequence[Sequence[int]],
        tokenizer: Tokenizer,
        *,
        model: str,
        fingerprint: str,
    ) -> None:
        self._request, self._tokenizer = request, tokenizer
        self._prompts = [ids for ids in prompts for _ in range(request.n or 1)]
        self._texts = [one for one in request.prompt for _ in range(request.n or 1)]
        self._head = {
            "id": f"cmpl-{secrets.token_hex(16)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }
        self._echoed: dict[int, list[Scored | None]] = {}
        self._written = [0] * len(self._prompts)  # characters

    def first(self, index: int, event: Event) -> None:
        """Take the prompt's log-probabilities, which come with the first token."""
        if self._request.echo and self._request.logprobs is not None:
            self._echoed[index] = self._scored_prompt(index, event)

    def whole(self, said: Sequence[Said], replies: Sequence[Reply], usage: Usage) -> dict[str, Any]:
        """Return the answer to a request that does not stream."""
        built = []
        for index, (one, reply) in enumerate(zip(said, replies, strict=True)):
            echoed, text = self._echo(index), "" if self._request.max_tokens == 0 else one.content
            scored = [*self._echoed.get(index, []), *([] if self._request.max_tokens == 0 else one.content_logprobs)]
            choice = self._choice(index, echoed + text, scored)
            built.append({**choice, "finish_reason": self._reason(reply)})
        return {**self._head, "choices": built, "usage": self._usage(usage)}

    def opening(self, usage: Usage) -> Iterator[bytes]:
        """Yield nothing: a prompt that is to be echoed comes with the first token."""
        yield from ()

    def piece(self, index: int, said: Said, usage: Callable[[], Usage] | None = None) -> Iterator[bytes]:
        """Yield the chunk for what one token said, if that is anything."""
        text, scored = said.content, list[Scored | None](said.content_logprobs)
        if self._request.max_tokens == 0:
            text, scored = "", []
        if not self._written[index] and self._request.echo:
            text, scored = self._echo(index) + text, [*self._echoed.pop(index, []), *scored]
        if text or (self._request.logprobs is not None and scored):
            options = self._request.stream_options
            live = usage is not None and options is not None and options.live
            yield self._chunk(self._choice(index, text, scored), usage().openai() if live and usage else None)

    def ending(self, index: int, reply: Reply) -> Iterator[bytes]:
        """Yield a reply's last chunk: why it ended."""
        yield self._chunk({**self._choice(index, "", []), "logprobs": None, "finish_reason": self._reason(reply)})

    def closing(self, replies: Sequence[Reply], usage: Usage) -> Iterator[bytes]:
        """Yield the chunk of token counts, if it is wanted, and the end."""
        if self._with_usage:
            yield frame({**self._head, "choices": [], "usage": self._usage(usage)})
        yield DONE

    def failure(self, error: ApiError) -> Iterator[bytes]:
        """Yield an event with `error`."""
        yield frame(error.envelope())

    @property
    def _with_usage(self) -> bool:
        options = self._request.stream_options
        return options is not None and bool(options.include_usage)

    def _chunk(self, choice: dict[str, Any], usage: dict[str, Any] | None = None) -> bytes:
        chunk = {**self._head, "choices": [choice]}
        return frame({**chunk, "usage": usage} if self._with_usage else chunk)

    def _usage(self, usage: Usage) -> dict[str, Any]:
        return usage.openai()

    def _reason(self, reply: Reply) -> str | None:
        return "length" if self._request.max_tokens == 0 else reply.finish_reason

    def _echo(self, index: int) -> str:
        """Return the prompt's text, if it is wanted."""
        if not self._request.echo:
            return ""
        given = self._texts[index]
        return given if isinstance(given, str) else self._tokenizer.decode(self._prompts[index])

    def _choice(self, index: int, text: str, scored: Sequence[Scored | None]) -> dict[str, Any]:
        choice: dict[str, Any] = {"text": text, "index": index, "logprobs": None, "finish_reason": None}
        if self._request.logprobs is not None:
            choice["logprobs"] = self._logprobs(index, scored)
        self._written[index] += len(text)
        return choice

    def _logprobs(self, index: int, scored: Sequence[Scored | None]) -> dict[str, Any]:
        """Return OpenAI's older form: four lists side by side; the first token of a prompt has no probability."""
        tokens, values, tops, offsets = [], [], [], []
        at = self._written[index]
        for place, one in enumerate(scored):
            first = one is None
            one = one or Scored(self._name(self._prompts[index][0]), 0.0, self._prompts[index][0])
            name = self._name(one.token_id) if one.token_id >= 0 else one.text
            tokens.append(name)
            values.append(None if first else max(one.logprob, LEAST_LOGPROB))
            tops.append(None if first else self._tops(one, name))
            offsets.append(at)
            at += len(one.text) if place or not first else len(self._tokenizer.decode([one.token_id]))
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}

    def _tops(self, one: Scored, name: str) -> dict[str, float]:
        """Return the most likely tokens and the chosen one by their names; of one name the likeliest counts."""
        tops: dict[str, float] = {}
        for token, value in one.top:
            # One number for one token: clients compare them to see whether it was the likeliest.
            value = one.logprob if token == one.token_id else value
            tops.setdefault(self._name(token), max(value, LEAST_LOGPROB))
        tops.setdefault(name, max(one.logprob, LEAST_LOGPROB))
        return tops

    def _name(self, token_id: int) -> str:
        """Return a token's text; bytes that are no text are shown as OpenAI does."""
        data = self._tokenizer.bytes_of(token_id)
        if not data:
            return self._tokenizer.decode([token_id], skip_special=False)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def _scored_prompt(self, index: int, event: Event) -> list[Scored | None]:
        ids, decoder = self._prompts[index], self._tokenizer.incremental()
        values: Sequence[float | None] = event.prompt_logprobs or [None] * len(ids)
        tops: Sequence[TopLogprobs | None] = event.prompt_top_logprobs or [None] * len(ids)
        scored: list[Scored | None] = []
        for token, value, top in zip(ids, values, tops, strict=True):
            text = decoder.push(token)
            scored.append(Scored(text, value or 0.0, token, top or ()) if scored else None)
        return scored
