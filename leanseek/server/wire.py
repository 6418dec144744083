"""Wire: what the requests of all protocols are made of: fields with bounds, and how a reply is to be drawn."""

from __future__ import annotations

import re
import secrets
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from leanseek.engine.request import Grammar, SamplingParams
from leanseek.errors import EngineError
from leanseek.server.defaults import MinP, SamplingDefaults, Temperature, TopK, TopP
from leanseek.server.refusal import ApiError

# Every number that a client may send has a bound: an unbounded n has stopped other servers (CVE-2026-34756).
MOST_MESSAGES = 4096
MOST_TOKENS = 1 << 20
MOST_REPLIES = 128
MOST_STOPS = 16
MOST_STOP_TOKENS = 64
MOST_BIASES = 1024
MOST_DEPTH = 64
STOP_CHARACTERS = 256
# The engine adds the reply's index to a seed and keeps it in 64 bits.
SEED_BITS = (1 << 62) - 1
USER_ID = re.compile(r"[A-Za-z0-9_-]{1,512}")


class Wire(BaseModel):
    """A part of a request: types as JSON has them, nothing coerced; fields that are not known are ignored."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)


def join_text(value: Any, kinds: tuple[str, ...] = ("text",)) -> Any:
    """Join a list of text parts into one text; anything else is returned as it is."""
    if not isinstance(value, list):
        return value
    parts = []
    for part in value:
        text = part.get("text") if isinstance(part, dict) and part.get("type") in kinds else None
        if not isinstance(text, str):
            raise PydanticCustomError("part", f'a text or a list of {{"type": "{kinds[0]}", "text": ...}} is accepted')
        parts.append(text)
    return "".join(parts)


def text_schema(*kinds: str) -> dict[str, Any]:
    """Return the JSON schema of what `join_text` takes: a text, a list of parts of these kinds, or null."""
    part = {"type": "object", "properties": {"type": {"enum": list(kinds)}, "text": {"type": "string"}}}
    parts = {"type": "array", "items": {**part, "required": ["type", "text"]}}
    return {"anyOf": [{"type": "string"}, parts, {"type": "null"}]}


def _stops(value: Any) -> Any:
    """Make a tuple of one stop text, several, or none."""
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


def _user_id(value: str | None) -> str | None:
    if value is not None and not USER_ID.fullmatch(value):
        raise PydanticCustomError("user_id", "1 to 512 letters, digits, _ and - are accepted")
    return value


def shallow(value: Any) -> Any:
    """Refuse a value that is nested more deeply than anybody means."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MOST_DEPTH:
            raise PydanticCustomError("depth", f"JSON nested at most {MOST_DEPTH} deep is accepted")
        level = [
            below
            for one in level
            if isinstance(one, dict | list)
            for below in (one.values() if isinstance(one, dict) else one)
        ]
    return value


def whole(value: Any) -> Any:
    """Return 1 for 1.0: JSON has one kind of number, and some clients write all of them with a point."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _biases(value: Any) -> Any:
    if isinstance(value, dict):
        for token in value:
            if not (token.isascii() and token.isdecimal() and len(token) <= 9):
                raise PydanticCustomError("token", "the keys must be token ids in digits")
    return value


Text = Annotated[str | None, BeforeValidator(join_text), WithJsonSchema(text_schema("text"))]
StopText = Annotated[str, Field(min_length=1, max_length=STOP_CHARACTERS)]
StopTexts = Annotated[tuple[StopText, ...], Field(max_length=MOST_STOPS), BeforeValidator(_stops)]
Whole = BeforeValidator(whole)
StopTokens = Annotated[list[Annotated[int, Field(ge=0, lt=1 << 31), Whole]], Field(max_length=MOST_STOP_TOKENS)]
TokenCount = Annotated[int, Field(ge=1, le=MOST_TOKENS), Whole]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Seed = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63), Whole]
ModelName = Annotated[str, Field(max_length=512)]
UserId = Annotated[str, AfterValidator(_user_id), WithJsonSchema({"type": "string", "pattern": f"^{USER_ID.pattern}$"})]
# Who asks, as other protocols than DeepSeek's say it.
Scope = Annotated[str, Field(max_length=512)]
Biases = Annotated[
    dict[str, Annotated[float, Field(ge=-100, le=100)]],
    Field(max_length=MOST_BIASES),
    BeforeValidator(_biases),
    Field(json_schema_extra={"propertyNames": {"pattern": "^[0-9]{1,9}$"}}),
]
Schema = Annotated[dict[str, Any], AfterValidator(shallow)]


class Drawing(Wire):
    """How replies are to be drawn; what is None is the model's own default."""

    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: Annotated[TopK, BeforeValidator(whole)] | None = None
    min_p: MinP | None = None
    seed: Seed | None = None
    n: Annotated[int, Field(ge=1, le=MOST_REPLIES), Whole] | None = None
    stop: StopTexts = ()
    stop_token_ids: StopTokens | None = None
    ignore_eos: bool | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    # Below, what it divides may leave the numbers that there are.
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    logit_bias: Biases | None = None

    def params(
        self,
        defaults: SamplingDefaults,
        *,
        max_tokens: int,
        penalties: bool = True,
        logprobs: int | None = None,
        prompt_logprobs: int | None = None,
        grammar: Grammar | None = None,
    ) -> SamplingParams:
        """Return how to draw, for the engine.

        Args:
            defaults: the model's, for what the request does not say.
            max_tokens: longest reply.
            penalties: whether presence and frequency count.
            logprobs, prompt_logprobs, grammar: as of the engine.
        Raises:
            ApiError: a value that the engine does not accept.
        """

        def given(value: float | None, default: float) -> float:
            return default if value is None else value

        try:
            return SamplingParams(
                max_tokens=max_tokens,
                temperature=given(self.temperature, defaults.usual_temperature),
                # OpenAI accepts 0, which leaves the most likely token alone.
                top_p=max(given(self.top_p, defaults.top_p), 1e-6),
                top_k=max(int(given(self.top_k, defaults.top_k)), 0),
                min_p=given(self.min_p, defaults.min_p),
                n=self.n or 1,
                seed=secrets.randbits(48) if self.seed is None else self.seed & SEED_BITS,
                stop=self.stop,
                stop_token_ids=tuple(self.stop_token_ids or ()),
                ignore_eos=bool(self.ignore_eos),
                logprobs=logprobs,
                prompt_logprobs=prompt_logprobs,
                presence_penalty=(self.presence_penalty or 0.0) if penalties else 0.0,
                frequency_penalty=(self.frequency_penalty or 0.0) if penalties else 0.0,
                repetition_penalty=given(self.repetition_penalty, 1.0),
                logit_bias=tuple((int(token), bias) for token, bias in (self.logit_bias or {}).items()),
                grammar=grammar,
            )
        except EngineError as error:
            raise ApiError(422, str(error), code="invalid_parameter") from None
