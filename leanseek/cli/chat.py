"""leanseek chat: a conversation in the terminal; streams, and shows the thinking dimmed."""

from __future__ import annotations

import contextlib
import signal
import threading
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.text import Text

from leanseek import variables
from leanseek.engine.request import SamplingParams
from leanseek.errors import EngineError
from leanseek.log import say
from leanseek.messages import Message
from leanseek.run import model_folder

if TYPE_CHECKING:
    from leanseek.engine.engine import Engine

HELP = "/exit leaves (so does Ctrl-D), /clear forgets the conversation, Ctrl-C stops a reply"


def chat(
    model: Path,
    *,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    max_tokens: int | None = None,
    seed: int | None = None,
    system: str | None = None,
    no_thinking: bool = False,
    weights: Literal["fp32", "bf16"] = "fp32",
    device: Literal["cpu", "cuda"] = "cpu",
) -> None:
    """Talk with a model in the terminal; its thinking is shown dimmed.

    Where no sampling is given, the model's generation_config.json says it.

    Example: leanseek chat runs/laptop --temperature 0

    Args:
        model: A run folder (its latest checkpoint) or a model folder.
        temperature: How freely replies are drawn; 0 takes the most likely token.
        top_p: Smallest set of tokens whose share reaches this is kept.
        top_k: How many tokens are kept; 0 keeps all.
        min_p: Tokens below this share of the most likely one's are dropped.
        max_tokens: Longest reply; without it, what the context leaves.
        seed: Of the draws: the same seed gives the same conversation.
        system: What the model is told before the conversation.
        no_thinking: Have replies start with the answer.
        weights: What the weights are kept in.
        device: What computes.
    """
    folder = model_folder(model)
    # Here, so that a wrong folder is told at once and --help does not wait for torch.
    import torch

    from leanseek.engine.engine import Engine
    from leanseek.server.defaults import SamplingDefaults

    if (threads := variables.threads()) is not None:
        torch.set_num_threads(threads)
    usual = SamplingDefaults.load(folder)
    params = SamplingParams(
        max_tokens=1 << 30 if max_tokens is None else max_tokens,
        temperature=usual.usual_temperature if temperature is None else temperature,
        top_p=max(usual.top_p, 1e-6) if top_p is None else top_p,
        top_k=max(usual.top_k, 0) if top_k is None else top_k,
        min_p=usual.min_p if min_p is None else min_p,
        seed=seed,
    )
    say(f"loading {folder}")
    engine = Engine.load(folder, weights=weights, device=device, max_batch=1)
    say(HELP)
    opening = [Message("system", system)] if system else []
    Conversation(engine, params, opening, thinking=not no_thinking).run(Console(highlight=False))


class Conversation:
    """One conversation with one engine.

    Args:
        engine: not shared with anybody.
        params: how replies are drawn.
        opening: messages before the first question.
        thinking: whether replies start with thinking.
    """

    def __init__(self, engine: Engine, params: SamplingParams, opening: list[Message], *, thinking: bool) -> None:
        self._engine, self._params = engine, params
        self._opening, self._thinking = opening, thinking
        self.messages = list(opening)

    def run(self, console: Console, read: Callable[[str], str] = input) -> None:
        """Read questions and print replies until the person leaves."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 (lets `input` edit the line and go back to earlier ones)
        while True:
            try:
                question = read("> ").strip()
            except (EOFError, KeyboardInterrupt):
                console.print()
                return
            if question == "/exit":
                return
            if question == "/clear":
                self.messages = list(self._opening)
            elif question.startswith("/"):
                console.print(HELP)
            elif question:
                self._answer(question, console)

    def _answer(self, question: str, console: Console) -> None:
        asked = [*self.messages, Message("user", question)]
        try:
            reply = self._draw(asked, console)
        except EngineError as error:
            console.print(Text(f"{error} (/clear forgets the conversation)"))
            return
        self.messages = [*asked, reply]

    def _draw(self, asked: list[Message], console: Console) -> Message:
        """Print a reply as it is drawn and return it; Ctrl-C ends it where it is."""
        engine, style = self._engine, ""
        assert engine.chat is not None
        prompt_ids = engine.chat.prompt(asked, thinking=self._thinking)
        stream = engine.chat.stream(starts_in_thinking=self._thinking)
        said = {"": "", "dim": ""}

        def show(text: str, its_style: str) -> None:
            nonlocal style
            if not text:
                return
            if its_style != style and said["dim"]:
                console.print()
            style = its_style
            said[its_style] += text
            console.print(Text(printable(text), style=its_style), end="", soft_wrap=True)

        request_id = engine.add(prompt_ids, self._next_params())
        with interruptible() as interrupted:
            while engine.has_work:
                for event in engine.step():
                    if event.error is not None:
                        raise EngineError(event.error)
                    assert event.token_id is not None
                    delta = stream.push(event.token_id)
                    show(delta.reasoning_content, "dim")
                    show(delta.content, "")
                if interrupted.is_set():
                    engine.cancel(request_id)
        rest = stream.flush()
        show(rest.reasoning_content, "dim")
        show(rest.content, "")
        console.print()
        return Message("assistant", said[""], said["dim"] if self._thinking else None)

    def _next_params(self) -> SamplingParams:
        """Return how to draw the next reply; a seed is used once, then the next one."""
        params = self._params
        if params.seed is not None:
            self._params = replace(params, seed=params.seed + 1)
        return params


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Turn Ctrl-C into an event inside the block, so that it cannot tear a step apart; a second one is raised."""
    event = threading.Event()

    def note(*_: Any) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


def printable(text: str) -> str:
    """Return a text that cannot steer a terminal: control characters but tab and line break become U+FFFD."""
    return "".join("�" if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text)
