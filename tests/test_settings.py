"""Settings from environment variables: what is read, and that nothing wrong is read in silence."""

import pytest

from millstream.config import Settings, VariableError


def refusal(**variables: str) -> str:
    with pytest.raises(VariableError) as caught:
        Settings.load({f"MILLSTREAM_{name}": text for name, text in variables.items()})
    return str(caught.value)


def test_variables_are_read_by_the_type_of_their_setting() -> None:
    """docs/reference/settings.md."""
    settings = Settings.load(
        {
            "MILLSTREAM_LANE": "false",
            "MILLSTREAM_PAGE_SIZE": "7",
            "MILLSTREAM_HEARTBEAT": "0.5",
            "MILLSTREAM_ALLOWED_HOSTS": "a.example, b.example",
            "MILLSTREAM_LOG_LEVEL": "DEBUG",
            "MILLSTREAM_PATH": "/rpc",
            "PATH": "/bin",
        }
    )
    assert settings == Settings(
        lane=False,
        page_size=7,
        heartbeat=0.5,
        allowed_hosts=("a.example", "b.example"),
        log_level="debug",
        path="/rpc",
    )


def test_what_is_given_in_code_wins_over_the_environment() -> None:
    """docs/reference/settings.md."""
    assert Settings.load({"MILLSTREAM_PAGE_SIZE": "7"}, page_size=8).page_size == 8


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("PATH", "noslash", "a path that starts with /"),
        ("PAGE_SIZE", "0", "a whole number, 1 or more"),
        ("MAX_BODY", "-1", "a whole number, 1 or more"),
        ("MAX_THREADS", "0", "a whole number, 1 or more"),
        ("MAX_CALLS", "many", "a whole number, 1 or more"),
        ("MAX_CONNECTIONS_PER_ADDRESS", "-1", "a whole number, 0 or more"),
        ("HEARTBEAT", "-1", "a number of seconds, 0 or more"),
        ("HEARTBEAT", "abc", "a number of seconds, 0 or more"),
        ("DRAIN_TIMEOUT", "inf", "a number of seconds, 0 or more"),
        ("DRAIN_TIMEOUT", "nan", "a number of seconds, 0 or more"),
        ("SESSIONS", "maybe", "true or false"),
        ("LOG_LEVEL", "foo", "debug, info, warning, error or critical"),
    ],
)
def test_a_value_that_cannot_work_is_refused_with_the_variable_and_what_it_must_be(
    name: str, text: str, expected: str
) -> None:
    """A fixed defect: such values were taken, or failed at the first request."""
    assert refusal(**{name: text}) == f"MILLSTREAM_{name} cannot be {text!r}. It must be {expected}."


def test_an_unknown_variable_is_refused_with_the_nearest_name() -> None:
    """A fixed defect: a misspelled variable changed nothing and said nothing."""
    assert refusal(HEARTBEET="3") == "MILLSTREAM_HEARTBEET is no setting. Did you mean MILLSTREAM_HEARTBEAT?"
    assert refusal(XYZ="3") == "MILLSTREAM_XYZ is no setting."


def test_variables_that_kubernetes_sets_for_a_service_called_millstream_are_not_ours() -> None:
    """Service links: https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables."""
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
    assert "is no setting" in refusal(PORT="9000")


@pytest.mark.parametrize("given", [{"page_sise": 3}, {"page_size": 0}, {"path": "noslash"}])
def test_a_wrong_keyword_is_refused_too(given: dict[str, object]) -> None:
    """The same rules for code; it is no fault of the environment then."""
    with pytest.raises(ValueError, match=next(iter(given))) as caught:
        Settings.load({}, **given)
    assert not isinstance(caught.value, VariableError)


def test_every_default_is_a_value_that_a_variable_could_have() -> None:
    """Bounds and defaults are written in the same place, and agree."""
    defaults = {name: getattr(Settings(), name) for name in Settings.__struct_fields__}
    assert Settings.load({}, **defaults) == Settings()
