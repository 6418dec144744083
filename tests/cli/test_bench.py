from __future__ import annotations

import json

import pytest

from leanseek.checkpoint.directory import save_model
from leanseek.cli.app import main
from leanseek.kernels import limits, native


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Limits are another test's."""
    monkeypatch.setattr(limits, "measure_limits", lambda repeats: limits.Limits("generic", 1, 10.0, 100.0))


def rows(capsys, *tokens):
    assert main(["bench", *tokens, "--repeats", "1", "--threads", "1", "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_folder_is_measured(capsys, tmp_path, tiny_model, tiny_tokenizer, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save_model(tiny_model, tmp_path / "model", tiny_tokenizer)
    folder = str(tmp_path / "model")
    found = rows(capsys, "decode", folder, "--batch", "1", "--batch", "2", "--tokens", "4", "--context", "3")
    assert [row["work"] for row in found] == [f"decode, batch {n}, context 3" for n in (1, 2)]
    assert all(row["joules_per_token"] == pytest.approx(row["watts"] / row["value"]) and row["meter"] for row in found)
    assert {row["weights"] for row in found} == {"int4"} and all(row["value"] > 0 for row in found)
    (row,) = rows(capsys, "prefill", folder, "--context", "16", "--weights", "fp32")
    assert row["work"] == "prefill of 16" and row["weights"] == "fp32" and row["gops"] > 0


def test_a_shape_is_measured_with_random_weights(capsys):
    if native.missing("generic"):
        pytest.skip(native.missing("generic"))
    found = rows(capsys, "kernels", "laptop", "--random-weights", "--batch", "2", "--weights", "int8")
    assert len(found) == 2 and all(0 < row["share_of_peak"] for row in found)
    assert main(["bench", "decode", "laptop", "--random-weights", "--repeats", "1", "--tokens", "2"]) == 0
    said = capsys.readouterr().out
    assert "decode, batch 1, context 1, int4" in said and "planned: of fp32 weights alone" in said


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (("kernels", "laptop", "--random-weights", "--weights", "fp32"), "goes with decode and prefill"),
        (("decode", "laptop", "--random-weights", "--batch", "0"), "at least 1"),
        (("decode", "no-such-folder"), "there is no such folder"),
        (("decode", "laptopp", "--random-weights"), "did you mean laptop"),
    ],
)
def test_wrong_usage_is_told(capsys, tokens, message):
    assert main(["bench", *tokens]) in (1, 2)
    assert message in capsys.readouterr().err
