"""Scheduler: who is read next, who gets which blocks, and who must give theirs back. Numbers only, no tensors."""

from __future__ import annotations

import itertools
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from leanseek.engine.blocks import Blocks
from leanseek.engine.prefix import NOWHERE, Node, Prefixes
from leanseek.engine.request import Request

# A new text is let in only if so many blocks stay free for the texts that run: otherwise it would soon be sent back.
SPARE_SHARE = 0.01
# Where all texts are known beforehand nobody waits for a first token: prompts are read once so many of the rows are
# free, together. A call for each would cost as much as a step of all rows; more rows left empty, what it saves.
GATHERED_SHARE = 1 / 8


@dataclass(eq=False)
class Sample:
    """One of a request's n replies, wherever it is.

    Args:
        request, index: whose, and which.
        seed: of its draws.
        arrival: who came in first has the smallest.
        blocks: where its text's latents are, while it is read or runs.
        said: what it had said before it was sent back to wait; and what goes with it.
        cached_tokens: what of its prompt was known.
        rule: what changes its logits, or None; it goes with the sample.
        listener: what waits for its stop texts, or None; it goes with the sample.
        supports, logprobs_within: of what it has said, as `Output` has them, if asked for.
    """

    request: Request
    index: int
    seed: int = 0
    arrival: int = -1
    blocks: list[int] = field(default_factory=list)
    said: list[int] = field(default_factory=list)
    said_logprobs: list[float] = field(default_factory=list)
    cached_tokens: int = 0
    top_logprobs: list[Any] = field(default_factory=list)
    prompt_logprobs: list[Any] | None = None
    prompt_top_logprobs: list[Any] | None = None
    rule: Any = None
    listener: Any = None
    supports: list[array[int]] = field(default_factory=list)
    logprobs_within: list[float] = field(default_factory=list)

    @property
    def ids(self) -> tuple[int, ...]:
        """All that must be in the cache before its next token can be drawn."""
        return (*self.request.prompt_ids, *self.said) if self.said else self.request.prompt_ids


@dataclass(eq=False)
class Reading:
    """A text that is being read, and the samples that go on from its end.

    Args:
        samples: at least one; the first one's blocks are written.
        ids: the text.
        done: tokens that are in the cache.
        cached: tokens that the prefix cache had.
    """

    samples: list[Sample]
    ids: tuple[int, ...]
    done: int
    cached: int

    @property
    def blocks(self) -> list[int]:
        """Where its latents go."""
        return self.samples[0].blocks


@dataclass(frozen=True)
class Copy:
    """The first `tokens` tokens of one block are to be copied onto another."""

    source: int
    target: int
    tokens: int


