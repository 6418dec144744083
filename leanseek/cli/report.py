"""leanseek report: a run's page, written anew from what its folder holds."""

from __future__ import annotations

from pathlib import Path


def report(run: Path) -> None:
    """Write a run's report.html: one page with curves, samples, costs and the card, that needs no network.

    Example: leanseek report runs/laptop

    Args:
        run: A run folder; it may still be at work.
    """
    from leanseek.evals.report import write_report

    print(write_report(run))
