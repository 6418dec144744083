"""GrammarCompiler: what a reply may be, as masks over the vocabulary; llguidance does the work."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from leanseek.engine.request import Grammar
from leanseek.engine.trial import Vocabulary, compile_matcher, objection
from leanseek.errors import EngineError
from leanseek.tokens.schemas import json_term
from leanseek.tokens.tokenizer import END_THINK, Tokenizer

# Longest texts. Lists of tools are long; nobody writes expressions by the page.
MOST_CHARACTERS = {"json_schema": 1 << 16, "regex": 1 << 12, "lark": 1 << 18, "tools": 1 << 18}
MOST_CHARACTERS_OF_MARKER = 64
KEPT_GRAMMARS = 64
# Processor time of one mask, of which most take well below a millisecond.
MOST_STEP_S = 2.0
_NAMES = {"json_object": "JSON", "json_schema": "JSON schema", "regex": "regular expression"}
_SLASH = re.compile(r"\\.|/", re.DOTALL)
_TOKEN_IN_LARK = re.compile(r"<\[(\d+)\]>")


class GrammarCompiler:
    """Makes states that follow a reply; grammars that were asked for lately are kept. Any thread may use it.

    Args:
        tokenizer: of the model. Its added tokens are allowed only where a grammar names them.
        vocab_size: of the model, which may be larger: ids without a token are never allowed.
        eos_ids: tokens that end a reply.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_ids: Sequence[int]) -> None:
        self.vocab_size = vocab_size
        self.eos_ids = [i for i in eos_ids if 0 <= i < vocab_size]
        self._tokenizer = tokenizer
        self._specials = {
            i: text
            for i, text in tokenizer.added_tokens.items()
            if i < vocab_size and (tokenizer.is_special(i) or text.strip())
        }
        self._specials |= {i: f"<eos-{i}>" for i in self.eos_ids if i not in self._specials}
        self._native: LLTokenizer | None = None  # made when it is first needed
        self._kept: OrderedDict[tuple[str, str], LLMatcher | str] = OrderedDict()
        self._signs: OrderedDict[tuple[bytes, frozenset[int]], _Sign] = OrderedDict()
        self._lock, self._trying = threading.Lock(), threading.Lock()

    def compile(
        self,
        grammar: Grammar,
        starts_in_thinking: bool = False,
        end_think_id: int | None = None,
        think_id: int | None = None,
    ) -> GrammarState:
        """Return the state of a reply that follows a grammar.

        A grammar that is not known yet is tried in a process of its own, which takes a tenth of a second: a server
        does this before the request gets to the engine, which then finds the grammar here.

        Args:
            grammar: what the reply may be.
            starts_in_thinking: whether the prompt opened the thinking.
            end_think_id: the token that ends it; None: its text does.
            think_id: a token that may open the thinking as the reply's first, where the prompt does not open it.
        Raises:
            EngineError: a grammar that cannot be understood, or would cost too much.
        """
        thinks = grammar.after_thinking and starts_in_thinking
        kind, text = _as_known(grammar, after_thinking=thinks or (grammar.after_thinking and think_id is not None))
        matcher = self._matcher(kind, text, _NAMES.get(grammar.kind, "grammar"))
        thought, gates = None, []
        if grammar.after_thinking:
            ending = END_THINK.encode() if end_think_id is None else self._piece(end_think_id)
            thought = self._sign(ending, frozenset())
        if grammar.kind == "tools":
            named = frozenset(i for found in _TOKEN_IN_LARK.findall(text) if (i := int(found)) < self.vocab_size)
            gates.append(self._sign(self._marked(grammar.marker), named))
        opener = None if starts_in_thinking or not grammar.after_thinking else think_id
        state = GrammarState(matcher, gates=gates, thought=thought, think_id=opener, eos_ids=self.eos_ids)
        if thinks:
            state.think()
        return state

    def _matcher(self, kind: str, text: str, name: str) -> LLMatcher:
        """Return a grammar's matcher in its first state."""
        with self._lock:
            known = self._kept.get((kind, text))
        if known is None:
            with self._trying:  # a trial that takes long holds up new grammars, never known ones
                known = self._compiled(kind, text)
        with self._lock:
            self._kept[kind, text] = known
            self._kept.move_to_end((kind, text))
            if len(self._kept) > KEPT_GRAMMARS:
                self._kept.popitem(last=False)
            if isinstance(known, str):
                raise EngineError(f"the {name} cannot be used: {known}")
            return known.deep_copy()

    def _compiled(self, kind: str, text: str) -> LLMatcher | str:
        """Return a grammar's matcher, or what is wrong with it: that, too, is kept."""
        reason = objection(kind, text, size=self.vocab_size, specials=self._specials, eos_ids=self.eos_ids)
        if not reason:
            matcher = compile_matcher(self._natively(), kind, text)
            reason = matcher.get_error()
        return _short(reason) if reason else matcher

    def _natively(self) -> LLTokenizer:
        """Return llguidance's own form of the vocabulary."""
        if self._native is None:
            names, bytes_of = self._specials, self._tokenizer.bytes_of
            tokens = [names[i].encode() if i in names else bytes_of(i) for i in range(self.vocab_size)]
            vocabulary = Vocabulary(tokens, list(names), self.eos_ids[0], self._tokenizer.encode)
            self._native = vocabulary.compiled(self.eos_ids)
        return self._native

    def _sign(self, pattern: bytes, named: frozenset[int]) -> _Sign:
        with self._lock:
            sign = self._signs.get((pattern, named))
            if sign is None:
                sign = self._signs[pattern, named] = _Sign(pattern, self, named)
                if len(self._signs) > KEPT_GRAMMARS:
                    self._signs.popitem(last=False)
            return sign

    def _piece(self, token_id: int) -> bytes:
        """Return what a token adds to the text in which signs are looked for."""
        if token_id in self._specials:
            return b"\xff%d\xff" % token_id  # in no text
        return self._tokenizer.bytes_of(token_id) if 0 <= token_id < self.vocab_size else b""

    def _marked(self, marker: str) -> bytes:
        """Return a marker as such text: what is a token's name stands for the token."""
        if not 0 < len(marker) <= MOST_CHARACTERS_OF_MARKER:
            raise EngineError(f"marker = {marker[:80]!r}: 1 to {MOST_CHARACTERS_OF_MARKER} characters are accepted")
        ids = {text: i for i, text in self._specials.items()}
        names = "|".join(map(re.escape, sorted(ids, key=len, reverse=True)))
        parts = re.split(f"({names})", marker)
        return b"".join(self._piece(ids[part]) if part in ids else part.encode() for part in parts)


