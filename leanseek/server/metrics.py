"""Metrics: what the server has done so far, in Prometheus' text format."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)

Labels = tuple[tuple[str, str], ...]


class Counter:
    """A number that only grows, for each set of labels.

    Args:
        name: as Prometheus will call it.
        about: what is counted.
    """

    kind = "counter"

    def __init__(self, name: str, about: str) -> None:
        self.name, self.about = name, about
        self._values: dict[Labels, float] = {}

    def add(self, amount: float = 1, **labels: str) -> None:
        """Count so much more."""
        key = tuple(labels.items())
        self._values[key] = self._values.get(key, 0) + amount

    @property
    def total(self) -> float:
        """The sum over all labels."""
        return sum(self._values.values())

    def lines(self) -> Iterator[str]:
        """Yield its samples."""
        for labels, value in sorted((self._values or {(): 0}).items()):
            yield _sample(self.name, labels, value)


class Histogram:
    """How often a value fell below each of some bounds.

    Args:
        name: as Prometheus will call it.
        about: what is measured.
        bounds: in rising order.
    """

    kind = "histogram"

    def __init__(self, name: str, about: str, bounds: Sequence[float] = SECONDS) -> None:
        self.name, self.about, self._bounds = name, about, tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def note(self, value: float) -> None:
        """Take a value."""
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self._sum += value

    @property
    def count(self) -> int:
        """Values taken."""
        return sum(self._counts)

    def lines(self) -> Iterator[str]:
        """Yield its samples."""
        below = 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            below += count
            yield _sample(f"{self.name}_bucket", (("le", "+Inf" if bound == float("inf") else f"{bound:g}"),), below)
        yield _sample(f"{self.name}_sum", (), self._sum)
        yield _sample(f"{self.name}_count", (), below)


class Metrics:
    """Everything that is counted; from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.requests = Counter("leanseek_http_requests_total", "HTTP requests answered, by path and status")
        self.prompt_tokens = Counter("leanseek_prompt_tokens_total", "Tokens of prompts")
        self.cached_tokens = Counter("leanseek_prompt_tokens_cached_total", "Tokens of prompts that the cache had")
        self.completion_tokens = Counter("leanseek_completion_tokens_total", "Tokens of replies")
        self.replies = Counter("leanseek_replies_total", "Replies that ended, by reason")
        self.joules = Counter("leanseek_joules_total", "Energy of the engine's steps")
        self.busy_s = Counter("leanseek_engine_busy_seconds_total", "Seconds in the engine's steps")
        self.steps = Counter("leanseek_engine_steps_total", "Steps of the engine")
        self.first_token_s = Histogram(
            "leanseek_time_to_first_token_seconds", "From a request's arrival to a reply's first token"
        )
        self.between_s = Histogram(
            "leanseek_inter_token_latency_seconds", "Between two steps in which a reply got tokens"
        )
        self.request_s = Histogram("leanseek_request_duration_seconds", "From a request's arrival to its last token")

    def answered(self, path: str, status: int) -> None:
        """Count an HTTP request; called from event loops."""
        with self._lock:
            self.requests.add(path=path, status=str(status))

    def text(self, gauges: Iterable[tuple[str, str, str, float, Mapping[str, str]]] = ()) -> str:
        """Return all of it.

        Args:
            gauges: name, kind, what it is, value and labels of what is read only now.
        """
        lines = []
        with self._lock:
            for one in (one for one in vars(self).values() if isinstance(one, Counter | Histogram)):
                lines += [f"# HELP {one.name} {one.about}", f"# TYPE {one.name} {one.kind}", *one.lines()]
        told = ""
        for name, kind, about, value, labels in gauges:
            if name != told:
                lines += [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]
            told = name
            lines.append(_sample(name, tuple(labels.items()), value))
        return "\n".join(lines) + "\n"


def _sample(name: str, labels: Labels, value: float) -> str:
    said = ",".join(f'{key}="{_escape(text)}"' for key, text in labels)
    number = f"{value:d}" if isinstance(value, int) else repr(float(value))
    return f"{name}{{{said}}} {number}" if said else f"{name} {number}"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
