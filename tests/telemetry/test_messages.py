import asyncio
import io
import json
import os
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cases import for_each
from millstream._telemetry import messages
from millstream._telemetry.messages import MAX_PENDING, MAX_TEXT, AccessRecord, MessageLog, session_hash
from patience import WAIT

AT = 1_784_116_800.25


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Broken(io.StringIO):
    def write(self, text: str, /) -> int:
        raise BrokenPipeError


async def lines_of(*given: AccessRecord) -> list[dict[str, Any]]:
    """Return the log lines for these messages."""
    stream = io.StringIO()
    log = MessageLog(stream, worker="w1")
    for message in given:
        log.add(message)
    log.flush()
    return [json.loads(line) for line in stream.getvalue().splitlines()]


async def test_message_lines_have_fixed_fields() -> None:
    """One access line for each JSON-RPC message."""
    message = AccessRecord(
        AT, "tools/call", "add", "", 0.0123451, "2025-11-25", "inspector", "1.2", "s" * 32, "alice", 99, "http",
    )  # fmt: skip
    (line,) = await lines_of(message)
    assert list(line.items()) == [
        ("ts", "2026-07-15T12:00:00.250Z"),
        ("level", "info"),
        ("logger", "millstream.access"),
        ("method", "tools/call"),
        ("target", "add"),
        ("status", "ok"),
        ("duration_ms", 12.345),
        ("revision", "2025-11-25"),
        ("client", "inspector/1.2"),
        ("session", session_hash("s" * 32)),
        ("principal", "alice"),
        ("bytes", 99),
        ("transport", "http"),
        ("worker", "w1"),
    ]


async def test_traced_messages_have_trace_ids() -> None:
    (line,) = await lines_of(AccessRecord(AT, "ping", trace_id="a" * 32, span_id="b" * 16))
    assert (line["trace_id"], line["span_id"]) == ("a" * 32, "b" * 16)


@for_each(
    ("status", "level"),
    [("", "info"), ("tool_error", "warning"), ("-32602", "warning"), ("-32603", "error"), ("server_error", "error")],
)
async def test_log_level_depends_on_the_type_of_failure(status: str, level: str) -> None:
    (line,) = await lines_of(AccessRecord(AT, "tools/call", status=status))
    assert (line["level"], line["status"]) == (level, status or "ok")


async def test_session_ids_are_never_logged() -> None:
    first, again, other, none = await lines_of(
        AccessRecord(AT, "ping", session="secret-1"),
        AccessRecord(AT, "ping", session="secret-1"),
        AccessRecord(AT, "ping", session="secret-2"),
        AccessRecord(AT, "ping"),
    )
    assert first["session"] == again["session"] != other["session"]
    assert "secret" not in json.dumps([first, other])
    assert len(first["session"]) == 16
    assert none["session"] == ""


@given(text=st.text())
async def test_client_text_cannot_forge_log_lines(text: str) -> None:
    stream = io.StringIO()
    log = MessageLog(stream)
    log.add(AccessRecord(AT, text, text, text, 0.0, "", text, text, text, text, 0, ""))
    log.flush()
    written = stream.getvalue()
    assert written.endswith("}\n")
    assert len(written.splitlines()) == 1
    assert all(each.isprintable() or each == " " or ord(each) >= 0xA0 for each in written[:-1])
    assert not set(written) & {"\u2028", "\u2029", "\u202e", "\x85"}
    json.loads(written)


async def test_secrets_in_targets_are_hidden() -> None:
    secret, long = await lines_of(
        AccessRecord(AT, "resources/read", "https://shop/?api_key=abcdef123456&x=1"),
        AccessRecord(AT, "tools/call", "n" * 100_000),
    )
    assert secret["target"] == "https://shop/?api_key=***&x=1"
    assert len(long["target"]) == MAX_TEXT + 1


async def test_secrets_are_hidden_before_truncation() -> None:
    (line,) = await lines_of(AccessRecord(AT, "resources/read", "x" * (MAX_TEXT - 10) + " bearer abcdefghijkl"))
    assert "abc" not in line["target"]


async def test_message_log_caches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "MAX_CACHED", 4)
    given = [AccessRecord(AT, "ping", f"n{number}", session=f"s{number}") for number in range(20)]
    lines = await lines_of(*given, *given)
    assert [line["target"] for line in lines] == [message.target for message in given] * 2
    assert [line["session"] for line in lines] == [session_hash(message.session) for message in given] * 2


