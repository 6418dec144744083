"""Client: requests to a server that speaks OpenAI's protocol, with patience for what it refuses for the moment."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from leanseek import variables
from leanseek.errors import ServerError
from leanseek.messages import Message
from leanseek.tokens.tokenizer import whole

TIMEOUT_S = 600.0
LARGEST_ANSWER = 1 << 24
# Seconds that are waited before a request that was refused for the moment is sent once more.
PAUSES_S = (1.0, 4.0, 16.0)
FOR_THE_MOMENT = (408, 409, 425, 429, 500, 502, 503, 504)


class Client:
    """A model behind a URL. Its key, if it wants one, is in the variable LEANSEEK_TEACHER_KEY.

    Args:
        url: of the server, with or without /v1 at its end.
        model: its name there; None: the first that the server lists.
        pauses_s: before each further try.
    Raises:
        ServerError: it does not answer, or names no model.
    """

    def __init__(self, url: str, model: str | None = None, pauses_s: Sequence[float] = PAUSES_S) -> None:
        self._base = url.rstrip("/").removesuffix("/v1") + "/v1"
        self._pauses_s, self._key = pauses_s, variables.teacher_key()
        self.model = model or self._first_model()

    @property
    def shown(self) -> str:
        """The URL without what might be a secret in it."""
        parts = urlsplit(self._base)
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"

    def chat(self, messages: Sequence[Message], *, temperature: float, max_tokens: int) -> tuple[Message, str]:
        """Return a reply, and why it ended.

        Args:
            messages: so far.
            temperature: of the reply.
            max_tokens: longest reply.
        Raises:
            ServerError: the request failed for good, or what came is no reply.
        """
        body = {
            "model": self.model,
            "messages": [{"role": one.role, "content": one.content} for one in messages],
            "temperature": temperature,
            "max_tokens": max_tokens,
        }
        answer = self._ask("chat/completions", body)
        try:
            choice = answer["choices"][0]
            return _reply(choice["message"]), str(choice.get("finish_reason") or "stop")
        except (KeyError, IndexError, TypeError, AttributeError):
            raise ServerError(f"{self.shown} sent no reply, but {str(answer)[:200]}") from None

    def _first_model(self) -> str:
        answer = self._ask("models", None)
        try:
            return str(answer["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise ServerError(f"{self.shown}/models lists no model; name one in the settings") from None

    def _ask(self, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return a request's answer; what is refused for the moment is asked again, a few times."""
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {self._key}"} if self._key else {})
        data = None if body is None else json.dumps(body).encode()
        for pause_s in (*self._pauses_s, None):
            try:
                request = urllib.request.Request(f"{self._base}/{path}", data, headers)
                with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                    found = json.loads(answer.read(LARGEST_ANSWER))
                if not isinstance(found, dict):
                    raise ServerError(f"{self.shown} sent what is no JSON object: {str(found)[:80]}")
                return found
            except urllib.error.HTTPError as error:
                with error:
                    said = error.read(1000).decode(errors="replace")
                if error.code not in FOR_THE_MOMENT or pause_s is None:
                    hint = "; put its key into LEANSEEK_TEACHER_KEY" if error.code in (401, 403) else ""
                    raise ServerError(f"{self.shown} answered {error.code}: {said[:200]}{hint}") from None
            except json.JSONDecodeError:
                raise ServerError(f"{self.shown} sent what is no JSON") from None
            except (OSError, http.client.HTTPException, ValueError) as error:
                if pause_s is None or isinstance(error, ValueError):
                    reason = getattr(error, "reason", error)
                    raise ServerError(
                        f"{self.shown} does not answer ({reason}); what was done so far is kept: run the same command "
                        "again when it does"
                    ) from None
            time.sleep(pause_s)
        raise AssertionError("the last try returns or raises")


def _reply(message: Mapping[str, Any]) -> Message:
    """Return a reply, its thinking apart, however the server spells it; thinking that there is none of is empty."""
    content = whole(str(message.get("content") or ""))
    thinking = message.get("reasoning_content") or message.get("reasoning")
    if thinking is None and "</think>" in content:
        thinking, _, content = content.partition("</think>")
        thinking = thinking.replace("<think>", "", 1)
    return Message("assistant", content.strip(), whole(str(thinking or "")).strip())
