from __future__ import annotations

from types import SimpleNamespace

import pytest

from leanseek.engine.engine import BLOCK_TOKENS, Engine
from leanseek.engine.paged_cache import PagedCache
from leanseek.errors import UsageError
from leanseek.server import store
from leanseek.server.store import GIB, Store


def test_what_is_said_holds(tiny_model):
    assert Store(0.5).bytes_for(tiny_model.cache_specs(), 128, 4, "cpu") == GIB // 2


@pytest.mark.parametrize(("free", "texts"), [(1 << 40, 4 * 4), (0, 1), (1, 1)])
def test_the_usual_room(tiny_model, monkeypatch, free, texts):
    monkeypatch.setattr(store.psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    specs = tiny_model.cache_specs()
    room = Store().bytes_for(specs, 128, 4, "cpu")
    assert room == texts * (128 + 2 * BLOCK_TOKENS) * PagedCache.bytes_per_token(specs)
    assert Engine(tiny_model, max_batch=4, cache_bytes=room).max_context_tokens == 128


def test_half_of_what_is_free(tiny_model, monkeypatch):
    specs = tiny_model.cache_specs()
    free = 1000 * PagedCache.bytes_per_token(specs)
    monkeypatch.setattr(store.psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    assert Store().bytes_for(specs, 128, 4, "cpu") == free // 2


def test_the_folder(tmp_path):
    assert Store().disk("model") is None
    disk = Store(folder=tmp_path / "cache", disk_gib=0.25).disk("model")
    assert disk.budget_bytes == GIB // 4
    disk.close()


@pytest.mark.parametrize("options", [{"gib": 0}, {"gib": -1.0}, {"disk_gib": 0}, {"gib": float("nan")}])
def test_no_size(options):
    with pytest.raises(UsageError, match="GiB"):
        Store(**options)
