import io
import json
import logging
import logging.config
import os
import re
import sys
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cases import for_each
from growth import MIB, measured
from millstream import Client, Server
from millstream._telemetry import logs
from patience import WAIT

MAX_TEXT = 8192
"""Maximum characters of a text in a log."""


@pytest.fixture(autouse=True)
def root_logger_as_before() -> Iterator[None]:
    """Restore the root logger and uvicorn's, which `configure` changes."""
    names = (None, *logs.UVICORN_LOGGERS)
    before = [
        (logging.getLogger(name), logging.getLogger(name).level, logging.getLogger(name).handlers[:]) for name in names
    ]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


@for_each("seconds", [0.0, 1_700_000_000.123, 1_700_000_000.9999999, 1_700_000_059.9995, 4_102_444_800.001])
def test_times_have_milliseconds(seconds: float) -> None:
    at = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    assert logs.stamp(seconds) == at.replace("+00:00", "Z")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def write(stream: io.StringIO, message: object, *args: object, **extra: Any) -> str:
    """Log one record through the configured root logger, and return the output."""
    logging.getLogger("shop").warning(message, *args, extra=extra)
    return stream.getvalue()


def json_line(message: object, *args: object, **extra: Any) -> dict[str, Any]:
    stream = io.StringIO()
    logs.configure("debug", stream=stream)
    text = write(stream, message, *args, **extra)
    assert text.endswith("\n")
    assert len(text.splitlines()) == 1
    return json.loads(text)


def human_line(message: object, *args: object, **extra: Any) -> str:
    stream = io.StringIO()
    logs.configure("debug", json=False, stream=stream)
    return write(stream, message, *args, **extra)


def test_pipes_get_json_lines() -> None:
    line = json_line("sold %d books", 3, isbn="978", copies=3)
    assert list(line)[:4] == ["ts", "level", "logger", "message"]
    assert line["ts"].endswith("Z")
    assert (line["level"], line["logger"], line["message"]) == ("warning", "shop", "sold 3 books")
    assert (line["isbn"], line["copies"]) == ("978", 3)


def test_terminals_get_short_lines_with_fields() -> None:
    line = human_line("sold", copies=3)
    assert line.endswith("WARNING  shop: sold  copies=3\n")


