from pathlib import Path
from typing import Any

import pytest

from cases import for_each
from millstream import Server
from millstream.extensions.apps import Apps
from millstream.protocol import BY_DATE
from millstream.testing import connect
from processes import ROOT

MIME = "text/html;profile=mcp-app"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with two views and another file."""
    root = tmp_path / "orders"
    root.mkdir()
    (root / "table.html").write_text("<!doctype html><p>é</p>", "utf-8")
    (root / "list.html").write_text("<!doctype html>", "utf-8")
    (root / "notes.txt").write_text("no view", "utf-8")
    return root


@for_each("revision", list(BY_DATE)[2:])
async def test_views_are_resources_with_their_metadata(folder: Path, revision: str) -> None:
    server = Server("shop")
    server.extend(Apps()).add(
        folder, connect=["https://api.example.com"], resources=["https://*.example.com"],
        frames=["https://a.example"],
        base_uris=["https://b.example:8443"], permissions=["camera", "clipboard-write"],
        domain="x.example", border=True,
    )  # fmt: skip
    meta: dict[str, Any] = {
        "csp": {
            "connectDomains": ["https://api.example.com"], "resourceDomains": ["https://*.example.com"],
            "frameDomains": ["https://a.example"], "baseUriDomains": ["https://b.example:8443"],
        },
        "permissions": {"camera": {}, "clipboardWrite": {}}, "domain": "x.example", "prefersBorder": True,
    }  # fmt: skip
    async with connect(server, revision=revision) as client:
        listed = {each.uri: each for each in await client.resources()}
        assert set(listed) == {"ui://orders/table", "ui://orders/list"}
        assert (listed["ui://orders/table"].mime_type, listed["ui://orders/table"].meta) == (MIME, {"ui": meta})
        (read,) = await client.read("ui://orders/table")
        assert (read.mime_type, read.text, read.meta) == (MIME, "<!doctype html><p>é</p>", {"ui": meta})
        (folder / "table.html").write_text("changed", "utf-8")
        (read,) = await client.read("ui://orders/table", fresh=True)
        assert read.text == "changed"
        (folder / "table.html").write_text("<!doctype html><p>é</p>", "utf-8")
        assert client.server_extensions["io.modelcontextprotocol/ui"] == {}


async def test_view_may_be_a_link_to_another_folder(folder: Path, tmp_path: Path) -> None:
    link = tmp_path / "linked" / "orders.html"
    link.parent.mkdir()
    link.symlink_to(folder / "table.html")
    server = Server("shop")
    server.extend(Apps()).add(link)
    async with connect(server) as client:
        (read,) = await client.read("ui://orders/orders")
        assert read.text == "<!doctype html><p>é</p>"


async def test_tools_are_linked_to_their_views(folder: Path) -> None:
    server = Server("shop")
    apps = server.extend(Apps())
    apps.add(folder / "table.html", uri="ui://shop/orders")

    @apps.tool("ui://shop/orders", meta={"com.example/x": 1})
    def orders() -> list[int]:
        """Return the orders."""
        return [1]

    @apps.tool("ui://shop/orders", visibility=["app"])
    def refresh() -> list[int]:
        """Return the orders again."""
        return [2]

    async with connect(server) as client:
        found = {tool.name: tool.meta for tool in await client.tools()}
    uri = "ui://shop/orders"
    assert found["orders"] == {"ui": {"resourceUri": uri}, "ui/resourceUri": uri, "com.example/x": 1}
    assert found["refresh"]["ui"] == {"resourceUri": uri, "visibility": ["app"]}


async def test_tools_with_missing_views_prevent_startup() -> None:
    server = Server("shop")

    @server.extend(Apps()).tool("ui://shop/none")
    def orders() -> list[int]:
        """Return the orders."""
        return [1]

    with pytest.raises(Exception, match=r"the tool 'orders' shows 'ui://shop/none'"):
        async with server.running():
            raise AssertionError

    @server.resource("ui://shop/none", mime_type=MIME)
    def view() -> str:
        """Return a generated view."""
        return "<!doctype html>"

    async with server.running():
        pass


def test_invalid_options_are_rejected_with_a_hint(folder: Path) -> None:
    apps = Server("shop").extend(Apps())
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"connect": ["api.example.com"]}, "write origins such as"),
        ({"resources": ["https://a.example; script-src *"]}, "write origins such as"),
        ({"permissions": ["usb"]}, "permissions contains 'usb'"),
        ({"uri": "http://x"}, "start it with ui://"),
    ]
    for options, text in mistakes:
        with pytest.raises(ValueError, match=text):
            apps.add(folder / "table.html", **options)
    with pytest.raises(TypeError, match="app has no option 'scripts'"):
        apps.add(folder, scripts=[])  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="There is no file or folder"):
        apps.add(folder / "none.html")
    (folder / "bad.html").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"bad\.html isn't UTF-8"):
        apps.add(folder / "bad.html")
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match=r"contains no \.html file"):
        apps.add(folder / "empty")
    with pytest.raises(ValueError, match=r"use \['model'\]"):
        apps.tool("ui://a/b", name="x", visibility=["user"])(lambda: 1)  # type: ignore[list-item]


async def test_documented_example_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / "examples")
    from examples import charted  # noqa: PLC0415  it reads its folder

    assert charted.mcp.extension(Apps) is not None
    async with connect(charted.mcp) as client:
        result = await client.call("sales", year=2026)
        assert (result.text, result.data["months"][1]["copies"]) == ("42 books were sold in 2026.", 30)
        (view,) = await client.read("ui://charts/sales")
        assert "ui/notifications/tool-result" in (view.text or "")
        assert view.meta == {"ui": {"prefersBorder": True}}
