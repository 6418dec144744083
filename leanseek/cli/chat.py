"""leanseek chat: a conversation in the terminal; streams, and shows the thinking dimmed."""

from __future__ import annotations

import contextlib
import signal
import threading
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.text import Text

from leanseek import variables
from leanseek.cli.speaker import EngineSpeaker, ServerSpeaker, Speaker
from leanseek.engine.request import SamplingParams
from leanseek.errors import LeanseekError, UsageError
from leanseek.log import say
from leanseek.messages import Message
from leanseek.run import model_folder

HELP = "/exit leaves (so does Ctrl-D), /clear forgets the conversation, Ctrl-C stops a reply"


def chat(
    model: str,
    *,
    name: str | None = None,
    api_key_file: Path | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    max_tokens: int | None = None,
    seed: int | None = None,
    system: str | None = None,
    no_thinking: bool = False,
    weights: Literal["fp32", "bf16", "fp8", "int8", "int4"] = "fp32",
    device: Literal["cpu", "cuda"] = "cpu",
) -> None:
    """Talk with a model in the terminal, in a folder or behind a URL; its thinking is shown dimmed.

    Where no sampling is given, the model's generation_config.json says it, or the server.

    Example: leanseek chat runs/laptop --temperature 0

    Example: leanseek chat http://127.0.0.1:8000

    Args:
        model: A run folder (its latest checkpoint), a model folder, or the URL of a server in OpenAI's protocol.
        name: Of a URL's model; without it, the first that the server lists.
        api_key_file: With a URL: a file whose first line is the key.
        temperature: How freely replies are drawn; 0 takes the most likely token.
        top_p: Smallest set of tokens whose share reaches this is kept.
        top_k: How many tokens are kept; 0 keeps all.
        min_p: Tokens below this share of the most likely one's are dropped.
        max_tokens: Longest reply; without it, what the context leaves.
        seed: Of the draws: the same seed gives the same conversation.
        system: What the model is told before the conversation.
        no_thinking: Have replies start with the answer.
        weights: What the weights are kept in; fp8: as an FP8 folder has them; int8 and int4 are packed at the first
            time, and kept in a cache.
        device: What computes.
    """
    asked = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p, "max_tokens": max_tokens}
    given = {key: value for key, value in {**asked, "seed": seed}.items() if value is not None}
    if model.startswith(("http://", "https://")):
        if weights != "fp32" or device != "cpu":
            raise UsageError("--weights and --device are the server's to choose; leave them out with a URL")
        speaker: Speaker = ServerSpeaker(model, model=name, settings=given, api_key=_first_line(api_key_file))
    elif name is not None or api_key_file is not None:
        raise UsageError("--name and --api-key-file go with the URL of a server")
    else:
        speaker = _engine_speaker(Path(model), given, weights, device)
    say(HELP)
    opening = [Message("system", system)] if system else []
    Conversation(speaker, opening, thinking=not no_thinking).run(Console(highlight=False))


def _engine_speaker(model: Path, given: dict[str, Any], weights: str, device: str) -> EngineSpeaker:
    folder = model_folder(model)
    # Here, so that a wrong folder is told at once and --help does not wait for torch.
    import torch

    from leanseek.engine.engine import Engine
    from leanseek.kernels.registry import notice
    from leanseek.server.defaults import SamplingDefaults

    if (threads := variables.threads()) is not None:
        torch.set_num_threads(threads)
    usual = SamplingDefaults.load(folder)
    params = SamplingParams(
        **{
            "max_tokens": 1 << 30,
            "temperature": usual.usual_temperature,
            "top_p": max(usual.top_p, 1e-6),
            "top_k": max(usual.top_k, 0),
            "min_p": usual.min_p,
            **given,
        }
    )
    say(f"loading {folder}")
    if line := notice():
        say(line)
    return EngineSpeaker(Engine.load(folder, weights=weights, device=device, max_batch=1), params)


def _first_line(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: the API key cannot be read ({error})") from None
    return lines[0].strip() if lines else ""


class Conversation:
    """One conversation with one speaker.

    Args:
        speaker: who answers.
        opening: messages before the first question.
        thinking: whether replies start with thinking.
    """

    def __init__(self, speaker: Speaker, opening: list[Message], *, thinking: bool) -> None:
        self._speaker, self._opening, self._thinking = speaker, opening, thinking
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
        except LeanseekError as error:
            console.print(Text(f"{error} (/clear forgets the conversation)"))
            return
        self.messages = [*asked, reply]

    def _draw(self, asked: list[Message], console: Console) -> Message:
        """Print a reply as it is drawn and return it; Ctrl-C ends it where it is."""
        style = ""
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

        pieces = self._speaker.speak(asked, thinking=self._thinking)
        with interruptible() as interrupted, contextlib.closing(pieces):
            for piece in pieces:
                show(piece.reasoning_content, "dim")
                show(piece.content, "")
                if interrupted.is_set():
                    break
        console.print()
        return Message("assistant", said[""], said["dim"] if self._thinking else None)


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
