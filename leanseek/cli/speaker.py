"""Speaker: who answers in a conversation: an engine in this process, or a server somewhere."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from leanseek.engine.request import SamplingParams
from leanseek.errors import EngineError, ServerError
from leanseek.messages import Message
from leanseek.tokens.effort import heeded, with_effort

if TYPE_CHECKING:
    from leanseek.engine.engine import Engine

ANSWER_TIMEOUT_S = 600.0
LONGEST_LINE = 1 << 22


@dataclass(frozen=True)
class Piece:
    """What a reply went on by: thinking, or answer."""

    reasoning_content: str = ""
    content: str = ""


class Speaker(Protocol):
    """Answers conversations."""

    def speak(self, messages: Sequence[Message], *, thinking: bool) -> Generator[Piece]:
        """Yield a reply piece by piece; closing the iterator stops it.

        Raises:
            LeanseekError: there will be no (further) reply.
        """


class EngineSpeaker:
    """An engine that nobody else uses.

    Args:
        engine: with a tokenizer.
        params: how replies are drawn; a seed is used once, then the next one.
    """

    def __init__(self, engine: Engine, params: SamplingParams) -> None:
        self._engine, self._params = engine, params

    def speak(self, messages: Sequence[Message], *, thinking: bool) -> Generator[Piece]:
        """Draw a reply."""
        engine = self._engine
        assert engine.chat is not None, "callers bring a tokenizer"
        thinking = thinking and engine.chat.thinks
        stream = engine.chat.stream(starts_in_thinking=thinking)
        params = self._params
        if params.seed is not None:
            self._params = replace(params, seed=params.seed + 1)
        asked = with_effort(messages, heeded(None, engine.chat.tokenizer.efforts) if thinking else None)
        request_id = engine.add(engine.chat.prompt(asked, thinking=thinking), params)
        try:
            while engine.has_work:
                for event in engine.step():
                    if event.error is not None:
                        raise EngineError(event.error)
                    assert event.token_id is not None
                    delta = stream.push(event.token_id)
                    yield Piece(delta.reasoning_content, delta.content)
            rest = stream.flush()
            yield Piece(rest.reasoning_content, rest.content)
        finally:
            engine.cancel(request_id)


class ServerSpeaker:
    """A server that speaks OpenAI's protocol, leanseek's own among them.

    Args:
        url: of the server, with or without /v1 at its end.
        model: its name in requests; None: the first that the server lists.
        settings: further fields of each request, such as temperature.
        api_key: sent as a bearer token.
    Raises:
        ServerError: the server does not answer.
    """

    def __init__(
        self, url: str, *, model: str | None = None, settings: Mapping[str, Any] | None = None, api_key: str = ""
    ) -> None:
        self._base = url.rstrip("/").removesuffix("/v1") + "/v1"
        self._settings, self._key = dict(settings or {}), api_key
        self.model = model or self._first_model()

    def speak(self, messages: Sequence[Message], *, thinking: bool) -> Generator[Piece]:
        """Ask for a reply and yield it as it streams in."""
        body = {
            "model": self.model,
            "messages": [{"role": one.role, "content": one.content} for one in messages],
            "thinking": {"type": "enabled" if thinking else "disabled"},
            "stream": True,
            **self._settings,
        }
        if "seed" in self._settings:
            self._settings["seed"] += 1
        with self._open("chat/completions", body) as answer:
            for event in _events(answer):
                if "error" in event:
                    raise ServerError(f"{self._base}: {_message(event)}")
                for choice in event.get("choices", []):
                    delta = choice.get("delta", {})
                    yield Piece(delta.get("reasoning_content") or "", delta.get("content") or "")

    def _first_model(self) -> str:
        with self._open("models", None) as answer:
            try:
                return str(json.load(answer)["data"][0]["id"])
            except (ValueError, KeyError, IndexError, TypeError):
                raise ServerError(f"{self._base}/models lists no model; name one with --name") from None

    def _open(self, path: str, body: Mapping[str, Any] | None) -> Any:
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {self._key}"} if self._key else {})
        data = None if body is None else json.dumps(body).encode()
        try:
            request = urllib.request.Request(f"{self._base}/{path}", data, headers)
            return urllib.request.urlopen(request, timeout=ANSWER_TIMEOUT_S)
        except urllib.error.HTTPError as error:
            with error:
                said = error.read(LONGEST_LINE).decode(errors="replace")
            hint = "; give its key with --api-key-file" if error.code == 401 else ""
            raise ServerError(f"{self._base} answered {error.code}: {_message_of(said)}{hint}") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise ServerError(f"{self._base} does not answer ({reason}); is the server running?") from None


def _events(answer: Any) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a stream of server-sent events."""
    while line := answer.readline(LONGEST_LINE):
        text = line.decode(errors="replace").strip()
        if not text.startswith("data:"):
            continue
        data = text.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        try:
            event = json.loads(data)
        except ValueError:
            raise ServerError(f"the server sent what is no event: {data[:80]}") from None
        if isinstance(event, dict):
            yield event


def _message(event: Mapping[str, Any]) -> str:
    error = event.get("error")
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)


def _message_of(text: str) -> str:
    try:
        found = json.loads(text)
    except ValueError:
        return text[:200]
    return _message(found) if isinstance(found, dict) and "error" in found else text[:200]