class Scheduler:
    """Lets requests in, in the order in which they came, as far as rows and blocks reach.

    Args:
        blocks: of the cache.
        prefixes: what the cache remembers; None: nothing.
        rows: samples that may be let in at once.
        whole_texts: whether every text has one block, as long as any text can be.
    """

    def __init__(self, blocks: Blocks, prefixes: Prefixes | None, rows: int, *, whole_texts: bool) -> None:
        self.blocks, self.prefixes, self.rows, self.whole_texts = blocks, prefixes, rows, whole_texts
        self.waiting: deque[Sample] = deque()
        self.reading: list[Reading] = []
        self.preempted = 0
        self._arrivals = itertools.count()

    @property
    def rows_taken(self) -> int:
        """Rows that the texts under reading will need."""
        return sum(len(reading.samples) for reading in self.reading)

    @property
    def queued(self) -> set[str]:
        """Requests of which a reply waits that was never let in, and of which nothing is being read."""
        reading = {sample.request.request_id for one in self.reading for sample in one.samples}
        return {sample.request.request_id for sample in self.waiting if sample.arrival < 0} - reading

    def admit(self, running: int, token_limit: int) -> list[Copy]:
        """Let waiting samples in; return what must be copied before anything is read.

        Args:
            running: samples that run.
            token_limit: no further text is let in once those under reading have so many tokens to read.
        """
        copies: list[Copy] = []
        if self._gathers(running):
            return copies
        unread = sum(len(reading.ids) - reading.done for reading in self.reading)
        while self.waiting and running + self.rows_taken < self.rows:
            first = self.waiting[0]
            ids = first.ids
            if self.reading and unread + len(ids) > token_limit and not self._continues(first):
                break
            if self._continues(first):
                self.reading[-1].samples.append(self._let_in())
                continue
            if not self._give_blocks(first, ids, copies, running):
                break
            self._let_in()
            self.reading.append(Reading([first], ids, first.cached_tokens, first.cached_tokens))
            unread += len(ids) - first.cached_tokens
        return copies

    def chunk(self, limit: int) -> list[tuple[Reading, int, int]]:
        """Return what to read next, text by text: from which token to which; at most about `limit` tokens in all.

        A first text that is longer than the limit is cut; a further one that does not fit waits.
        """
        parts: list[tuple[Reading, int, int]] = []
        left = limit
        for reading in self.reading:
            rest = len(reading.ids) - reading.done
            if parts and rest > left:
                break
            count = rest if rest <= left or self.whole_texts else left
            parts.append((reading, reading.done, reading.done + count))
            left -= count
            if left <= 0:
                break
        return parts

    def fork(self, reading: Reading) -> list[Copy]:
        """Give the further samples of a text that has been read their blocks; return what must be copied.

        Samples for which there is no room go back to the head of the queue.
        """
        copies: list[Copy] = []
        leader, length = reading.samples[0], len(reading.ids)
        size = self.blocks.tokens
        whole, rest = divmod(length, size)
        for place, sample in enumerate(reading.samples[1:], 1):
            if rest and not self._room(1):
                self.waiting.extendleft(reversed(reading.samples[place:]))
                del reading.samples[place:]
                break
            self.blocks.share(leader.blocks[:whole])
            sample.blocks = leader.blocks[:whole]
            if rest:
                (block,) = self.blocks.take(1)
                copies.append(Copy(leader.blocks[whole], block, rest))
                sample.blocks = [*sample.blocks, block]
            sample.cached_tokens = leader.cached_tokens
        return copies

    def grow(
        self, running: Sequence[tuple[Sample, int]], tokens: int, settle: Callable[[Sample], None]
    ) -> list[Sample]:
        """Give each running sample room for more tokens; return those that were sent back to wait instead.

        Args:
            running: samples, and how many tokens of each are in the cache.
            tokens: that each may get.
            settle: called with a sample that must wait, so that it knows what it has said.
        """
        order = sorted(running, key=lambda one: one[0].arrival)
        sent_back: list[Sample] = []
        while order:
            sample, count = order.pop(0)
            wanted = self.blocks.needed(count + tokens) - len(sample.blocks)
            while wanted > 0 and not self._room(wanted):
                # Who came last goes first. A text alone always has room: its request was let in.
                last, last_count = order.pop() if order else (sample, count)
                settle(last)
                self.keep(last, last.ids[:last_count])
                self.release(last)
                sent_back.insert(0, last)
                if last is sample:
                    wanted = 0
            if wanted > 0:
                sample.blocks += self.blocks.take(wanted)
        self.waiting.extendleft(reversed(sent_back))
        self.preempted += len(sent_back)
        return sent_back

    def keep(self, sample: Sample, ids: Sequence[int]) -> None:
        """Remember what a sample's blocks hold."""
        if self.prefixes is not None and ids:
            self.prefixes.keep(sample.request.scope, ids, sample.blocks)

    def release(self, sample: Sample) -> None:
        """Take a sample's blocks back."""
        self.blocks.release(sample.blocks)
        sample.blocks = []

    def moved(self, samples: Sequence[Sample]) -> None:
        """Let samples take the blocks that others left, the lowest first: whole texts lie in the rows' order."""
        for sample in samples:
            old, sample.blocks = sample.blocks, self.blocks.take(1)
            self.blocks.release(old)

    def drop(self, request_id: str) -> None:
        """Forget a request that waits or is being read."""
        self.waiting = deque(s for s in self.waiting if s.request.request_id != request_id)
        for reading in [*self.reading]:
            kept = [s for s in reading.samples if s.request.request_id != request_id]
            if not kept:
                self.release(reading.samples[0])
                self.reading.remove(reading)
            elif kept[0] is not reading.samples[0]:
                kept[0].blocks, reading.samples[0].blocks = reading.samples[0].blocks, []
                reading.samples = kept
            else:
                reading.samples = kept

    def check_integrity(self, running: Sequence[Sample]) -> None:
        """See that every block is held as often as it is counted.

        Raises:
            EngineError: it is not.
        """
        held = [sample.blocks for sample in running] + [reading.blocks for reading in self.reading]
        if self.prefixes is not None:
            held.append(self.prefixes.held)
        self.blocks.check_integrity(held)

    def _gathers(self, running: int) -> bool:
        """Whether to wait until there is room for several texts, or for all that are left."""
        wanted = min(int(self.rows * GATHERED_SHARE), len(self.waiting))
        return self.whole_texts and not self.reading and running > 0 and self.rows - running < wanted

    def _continues(self, sample: Sample) -> bool:
        """Whether a sample asks for the text that is read last, from its beginning: one reading serves both."""
        if not self.reading:
            return False
        last = self.reading[-1]
        same = sample.request.scope == last.samples[0].request.scope and sample.ids == last.ids
        return same and not sample.said and sample.request.params.prompt_logprobs is None

    def _give_blocks(self, sample: Sample, ids: tuple[int, ...], copies: list[Copy], running: int) -> bool:
        """Find a text's beginning in the cache and blocks for the rest; False where there is no room."""
        blocks = self.blocks
        shared: list[int] = []
        part, part_tokens, cached = -1, 0, 0
        if self.prefixes is not None and sample.request.params.prompt_logprobs is None:
            # The last token is always read: its logits are wanted.
            match = self.prefixes.find(sample.request.scope, ids, len(ids) - 1)
            found = [*match.nodes] if match.part is None else [*match.nodes, match.part]
            held = self._bring(found)
            shared = held[: len(match.nodes)]
            cached = sum(len(node.tokens) for node in found[: len(shared)])
            if len(held) > len(match.nodes):
                part, part_tokens = held[-1], match.part_tokens
                cached += part_tokens
        wanted = blocks.needed(len(ids) + 1) - len(shared)
        others = running or self.reading
        spare = int(blocks.count * SPARE_SHARE) if others and not self.whole_texts else 0
        enough = self._room(wanted + spare)
        if enough:
            own = blocks.take(wanted)
            if part >= 0:
                copies.append(Copy(part, own[0], part_tokens))
            sample.blocks, sample.cached_tokens = [*shared, *own], cached
        else:
            blocks.release(shared)
        if part >= 0:
            blocks.release([part])
        return enough

    def _bring(self, nodes: Sequence[Node]) -> list[int]:
        """See that remembered blocks are in the cache, and hold them; as far as there is room and the disk has them."""
        assert self.prefixes is not None
        # Held first, so that none makes way for another.
        there = {node: node.block for node in nodes if node.block != NOWHERE}
        self.blocks.share(there.values())
        held: list[int] = []
        for node in nodes:
            if node.block == NOWHERE:
                if not (self._room(1) and self.prefixes.fetch(node)):
                    break
                self.blocks.share([node.block])
            held.append(node.block)
        self.blocks.release(there[node] for node in nodes[len(held) :] if node in there)
        return held

    def _let_in(self) -> Sample:
        sample = self.waiting.popleft()
        if sample.arrival < 0:
            sample.arrival = next(self._arrivals)
        return sample

    def _room(self, count: int) -> bool:
        """Whether so many blocks are free, after what the cache remembers has made way."""
        if self.blocks.free >= count:
            return True
        return self.prefixes is not None and self.prefixes.make_room(count)
