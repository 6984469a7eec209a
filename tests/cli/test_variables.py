from pathlib import Path

import pytest

from millstream._app.server_process import CommandError
from millstream._cli import main
from millstream._cli.load import load

SHOP = 'from millstream import Server\nmcp = Server("shop")\n'


@pytest.mark.parametrize("target", ["shop.py", "shop"])
@pytest.mark.parametrize(
    ("variable", "text", "what"),
    [
        ("MILLSTREAM_HEARTBEAT", "abc", "MILLSTREAM_HEARTBEAT can't be 'abc'."),
        ("MAX_CONNECTIONS", "abc", "MAX_CONNECTIONS can't be 'abc'."),
        ("MILLSTREAM_HEARTBEET", "3", "Unknown setting MILLSTREAM_HEARTBEET."),
        ("MILLSTREAM_LOG_LEVEL", "foo", "MILLSTREAM_LOG_LEVEL can't be 'foo'."),
    ],
)
def test_unusable_variables_are_reported_without_a_traceback(
    folder: Path, monkeypatch: pytest.MonkeyPatch, target: str, variable: str, text: str, what: str
) -> None:
    (folder / "shop.py").write_text(SHOP)
    monkeypatch.setenv(variable, text)
    with pytest.raises(CommandError) as caught:
        load(target)
    assert caught.value.what.startswith(what)
    assert not caught.value.detail
    assert "shop" not in f"{caught.value.what}{caught.value.why}{caught.value.fix}"


@pytest.mark.parametrize("transport", ["http", "stdio"])
@pytest.mark.parametrize(
    ("setting", "what"),
    [
        (
            "PATH=noslash",
            "MILLSTREAM_PATH can't be 'noslash'. It must be a path that starts with /, without spaces, ?, or #.",
        ),
        ("SECRET_KEY=short", "MILLSTREAM_SECRET_KEY has a secret of fewer than 32 characters."),
    ],
)
def test_unusable_variables_end_the_command_with_1(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    transport: str,
    setting: str,
    what: str,
) -> None:
    (folder / "shop.py").write_text(SHOP)
    name, _, text = setting.partition("=")
    monkeypatch.setenv(f"MILLSTREAM_{name}", text)
    monkeypatch.setattr("sys.argv", ["millstream", "run", "shop.py", "--transport", transport])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    shown = capsys.readouterr().err
    assert what in shown
    assert "Traceback" not in shown
