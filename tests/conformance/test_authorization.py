import json
import os
import re
import subprocess
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import HTTPRedirectHandler, OpenerDirector, Request, build_opener

import pytest

from account_parts import UserFile
from conformance.official import FOLDER, SUITE, Check
from patience import WAIT
from processes import NODE, free_port, run_command, run_server

pytestmark = pytest.mark.server

SCENARIOS = {"authorization-server-metadata-endpoint", "authorization-code-grant"}


class Stay(HTTPRedirectHandler):
    """A browser that doesn't follow redirects."""

    def redirect_request(self, *_: object) -> None:
        """Don't follow the redirect."""


def person(page: str, cookie: str, url: str) -> str:
    """Sign in and consent; return the redirect."""
    ticket = re.search(r'name="ticket" value="([^"]+)"', page)
    assert ticket, page
    form = {"ticket": ticket[1], "name": "ada", "password": "correct horse", "answer": "allow"}
    headers = {"cookie": cookie.partition(";")[0], "origin": url}
    request = Request(f"{url}/authorize", urlencode(form).encode(), headers)  # noqa: S310  loopback
    try:
        browser().open(request, timeout=WAIT)
    except HTTPError as answer:
        with answer:
            return str(answer.headers["location"])
    raise AssertionError("The server did not send the browser back.")


def browser() -> OpenerDirector:
    """Return a new browser."""
    return build_opener(Stay)


def read(output: Path) -> list[Check]:
    """Return all scenarios' checks."""
    found: list[Check] = []
    for file in sorted(output.rglob("checks.json")):
        for check in json.loads(file.read_text("utf-8")):
            text = check.get("errorMessage") or check.get("description") or ""
            found.append(Check(file.parent.name, check["id"], check["status"], text))
    return found


@pytest.mark.parametrize("revision", ["", "2025-03-26", "2025-11-25", "2026-07-28"])
def test_official_suite_passes_for_the_authorization_server(
    revision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    UserFile(tmp_path / "users.json").add("ada", "correct horse", (), time.time())
    port, back = free_port(), free_port()
    url = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("SHOP_URL", url)
    monkeypatch.setenv("SHOP_USERS", str(tmp_path / "users.json"))
    with run_server(run_command("examples/sign_in.py", port), port, tmp_path / "server.log"):
        about = {"redirect_uris": [f"http://127.0.0.1:{back}/callback"], "token_endpoint_auth_method": "none"}
        headers = {"content-type": "application/json"}
        request = Request(f"{url}/register", json.dumps(about).encode(), headers)  # noqa: S310  loopback
        client = json.load(browser().open(request, timeout=WAIT))["client_id"]
        command = [NODE, str(SUITE), "authorization", "--url", url, "--client-id", client, "--port", str(back)]
        command += ["--resource", f"{url}/mcp", "-o", str(tmp_path / "out")]
        command += ["--spec-version", revision] if revision else []
        with subprocess.Popen(command, cwd=FOLDER, stdout=subprocess.PIPE, text=True, env={**os.environ}) as suite:
            assert suite.stdout is not None
            printed = ""
            for line in suite.stdout:
                printed += line
                if line.startswith(f"{url}/authorize?"):
                    page = browser().open(line.strip(), timeout=WAIT)
                    where = person(page.read().decode(), page.headers["set-cookie"], url)
                    browser().open(where, timeout=WAIT).close()
            assert suite.wait(WAIT) == 0, printed
    checks = read(tmp_path / "out")
    assert {check.status for check in checks} == {"SUCCESS"}, checks
    assert len(checks) >= len(SCENARIOS), printed
