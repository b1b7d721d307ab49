"""Texts for people: a reason on one line, a duration in words."""

from __future__ import annotations


def one_line(text: str) -> str:
    """`text` on one line and printable: a reason may quote a server, and is shown on a terminal."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def first_line(text: str) -> str:
    """What a message says before it quotes a log."""
    return text.partition("\n")[0].rstrip(":")


def duration(seconds: float) -> str:
    """`9 s`, `1 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
