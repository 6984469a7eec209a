import runpy
from pathlib import Path

import pytest

from auth.issuing.test_sign_in_end_to_end import Person, said
from auth.issuing.test_user_file import users
from auth_world import run_guarded
from millstream import Client
from millstream.auth._authorization_server import authorize, clients, config, grants, tickets
from millstream.auth.providers import Provider
from millstream.client import Options
from millstream.client._oauth import MemoryTokenStore
from millstream.client._oauth.flow import OAuth
from processes import free_port
from scripts.docs import ROOT

PAGE = (ROOT / "docs" / "guides" / "authorization-server.md").read_text("utf-8")


async def test_page_example_signs_in_a_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "users.json"
    assert "$ millstream users add ada --scope orders:write\n" in PAGE
    assert f"Added ada to {path}." in users(path, "add", "ada", "--scope", "orders:write", typed="correct horse\n")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("SHOP_URL", url)
    monkeypatch.setenv("SHOP_USERS", str(path))
    server = runpy.run_path(str(ROOT / "examples" / "sign_in.py"))["mcp"]
    async with run_guarded(server, port=port):
        options = Options(auth=OAuth(store=MemoryTokenStore(), redirect_handler=Person().visit))
        async with Client(f"{url}/mcp", options=options) as client:
            assert said(await client.call("greet")) == "Hello, ada!"
            assert said(await client.call("order", isbn="42")) == "42 is on its way."


def test_numbers_on_the_page_match_the_code() -> None:
    assert (grants.CODE_SECONDS, "| authorization code | 60 seconds, and one use |" in PAGE) == (60, True)
    assert (config.ACCESS_SECONDS, "| access token | 15 minutes |" in PAGE) == (15 * 60, True)
    assert (config.REFRESH_SECONDS, "| refresh token | 30 days from its last use" in PAGE) == (30 * 86_400, True)
    assert (grants.GRACE, "repeat a refresh within 60 seconds" in PAGE) == (60, True)
    assert (tickets.PERSON_SECONDS, "| sign-in at the consent page | 8 hours |" in PAGE) == (8 * 3600, True)
    assert (tickets.DEVICE_SECONDS, "| 180 days from the last sign-in" in PAGE) == (180 * 86_400, True)
    assert (authorize.REMEMBERED, "| consent | 90 days," in PAGE) == (90 * 86_400, True)
    assert (clients.UNUSED, clients.USED, "for 90 days after the last sign-in" in PAGE) == (86_400, 90 * 86_400, True)


def test_page_lists_every_provider_decision() -> None:
    ours = {name for name, value in vars(Provider).items() if callable(value) and not name.startswith("_")}
    shown = {
        line.split("`")[1].partition("(")[0] for line in PAGE.splitlines() if line.startswith("| `") and "(" in line
    }
    assert ours == shown
