"""Items: what answers OpenAI's Responses requests, whole or event by event."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Any

from leanseek.engine.request import Event
from leanseek.server.jsontext import named_frame
from leanseek.server.logprobs import BytesOf, entries, no_bytes
from leanseek.server.refusal import ApiError
from leanseek.server.reply import Reply, Said, Scored
from leanseek.server.responses import ResponsesRequest
from leanseek.server.toolbox import Choice
from leanseek.server.usage import Usage

# Of the events of each kind of text: what they are called, and the part that they fill.
TEXT, THINKING = "response.output_text", "response.reasoning_text"


class Items:
    """One reply as items: thinking, a message, calls of functions. A stream's events build the same items.

    Args:
        request: what is answered; the answer repeats its settings.
        model: which answers.
        bytes_of: gives a token's bytes, for the most likely ones.
    """

    def __init__(self, request: ResponsesRequest, model: str, bytes_of: BytesOf = no_bytes) -> None:
        self._request, self._model, self._bytes_of = request, model, bytes_of
        self._id, self._created = f"resp_{secrets.token_hex(16)}", int(time.time())
        self._output: list[dict[str, Any]] = []
        self._open = False  # whether the last item is
        self._scored: list[Scored] = []  # tokens of the answer that are not told yet: they added no text
        self._number = 0

    def first(self, index: int, event: Event) -> None:
        """Nothing is known from it alone."""

    def whole(self, said: Sequence[Said], replies: Sequence[Reply], usage: Usage) -> dict[str, Any]:
        """Return the answer to a request that does not stream."""
        for _ in (*self.piece(0, said[0]), *self.ending(0, replies[0])):
            pass
        return self._ended(replies[0], usage)

    def opening(self, usage: Usage) -> Iterator[bytes]:
        """Yield the response without output."""
        yield self._event("response.created", response=self._response("in_progress"))
        yield self._event("response.in_progress", response=self._response("in_progress"))

    def piece(self, index: int, said: Said, usage: object = None) -> Iterator[bytes]:
        """Yield what one token said, in the item that it belongs to."""
        if said.reasoning_content:
            yield from self._begin_text("reasoning")
            yield from self._say(THINKING, said.reasoning_content)
        self._scored += said.content_logprobs
        if said.content:
            yield from self._begin_text("message")
            yield from self._say(TEXT, said.content)
        for call in said.tool_calls:
            if call.id is not None:
                yield from self._end()
                item = {"type": "function_call", "id": f"fc_{secrets.token_hex(12)}", "call_id": call.id}
                yield from self._begin({**item, "name": call.name, "arguments": "", "status": "in_progress"})
            if call.arguments:
                self._output[-1]["arguments"] += call.arguments
                yield self._of_item("response.function_call_arguments.delta", delta=call.arguments)

    def ending(self, index: int, reply: Reply) -> Iterator[bytes]:
        """Yield the end of the open item."""
        yield from self._end("completed" if reply.finish_reason in ("stop", "tool_calls") else "incomplete")

    def closing(self, replies: Sequence[Reply], usage: Usage) -> Iterator[bytes]:
        """Yield the whole response."""
        response = self._ended(replies[0], usage)
        yield self._event(f"response.{response['status']}", response=response)

    def failure(self, error: ApiError) -> Iterator[bytes]:
        """Yield the response as failed."""
        response = self._response("failed")
        response["error"] = {"code": "server_error" if error.status >= 500 else "invalid_prompt", "message": str(error)}
        yield self._event("response.failed", response=response)

    def _begin_text(self, kind: str) -> Iterator[bytes]:
        if self._open and self._output[-1]["type"] == kind:
            return
        yield from self._end()
        if kind == "reasoning":
            part: dict[str, Any] = {"type": "reasoning_text", "text": ""}
            item: dict[str, Any] = {"type": kind, "id": f"rs_{secrets.token_hex(12)}", "summary": [], "content": []}
        else:
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            item = {"type": kind, "id": f"msg_{secrets.token_hex(12)}", "role": "assistant", "content": []}
        yield from self._begin({**item, "status": "in_progress"})
        self._output[-1]["content"].append(part)
        yield self._of_item("response.content_part.added", content_index=0, part=dict(part))

    def _say(self, kind: str, text: str) -> Iterator[bytes]:
        part = self._output[-1]["content"][0]
        part["text"] += text
        yield self._of_item(f"{kind}.delta", content_index=0, delta=text, **self._told(part))

    def _told(self, part: dict[str, Any]) -> dict[str, Any]:
        """Return the field of the tokens that were not told yet, which belong to a part now; none if it has none."""
        if "logprobs" not in part:
            return {}
        scored, self._scored = self._scored, []
        new = entries(scored, self._bytes_of) if self._request.logprobs is not None else []
        part["logprobs"] += new
        return {"logprobs": new}

    def _begin(self, item: dict[str, Any]) -> Iterator[bytes]:
        self._output.append(item)
        self._open = True
        yield self._event("response.output_item.added", output_index=len(self._output) - 1, item=dict(item))

    def _end(self, status: str = "completed") -> Iterator[bytes]:
        if not self._open:
            return
        item = self._output[-1]
        if item["type"] == "function_call":
            yield self._of_item("response.function_call_arguments.done", arguments=item["arguments"], name=item["name"])
        else:
            part, kind = item["content"][0], TEXT if item["type"] == "message" else THINKING
            self._told(part)
            logprobs = {"logprobs": part["logprobs"]} if kind == TEXT else {}
            yield self._of_item(f"{kind}.done", content_index=0, text=part["text"], **logprobs)
            yield self._of_item("response.content_part.done", content_index=0, part=part)
        item["status"] = status
        self._open = False
        yield self._event("response.output_item.done", output_index=len(self._output) - 1, item=item)

    def _of_item(self, kind: str, **fields: Any) -> bytes:
        at = len(self._output) - 1
        return self._event(kind, item_id=self._output[at]["id"], output_index=at, **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._number += 1
        return named_frame({"type": kind, "sequence_number": self._number - 1, **fields})

    def _ended(self, reply: Reply, usage: Usage) -> dict[str, Any]:
        whole = reply.finish_reason in ("stop", "tool_calls")
        response = self._response("completed" if whole else "incomplete")
        if not whole:
            reason = "max_output_tokens" if reply.finish_reason == "length" else reply.finish_reason
            response["incomplete_details"] = {"reason": reason}
        return {**response, "usage": usage.responses()}

    def _response(self, status: str) -> dict[str, Any]:
        asked = self._request
        form = asked.text.format if asked.text is not None else None
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "model": self._model,
            "output": list(self._output),
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": asked.reasoning.effort if asked.reasoning is not None else None, "summary": None},
            "store": False,
            "temperature": asked.temperature,
            "text": {"format": {"type": "text"} if form is None else form.model_dump(by_alias=True, exclude_none=True)},
            "tool_choice": _said(asked.tool_choice),
            "top_logprobs": asked.top_logprobs or 0,
            "tools": [tool.model_dump() for tool in asked.tools or ()],
            "top_p": asked.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": asked.user,
            "safety_identifier": asked.safety_identifier,
            "metadata": asked.metadata or {},
        }


def _said(choice: Choice | None) -> Any:
    choice = choice or Choice()
    if choice.allowed is not None:
        tools = [{"type": "function", "name": name} for name in choice.allowed]
        return {"type": "allowed_tools", "mode": choice.kind, "tools": tools}
    return {"type": "function", "name": choice.name} if choice.kind == "named" else choice.kind
