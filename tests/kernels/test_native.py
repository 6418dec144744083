"""The compiled library: how it is loaded and refused, from several threads and after a fork."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from leanseek.kernels import native
from leanseek.kernels.norm import rms_norm, rms_norm_reference


def needs_library():
    if native.missing("generic"):
        pytest.skip(native.missing("generic"))


def test_a_library_that_is_none_is_refused_with_the_reason(tmp_path):
    path = tmp_path / "library.so"
    assert "not built" in native.load(path).reason
    path.write_bytes(b"not a library")
    assert "cannot be loaded" in native.load(path).reason and native.load(path).library is None


def test_another_version_is_refused(monkeypatch):
    needs_library()
    monkeypatch.setattr(native, "ABI", native.ABI + 1)
    found = native.load(native.FOLDER / native.NAME)
    assert found.library is None and f"{native.ABI} is needed" in found.reason


def test_variants_are_this_machines():
    needs_library()
    assert "generic" in native.native().variants and set(native.native().variants) <= set(native.VARIANTS)
    assert "no sse9 kernels" in native.missing("sse9")


def _work(seed: int) -> bool:
    torch.set_num_threads(2)
    x = torch.randn(300, 512, generator=torch.Generator().manual_seed(seed))
    weight = torch.ones(512)
    wanted = rms_norm_reference(x, weight, 1e-6)
    return all(torch.allclose(rms_norm(x, weight, 1e-6), wanted, atol=1e-5) for _ in range(50))


def test_threads_may_call_at_once():
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(_work, range(4)))


FORK = """
import os, torch
from leanseek.kernels import native
x, weight, out = torch.ones(300, 512), torch.ones(512), torch.empty(300, 512)
variant = list(native.native().variants)[-1]
torch.set_num_threads(2)
def norm():
    out.numpy()[...] = 0
    native.call("rms_norm", variant, 0, x, None, weight, None, out, 300, 512, 0.0)
    return bool((out.numpy() == 1).all())
assert norm()
child = os.fork()
if child == 0:
    os._exit(0 if norm() else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 and norm()
"""


def test_a_forked_child_has_workers_of_its_own():
    needs_library()
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], check=True, timeout=60)
