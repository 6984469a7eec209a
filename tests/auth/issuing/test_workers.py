import json
import time
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import parse_qs, urlencode, urlsplit
from urllib.request import Request, urlopen

import pytest

from account_parts import UserFile
from conformance.test_authorization import browser, person
from issuing_world import VERIFIER, challenge
from patience import WAIT
from processes import free_port, run_command, run_server
from wire import POST
from wire import request as message

BACK = "http://127.0.0.1:5555/back"


class Shop:
    """A running server with two workers, with a new connection for each request."""

    def __init__(self, url: str) -> None:
        self.url = url

    def json(self, path: str, body: Any) -> Any:
        """POST JSON."""
        request = Request(self.url + path, json.dumps(body).encode(), {"content-type": "application/json"})  # noqa: S310
        with urlopen(request, timeout=WAIT) as reply:  # noqa: S310  loopback
            return json.load(reply)

    def form(self, path: str, **form: str) -> Any:
        """POST a form."""
        request = Request(self.url + path, urlencode(form).encode())  # noqa: S310  loopback
        with urlopen(request, timeout=WAIT) as reply:  # noqa: S310  loopback
            return json.load(reply)

    def code(self, client: str, scope: str = "orders:write") -> str:
        """Sign Ada in with consent, and return the code."""
        asked = {"response_type": "code", "client_id": client, "redirect_uri": BACK, "scope": scope,
                 "code_challenge": challenge(), "code_challenge_method": "S256"}  # fmt: skip
        page = browser().open(f"{self.url}/authorize?{urlencode(asked)}", timeout=WAIT)
        where = person(page.read().decode(), page.headers["set-cookie"], self.url)
        return parse_qs(urlsplit(where).query)["code"][0]

    def statuses(self, token: str, times: int = 8) -> set[int]:
        """Return the statuses of several calls."""
        found: set[int] = set()
        body = json.dumps(message("ping")).encode()
        for _ in range(times):
            request = Request(f"{self.url}/mcp", body, {**POST, "authorization": f"Bearer {token}"})  # noqa: S310
            try:
                with urlopen(request, timeout=WAIT) as reply:  # noqa: S310  loopback
                    found.add(reply.status)
            except HTTPError as refused:
                with refused:
                    found.add(refused.code)
        return found


@pytest.mark.server
@pytest.mark.usefixtures("quick_hashes")
def test_two_workers_share_the_authorization_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    UserFile(tmp_path / "users.json").add("ada", "correct horse", ("*",), time.time())
    port = free_port()
    shop = Shop(f"http://127.0.0.1:{port}")
    monkeypatch.setenv("SHOP_URL", shop.url)
    monkeypatch.setenv("SHOP_USERS", str(tmp_path / "users.json"))
    monkeypatch.setenv("MILLSTREAM_STORE", f"sqlite:///{tmp_path}/shop.db")
    command = run_command("examples/sign_in.py", port, "--workers", "2")
    with run_server(command, port, tmp_path / "first.log"):
        about = {"redirect_uris": [BACK], "token_endpoint_auth_method": "none",
                 "grant_types": ["authorization_code", "refresh_token"]}  # fmt: skip
        client = shop.json("/register", about)["client_id"]
        code = shop.code(client)
        given = shop.form(
            "/token", grant_type="authorization_code", client_id=client, code=code, code_verifier=VERIFIER
        )
        assert shop.statuses(given["access_token"]) == {200}
    with run_server(command, port, tmp_path / "second.log"):
        assert shop.statuses(given["access_token"]) == {200}
        refresh = given["refresh_token"]
        again = shop.form("/token", grant_type="refresh_token", client_id=client, refresh_token=refresh)
        assert shop.statuses(again["access_token"]) == {200}
        shop.form("/revoke", client_id=client, token=again["refresh_token"])
        until = time.monotonic() + WAIT
        # Each worker checks once a second. Repeated attempts get 429 instead of 401.
        while 200 in shop.statuses(again["access_token"]) | shop.statuses(given["access_token"]):
            assert time.monotonic() < until
