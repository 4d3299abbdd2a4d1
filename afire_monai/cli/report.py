"""``afire report``: the page of a pre-training run."""

from __future__ import annotations


def report(run_dir: str) -> int:
    """Write report.html, and its pictures as PNG, into the folder of a pre-training run.

    Example: afire report runs/first

    Args:
        run_dir: the run's output_dir.
    """
    from afire_monai.training.report.page import write_report

    print(f"written: {write_report(run_dir)}")
    return 0
