import logging
import os
from pathlib import Path

import pytest

from app_peer import ask
from millstream import Server
from millstream.__main__ import main

BAD = {"others may read it": ("0" * 43, 0o644), "too short": ("short", 0o600), "empty": ("", 0o600)}


@pytest.fixture(params=BAD)
def bad_key(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An unusable key file."""
    monkeypatch.delenv("MILLSTREAM_SECRET_KEY", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    text, mode = BAD[request.param]
    path = tmp_path / "millstream" / "key"
    path.parent.mkdir()
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("transport", ["http", "stdio"])
def test_unusable_key_files_prevent_startup(
    folder: Path,
    bad_key: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    transport: str,
) -> None:
    (folder / "shop.py").write_text('from millstream import Server\nmcp = Server("shop")\n')
    monkeypatch.setattr("millstream._app.server_process.over_http.HttpServer.run", lambda *_, **__: None)
    monkeypatch.setattr("sys.argv", ["millstream", "run", "shop.py", "--transport", transport, "--port", "0"])
    with pytest.raises(SystemExit) as ended:
        main()
    shown = capsys.readouterr().err
    assert ended.value.code == 1
    assert str(bad_key) in shown
    assert "delete" in shown
    assert "Traceback" not in shown


async def test_unusable_key_files_block_readiness_under_other_servers(
    bad_key: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server("shop")
    for path in ("/readyz", "/livez"):
        assert (await ask(server, "GET", path)).status == 503
    assert str(bad_key) in caplog.text
    os.unlink(bad_key)  # noqa: PTH108  a test may
    assert (await ask(server, "GET", "/readyz")).status == 200
    await server.stop()


@pytest.mark.parametrize("home", ["a file", "none"])
async def test_unsaved_keys_cause_a_warning_at_startup(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "state"
    place.write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(place) if home == "a file" else "")
    monkeypatch.setenv("HOME", str(place) if home == "a file" else "")
    server = Server("shop")
    assert (await ask(server, "GET", "/readyz")).status == 200
    (told,) = [record for record in caplog.records if "Set MILLSTREAM_SECRET_KEY" in record.message]
    assert told.levelno == logging.WARNING
    await server.stop()