def test_terminals_get_colors_unless_they_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for variables, colored in (
        ({}, True), ({"NO_COLOR": ""}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False),
    ):  # fmt: skip
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.delenv("NO_COLOR", raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        stream = Terminal()
        logs.configure("info", stream=stream)
        assert ("\x1b[" in write(stream, "hello")) is colored


def test_lines_on_a_terminal_break_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = " ".join(f"word{number:06}" for number in range(40)) + " " + "x" * 100
    for color in ("", "1"):
        monkeypatch.setenv("NO_COLOR", color)
        stream = Terminal()
        logs.configure("info", stream=stream)
        lines = re.sub(r"\x1b\[\d+m", "", write(stream, said)).splitlines()
        assert [line for line in lines if len(line) > 80] == [f"    {'x' * 100}"]
        assert " ".join(" ".join(lines).split()).endswith(said)


def test_extra_fields_cannot_replace_standard_fields() -> None:
    assert json_line("sold", level="critical", ts="1999")["level"] == "warning"


@for_each(
    "name",
    ["Authorization", "cookie", "Set-Cookie", "token", "accessToken", "client_secret", "X-Api-Key", "key",
     "password", "mcp-session-id", "requestState", "credentials"],
)  # fmt: skip
def test_secret_fields_are_hidden_at_any_depth(name: str) -> None:
    nested = json_line("request", headers={name: "hunter2-hunter2"}, items=[{name: 42}])
    assert nested["headers"] == {name: "***"}
    assert nested["items"] == [{name: "***"}]
    assert json_line("request", **{name: "hunter2-hunter2"})[name] == "***"


@for_each("name", ["keyboard", "input_tokens", "isbn", "monkeys", "session"])
def test_harmless_fields_are_not_hidden(name: str) -> None:
    assert json_line("request", **{name: "value"})[name] == "value"


@for_each(
    "text",
    [
        "authorization: Bearer hunter2hunter2",
        "Authorization=Digest a=hunter2, b=hunter2",
        "sent Bearer hunter2hunter2",
        "sent DPoP hunter2hunter2",
        "GET /callback?state=1&code=hunter2 HTTP/1.1",
        "cookie: a=hunter2; b=hunter2",
        '{"access_token": "hunter2"}',
        "api_key=hunter2",
        "password: hunter2",
        "cloned https://ann:hunter2@git.example.com/shop",
        "using redis://:hunter2@127.0.0.1:6379/0",
        "(eyJhbGciOiJub25lIn0.hunter2hunter2.hunter2)",
        "ghp_hunter2hunter2hunter2",
        "github_pat_hunter2hunter2_hunter2",
        "AKIAhunter2hunter2xx",
        "whsec_hunter2hunter2=",
        "xoxb-1-hunter2hunter2",
        "'sk-proj-hunter2hunter2'",
        "sk_live_hunter2hunter2",
        "-----BEGIN EC PRIVATE KEY-----\nhunter2\nhunter2\n-----END EC PRIVATE KEY-----\n",
        "-----BEGIN PRIVATE KEY-----\nhunter2",
    ],
)
def test_secrets_inside_text_are_hidden(text: str) -> None:
    assert "hunter2" not in json_line("saw %s", text)["message"]
    assert "hunter2" not in human_line("saw %s", text)


@for_each(
    "text",
    [
        "http://127.0.0.1:8000/a@b", "ws://[::1]:8000/ws", "a risk-averse-and-patient-reader", "sk-8", "github_pattern",
        "-----BEGIN CERTIFICATE-----", "eyJust.a.word", "ask-an-expert-who-knows-everything",
    ],
)  # fmt: skip
def test_harmless_text_is_not_hidden(text: str) -> None:
    assert json_line("saw %s", text)["message"] == f"saw {text}"


@for_each("forged", ["\n", "\r\n", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"])
def test_values_cannot_forge_log_lines(forged: str) -> None:
    text = f"ok{forged}12:00:00 ERROR root: fake"
    assert json_line(text)["message"] == text
    assert json_line("read", title=text)["title"] == text
    for line in (human_line(text), human_line("read", title=text), human_line("read", **{text: 1})):
        assert len(line.splitlines()) == 1


@for_each("char", ["\x1b", "\x00", "\x7f", "\x9b", "\u202e", "\u2066"])
def test_values_cannot_control_the_terminal(char: str) -> None:
    assert char not in human_line(f"a{char}b")


def test_exceptions_have_type_message_and_stack() -> None:
    stream = io.StringIO()
    logs.configure("info", stream=stream)
    try:
        raise LookupError("no token=hunter2 here")
    except LookupError:
        logging.getLogger("shop").exception("failed")
    error = json.loads(stream.getvalue())["error"]
    assert (error["type"], error["message"]) == ("LookupError", "no token=*** here")
    assert "Traceback" in error["stack"]
    assert "hunter2" not in error["stack"]


class OutOfStock(Exception):
    pass


def fail(depth: int, text: str, *, note: str = "", kind: type[Exception] = ValueError) -> None:
    if depth:
        fail(depth - 1, text, note=note, kind=kind)
    error = kind(text)
    if note:
        error.add_note(note)
    raise error


def test_repeated_errors_are_described_like_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    formatted: list[object] = []
    format_tb = traceback.format_tb
    monkeypatch.setattr(traceback, "format_tb", lambda trace: formatted.append(trace) or format_tb(trace))
    formatter = logs.JsonLines()
    for depth, text, note, kind in (
        (1, "a", "", ValueError), (1, "b", "", OutOfStock), (1, "", "", KeyError), (1, "token=hunter2", "", ValueError),
        (1, "a", "why", ValueError), (0, "a", "", ImportError), (0, "a", "", ValueError),
    ):  # fmt: skip
        try:
            fail(depth, text, note=note, kind=kind)
        except Exception:
            record = logging.makeLogRecord({"exc_info": sys.exc_info()})
        stack = json.loads(formatter.format(record))["error"]["stack"]
        assert stack == logging.Formatter().formatException(record.exc_info).replace("hunter2", "***")  # type: ignore[arg-type]
    assert len(formatted) == 2


OWN_TEXTS = [
    "forward_headers of the upstream 'a' contains authorization: that server receives each caller's credential",
    "api-key: process 2890 has ended",
    "Unknown tool 'get_token': use 'list'",
    "1password: the store has no space",
    "The token: basic authentication needs a password",
]


def test_own_texts_are_not_taken_for_the_names_of_credentials() -> None:
    for text in OWN_TEXTS:
        for args in ((text,), ("%s", text)):
            record = logging.makeLogRecord({"name": "millstream.gateway", "msg": args[0], "args": args[1:]})
            assert json.loads(logs.JsonLines().format(record))["message"] == text
            assert logs.HumanLines(color=False).format(record).endswith(text)


def test_credentials_in_own_texts_are_recognized_by_their_form_and_in_exceptions_by_their_name() -> None:
    for message, args, shown in (
        ("%s", ("Bearer abcdefghijklmnop",), "Bearer ***"),
        ("at %s", ("redis://u:hunter2@h/0",), "at redis://u:***@h/0"),
        ("%s failed", ("note://x?api_token=hunter2",), "note://x?api_token=*** failed"),
        ("key %s", ("sk-abcdefghijklmnopqrst",), "key ***"),
        ("api-key: %s", (ValueError("password=hunter2"),), "api-key: password=***"),
        ("token: %d, %s", (1, OSError("cookie: a=hunter2")), "token: 1, cookie: ***"),
    ):
        record = logging.makeLogRecord({"name": "millstream", "msg": message, "args": args})
        assert json.loads(logs.JsonLines().format(record))["message"] == shown


def test_continuation_lines_on_a_terminal_are_indented() -> None:
    stream = io.StringIO()
    logs.configure("info", json=False, stream=stream)
    try:
        raise LookupError("x\n12:00:00 ERROR root: fake")
    except LookupError:
        logging.getLogger("shop").exception("failed")
    assert all(line.startswith("    ") for line in stream.getvalue().splitlines()[1:])


def test_long_values_are_truncated() -> None:
    line = json_line("x" * 100_000, body="y" * 100_000, raw=b"z" * 100_000, many=list(range(10_000)))
    assert len(json.dumps(line, ensure_ascii=False)) < 4 * MAX_TEXT
    assert line["message"].endswith("more)")


def test_deep_values_are_truncated() -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    assert "…" in json.dumps(json_line("deep", value=value), ensure_ascii=False)
    assert json_line("shallow", value=[[[[["text"]]]]])["value"] == [[[[["text"]]]]]


def test_records_are_filtered_by_level_and_unknown_levels_are_explained() -> None:
    stream = io.StringIO()
    logs.configure("ERROR", stream=stream)
    assert write(stream, "quiet") == ""
    with pytest.raises(ValueError, match=r"Unknown log level 'loud'.*debug, info"):
        logs.configure("loud")


def test_logging_to_stdout_is_rejected() -> None:
    with pytest.raises(ValueError, match="standard output"):
        logs.configure("info", stream=sys.stdout)


def test_stderr_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    logging.getLogger("shop").warning("here")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert json.loads(captured.err)["message"] == "here"


def test_pipes_get_whole_lines_unless_one_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb"), os.fdopen(writing, "w") as stream:
        outlet, pieces = logs.TextOutlet(stream, logging.Formatter()), list[bytes]()
        monkeypatch.setattr(os, "write", lambda _, data: pieces.append(data) or len(data))
        short, long = "s" * 1_499 + "\n", "l" * 9_999 + "\n"
        outlet.write(short * 4)
        assert pieces == [(short * 2).encode()] * 2
        pieces.clear()
        outlet.write(long)
        assert (b"".join(pieces), len(pieces)) == (long.encode(), 3)


def test_configuring_twice_writes_each_record_once() -> None:
    stream = io.StringIO()
    logs.configure("info", stream=stream)
    logs.configure("info", stream=stream)
    assert len(write(stream, "once").splitlines()) == 1


@pytest.mark.parametrize(
    ("make", "lines"),
    [
        (lambda: logging.StreamHandler(sys.stderr), ["here"]),
        (lambda: logging.StreamHandler(sys.stdout), ["here"]),
        (lambda: logging.StreamHandler(io.StringIO()), ['{"ts":']),
    ],
)
def test_a_program_with_its_own_console_log_has_each_line_once(
    capsys: pytest.CaptureFixture[str], make: Any, lines: list[str]
) -> None:
    own, root = make(), logging.getLogger()
    root.addHandler(own)
    try:
        logs.configure("info")
        logging.getLogger("shop").warning("here")
    finally:
        root.removeHandler(own)
    captured = capsys.readouterr()
    assert [line[: len(lines[0])] for line in (captured.out + captured.err).splitlines()] == lines


def test_loggers_disabled_by_a_programs_configuration_still_report_errors() -> None:
    stream, logger = io.StringIO(), logging.getLogger("millstream.gateway")
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": True})
    try:
        assert logger.disabled
        logs.configure("info", stream=stream)
        logger.error("broken")
    finally:
        for each in logging.root.manager.loggerDict.values():
            if isinstance(each, logging.Logger):
                each.disabled = False
    assert json.loads(stream.getvalue())["message"] == "broken"


def test_uvicorn_logs_use_our_format() -> None:
    stream = io.StringIO()
    logging.getLogger("uvicorn.access").addHandler(logging.StreamHandler(io.StringIO()))
    logs.configure("info", stream=stream)
    logging.getLogger("uvicorn.error").info("Uvicorn running", extra={"color_message": "x"})
    assert stream.getvalue() == ""
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request", extra={"color_message": "x"})
    line = json.loads(stream.getvalue())
    assert line["logger"] == "uvicorn.error"
    assert "color_message" not in line
    assert logging.getLogger("uvicorn.access").handlers == []


@given(
    message=st.text(),
    name=st.text(min_size=1),
    value=st.recursive(st.none() | st.integers() | st.floats() | st.text() | st.binary(), st.lists),
)
def test_any_value_produces_exactly_one_line(message: str, name: str, value: Any) -> None:
    record = logging.makeLogRecord({"msg": message, "levelname": "INFO", "name": "shop"})
    record.__dict__.setdefault(name, value)
    json.loads(line := logs.JsonLines().format(record))
    assert len(line.splitlines()) == 1
    assert len(logs.HumanLines(color=False).format(record).splitlines()) == 1


def test_long_names_of_fields_are_not_kept_when_secrets_are_looked_for() -> None:
    with measured() as growth:
        for number in range(100):
            name = f"{number}" + 30_000 * "n"
            assert logs.redact({name: "a", f"{name}password": "b"}).popitem()[1] == "***"
    assert growth.bytes < MIB


STRANGER = """
import sys
print("stdout has secret: hunter2hunter2", flush=True)
print("stderr has password=hunter2hunter2", file=sys.stderr, flush=True)
if sys.argv[1:]:
    sys.exit("ended with token=hunter2hunter2")
from millstream import Server
mcp = Server("up")
@mcp.tool
def fail() -> str:
    raise SystemExit("")
mcp.run("stdio")
"""


@pytest.mark.server
async def test_credentials_that_a_process_names_are_not_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "up.py").write_text(STRANGER)
    caplog.set_level(logging.DEBUG)
    front = Server("front")
    for name, more in (("api-key", []), ("ended", ["now"])):
        command = [sys.executable, str(tmp_path / "up.py"), *more]
        front.upstream(name, command, start_timeout=WAIT, timeout=WAIT)
    async with Client(front, timeout=WAIT) as client:
        assert await client.tools()
    formatter = logs.JsonLines()
    written = "\n".join(json.loads(formatter.format(each))["message"] for each in caplog.records)
    for shown in ("stdout has secret: ***", "api-key: stderr has password=***", "ended with token=***"):
        assert shown in written
    assert "hunter2" not in written
