"""leanseek report: a run's page, written anew from what its folder holds; or one page for several runs."""

from __future__ import annotations

from pathlib import Path

from leanseek.errors import UsageError


def report(run: Path, *others: Path, out: Path | None = None) -> None:
    """Write a run's report.html: one page with curves, samples, costs and the card, that needs no network.

    With several runs it writes one page that has them side by side: what each can, the curves that they have in
    common, what they cost, and in which settings they differ.

    Example: leanseek report runs/laptop runs/r1-laptop --out compared.html

    Args:
        run: A run folder; it may still be at work.
        others: Further runs, to be compared with it.
        out: Where the page of several runs goes; without it, comparison.html in the folder above the first run.
    """
    from leanseek.evals.comparison import write_comparison
    from leanseek.evals.report import write_report

    if others:
        print(write_comparison((run, *others), out or run.resolve().parent / "comparison.html"))
    elif out is not None:
        raise UsageError("--out is for the page of several runs; one run's page is report.html in its folder")
    else:
        print(write_report(run))
