"""leanseek demo: ask a run's model held-out questions through its own server, and say what the run cost."""

from __future__ import annotations

import itertools
import json
import shlex
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from leanseek import variables
from leanseek.cli.chat import printable
from leanseek.cost.card import compared
from leanseek.cost.energy import describe_meter
from leanseek.envs.environment import Problem, Turn, load_environment
from leanseek.errors import ServerError, UsageError
from leanseek.log import say
from leanseek.messages import Message, ToolCall, ToolSpec, as_openai
from leanseek.run import Run, model_folder
from leanseek.units import (
    format_bytes,
    format_count,
    format_flops,
    format_joules,
    format_percent,
    format_seconds,
    format_usd,
)

ANSWER_TIMEOUT_S = 300.0
# Replies to a question that can be followed by others; what needs more counts as wrong.
MOST_TURNS = 32


def demo(run: Path, *, questions: int = 4, port: int = 0) -> None:
    """Ask a run's newest model held-out questions through its own HTTP server, and say what the run cost.

    Example: leanseek demo runs/laptop --questions 2

    Args:
        run: A run folder.
        questions: Questions of each of the run's environments.
        port: Port of the server; 0 takes any free one.
    """
    if questions < 1:
        raise UsageError(f"questions = {questions}: at least 1 is needed")
    opened = Run.open(run)
    folder = model_folder(run)
    # Here, so that a wrong folder is told at once and --help does not wait for torch.
    import torch

    from leanseek.server.listener import Listener

    if (threads := variables.threads()) is not None:
        torch.set_num_threads(threads)
    console = Console(highlight=False)
    listener = Listener.of_folder(folder, name=run.resolve().name, device=opened.recipe.device, port=port)
    say(f"starting a server with {folder}")
    with listener.background():
        console.rule("held-out questions, asked over HTTP")
        console.print(f"[dim]POST {listener.url}/v1/chat/completions, as any OpenAI client does[/dim]")
        for name in opened.recipe.environments:
            _examine(console, listener.url, listener.served.name, opened, name, questions)
    _tell_results(console, opened)
    _tell_cost(console, opened)
    _tell_next(console, opened, run)


def ask(
    url: str, model: str, prompt: str | Sequence[Message], max_tokens: int, tools: Sequence[ToolSpec] = ()
) -> Message:
    """Ask an OpenAI-compatible server one question, greedily.

    Args:
        url: of the server, without a path.
        model: its name in requests.
        prompt: the question, or a conversation so far.
        max_tokens: longest reply, thinking included.
        tools: what the model may call.
    Raises:
        ServerError: the server does not answer, or answers with an error.
    """
    said = [Message("user", prompt)] if isinstance(prompt, str) else prompt
    body: dict[str, Any] = {
        "model": model,
        "messages": [as_openai(message) for message in said],
        "temperature": 0,
        "max_tokens": max_tokens,
    }
    if tools:
        body["tools"] = [
            {"type": "function", "function": {"name": t.name, "description": t.description, "parameters": t.parameters}}
            for t in tools
        ]
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    # No proxy: the server is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=ANSWER_TIMEOUT_S) as answer:
            message = json.load(answer)["choices"][0]["message"]
    except urllib.error.HTTPError as error:
        raise ServerError(f"{url} answered {error.code}: {error.read().decode(errors='replace')}") from None
    except OSError as error:
        raise ServerError(f"{url} does not answer ({error})") from None
    calls = tuple(
        ToolCall(call["id"], call["function"]["name"], call["function"]["arguments"])
        for call in message.get("tool_calls") or ()
    )
    return Message("assistant", message["content"] or "", message.get("reasoning_content"), calls)


