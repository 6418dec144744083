"""The run log and the progress shown meanwhile."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from leanseek.log import PLAIN_EVERY_S, RunLog, clock_text, progress, say, values_without_nan


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_one_json_object_a_line(tmp_path):
    log = RunLog(tmp_path / "metrics.jsonl", clock=lambda: 12.34567)
    assert log.read() == []
    log.log("pretrain", 1, loss=2.5, nested={"a": [1, float("nan")]}, name="größer")
    (line,) = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    expected = {
        "time_s": 12.346,
        "stage": "pretrain",
        "step": 1,
        "loss": 2.5,
        "nested": {"a": [1, None]},
        "name": "größer",
    }
    assert json.loads(line) == expected and log.read() == [expected]


def test_what_is_not_finite_becomes_null():
    assert values_without_nan({"a": float("inf"), "b": (1.0, -float("inf")), "c": "x"}) == {
        "a": None,
        "b": [1.0, None],
        "c": "x",
    }


def test_stages_are_read_apart_and_cut_off_lines_left_out(tmp_path):
    log = RunLog(tmp_path / "metrics.jsonl")
    log.log("pretrain", 1)
    log.log("sft", 1)
    with log.path.open("a") as file:
        file.write('[1]\n{"stage": "sft", "st')
    assert [r["stage"] for r in log.read()] == ["pretrain", "sft"]
    assert [r["step"] for r in log.read("sft")] == [1] and log.read("grpo") == []
    log.log("sft", 2)
    assert [r["step"] for r in log.read("sft")] == [1, 2], "the next record does not share the broken line"


@pytest.mark.parametrize("text", ["a\u2028b", "a\x85b", "a\nb", "a\x1cb"])
def test_line_separators_inside_a_text_do_not_cut_its_record(tmp_path, text):
    log = RunLog(tmp_path / "metrics.jsonl")
    log.log("sft", 1, sample=text)
    assert [r["sample"] for r in log.read()] == [text]
    log.rewind("sft", 5)
    assert [r["sample"] for r in log.read()] == [text]


def test_rewinding_forgets_a_stages_later_steps_and_nothing_else(tmp_path):
    log = RunLog(tmp_path / "metrics.jsonl")
    for stage in ("pretrain", "sft"):
        for step in range(1, 5):
            log.log(stage, step, loss=step / 2)
    before = log.read()
    log.rewind("sft", 2)
    assert log.read("pretrain") == before[:4]
    assert [r["step"] for r in log.read("sft")] == [1, 2]
    log.log("sft", 3)
    assert [r["step"] for r in log.read("sft")] == [1, 2, 3]
    RunLog(tmp_path / "none.jsonl").rewind("sft", 2)
    assert RunLog(tmp_path / "none.jsonl").read() == []


def plain(clock: Clock) -> tuple[io.StringIO, Console]:
    stream = io.StringIO()
    return stream, Console(file=stream, force_terminal=False, width=200)


def test_pipes_get_a_plain_line_now_and_then_and_the_last_state():
    clock = Clock()
    stream, console = plain(clock)
    with progress(100, "pretraining", console=console, clock=clock) as bar:
        for _ in range(60):
            clock.now += 0.25
            bar.advance(note="loss 2.1")
        bar.say("a remark [not markup]")
    lines = stream.getvalue().splitlines()
    assert lines == [
        "pretraining: 20 of 100, 4/s, 0:20 left, loss 2.1",
        "pretraining: 40 of 100, 4/s, 0:15 left, loss 2.1",
        "pretraining: 60 of 100, 4/s, 0:10 left, loss 2.1",
        "a remark [not markup]",
    ]
    assert PLAIN_EVERY_S == 5.0


def test_the_last_line_comes_even_when_the_work_fails():
    clock = Clock()
    stream, console = plain(clock)
    with pytest.raises(KeyboardInterrupt), progress(None, "sampling", console=console, clock=clock) as bar:
        clock.now += 1
        bar.advance(3000)
        raise KeyboardInterrupt
    assert stream.getvalue().splitlines() == ["sampling: 3,000, 3,000/s"]


def test_what_an_earlier_process_did_does_not_count_for_the_rate():
    clock = Clock()
    _, console = plain(clock)
    with progress(100, "sft", console=console, clock=clock) as bar:
        bar.start_at(50)
        assert bar.rate == 0.0
        clock.now += 10
        bar.advance(5)
        assert (bar.done, bar.rate, bar.elapsed_s) == (55, 0.5, 10.0)
        assert bar.line() == "sft: 55 of 100, 0.5/s, 1:30 left"


def test_terminals_get_a_bar():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100)
    with progress(4, "grpo", console=console) as bar:
        bar.advance(2, note="reward [0.5]")
        bar.say("a remark")
        bar.total = 8
        bar.advance(2)
    text = stream.getvalue()
    assert "grpo" in text and "4/8" in text and "reward [0.5]" in text and "a remark" in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (75, "1:15"), (3600, "1:00:00"), (7384, "2:03:04")]
)
def test_durations(seconds, text):
    assert clock_text(seconds) == text


def test_remarks_go_to_standard_error(capsys):
    say("hello")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "hello\n")
