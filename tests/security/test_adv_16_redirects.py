"""Redirects that leak headers and bodies (CVE-2026-116685, CVE-2026-111769): clients send nothing meant for one origin
to another. test_adv_17_ssrf.py tests the server's own requests.
"""

import pytest

from cases import for_each
from client.misbehaving_servers import DONE, ReceivedRequest, misbehaving, with_discovery
from millstream import Client
from millstream.client._errors import ClientError, NotMcp
from millstream.client._oauth.endpoints import ProtectedResource, fetch, get_json

TOKEN = "Bearer of-the-first-server-only"
STATUSES = [301, 302, 303, 307, 308]


@for_each("status", STATUSES)
@for_each("form", ["http://{host}/mcp", "//{host}/mcp", "http://a@{host}/mcp", "http:\\\\{host}/mcp"])
async def test_redirects_to_another_origin_carry_no_headers_or_body(status: int, form: str) -> None:
    async with misbehaving(with_discovery(lambda asked: asked.result(DONE))) as second:
        host = second.url.removeprefix("http://").partition("/")[0]

        async def behave(asked: ReceivedRequest) -> None:
            where = form.format(host=host)
            await asked.reply(b"", status=f"{status} Elsewhere", more=f"Location: {where}\r\n")

        async with misbehaving(behave) as first:
            headers = {"Authorization": TOKEN}
            with pytest.raises(ClientError):
                async with Client(first.url, headers=headers) as client:
                    await client.call("x", {"secret": "body"})
        assert second.requests == []


@for_each("status", STATUSES)
async def test_token_requests_follow_no_redirect(status: int) -> None:
    async with misbehaving(with_discovery(lambda asked: asked.result(DONE))) as second:

        async def behave(asked: ReceivedRequest) -> None:
            await asked.reply(b"{}", status=f"{status} Elsewhere", more=f"Location: {second.url}\r\n")

        async with misbehaving(behave) as first:
            assert await get_json(first.url, ProtectedResource) is None
            reply = await fetch("POST", first.url, headers={"Authorization": "Basic x"}, body=b"client_secret=x")
            assert reply.status == status
            assert (await fetch("POST", first.url, body=b"{}")).status == status
        assert second.requests == []


async def test_redirects_to_http_or_files_are_not_followed() -> None:
    for where in ("https://127.0.0.1:1/mcp", "file:///etc/passwd", "javascript:alert(1)", "gopher://127.0.0.1/"):

        async def behave(asked: ReceivedRequest, where: str = where) -> None:
            await asked.reply(b"", status="307 Elsewhere", more=f"Location: {where}\r\n")

        async with misbehaving(behave) as first:
            with pytest.raises((NotMcp, ClientError, ValueError)):
                async with Client(first.url, headers={"Authorization": TOKEN}):
                    pass
