"""Gauges: what is read of the engine when metrics are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from leanseek.server.bridge import Bridge

Gauge = tuple[str, str, str, float, Mapping[str, str]]


def gauges(bridge: Bridge) -> Iterator[Gauge]:
    """Yield name, kind, what it is, value and labels of all that a bridge and its engine know now.

    It is read while the engine works: figures may be a step apart.
    """
    yield "leanseek_ready", "gauge", "1 once the model answers", int(bridge.state == "ready"), {}
    yield "leanseek_requests_under_way", "gauge", "Requests that the engine has or will get", bridge.under_way, {}
    joules, said = bridge.metrics.joules.total, bridge.metrics.completion_tokens.total
    if joules and said:
        yield "leanseek_joules_per_token", "gauge", "Energy of a reply's token, prompts included", joules / said, {}
    if bridge.state != "ready":
        return
    engine: Any = bridge.engine
    scheduler = getattr(engine, "scheduler", None)
    if scheduler is None:
        return
    yield "leanseek_replies_waiting", "gauge", "Replies that wait for a row or for blocks", len(scheduler.waiting), {}
    yield "leanseek_prompts_reading", "gauge", "Prompts that are being read", len(scheduler.reading), {}
    yield "leanseek_batch_size", "gauge", "Replies that run", engine.running, {}
    yield "leanseek_preempted_total", "counter", "Replies sent back to wait for want of blocks", scheduler.preempted, {}
    blocks, prefixes = scheduler.blocks, scheduler.prefixes
    remembered = len(prefixes) if prefixes is not None else 0
    name, about = "leanseek_cache_blocks", "Blocks of the cache"
    yield name, "gauge", about, blocks.free, {"state": "free"}
    yield name, "gauge", about, blocks.count - blocks.free, {"state": "used"}
    yield name, "gauge", about, remembered, {"state": "remembered"}
    yield "leanseek_cache_block_tokens", "gauge", "Tokens of a block", blocks.tokens, {}
    if prefixes is not None:
        hits, asked = prefixes.hit_tokens, prefixes.asked_tokens
        yield "leanseek_prefix_hit_tokens_total", "counter", "Tokens that the prefix cache had", hits, {}
        yield "leanseek_prefix_asked_tokens_total", "counter", "Tokens that it was asked for", asked, {}
        if prefixes.disk is not None:
            disk = prefixes.disk
            yield "leanseek_disk_cache_bytes", "gauge", "Bytes of the cache on disk", disk.used_bytes, {}
            yield "leanseek_disk_cache_damaged_total", "counter", "Damaged files that were dropped", disk.damaged, {}
    speculation = getattr(engine, "speculation", None)
    if speculation is not None:
        drafted, accepted = speculation.drafted, speculation.accepted
        yield "leanseek_drafted_tokens_total", "counter", "Tokens that the MTP layer drafted", drafted, {}
        yield "leanseek_accepted_tokens_total", "counter", "Drafts that the model said itself", accepted, {}
