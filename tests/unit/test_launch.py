"""One server's command line as a value, and what may be typed into it: nothing secret stands there."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dsr1.servers.launch import (
    Launch,
    Value,
    argument_words,
    parse_server_arg,
    parse_server_env,
    shell_line,
)


class TestTyped:
    """--server-arg and --server-env."""

    @pytest.mark.parametrize(
        ("text", "name", "value"),
        [
            ("mem-fraction-static=0.9", "mem-fraction-static", "0.9"),
            ("--mem-fraction-static=0.9", "mem-fraction-static", "0.9"),
            ("--disable-radix-cache", "disable-radix-cache", True),
            ("max-prefill-tokens=32768", "max-prefill-tokens", "32768"),
            ("tokenizer-path=/data/tokenizer", "tokenizer-path", "/data/tokenizer"),
            ("kt-max-deferred-experts-per-token=2", "kt-max-deferred-experts-per-token", "2"),
            ("x=a=b c", "x", "a=b c"),
            ("x=", "x", ""),
        ],
    )
    def test_an_argument(self, text: str, name: str, value: str | bool) -> None:
        """With or without hyphens; all after the first = is its value."""
        assert parse_server_arg(text) == (name, value)

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("", "NAME=VALUE"),
            ("--", "NAME=VALUE"),
            ("mem-fraction-static 0.9", "NAME=VALUE"),
            ("-x=1", "NAME=VALUE"),
            ("mem_fraction_static=0.9", "hyphens"),
            ("model-path=x", "use --model"),
            ("model=x", "use --model"),
            ("--port=1", "use --port"),
            ("tp=1", "use --tp"),
            ("tp-size=1", "use --tp"),
            ("tensor-parallel-size=1", "use --tp"),
            ("tensor-par=1", "use --tp"),
            ("host", "host=…"),
            ("served-model-name=", "served-model-name=…"),
            ("x=a\nb", "line break"),
        ],
    )
    def test_an_argument_that_is_refused(self, text: str, reason: str) -> None:
        """Ours go by their own options, abbreviated ones too, which argparse would take."""
        with pytest.raises(ValueError, match=reason):
            parse_server_arg(text)

    @pytest.mark.parametrize(
        "text",
        [
            "api-key=hush", "--api-key=hush", "admin-api-key=hush", "api-k=hush", "ssl-keyfile-password=hush",
            "some-secret=hush", "hf-token=hush", "proxy=http://ada:hush@proxy:3128",
        ],
    )  # fmt: skip
    def test_a_secret_is_no_argument(self, text: str) -> None:
        """The reason does not repeat it."""
        with pytest.raises(ValueError, match=r"secret|API key|login") as refused:
            parse_server_arg(text)
        assert "hush" not in str(refused.value)

    @pytest.mark.parametrize("name", ["HF_TOKEN", "OPENAI_API_KEY", "aws_secret", "DB_PASSWORD"])
    def test_a_secret_is_exported(self, name: str) -> None:
        """The reason says how, and does not repeat it."""
        with pytest.raises(ValueError, match="export it") as refused:
            parse_server_env(f"{name}=hush")
        assert "hush" not in str(refused.value)

    def test_a_variable(self) -> None:
        """All after the first = is its value; none is a value too."""
        assert parse_server_env("SGLANG_X=a=b") == ("SGLANG_X", "a=b")
        assert parse_server_env("SGLANG_MAX_TOKENS=") == ("SGLANG_MAX_TOKENS", "")

    @pytest.mark.parametrize("text", ["", "SGLANG_X", "=1", "A B=1", "1A=1", "A=\0", "A=x://ada:hush@host"])
    def test_a_variable_that_is_refused(self, text: str) -> None:
        """No name, no value, or one that no environment can have."""
        with pytest.raises(ValueError, match=r"NAME=VALUE|control character|login"):
            parse_server_env(text)

    @given(st.text() | st.from_regex(r"(--)?[a-z-]+(=.*)?", fullmatch=True))
    def test_an_argument_is_one_word(self, text: str) -> None:
        """Whatever is accepted reaches SGLang as it was typed."""
        try:
            name, value = parse_server_arg(text)
        except ValueError:
            return
        assert argument_words(name, value) == ("--" + text.removeprefix("--"),)


def launch(*command: str, environment: Mapping[str, str] | None = None, **arguments: Value) -> Launch:
    """A launch of model "m" on port 8888."""
    return Launch(
        recipe="r",
        command=command,
        arguments={"model-path": "m", "port": 8888, **arguments},
        environment=environment or {},
    )


class TestLaunch:
    """A command line as a value."""

    @pytest.mark.parametrize(
        ("host", "url"),
        [
            ("127.0.0.1", "http://127.0.0.1:8888"),
            ("0.0.0.0", "http://127.0.0.1:8888"),
            ("::", "http://127.0.0.1:8888"),
            ("::1", "http://[::1]:8888"),
            ("gpu7", "http://gpu7:8888"),
        ],
    )
    def test_its_address(self, host: str, url: str) -> None:
        """A server on all addresses is reached on loopback."""
        assert launch(host=host).url == url

    def test_equal_launches_change_nothing(self) -> None:
        """Points that share one share a server."""
        assert launch(x=1) == launch(x=1)
        assert launch(x=1).changes_from(launch(x=1)) == ""

    def test_changes_name_what_a_user_knows(self) -> None:
        """Arguments by their names, flags as set or unset, variables, and the command."""
        before = launch("python3", "-m", "x", x=True, y=[1, 2], environment={"A": "1"})
        after = launch("serve", y=[1, 3])
        assert after.changes_from(before) == (
            "command python3 -m x -> serve, x set -> unset, y 1 2 -> 1 3, A 1 -> unset"
        )

    _LINES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))

    @given(st.lists(_LINES, min_size=1), st.dictionaries(st.from_regex(r"[A-Z_]+", fullmatch=True), _LINES))
    def test_words_are_what_a_shell_would_run(self, argv: list[str], environment: dict[str, str]) -> None:
        """Quoted, so that it can be copied; a shell's rules of splitting give back what is run."""
        words = [*(f"{name}={value}" for name, value in environment.items()), *argv]
        assert shlex.split(shell_line(argv, environment)) == words
