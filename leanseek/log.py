"""RunLog and Progress: what a run writes down step by step, and what a person sees meanwhile."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from leanseek.files import append_line, write_atomic

# Seconds between two plain lines where there is no terminal.
PLAIN_EVERY_S = 5.0


class Tracker(Protocol):
    """Another program that is told of a run's rows."""

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Take a row's numbers."""

    def close(self) -> None:
        """Write what is still to be written."""


class RunLog:
    """The step-by-step log of a run: one JSON object a line.

    Args:
        path: of metrics.jsonl; made with the first line.
        clock: gives the time of day; seconds since 1970.
        trackers: by name; they are told every line's numbers. One that fails is told of, and then left out.
    """

    def __init__(
        self, path: str | Path, clock: Callable[[], float] = time.time, trackers: Mapping[str, Tracker] | None = None
    ) -> None:
        self.path = Path(path)
        self._clock = clock
        self._trackers = dict(trackers or {})

    def log(self, stage: str, step: int, **values: Any) -> None:
        """Append one line; a value that is not finite becomes null (JSON has no NaN)."""
        record = {"time_s": round(self._clock(), 3), "stage": stage, "step": step}
        append_line(self.path, json.dumps({**record, **values_without_nan(values)}, ensure_ascii=False))
        numbers = {k: float(v) for k, v in values.items() if isinstance(v, int | float) and math.isfinite(v)}
        self._tell(lambda tracker: tracker.log(stage, step, numbers))

    def close(self) -> None:
        """Let the trackers write what is still to be written."""
        self._tell(lambda tracker: tracker.close())
        self._trackers = {}

    def _tell(self, what: Callable[[Tracker], None]) -> None:
        for name, tracker in [*self._trackers.items()]:
            try:
                what(tracker)
            except Exception as error:  # another's program must not end a run of days
                del self._trackers[name]
                say(f"warning: {name} is told no more ({type(error).__name__}: {error}); metrics.jsonl has all rows")

    def read(self, stage: str | None = None) -> list[dict[str, Any]]:
        """Return the lines of a stage (None: of all); a line that a crash cut off is left out."""
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        records = []
        for line in text.split("\n"):  # a text in a record may hold other line separators as they are
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(record, dict) and stage in (None, record.get("stage")):
                records.append(record)
        return records

    def rewind(self, stage: str, step: int) -> None:
        """Forget what a stage logged after `step`: call it when the stage resumes from that checkpoint."""
        kept = [r for r in self.read() if r.get("stage") != stage or r.get("step", 0) <= step]
        write_atomic(self.path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept))


def values_without_nan(value: Any) -> Any:
    """Return a value with null for each float in it that is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: values_without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [values_without_nan(item) for item in value]
    return value


class Progress:
    """How far a piece of work is. Made by `progress`.

    Args:
        total: units of work; None where it is not known. May be set anew while the work runs.
        label: what is being done, in a word or two.
    """

    def __init__(self, total: int | None, label: str, clock: Callable[[], float]) -> None:
        self.total, self.label, self.note = total, label, ""
        self.done = 0
        self._first = 0
        self._clock = clock
        self._start_s = clock()

    def start_at(self, done: int) -> None:
        """Say what was done before this process began (a resumed stage); it does not count for the rate."""
        self.done = self._first = done
        self._show()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count `count` more units as done; `note` is shown behind the bar (the loss, say)."""
        self.done += count
        self.note = note or self.note
        self._show()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the work began."""
        return self._clock() - self._start_s

    @property
    def rate(self) -> float:
        """Units per second; 0.0 before the first is done."""
        elapsed_s = self.elapsed_s
        return (self.done - self._first) / elapsed_s if elapsed_s > 0 else 0.0

    def line(self) -> str:
        """Return the state as one plain line."""
        parts = [f"{self.label}: {self.done:,}" + (f" of {self.total:,}" if self.total else "")]
        if rate := self.rate:
            parts.append(f"{rate:,.3g}/s" if rate < 1000 else f"{rate:,.0f}/s")
            if self.total and self.done < self.total:
                parts.append(f"{clock_text((self.total - self.done) / rate)} left")
        if self.note:
            parts.append(self.note)
        return ", ".join(parts)

    def say(self, text: str) -> None:
        """Print a line without breaking the bar."""
        raise NotImplementedError

    def _show(self) -> None:
        raise NotImplementedError


class _Bar(Progress):
    """A rich bar, for a terminal."""

    def __init__(self, total: int | None, label: str, clock: Callable[[], float], console: Console) -> None:
        super().__init__(total, label, clock)
        self.bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _RateColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
        )
        self._task: TaskID = self.bar.add_task(label, total=total, note="", rate=0.0)

    def say(self, text: str) -> None:
        self.bar.console.print(text, markup=False, highlight=False)

    def _show(self) -> None:
        self.bar.update(self._task, total=self.total, completed=self.done, note=self.note, rate=self.rate)


class _RateColumn(TextColumn):
    """Units per second, counted without what an earlier process did."""

    def __init__(self) -> None:
        super().__init__("{task.fields[rate]:,.4g}/s")

    def render(self, task: Task) -> Any:
        return super().render(task) if task.fields["rate"] else ""


class _Lines(Progress):
    """A plain line every few seconds, for pipes and files."""

    def __init__(self, total: int | None, label: str, clock: Callable[[], float], console: Console) -> None:
        super().__init__(total, label, clock)
        self._console = console
        self._shown_s = clock()
        self._shown_done = -1

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _show(self) -> None:
        if self._clock() - self._shown_s >= PLAIN_EVERY_S:
            self._write()

    def last(self) -> None:
        """Write the final state, if the last line did not show it."""
        if self._shown_done != self.done:
            self._write()

    def _write(self) -> None:
        self._shown_s, self._shown_done = self._clock(), self.done
        self.say(self.line())


@contextmanager
def progress(
    total: int | None,
    label: str,
    *,
    console: Console | None = None,
    clock: Callable[[], float] = time.monotonic,
    shown: bool = True,
) -> Iterator[Progress]:
    """Show how far a piece of work is: a bar on a terminal, a plain line every 5 seconds elsewhere.

    All of it goes to standard error: standard output is for results.

    Args:
        total: units of work; None where it is not known.
        label: what is being done.
        console: where to show it.
        clock: seconds, for the rate.
        shown: whether it is; of several processes that do the same work, one shows it.
    """
    console = console or Console(file=sys.stderr, quiet=not shown)
    if console.is_terminal:
        bar = _Bar(total, label, clock, console)
        with bar.bar:
            yield bar
    else:
        lines = _Lines(total, label, clock, console)
        try:
            yield lines
        finally:
            lines.last()


def say(text: str) -> None:
    """Tell the person at the terminal something, on standard error."""
    print(text, file=sys.stderr, flush=True)


def clock_text(seconds: float) -> str:
    """Return a duration as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
