"""App: the command line's entry: finds the command, runs it, and turns failures into a sentence and an exit status."""

from __future__ import annotations

import errno
import inspect
import os
import sys
from collections.abc import Sequence
from typing import Any

from cyclopts import App, CycloptsError, Parameter

import leanseek
from leanseek import variables
from leanseek.errors import LeanseekError, UsageError
from leanseek.log import say

# Command -> where it is, and what it does in a line. A module is imported only when its command is called.
COMMANDS = {
    "make": ("leanseek.cli.make:make", "Make a model from nothing, the whole line: the place to start."),
    "data": ("leanseek.cli.data:data", "Make token shards of text of any size, for pretraining."),
    "tokenizer": ("leanseek.cli.stage:tokenizer", "The line up to the corpus and the tokenizer."),
    "pretrain": ("leanseek.cli.stage:pretrain", "The line up to the base model."),
    "sft": ("leanseek.cli.stage:sft", "Fine-tune a model on your own conversations, or on worked solutions."),
    "grpo": ("leanseek.cli.stage:grpo", "The line up to reinforcement learning."),
    "distill": ("leanseek.cli.distill:distill", "Teach a student what a teacher knows: a model, or a server."),
    "dpo": ("leanseek.cli.stage:dpo", "Teach a model which of two replies is better, by your own pairs."),
    "extend": ("leanseek.cli.stage:extend", "Teach a base model a longer context (YaRN)."),
    "eval": ("leanseek.cli.eval:eval_", "Measure a model on held-out problems."),
    "card": ("leanseek.cli.card:card", "Write a run's model card anew, or check that nothing is missing in it."),
    "report": ("leanseek.cli.report:report", "Write a run's page anew."),
    "serve": ("leanseek.cli.serve:serve", "Serve a model over HTTP to any client, with a chat page."),
    "chat": ("leanseek.cli.chat:chat", "Talk with a model in the terminal."),
    "demo": ("leanseek.cli.demo:demo", "Ask a run's model held-out questions, and say what it cost."),
    "convert": ("leanseek.cli.convert:convert", "Convert a model folder: FP8, bf16, fp32, int8, int4, GGUF."),
    "average": ("leanseek.cli.average:average", "Average the weights of a run's checkpoints, or of model folders."),
    "inspect": ("leanseek.cli.inspect:inspect", "Show what a model folder or a shape is, and what serving it needs."),
    "bench": ("leanseek.cli.bench:bench", "Measure kernels, decoding and prefill on this machine."),
    "plan": ("leanseek.cli.plan:plan", "Say what training or serving would cost, before it does."),
    "ledger": ("leanseek.cli.ledger:ledger", "Show what runs have cost, stage by stage."),
    "models": ("leanseek.cli.listing:models", "List the model shapes."),
    "envs": ("leanseek.cli.listing:envs", "List the tasks, show their problems, try one out."),
    "recipes": ("leanseek.cli.listing:recipes", "List the recipes and all settings."),
}
# Those that take any setting of a recipe as an option.
WITH_SETTINGS = ("make", "tokenizer", "pretrain", "sft", "grpo", "distill", "dpo", "extend")
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
BROKEN_PIPE = 141  # 128 + SIGPIPE


def app(called: str | None = None) -> App:
    """Return the command line as cyclopts sees it.

    Args:
        called: the command that is wanted; its help then comes from its own docstring, which means importing it.
    """
    line = App(
        name="leanseek",
        help="Small DeepSeek models, from nothing to a served reasoner.\n\nExample: leanseek make laptop",
        version=leanseek.__version__,
        default_parameter=Parameter(negative=(), show_default=_default),
        result_action="return_value",
    )
    for order, (name, (path, summary)) in enumerate(COMMANDS.items()):
        line.command(path, name=name, sort_key=order, help=None if name == called else summary)
    return line


def _default(value: Any) -> str | None:
    """Return a default as the help shows it; flags that are off and what is derived have none to show."""
    return None if value is False or value is None or value == () else str(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; return its exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted.

    Args:
        arguments: without the program's name; None: this process's.
    """
    tracebacks = False
    try:
        variables.check()
        tracebacks = variables.traceback()
        _run(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
    except KeyboardInterrupt as interrupt:
        say(str(interrupt) or "stopped")
        return INTERRUPTED
    except LeanseekError as error:
        if tracebacks:
            raise
        say(f"leanseek: {error}")
        return error.exit_status
    except BrokenPipeError:
        # Whoever read the output has gone; Python would complain once more when it closes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (OSError, MemoryError) as error:
        if tracebacks:
            raise
        say(f"leanseek: {_of_system(error)}")
        return 1
    return 0


def _run(tokens: list[str]) -> None:
    settings = None
    if tokens and tokens[0] in WITH_SETTINGS:
        from leanseek.cli.overrides import split_settings

        rest, settings = split_settings(tokens[1:], section=None if tokens[0] == "make" else tokens[0])
        tokens = [tokens[0], *rest]
    line = app(tokens[0] if tokens else None)
    try:
        command, bound, ignored = line.parse_args(tokens, print_error=False, exit_on_error=False)
    except CycloptsError as error:
        raise UsageError(" ".join(str(error).split())) from None
    if "settings" in ignored:
        bound.arguments["settings"] = settings
    result = command(*bound.args, **bound.kwargs)
    assert not inspect.isawaitable(result), "no command is a coroutine"


def _of_system(error: OSError | MemoryError) -> str:
    """Say what the system refused."""
    if isinstance(error, MemoryError):
        return "out of memory; what was saved is whole: go on on a larger machine, or with smaller batches"
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"{where}the disk is full; what was saved before is whole: free some space and run the same command again"
        )
    return f"{where}{error.strerror or error}"