class GrammarState:
    """How far one reply has come in its grammar.

    Args:
        matcher: of the grammar, for this state alone.
        gates: signs that must be said, one after the other, before the grammar holds; until then text is free.
        thought: the sign that ends thinking, if thinking is no part of the grammar.
        think_id: a token that as the reply's first opens the thinking.
        eos_ids: tokens that end a reply.
    """

    def __init__(
        self,
        matcher: LLMatcher,
        *,
        gates: Sequence[_Sign],
        thought: _Sign | None,
        think_id: int | None,
        eos_ids: Sequence[int],
    ) -> None:
        self._matcher, self._gates, self._thought, self._think_id = matcher, list(gates), thought, think_id
        self._eos_ids = list(eos_ids)
        # A reply may end unguided only where no grammar has to come.
        self._may_end = bool(gates)
        self._tail = b""
        self._ended = False
        # Why the reply cannot go on; None while it can. From then on nothing is masked.
        self.error: str | None = None

    def think(self) -> None:
        """Say that the reply is thinking: the grammar waits for its end."""
        assert self._thought is not None
        self._gates.insert(0, self._thought)

    @property
    def complete(self) -> bool:
        """Whether the reply is all that the grammar allows, so that nothing may follow."""
        return self._ended

    @property
    def free(self) -> bool:
        """Whether the reply is still before its grammar: `mask_` takes away a few tokens at most."""
        return bool(self._gates)

    def mask_(self, logits_W: Tensor) -> None:
        """Set the logits of what may not follow to -inf.

        Args:
            logits_W: of one row, changed in place.
        """
        if self.error is not None:
            return
        if self._gates:
            barred = self._gates[0].barred(self._tail)
            if len(barred):
                logits_W.index_fill_(0, barred.to(logits_W.device), float("-inf"))
            if not self._may_end:
                logits_W[self._eos_ids] = float("-inf")
            return
        started = time.thread_time()
        kept = bytearray(self._matcher.compute_logit_bias())
        if time.thread_time() - started > MOST_STEP_S:
            return self._fail("it takes too long")
        barred_W = torch.frombuffer(kept, dtype=torch.uint8)[: len(logits_W)] == 0
        if self._think_id is not None:
            barred_W[self._think_id] = False
        if self._matcher.is_error() or bool(barred_W.all()):
            return self._fail(self._matcher.get_error() or "the vocabulary has no token that could follow")
        logits_W[: len(barred_W)].masked_fill_(barred_W.to(logits_W.device), float("-inf"))
        logits_W[len(barred_W) :] = float("-inf")

    def note(self, token_id: int) -> None:
        """Take a token that the reply now has."""
        may_open, self._think_id = self._think_id, None
        if self.error is not None or self._ended:
            return
        if token_id in self._eos_ids:
            self._ended = True
        elif may_open == token_id:
            self.think()
        elif self._gates:
            gate = self._gates[0]
            self._tail = gate.tail(self._tail, token_id)
            if self._tail == gate.pattern:
                self._gates, self._tail = self._gates[1:], b""
        elif not self._matcher.consume_token(token_id):
            self._fail(self._matcher.get_error() or "a token that it does not allow was drawn")
        else:
            self._ended = self._matcher.is_stopped()
            if self._matcher.is_error():
                self._fail(self._matcher.get_error())

    def _fail(self, reason: str) -> None:
        self.error = f"the reply could not be held to its grammar: {_short(reason)}"


