from __future__ import annotations

from types import SimpleNamespace

import pytest

from leanseek.engine.engine import BLOCK_TOKENS, Engine
from leanseek.engine.paged_cache import PagedCache
from leanseek.errors import EngineError, UsageError
from leanseek.server import store
from leanseek.server.store import GIB, Store


def test_what_is_said_holds(tiny_model):
    assert Store(0.5).bytes_for(tiny_model.cache_specs(), 128, 4, "cpu") == GIB // 2


@pytest.fixture
def free(monkeypatch):
    """Return a function that says what the machine has free, and what its container leaves."""

    def say(machine, container=None):
        monkeypatch.setattr(store.psutil, "virtual_memory", lambda: SimpleNamespace(available=machine))
        monkeypatch.setattr(store, "left_bytes", lambda: container)

    return say


def test_no_more_than_is_of_use(tiny_model, free):
    free(1 << 40)
    specs = tiny_model.cache_specs()
    room = Store().bytes_for(specs, 128, 4, "cpu")
    assert room == 4 * 4 * (128 + 2 * BLOCK_TOKENS) * PagedCache.bytes_per_token(specs)
    assert Engine(tiny_model, max_batch=4, cache_bytes=room).max_context_tokens == 128


@pytest.mark.parametrize(
    ("machine", "container", "mapped", "room"),
    [
        (40 * GIB, None, 0, 36 * GIB),  # a tenth is left
        (4 * GIB, None, 0, 3 * GIB),  # but no less than one GiB
        (GIB, None, 0, GIB // 2),  # nor less than half of little
        (40 * GIB, 4 * GIB, 0, 3 * GIB),  # what a container leaves counts too
        (40 * GIB, None, 36 * GIB, 3 * GIB),  # weights in mapped files stay in memory
        (40 * GIB, None, 50 * GIB, 0),
        (0, None, 0, 0),
    ],
)
def test_what_is_free_but_for_a_margin(tiny_model, free, machine, container, mapped, room):
    free(machine, container)
    assert Store().bytes_for(tiny_model.cache_specs(), 1 << 30, 64, "cpu", mapped) == room


def test_little_room_makes_texts_shorter_and_none_is_told(tiny_model, free):
    specs = tiny_model.cache_specs()[: tiny_model.config.num_hidden_layers]
    free(2 * 3 * BLOCK_TOKENS * PagedCache.bytes_per_token(specs))
    room = Store().bytes_for(specs, 128, 4, "cpu")
    assert Engine(tiny_model, max_batch=4, cache_bytes=room).max_context_tokens == 3 * BLOCK_TOKENS < 128
    free(0)
    with pytest.raises(EngineError, match="cache_bytes = 0"):
        Engine(tiny_model, max_batch=4, cache_bytes=Store().bytes_for(specs, 128, 4, "cpu"))


def test_replicas_of_one_machine_share(tiny_model, free):
    free(40 * GIB)
    assert Store(sharers=3).bytes_for(tiny_model.cache_specs(), 1 << 30, 64, "cpu") == 12 * GIB


def test_the_folder(tmp_path):
    assert Store().disk("model") is None
    disk = Store(folder=tmp_path / "cache", disk_gib=0.25).disk("model")
    assert disk.budget_bytes == GIB // 4
    disk.close()


@pytest.mark.parametrize("options", [{"gib": 0}, {"gib": -1.0}, {"disk_gib": 0}, {"gib": float("nan")}])
def test_no_size(options):
    with pytest.raises(UsageError, match="GiB"):
        Store(**options)
