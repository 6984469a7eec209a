import os
from pathlib import Path
from typing import Any

import pytest

from cases import for_each
from millstream import Client, Context, Server
from millstream._app import folder as offered
from millstream._app.folder import Folder
from millstream.client import ServerError
from patience import WAIT


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder, with files beside it and links that lead outside."""
    place = tmp_path / "docs"
    (place / "guide").mkdir(parents=True)
    (place / ".git").mkdir()
    (tmp_path / "secret.txt").write_text("secret", "utf-8")
    (place / "a b.md").write_text("# Start", "utf-8")
    (place / "guide" / "logo.png").write_bytes(b"\x89PNG\xff")
    (place / ".git" / "config").write_text("secret", "utf-8")
    (place / ".env").write_text("secret", "utf-8")
    (place / "out.txt").symlink_to(tmp_path / "secret.txt")
    (place / "up").symlink_to(tmp_path)
    (place / "seen.txt").symlink_to(place / ".env")
    (place / "loop").symlink_to(place / "loop")
    (place / "inside.md").symlink_to(place / "a b.md")
    return place


@for_each("revision", ["2024-11-05", "2025-11-25", "2026-07-28"])
async def test_files_in_a_folder_are_listed_read_and_completed(place: Path, revision: str) -> None:
    mcp = Server("docs")
    mcp.files("docs://", place)

    @mcp.tool
    async def start(ctx: Context) -> str:
        listed = await ctx.read_resource("docs://")
        return str([each["path"] for each in listed])

    async with Client(mcp, revision=revision, timeout=WAIT) as client:
        assert [each.uri async for each in client.resources()] == ["docs://"]
        assert (await client.call("start")).text == "['a b.md', 'inside.md', 'guide/logo.png']"
        (text,) = await client.read("docs://a%20b.md")
        assert (text.uri, text.mime_type, text.text) == ("docs://a%20b.md", "text/markdown", "# Start")
        (image,) = await client.read("docs://guide/logo.png")
        assert (image.mime_type, image.blob) == ("image/png", b"\x89PNG\xff")
        if revision != "2024-11-05":
            assert (await client.complete("path", "gu", template="docs://{path*}")).values == ["guide/logo.png"]
    other = Server("outer")
    other.mount(mcp, prefix="in")
    async with Client(other, revision=revision, timeout=WAIT) as client:
        (text,) = await client.read("docs://in/a%20b.md")
        assert (text.uri, text.text) == ("docs://in/a%20b.md", "# Start")


@for_each(
    "path",
    ["../secret.txt", "..%2Fsecret.txt", "%2e%2e/secret.txt", "guide/../../secret.txt", "out.txt", "up/secret.txt",
     ".env", "%2Eenv", ".git/config", "seen.txt", "loop", "guide", "guide/", "/etc/passwd", "%2Fetc%2Fpasswd", "a%00b",
     "..%5Csecret.txt", "nothing.md", "x" * 5000],
)  # fmt: skip
async def test_files_outside_the_folder_are_not_read(place: Path, path: str) -> None:
    """MCP 2025-11-25, server/resources."""
    mcp = Server("docs")
    mcp.files("docs://", place)
    async with Client(mcp, timeout=WAIT) as client:
        with pytest.raises(ServerError, match="not found"):
            await client.read(f"docs://{path}")


async def test_oversized_files_and_missing_folders_are_rejected(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offered, "MAX_BYTES", 3)
    mcp = Server("docs")
    mcp.files("docs://", place)
    async with Client(mcp, timeout=WAIT) as client:
        with pytest.raises(ServerError, match="more than 3 bytes"):
            await client.read("docs://a%20b.md")
    for uri, path, why in (("docs://", place / "no", "no folder"), ("docs:", place, "slash"), ("/", place, "scheme")):
        with pytest.raises(ValueError, match=why):
            Server("x").files(uri, path)


def test_slow_listings_are_cached_longer(tmp_path: Path) -> None:
    now = [100.0]
    for number in range(3_000):
        (tmp_path / f"{number:04}").touch()
    folder = Folder(str(tmp_path), clock=lambda: now[0])
    assert len(folder.files()) == 3_000
    (tmp_path / "new").touch()
    assert len(folder.files()) == 3_000
    now[0] += 3_600
    assert len(folder.files()) == 3_001


def test_small_folders_are_not_cached(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path), clock=lambda: 100.0)
    assert folder.files() == []
    (tmp_path / "new").touch()
    assert [path for path, _ in folder.files()] == ["new"]


def test_completion_reads_only_matching_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/one", "a/b/two", "a/c/three", "d/four"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(tmp_path.parent)
    visited: list[str] = []
    scandir = os.scandir

    def noting(place: Any) -> Any:
        visited.append(Path(place).relative_to(tmp_path.parent).as_posix().removeprefix(tmp_path.name))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", noting)
    folder = Folder(str(tmp_path))
    assert list(folder.matching_paths("a/b")) == ["a/b/two"]
    assert visited == ["/a", "/a/b"]
    visited.clear()
    for outside in ("../", "/etc/", "link/", ".a", "a/../../", "nowhere/"):
        assert list(folder.matching_paths(outside)) == []
    assert set(visited) <= {"/nowhere"}
    assert sorted(folder.matching_paths("")) == ["a/b/two", "a/c/three", "a/one", "d/four"]
