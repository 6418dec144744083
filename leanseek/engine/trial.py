"""Trial: a grammar compiled in a process of its own first, since one from outside may never end or eat all memory.

This file is also that process's program; it therefore needs nothing of leanseek and no torch.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

# Of one trial. Processor time, not time on the wall: a busy machine shall not refuse a good grammar.
MOST_CPU_S = 2
MOST_WALL_S = 60
MOST_MEMORY_BYTES = 2 << 30
# The compiler follows chains of names by recursion. What fits in this is safe on the larger stack of the real thing.
STACK_BYTES = 1 << 20
# Masks that a trial makes: each may be the costly one.
STEPS = 12
_LIMITS = LLParserLimits(
    max_items_in_row=2000,
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_lexer_states=50_000,
    max_grammar_size=200_000,
    precompute_large_lexemes=False,  # in a large vocabulary that takes long; masks are made when needed
    verbose_errors=False,
)


class Vocabulary:
    """A vocabulary as llguidance wants it.

    Args:
        tokens: each id's bytes; of a special token, its name; empty where there is no token.
        special_ids: which are special: only a grammar that names them allows them.
        eos_id: a token that ends a reply.
        encode: text -> ids, for what a grammar leaves no choice about.
    """

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(
        self, tokens: Sequence[bytes], special_ids: Sequence[int], eos_id: int, encode: Callable[[str], list[int]]
    ) -> None:
        self.tokens, self.special_token_ids, self.eos_token_id, self._encode = tokens, special_ids, eos_id, encode

    def __call__(self, text: str) -> list[int]:
        """Return a text's ids."""
        return self._encode(text)

    def compiled(self, eos_ids: Sequence[int], slices: list[str] | None = None) -> LLTokenizer:
        """Return llguidance's own form of it.

        Args:
            eos_ids: tokens that end a reply.
            slices: sets of tokens whose masks are made beforehand; None: those that suit most grammars.
        """
        return LLTokenizer(self, eos_token=list(eos_ids), slices=slices)  # type: ignore[arg-type]


def compile_matcher(tokenizer: LLTokenizer, kind: str, text: str) -> LLMatcher:
    """Compile a grammar; whether it was understood, the matcher's `is_error` says.

    Args:
        tokenizer: of the vocabulary.
        kind: "regex" or "lark".
        text: the expression or grammar.
    """
    compiler = {"regex": LLMatcher.grammar_from_regex, "lark": LLMatcher.grammar_from_lark}[kind]
    return LLMatcher(tokenizer, compiler(text), log_level=0, limits=_LIMITS)


def objection(kind: str, text: str, *, size: int, specials: Mapping[int, str], eos_ids: Sequence[int]) -> str:
    """Compile a grammar in a process of its own; return what is wrong with it, or "".

    The trial knows the special tokens and, for the others, single bytes: all that a grammar can name.

    Args:
        kind, text: of `compile_matcher`.
        size: of the vocabulary.
        specials: id -> name.
        eos_ids: tokens that end a reply.
    """
    task = {"kind": kind, "text": text, "size": size, "specials": list(specials.items()), "eos_ids": list(eos_ids)}
    # -P: nothing is imported from the working directory.
    command = [sys.executable, "-P", __file__]
    try:
        done = subprocess.run(command, input=json.dumps(task).encode(), capture_output=True, timeout=MOST_WALL_S)
    except subprocess.TimeoutExpired:
        return "it takes too long to compile"
    if done.returncode:
        return f"it nests too deeply, or takes more than {MOST_CPU_S} s or {MOST_MEMORY_BYTES >> 30} GiB to compile"
    return done.stdout.decode(errors="replace")


def _try(task: Mapping[str, Any]) -> str:
    specials = {i: name.encode(errors="replace") for i, name in task["specials"]}
    tokens = [specials.get(i, b"") for i in range(task["size"])]
    id_of = [i for i in range(task["size"]) if i not in specials][:256]
    for byte, i in enumerate(id_of):
        tokens[i] = bytes([byte])
    vocabulary = Vocabulary(
        tokens, list(specials), task["eos_ids"][0], lambda text: [id_of[byte] for byte in text.encode()]
    )
    tokenizer = vocabulary.compiled(task["eos_ids"], slices=[])
    matcher = compile_matcher(tokenizer, task["kind"], task["text"])
    for step in range(STEPS):
        if matcher.is_error() or matcher.is_stopped():
            break
        allowed = [i for i, kept in enumerate(matcher.compute_logit_bias()) if kept]
        if not allowed:
            break
        matcher.consume_token(allowed[7919 * step % len(allowed)])
    return str(matcher.get_error())


def _main() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (MOST_CPU_S, MOST_CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY_BYTES, MOST_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    task = json.load(sys.stdin)
    threading.stack_size(STACK_BYTES)
    trial = threading.Thread(target=lambda: sys.stdout.write(_try(task)))
    trial.start()
    trial.join()


if __name__ == "__main__":
    _main()
