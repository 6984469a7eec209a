import re
import traceback
from typing import Any

import msgspec
import pytest

from cases import for_each
from millstream import Server
from millstream._config import Settings, VariableError, address
from millstream.hub import HubLimits


def refusal(**variables: str) -> str:
    with pytest.raises(VariableError) as caught:
        Settings.load({f"MILLSTREAM_{name}": text for name, text in variables.items()})
    return str(caught.value)


def test_variables_are_parsed_by_setting_type() -> None:
    settings = Settings.load(
        {
            "MILLSTREAM_SESSIONS": "false",
            "MILLSTREAM_PAGE_SIZE": "7",
            "MILLSTREAM_HEARTBEAT": "0.5",
            "MILLSTREAM_ALLOWED_HOSTS": "a.example, b.example",
            "MILLSTREAM_LOG_LEVEL": "DEBUG",
            "MILLSTREAM_PATH": "/rpc",
            "PATH": "/bin",
        }
    )
    assert settings == Settings(
        sessions=False,
        page_size=7,
        heartbeat=0.5,
        allowed_hosts=("a.example", "b.example"),
        log_level="debug",
        path="/rpc",
    )


def test_code_takes_precedence_over_the_environment() -> None:
    assert Settings.load({"MILLSTREAM_PAGE_SIZE": "7"}, page_size=8).page_size == 8


@for_each(
    ("name", "text", "expected"),
    [
        ("PATH", "noslash", "a path that starts with /, without spaces, ?, or #"),
        ("SSE_PATH", "/a?b", "a path that starts with /, without spaces, ?, or #"),
        ("PAGE_SIZE", "0", "a whole number, 1 or more"),
        ("MAX_BODY", "-1", "a whole number, 1 or more"),
        ("MAX_THREADS", "0", "a whole number, 1 or more"),
        ("MAX_CALLS", "many", "a whole number, 1 or more"),
        ("MAX_CONNECTIONS_PER_ADDRESS", "-1", "a whole number, 0 or more"),
        ("HEARTBEAT", "-1", "a number of seconds, 0 or more"),
        ("HEARTBEAT", "abc", "a number of seconds, 0 or more"),
        ("DRAIN_TIMEOUT", "inf", "a number of seconds, 0 or more"),
        ("DRAIN_TIMEOUT", "nan", "a number of seconds, 0 or more"),
        ("SESSION_TTL", "0", "a number of seconds above 0"),
        ("HEADER_TIMEOUT", "0", "a number of seconds above 0"),
        ("INPUT_TIMEOUT", "0", "a number of seconds above 0"),
        ("SESSIONS", "maybe", "true or false"),
        ("LOG_LEVEL", "foo", "debug, info, warning, error, or critical"),
    ],
)
def test_errors_for_invalid_values_show_the_variable_and_the_valid_form(name: str, text: str, expected: str) -> None:
    assert refusal(**{name: text}) == f"MILLSTREAM_{name} can't be {text!r}. It must be {expected}."


def test_unknown_variables_suggest_the_nearest_name() -> None:
    assert refusal(HEARTBEET="3") == "Unknown setting MILLSTREAM_HEARTBEET. Did you mean MILLSTREAM_HEARTBEAT?"
    assert refusal(XYZ="3") == "Unknown setting MILLSTREAM_XYZ."


def test_error_for_the_workers_variable_suggests_the_option() -> None:
    what = "The number of worker processes isn't a setting: use --workers or mcp.run(workers=…)."
    assert refusal(WORKERS="4") == f"Unknown setting MILLSTREAM_WORKERS. {what}"
    with pytest.raises(TypeError, match="The number of worker processes isn't a setting"):
        Settings(workers=4)  # type: ignore[call-arg]


def test_kubernetes_service_variables_are_ignored() -> None:
    linked = {
        "MILLSTREAM_SERVICE_HOST": "10.0.0.11",
        "MILLSTREAM_SERVICE_PORT": "8000",
        "MILLSTREAM_SERVICE_PORT_HTTP": "8000",
        "MILLSTREAM_PORT": "tcp://10.0.0.11:8000",
        "MILLSTREAM_PORT_8000_TCP": "tcp://10.0.0.11:8000",
        "MILLSTREAM_PORT_8000_TCP_ADDR": "10.0.0.11",
        "MILLSTREAM_REDIS_SERVICE_HOST": "10.0.0.12",
    }
    assert Settings.load(linked) == Settings()
    assert address(None, None, linked) == ("127.0.0.1", 8000)


