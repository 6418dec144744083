"""Unserved: what clients of other servers may ask for and is not done here; it is refused by its name."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from leanseek.server.wire import Wire


class Only:
    """Says that a field may be left out, null, or a value that asks for nothing.

    Args:
        instead: what to do in its place.
        neutral: such values.
    """

    def __init__(self, instead: str, *neutral: Any) -> None:
        self._instead, self._neutral = instead, neutral

    def check(self, value: Any) -> Any:
        """Return such a value, refuse any other."""
        # For Python 0 is False; in JSON they are two.
        if value is None or any(
            value == one and isinstance(value, bool) == isinstance(one, bool) for one in self._neutral
        ):
            return value
        raise PydanticCustomError("unserved", f"not done here; {self._instead}")

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": [None, *self._neutral]}


class Unserved(Wire):
    """Fields that would change a reply. Those that would not (priority, service_tier, store, ...) are ignored."""

    # vLLM's and SGLang's
    min_tokens: Annotated[Any, Only("ask for max_tokens with ignore_eos for a reply of a given length", 0)] = None
    allowed_token_ids: Annotated[Any, Only("bind the reply by structured_outputs or logit_bias", [])] = None
    bad_words: Annotated[Any, Only("give their tokens a logit_bias of -100", [])] = None
    include_stop_str_in_output: Annotated[Any, Only("what ended a reply is not part of it", False)] = None
    no_stop_trim: Annotated[Any, Only("what ended a reply is not part of it", False)] = None
    skip_special_tokens: Annotated[Any, Only("special tokens are left out of texts", True)] = None
    return_token_ids: Annotated[Any, Only("ask /tokenize", False)] = None
    return_tokens_as_token_ids: Annotated[Any, Only("ask /tokenize", False)] = None
    prompt_logprobs: Annotated[Any, Only("ask /v1/completions with echo and logprobs", 0)] = None
    truncate_prompt_tokens: Annotated[Any, Only("shorten the prompt; /tokenize counts")] = None
    use_beam_search: Annotated[Any, Only("ask for n replies", False)] = None
    length_penalty: Annotated[Any, Only("replies are drawn, not searched", 1, 0)] = None
    regex: Annotated[Any, Only("give structured_outputs")] = None
    ebnf: Annotated[Any, Only("give structured_outputs with a lark grammar")] = None
    # llama.cpp's
    n_predict: Annotated[Any, Only("give max_tokens", -1)] = None
    repeat_penalty: Annotated[Any, Only("give repetition_penalty", 1, 0)] = None
    typical_p: Annotated[Any, Only("have temperature, top_p, top_k, min_p", 1)] = None
    top_n_sigma: Annotated[Any, Only("have temperature, top_p, top_k, min_p", -1, 0)] = None
    xtc_probability: Annotated[Any, Only("have temperature, top_p, top_k, min_p", 0)] = None
    dynatemp_range: Annotated[Any, Only("have temperature, top_p, top_k, min_p", 0)] = None
    mirostat: Annotated[Any, Only("have temperature, top_p, top_k, min_p", 0)] = None
    dry_multiplier: Annotated[Any, Only("have presence_penalty, frequency_penalty, repetition_penalty", 0)] = None
    n_probs: Annotated[Any, Only("give logprobs", 0)] = None
    grammar: Annotated[Any, Only("give structured_outputs with a lark grammar", "")] = None
    json_schema: Annotated[Any, Only("give response_format")] = None


class UnservedChat(Unserved):
    """Further ones of chat requests."""

    echo: Annotated[Any, Only("ask /v1/completions", False)] = None
    functions: Annotated[Any, Only("give tools", [])] = None
    function_call: Annotated[Any, Only("give tool_choice", "none", "auto")] = None
    modalities: Annotated[Any, Only("text is all that comes", ["text"], [])] = None
    audio: Annotated[Any, Only("text is all that comes")] = None
    moderation: Annotated[Any, Only("nothing is moderated")] = None
    web_search_options: Annotated[Any, Only("the server asks nobody else; give tools")] = None
