"""What a response said and how its reading ended → how the request ended."""

from __future__ import annotations

from pytest_dsr1.core.samples import Outcome
from pytest_dsr1.load.recording import Ending
from pytest_dsr1.load.stream import Reply, count_in


def judge(reply: Reply, ending: Ending, note: str, input_tokens: int, output_tokens: int) -> tuple[Outcome, str]:
    """How a request ended, and what went wrong, in one line.

    What the server said goes before how the connection ended: an error event before the reset that follows it.

    :param input_tokens: Length of the prompt that was sent; the prompt went as ids, so `usage` has to agree.
    :param output_tokens: Tokens that were asked for.
    """
    if reply.status is not None and reply.status != 200:
        return Outcome.HTTP_STATUS, f"HTTP {reply.status}: {reply.error}"
    if reply.error is not None:
        return Outcome.STREAM_ERROR, f"error after {_events(reply)}: {reply.error}"
    if reply.malformed is not None:
        return Outcome.MALFORMED, reply.malformed
    if ending is not Ending.COMPLETE:
        return _BROKEN[ending], f"{note or ending.name.lower()} after {_events(reply)}"
    return _judge_complete(reply, input_tokens, output_tokens)


_BROKEN = {
    Ending.EOF: Outcome.TRUNCATED,
    Ending.LOST: Outcome.CONNECTION_LOST,
    Ending.NOT_HTTP: Outcome.MALFORMED,
    Ending.IDLE: Outcome.TIMED_OUT,
    Ending.DEADLINE: Outcome.TIMED_OUT,
}


def _judge_complete(reply: Reply, input_tokens: int, output_tokens: int) -> tuple[Outcome, str]:
    if not reply.done:
        return Outcome.TRUNCATED, f"the stream ended after {_events(reply)} without [DONE]"
    if reply.usage is None:
        return Outcome.MALFORMED, f"no usage in a stream of {_events(reply)}: tokens cannot be counted"
    prompt, generated = (count_in(reply.usage, key) for key in ("prompt_tokens", "completion_tokens"))
    if prompt is None or generated is None:
        return Outcome.MALFORMED, f"usage without counts of tokens: {reply.usage}"[:200]
    if (prompt, generated) != (input_tokens, output_tokens):
        if generated < output_tokens and reply.finish_reason is None:
            return Outcome.TRUNCATED, f"the stream ended at {generated} of {output_tokens} tokens and gave no reason"
        return Outcome.WRONG_LENGTH, (
            f"asked for {input_tokens} + {output_tokens} tokens, usage says {prompt} + {generated} "
            f"(finish_reason {reply.finish_reason})"
        )
    if len(reply.event_ns) == 0:
        return Outcome.MALFORMED, "no event with choices: a first token cannot be timed"
    return Outcome.OK, ""


def _events(reply: Reply) -> str:
    count = len(reply.event_ns)
    return f"{count} event{'' if count == 1 else 's'} with choices"