@for_each("given", [{"page_sise": 3}, {"page_size": 0}, {"path": "noslash"}])
def test_unknown_keywords_are_rejected(given: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(given))) as caught:
        Settings.load({}, **given)
    assert not isinstance(caught.value, VariableError)


@for_each(
    ("given", "expected"),
    [
        ({"max_calls": 0}, "max_calls can't be 0. It must be a whole number, 1 or more."),
        ({"max_calls": "7"}, "max_calls can't be '7'. It must be a whole number, 1 or more."),
        ({"heartbeat": float("nan")}, "heartbeat can't be nan. It must be a number of seconds, 0 or more."),
        (
            {"path": "noslash"},
            "path can't be 'noslash'. It must be a path that starts with /, without spaces, ?, or #.",
        ),
        ({"sessions": 1}, "sessions can't be 1. It must be true or false."),
        ({"allowed_hosts": "a.example"}, "allowed_hosts can't be 'a.example'."),
    ],
)
def test_settings_in_code_are_validated(given: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=re.escape(expected)) as caught:
        Settings(**given)
    assert not isinstance(caught.value, VariableError)
    with pytest.raises(ValueError, match=re.escape(expected)):
        msgspec.structs.replace(Settings(), **given)


def test_equivalent_values_are_normalized() -> None:
    settings = Settings(allowed_hosts=["a.example"], heartbeat=2)  # type: ignore[arg-type]  # on purpose
    assert settings == Settings(allowed_hosts=("a.example",), heartbeat=2.0)
    assert (type(settings.allowed_hosts), type(settings.heartbeat)) == (tuple, float)


@for_each("text", ["abc", "", "-1", "1.5"])
def test_errors_for_invalid_connection_caps_mention_the_setting(text: str) -> None:
    with pytest.raises(VariableError) as caught:
        Settings.load({"MAX_CONNECTIONS": text})
    assert str(caught.value) == f"MAX_CONNECTIONS can't be {text!r}. It must be a whole number, 0 or more."


def test_unprefixed_max_connections_caps_the_hub() -> None:
    assert Settings.load({"MAX_CONNECTIONS": "1000"}) == Settings(hub_connections=1000)
    both = {"MILLSTREAM_HUB_CONNECTIONS": "5", "MAX_CONNECTIONS": "1000"}
    assert Settings.load(both).hub_connections == 5
    assert Settings.load(both, hub_connections=6).hub_connections == 6


def test_hub_limits_follow_the_settings() -> None:
    assert HubLimits.of(Settings()) == HubLimits()
    assert HubLimits.of(Settings(max_connections=9)).max_connections == 9
    assert HubLimits.of(Settings(max_connections=9, hub_connections=3)).max_connections == 3


def test_defaults_are_valid_variable_values() -> None:
    defaults = {name: getattr(Settings(), name) for name in Settings.__struct_fields__}
    assert Settings.load({}, **defaults) == Settings()


def test_command_line_overrides_are_validated() -> None:
    server = Server("paths", settings=Settings())
    with pytest.raises(ValueError, match="path"):
        server.definition.configure(path="mcp")


def test_address_comes_from_argument_then_environment() -> None:
    said = {"MILLSTREAM_HOST": "0.0.0.0", "MILLSTREAM_PORT": "9000"}  # noqa: S104
    assert address(None, None, said) == ("0.0.0.0", 9000)  # noqa: S104
    assert address("::1", 0, said) == address("[::1]", 0, said) == ("::1", 0)
    assert address(None, 0, {"MILLSTREAM_HOST": "[::1]"}) == ("::1", 0)
    assert address(None, None, {}) == ("127.0.0.1", 8000)
    assert Settings.load(said) == Settings()


@for_each("text", ["http", "-1", "65536", "80.0"])
def test_errors_for_invalid_ports_mention_the_variable(text: str) -> None:
    with pytest.raises(VariableError, match="MILLSTREAM_PORT can't be"):
        address(None, None, {"MILLSTREAM_PORT": text})
    with pytest.raises(VariableError, match="MILLSTREAM_HOST is empty"):
        address(None, None, {"MILLSTREAM_HOST": " "})


def test_log_levels_are_case_insensitive() -> None:
    assert Settings(log_level="WARNING").log_level == "warning"  # type: ignore[arg-type]


def test_errors_about_secret_settings_do_not_reveal_them() -> None:
    secret = f"S3CRET-{4711}"  # not in the source line of a traceback
    for name in ("auth_key", "secret_key", "store"):
        with pytest.raises(ValueError, match="isn't shown") as raised:
            Settings(**{name: [secret]})  # type: ignore[arg-type]
        assert secret not in "".join(traceback.format_exception(raised.value))
