"""Prefixes: beginnings of texts that the cache still has, found again by their tokens, token by token."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from leanseek.engine.blocks import Blocks
from leanseek.engine.disk import Disk

# Beginnings that differ within a block are looked through for the longest common part; more of them than this are
# not, so that a lookup stays quick whatever clients send.
MOST_COMPARED = 64
# Of a node whose latents are on disk alone.
NOWHERE = -1


@dataclass(eq=False)
class Node:
    """What one block holds of a text, after what its parents hold.

    Args:
        parent: the block before; None at a scope's root.
        tokens: of this block; fewer than a block has room for only where nothing follows.
        block: where it is; NOWHERE at a root, and where the disk alone has it.
        key: what the disk finds it by; "" without a disk.
        stored: whether the disk has it, or soon will.
    """

    parent: Node | None
    tokens: tuple[int, ...]
    block: int
    key: str = ""
    stored: bool = False
    children: dict[tuple[int, ...], Node] = field(default_factory=dict)

    @property
    def path(self) -> list[Node]:
        """The nodes from the first block on to this one."""
        nodes: list[Node] = []
        node: Node | None = self
        while node is not None and node.parent is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]


@dataclass(frozen=True)
class Match:
    """What the cache has of a text.

    Args:
        nodes: blocks that are used as they are.
        part: a block of which only the first `part_tokens` tokens agree: it must be copied before it is written on.
        part_tokens: how many.
    """

    nodes: tuple[Node, ...] = ()
    part: Node | None = None
    part_tokens: int = 0

    @property
    def tokens(self) -> int:
        """Tokens that need not be read."""
        return sum(len(node.tokens) for node in self.nodes) + self.part_tokens


class Prefixes:
    """A tree of blocks per scope. A node's block is held by the tree, and by whoever uses it besides.

    Everything that was read or said stays until its room is needed: the end of a prompt, the end of a reply, and
    every point between at which another text goes on otherwise.

    Args:
        blocks: whose.
        disk: where nodes are kept besides, over a restart too; None: nowhere.
        fetch: reads a block's latents from the disk's bytes into the cache; whether they fit.
        payload: gives a block's latents, of so many tokens, as bytes for the disk.
    """

    def __init__(
        self,
        blocks: Blocks,
        disk: Disk | None = None,
        fetch: Callable[[int, int, bytes], bool] = lambda block, tokens, data: False,
        payload: Callable[[int, int], bytes] = lambda block, tokens: b"",
    ) -> None:
        self.blocks, self.disk = blocks, disk
        self._fetch, self._payload = fetch, payload
        self._roots: dict[str, Node] = {}
        self._recent: OrderedDict[Node, None] = OrderedDict()  # oldest use first
        self._of_block: dict[int, Node] = {}
        self.hit_tokens = self.asked_tokens = 0
        if disk is not None:
            self._restore(disk)

    def __len__(self) -> int:
        """Blocks that the tree holds."""
        return len(self._of_block)

    @property
    def held(self) -> list[int]:
        """The blocks that the tree holds."""
        return list(self._of_block)

    def find(self, scope: str, ids: Sequence[int], most: int) -> Match:
        """Return the longest beginning that is known, of at most `most` tokens; it counts as used."""
        node, nodes, at, size = self._roots.get(self._root_key(scope)), [], 0, self.blocks.tokens
        while node is not None and at + size <= most:
            child = node.children.get(tuple(ids[at : at + size]))
            if child is None:
                break
            nodes.append(child)
            node, at = child, at + size
        part, part_tokens = None, 0
        if node is not None:
            for _, child in zip(range(MOST_COMPARED), reversed(node.children.values()), strict=False):
                common = _common(child.tokens, ids, at, most)
                if common > part_tokens:
                    part, part_tokens = child, common
        self._used(nodes if part is None else [*nodes, part])
        match = Match(tuple(nodes), part, part_tokens)
        self.hit_tokens += match.tokens
        self.asked_tokens += len(ids)
        return match

    def keep(self, scope: str, ids: Sequence[int], blocks: Sequence[int]) -> list[Node]:
        """Remember a text whose latents lie in these blocks; return its nodes.

        The blocks' holder may go on writing behind the text, never inside it.
        """
        root_key, size = self._root_key(scope), self.blocks.tokens
        node = root = self._roots.setdefault(root_key, Node(None, (), NOWHERE, root_key))
        kept = []
        for index, block in zip(range(0, len(ids), size), blocks, strict=False):
            tokens = tuple(ids[index : index + size])
            child = node.children.get(tokens) or self._longer(node, tokens, block)
            if child is None:
                child = node.children[tokens] = Node(node, tokens, NOWHERE)
                self._recent[child] = None
            if child.block == NOWHERE:
                self._settle(child, block)
            self._store(child, root)
            kept.append(child)
            node = child
        self._used(kept)
        return kept

    def make_room(self, count: int) -> bool:
        """Forget what was used longest ago until `count` blocks are free; whether that succeeded."""
        while self.blocks.free < count:
            oldest = next(filter(self._may_go, self._recent), None)
            if oldest is None:
                return False
            if oldest.stored:
                self._leave_to_disk(oldest)
            else:
                self.forget(oldest)
        return True

    def fetch(self, node: Node) -> bool:
        """Bring a node back from the disk into a free block, which the caller has seen to; False: it was lost."""
        data = self.disk.get(node.key) if self.disk is not None else None
        (block,) = self.blocks.take(1)
        if data is None or not self._fetch(block, len(node.tokens), data):
            self.blocks.release([block])
            for follower in reversed([*self._below(node)]):
                self.forget(follower)
            return False
        self._settle(node, block)
        self.blocks.release([block])
        return True

    def forget(self, node: Node) -> None:
        """Drop a node that nothing follows."""
        assert not node.children and node.parent is not None
        del node.parent.children[node.tokens]
        if node in self._recent:
            del self._recent[node]
        self._leave_to_disk(node)

    def distrust(self, blocks: Sequence[int]) -> None:
        """Forget what lies in these blocks, and all that follows it: the numbers there are broken."""
        for block in blocks:
            node = self._of_block.get(block)
            for follower in reversed([*self._below(node)] if node is not None else []):
                if self.disk is not None and follower.stored:
                    self.disk.drop(follower.key)
                self.forget(follower)

    def clear(self) -> None:
        """Forget everything, as when the weights have changed."""
        for node in reversed([*self]):
            self.forget(node)
        self._roots.clear()

    def __iter__(self) -> Iterator[Node]:
        """Yield all nodes, parents first."""
        for root in self._roots.values():
            yield from self._below(root)

    def _below(self, node: Node) -> Iterator[Node]:
        """Yield a node, unless it is a root, and all that follow it; parents first."""
        waiting = [node]
        while waiting:
            node = waiting.pop()
            if node.parent is not None:
                yield node
            waiting += node.children.values()

    def _may_go(self, node: Node) -> bool:
        """Whether a node's block can be had: nobody else holds it, and nothing is lost that is needed after it."""
        if node.block == NOWHERE or self.blocks.holders(node.block) > 1:
            return False
        return node.stored or not node.children

    def _settle(self, node: Node, block: int) -> None:
        node.block = block
        self._of_block[block] = node
        self.blocks.share([block])

    def _leave_to_disk(self, node: Node) -> None:
        if node.block != NOWHERE:
            del self._of_block[node.block]
            self.blocks.release([node.block])
            node.block = NOWHERE

    def _store(self, node: Node, root: Node) -> None:
        """Have a node written to disk, unless it is there; one that has grown is another one there."""
        if self.disk is None or node.parent is None:
            return
        key = self.disk.key(node.parent.key, node.tokens)
        if key != node.key or not node.stored:
            if node.stored:
                self.disk.drop(node.key)
            node.key = key
            payload = self._payload(node.block, len(node.tokens))
            node.stored = self.disk.put(root.key, node.parent.key, key, node.tokens, payload)

    def _root_key(self, scope: str) -> str:
        return scope if self.disk is None else self.disk.root_key(scope)

    def _restore(self, disk: Disk) -> None:
        """Plant the nodes that the disk has."""
        nodes: dict[str, Node] = {}
        for entry in disk.entries():
            parent = nodes.get(entry.parent)
            if parent is None:
                parent = self._roots.setdefault(entry.root, Node(None, (), NOWHERE, entry.root))
            nodes[entry.key] = node = Node(parent, entry.tokens, NOWHERE, entry.key, stored=True)
            parent.children[entry.tokens] = node
            self._recent[node] = None

    def _longer(self, node: Node, tokens: tuple[int, ...], block: int) -> Node | None:
        """Lengthen the node that this very block has already, where a text has grown in it since."""
        child = self._of_block.get(block)
        if child is None or child.parent is not node or tokens[: len(child.tokens)] != child.tokens:
            return None
        del node.children[child.tokens]
        child.tokens = tokens
        node.children[tokens] = child
        return child

    def _used(self, nodes: Sequence[Node]) -> None:
        """Note a use; parents last, so that whoever looks for the oldest meets what nothing follows first."""
        for node in reversed(nodes):
            self._recent.move_to_end(node)


def _common(tokens: Sequence[int], ids: Sequence[int], start: int, end: int) -> int:
    """Return how many tokens agree with the ids from `start` on, before `end`."""
    count = 0
    for token in tokens:
        if start + count >= end or ids[start + count] != token:
            break
        count += 1
    return count