async def test_lines_are_written_in_batches() -> None:
    written = asyncio.Event()
    writes: list[str] = []

    class Stream(io.StringIO):
        def write(self, text: str, /) -> int:
            writes.append(text)
            written.set()
            return len(text)

    log = MessageLog(Stream())
    for _ in range(5):
        log.add(AccessRecord(AT, "ping"))
    assert writes == []
    await asyncio.wait_for(written.wait(), WAIT)
    assert [text.count("\n") for text in writes] == [5]
    log.flush()
    assert len(writes) == 1


async def test_pending_lines_are_bounded() -> None:
    stream = io.StringIO()
    log = MessageLog(stream)
    for _ in range(MAX_PENDING - 1):
        log.add(AccessRecord(AT, "ping"))
    assert stream.getvalue() == ""
    log.add(AccessRecord(AT, "ping"))
    assert stream.getvalue().count("\n") == MAX_PENDING


@for_each("closed", [False, True])
async def test_failing_log_stream_does_not_affect_calls(closed: bool) -> None:
    stream = io.StringIO() if closed else Broken()
    log = MessageLog(stream, json=True)
    if closed:
        stream.close()
    log.add(AccessRecord(AT, "ping"))
    log.flush()
    assert log.lost == 1


async def test_a_terminal_gets_short_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    for no_color in (True, False):
        monkeypatch.delenv("NO_COLOR", raising=False)
        if no_color:
            monkeypatch.setenv("NO_COLOR", "1")
        stream = Terminal()
        log = MessageLog(stream)
        log.add(AccessRecord(AT, "tools/call", "add\x1b[2J", "tool_error", 0.001, client="c", principal="ann"))
        log.flush()
        text = stream.getvalue()
        assert "\x1b[2J" not in text
        assert ("\x1b[" in text) is not no_color
        assert re.sub(r"\x1b\[\d*m", "", text)[9:] == "tool_error   tools/call add\\x1b[2J  1 ms  c ann\n"


@pytest.mark.skipif(os.name != "posix", reason="elsewhere nobody can ask whether a pipe takes more")
async def test_stalled_log_reader_blocks_nothing() -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as pipe, os.fdopen(writer, "w") as stream:
        log, count = MessageLog(stream, worker="w"), 5000

        def tell() -> int:
            for number in range(count):
                log.add(AccessRecord(AT, "tools/call", f"tool-{number}"))
                if number % MAX_PENDING == 0:
                    log.flush()
            log.flush()
            return log.lost

        told = threading.Event()
        worker = threading.Thread(target=lambda: (asyncio.run(as_coroutine(tell)), told.set()), daemon=True)
        worker.start()
        assert await asyncio.to_thread(told.wait, WAIT)
        lost = log.lost
        assert lost > 0
        lines: list[Any] = []
        while not lines or "target" in lines[-1]:
            lines.append(json.loads(await asyncio.to_thread(pipe.readline)))
        assert lines[0]["target"] == "tool-0"
        assert lines.pop()["message"] == f"{lost} lines of this log were dropped, because standard error wasn't read."
        assert len(lines) + lost == count
        log.add(AccessRecord(AT, "ping"))
        log.flush(last=True)
        assert b'"ping"' in pipe.readline()


async def as_coroutine(function: Callable[[], Any]) -> Any:
    return function()


@given(
    text=st.text(max_size=20), seconds=st.floats(0, 1e6), size=st.integers(0, 2**40), status=st.sampled_from(["", "x"])
)
async def test_cached_log_lines_equal_uncached_ones(text: str, seconds: float, size: int, status: str) -> None:
    given_fields: tuple[Any, ...] = (text, status, seconds, "2025-11-25", text, "1", text, text, size, "http")
    pieces = AccessRecord(AT, "tools/call", *given_fields)
    whole = AccessRecord(AT, "tools/call", *given_fields, "a" * 32, "b" * 16)
    first, second, traced = await lines_of(AccessRecord(AT + 1, "tools/call", *given_fields), pieces, whole)
    assert list(second.items()) == list(traced.items())[:-2]
    assert second == {**first, "ts": second["ts"]}
