"""The model's accuracy, through lm-eval, behind one function: `evaluate.evaluate`."""

from __future__ import annotations


class AccuracyError(Exception):
    """Accuracy could not be measured: what was tried, what came back, what to do."""
