"""What a check found, and what that does to a result."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """What a finding does to a result."""

    REJECT = "reject"
    """The result contradicts itself: the test fails, and nothing is submitted."""
    WARN = "warn"
    """Possible, but to be looked at."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a check found.

    :param check: Its number in the list of invariants, such as "h2".
    :param message: The figures, the bound, and what it means; one line.
    """

    check: str
    severity: Severity
    message: str

    def __str__(self) -> str:
        return f"{self.check} ({self.severity}): {self.message}"


def reject(check: str, message: str) -> Finding:
    # Names and texts of a stranger's file may hold line breaks.
    return Finding(check, Severity.REJECT, " ".join(message.split()))