class _Sign:
    """Text or tokens that are waited for; the token that completes them must end with them."""

    def __init__(self, pattern: bytes, compiler: GrammarCompiler, named: frozenset[int]) -> None:
        self.pattern = pattern
        self._piece, self._size, self._named = compiler._piece, compiler.vocab_size, named
        self._barred: dict[tuple[int, ...], Tensor] = {}
        # Only what has the sign's last byte before its own end can go beyond it.
        ends_in_text = not pattern.endswith(b"\xff")
        self._long = [i for i in range(self._size) if ends_in_text and pattern[-1] in self._piece(i)[:-1]]

    def tail(self, before: bytes, token_id: int) -> bytes:
        """Return as much of the text's end as can matter."""
        return (before + self._piece(token_id))[-len(self.pattern) :]

    def barred(self, tail: bytes) -> Tensor:
        """Return the ids that may not follow: what goes beyond the sign, and named tokens out of their place."""
        begun = tuple(n for n in range(len(self.pattern)) if tail.endswith(self.pattern[:n]))
        if begun not in self._barred:
            rests = [self.pattern[n:] for n in begun]
            ids = [i for i in self._named if not any(rest.startswith(self._piece(i)) for rest in rests)]
            ids += [i for i in self._long if self._goes_beyond(self._piece(i), rests)]
            self._barred[begun] = torch.tensor(ids, dtype=torch.int64)
        return self._barred[begun]

    def _goes_beyond(self, piece: bytes, rests: Sequence[bytes]) -> bool:
        return self.pattern in piece[:-1] or any(len(piece) > len(rest) and piece.startswith(rest) for rest in rests)


def terms_of(grammar: Grammar, *, after_thinking: bool) -> str:
    """Return a form of answers as the terms of a rule, so that it may stand beside others.

    Args:
        grammar: JSON or a regular expression.
        after_thinking: whether thinking goes before it.
    Raises:
        EngineError: a schema that is none, or a grammar of several rules.
    """
    # Models put empty lines between thinking and answer.
    lead = '"\\n\\n"? ' if after_thinking else ""
    if grammar.kind == "regex":
        return f"{lead}/{_SLASH.sub(_escaped, grammar.text)}/"
    if grammar.kind not in ("json_object", "json_schema"):
        raise EngineError("a grammar of several rules cannot stand beside others: give a JSON schema or a regex")
    schema: Any = {"type": "object"}
    if grammar.kind == "json_schema":
        try:
            schema = json.loads(grammar.text)
        except (ValueError, RecursionError) as error:
            raise EngineError(f"the JSON schema cannot be used: it is not JSON ({error})") from None
        schema = {} if schema is True else schema
        if not isinstance(schema, dict):
            raise EngineError(f"the JSON schema cannot be used: it is {grammar.text[:80]!r}; an object is needed")
    return lead + json_term(schema)


def _as_known(grammar: Grammar, *, after_thinking: bool) -> tuple[str, str]:
    """Return a grammar as kind and text that llguidance knows."""
    name, most = _NAMES.get(grammar.kind, "grammar"), MOST_CHARACTERS.get(grammar.kind)
    if most is not None and len(grammar.text) > most:
        raise EngineError(f"the {name} has {len(grammar.text):,} characters; at most {most:,} are accepted")
    if grammar.kind == "regex":
        return "regex", grammar.text
    if grammar.kind in ("lark", "tools"):
        return "lark", grammar.text
    return "lark", f"start: {terms_of(grammar, after_thinking=after_thinking)}"


def _escaped(found: re.Match[str]) -> str:
    return "\\/" if found[0] == "/" else found[0]


def _short(reason: str) -> str:
    return reason.strip().split("\n", 1)[0][:200] or "no reason is known"
