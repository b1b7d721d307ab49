"""What must be true of the server: the same one throughout, and no cache that answered in the model's place."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_dsr1.core.evidence import ABSENT, Evidence, shown
from pytest_dsr1.core.findings import Finding, Severity, reject

#: Share of random prompts' tokens that may come from a prefix cache by chance; the repeats that it is to find are
#: whole prompts.
MAX_CACHED_SHARE = 0.01


def h11_same_server(evidence: Evidence) -> Iterator[Finding]:
    """Before and after the point the same process answers, with the same model and arguments."""
    lost = evidence.at("server.lost")
    if lost not in (ABSENT, None, ""):
        yield reject("h11", f"the server did not live through it: {lost if isinstance(lost, str) else shown(lost)}")
    changes = evidence.at("server.changes")
    if isinstance(changes, list) and changes:
        named = "; ".join(change if isinstance(change, str) else shown(change) for change in changes[:3])
        more = f"; and {len(changes) - 3} more" if len(changes) > 3 else ""
        yield reject("h11", f"the server changed while it was measured: {named}{more}")


def s3_prefix_cache(evidence: Evidence) -> Iterator[Finding]:
    """Prompts that nobody has sent before cannot be in a prefix cache."""
    prompt_tokens = evidence.number("client.prefix_cache.prompt_tokens")
    cached_tokens = evidence.number("client.prefix_cache.cached_tokens")
    if prompt_tokens and cached_tokens is not None and cached_tokens > MAX_CACHED_SHARE * prompt_tokens:
        yield Finding(
            "s3",
            Severity.WARN,
            f"{cached_tokens / prompt_tokens:.1%} of the prompts' tokens came from the server's prefix cache "
            f"({cached_tokens:.0f} of {prompt_tokens:.0f}): some were served before, and are no work of the model",
        )