def _examine(console: Console, url: str, model: str, run: Run, name: str, questions: int) -> None:
    """Ask an environment's held-out questions, and print thinking, answers and whether they are right."""
    environment = load_environment(name)
    console.print()
    console.print(Text(f"{name}: {environment.description}", style="bold"))
    problems = environment.problems("test", run.recipe.seed, run.recipe.levels.get(environment.name))
    right = 0
    for problem in itertools.islice(problems, questions):
        episode = environment.start(problem)
        said = list(episode.messages)
        turn = Turn((), False, {})
        for _ in range(MOST_TURNS):
            reply = ask(url, model, said, run.recipe.eval.max_new_tokens, episode.tools)
            turn = episode.step(reply)
            said += [reply, *turn.messages]
            if turn.done:
                break
        correct = turn.rewards.get("correct", 0.0) >= 1.0
        right += correct
        _show(console, problem, said[len(episode.messages) :], correct)
    console.print(f"{right} of {questions} right")


def _show(console: Console, problem: Problem, said: Sequence[Message], correct: bool) -> None:
    grid = Table.grid(padding=(0, 2))
    grid.add_row("question", Text(problem.prompt))
    for message in said:
        if message.role != "assistant":
            grid.add_row(message.role, Text(printable(message.content)))
            continue
        if message.reasoning_content:
            grid.add_row("thinking", Text(printable(message.reasoning_content), style="dim"))
        for call in message.tool_calls:
            grid.add_row("call", Text(printable(f"{call.name} {call.arguments}")))
    mark = ("right", "green") if correct else ("wrong", "red")
    answer = next((message.content for message in reversed(said) if message.role == "assistant"), "")
    grid.add_row("answer", Text.assemble((printable(answer.strip()) or "(none)", "bold"), "  ", mark))
    console.print()
    console.print(grid)


def _tell_results(console: Console, run: Run) -> None:
    accuracy: dict[str, dict[str, Any]] = run.summary.get("accuracy", {})
    if not accuracy:
        return
    console.print()
    console.rule("right answers to all held-out questions")
    models = compared(run.recipe.model_dump(mode="json"))
    table = Table("", *models.values(), "questions")
    for name, figures in accuracy.items():
        shares = [figures.get(stage) for stage in models]
        table.add_row(
            escape(name),
            *("-" if share is None else format_percent(share) for share in shares),
            str(figures.get("n", "-")),
        )
    console.print(table)


def _tell_cost(console: Console, run: Run) -> None:
    summary = run.summary
    console.print()
    console.rule("what the run cost")
    table = Table("stage", "time", "tokens", "operations", "energy", "money", "memory")
    for stage in (*run.recipe.line, "totals"):
        if stage not in summary:
            continue
        if stage == "totals":
            table.add_section()
        figures = summary[stage]
        table.add_row(
            "together" if stage == "totals" else stage,
            _figure(figures, "seconds", format_seconds),
            _figure(figures, "tokens", format_count),
            _figure(figures, "flops", format_flops),
            _figure(figures, "joules", format_joules),
            _figure(figures, "usd", format_usd),
            _figure(figures, "peak_memory_bytes", format_bytes),
        )
    console.print(table)
    meters = dict.fromkeys(
        str(summary[s]["meter"]) for s in (*run.recipe.line, "totals") if summary.get(s, {}).get("meter")
    )
    each = [
        f"{stage} {format_joules(one['joules'] / one['tokens'])}"
        for stage in run.recipe.line
        if (one := summary.get(stage, {})).get("tokens") and one.get("joules") is not None
    ]
    if each:
        console.print(Text(f"a token: {', '.join(each)}"))
    if meters:
        console.print(Text(f"energy: {'; '.join(describe_meter(one) for one in meters)}"))


def _figure(figures: dict[str, Any], key: str, show: Any) -> str:
    value = figures.get(key)
    return "-" if value is None else show(value)


def _tell_next(console: Console, run: Run, called: Path) -> None:
    lines = [
        (what, str(path)) for what, path in (("report", run.report_path), ("card", run.card_path)) if path.is_file()
    ]
    quoted = shlex.quote(str(called))
    lines += [("chat", f"{program()} chat {quoted}"), ("serve", f"{program()} serve {quoted}")]
    console.print()
    for what, line in lines:
        # Not wrapped: a command must stay one line to be copied.
        console.print(Text(f"{what:8}{line}"), soft_wrap=True)


def program() -> str:
    """Return how this program was called, so that a command printed with it runs as it stands."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return f"{sys.executable} -m leanseek"
    return sys.argv[0] if called.name == "leanseek" else "leanseek"
