"""What a team may be called."""

from __future__ import annotations

import unicodedata

#: Characters of a team name; the table that shows it has no room for more.
MAX_TEAM = 200


def team_problem(name: str) -> str:
    """Why a team cannot be called so; empty if it can. A name is sent as it is, or not at all."""
    if not name.strip():
        return "it is empty"
    if len(name) > MAX_TEAM:
        return f"it has {len(name):,} characters, at most {MAX_TEAM} are accepted"
    for char in name:
        category = unicodedata.category(char)
        if category == "Cs":
            return "it is not UTF-8"
        # Cf stays: it joins the parts of an emoji.
        if category in ("Cc", "Zl", "Zp"):
            return f"it holds a line break or control character (U+{ord(char):04X})"
    return ""
