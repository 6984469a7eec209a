"""Files that are replaced while they're served: by links that lead outside, and by the next version of a ConfigMap.

An audit hook of Python replaces them at the moment when they're opened.
"""

import os
import shutil
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from millstream import Client, Server
from millstream.client import ClientError
from millstream.extensions.apps import Apps
from millstream.extensions.skills import Skills
from millstream.files import open_file
from patience import WAIT
from wire import run_wire

Read = Callable[[], Awaitable[str]]
SKILL = "---\nname: notes\ndescription: Notes\n---\n"
_swap: list[Callable[[str], bool]] = []
"""Called with the path of each file that is opened, until it returns True."""


def _on_event(event: str, arguments: tuple[Any, ...]) -> None:
    if _swap and event == "open" and isinstance(arguments[0], str | os.PathLike):
        swap = _swap.pop()
        if not swap(os.fspath(arguments[0])):
            _swap.append(swap)


sys.addaudithook(_on_event)


@pytest.fixture(autouse=True)
def _no_swap() -> Any:
    yield
    _swap.clear()


def replace_with_link(place: Path, target: Path) -> None:
    """Replace a file or a folder by a link, without a moment in which there is neither for files."""
    draft = place.with_name(f".{place.name}.new")
    draft.unlink(missing_ok=True)
    draft.symlink_to(target)
    if place.is_dir() and not place.is_symlink():
        place.rename(place.with_name(f".{place.name}.old"))
    draft.replace(place)


@asynccontextmanager
async def reading(way: str, folder: Path) -> AsyncIterator[Read]:
    """A function that reads the file ``notes/page.html`` through one of the features that serve files."""
    mcp = Server("s")
    mcp.files("docs://", folder)
    mcp.static("/app", folder)
    mcp.extend(Skills()).add(folder)
    mcp.extend(Apps()).add(folder / "notes", uri="ui://notes")
    if way == "static":
        async with run_wire(mcp, "lane") as wire:

            async def get() -> str:
                return (await wire.ask("GET", "/app/notes/page.html", {"host": "127.0.0.1"}, b"")).body.decode()

            yield get
        return
    uri = {"files": "docs://notes/page.html", "skills": "skill://notes/page.html", "apps": "ui://notes/page"}[way]
    async with Client(mcp, timeout=WAIT) as client:

        async def read() -> str:
            try:
                return (await client.read(uri))[0].text or ""
            except ClientError as exc:
                return str(exc)

        yield read


def fill(folder: Path, text: str) -> Path:
    """Write the files of a folder."""
    folder.mkdir(parents=True)
    (folder / "SKILL.md").write_text(SKILL)
    (folder / "page.html").write_text(text)
    return folder


WAYS = ("files", "static", "skills", "apps")


def replacing(docs: Path, what: str, outside: Path) -> Callable[[str], bool]:
    """Return a function that replaces the file or its folder by a link when the file is opened."""

    def swap(path: str) -> bool:
        if not path.endswith("page.html"):
            return False
        if what == "file":
            replace_with_link(docs / "notes" / "page.html", outside / "page.html")
        else:
            replace_with_link(docs / "notes", outside)
        return True

    return swap


@pytest.mark.parametrize(
    ("way", "what"), [*((way, "file") for way in WAYS), *((way, "folder") for way in ("files", "static", "skills"))]
)
async def test_link_that_replaces_a_file_while_it_is_opened_is_not_followed(
    way: str, what: str, tmp_path: Path
) -> None:
    docs, outside = tmp_path / "docs", fill(tmp_path / "elsewhere", "SECRET")
    fill(docs / "notes", "inside")
    async with reading(way, docs) as read:
        assert await read() == "inside"
        _swap.append(replacing(docs, what, outside))
        shown = await read()
        assert not _swap
        assert "SECRET" not in shown
        assert "SECRET" not in await read()


@pytest.mark.parametrize("what", ["file", "folder"])
def test_link_is_not_followed_where_the_system_does_not_tell_the_path_of_an_open_file(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, or in a container without /proc."""
    readlink = os.readlink

    def without_proc(path: Any, **options: Any) -> Any:
        if str(path).startswith("/proc/"):
            raise FileNotFoundError(path)
        return readlink(path, **options)

    monkeypatch.setattr(os, "readlink", without_proc)
    docs, outside = tmp_path / "docs", fill(tmp_path / "elsewhere", "SECRET")
    page = fill(docs / "notes", "inside") / "page.html"
    file = open_file(docs, page)
    assert file is not None
    file.close()
    _swap.append(replacing(docs, what, outside))
    assert open_file(docs, page) is None
    assert not _swap


def test_link_that_changes_all_the_time_never_leads_outside(tmp_path: Path) -> None:
    inside, outside = fill(tmp_path / "docs" / "notes", "inside"), fill(tmp_path / "elsewhere", "SECRET")
    stop = threading.Event()

    def swap() -> None:
        page, draft = inside / "page.html", inside / ".draft"
        while not stop.is_set():
            replace_with_link(page, outside / "page.html")
            draft.write_text("inside")
            draft.replace(page)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(2_000):
            file = open_file(tmp_path / "docs", inside / "page.html")
            if file is not None:
                with file:
                    assert file.read() in {b"inside", b""}
    finally:
        stop.set()
        thread.join()


@pytest.fixture
def volume(tmp_path: Path) -> Callable[[str], None]:
    """Publish a version of a ConfigMap in ``docs``, as the kubelet does, which also deletes the previous one.

    https://github.com/kubernetes/kubernetes/blob/v1.31.0/pkg/volume/util/atomic_writer.go
    """
    root, versions = tmp_path / "docs", iter(range(100_000))

    def publish(text: str) -> None:
        root.mkdir(exist_ok=True)
        new = root / f"..2026_11_27_10_00_00.{next(versions):09}"
        fill(new / "notes", text)
        (new / "top.txt").write_text(text)
        before = (root / "..data").resolve()
        (root / "..data_tmp").symlink_to(new.name)
        (root / "..data_tmp").replace(root / "..data")
        for name in ("notes", "top.txt"):
            with suppress(FileExistsError):
                (root / name).symlink_to(f"..data/{name}")
        if before != root / "..data":
            shutil.rmtree(before)

    return publish


@pytest.mark.parametrize("way", WAYS)
async def test_config_map_is_read_while_it_is_replaced(way: str, tmp_path: Path, volume: Callable[[str], None]) -> None:
    volume("one")

    def swap(path: str) -> bool:
        if not path.endswith("page.html"):
            return False
        volume("two")
        return True

    async with reading(way, tmp_path / "docs") as read:
        assert await read() == "one"
        _swap.append(swap)
        assert await read() == "two"
        assert not _swap
        volume("three")
        assert await read() == "three"


async def test_files_of_a_config_map_are_listed_by_their_visible_names(
    tmp_path: Path, volume: Callable[[str], None]
) -> None:
    volume("one")
    mcp = Server("s")
    mcp.files("docs://", tmp_path / "docs")
    mcp.extend(Skills()).add(tmp_path / "docs")
    async with Client(mcp, timeout=WAIT) as client:
        (listed,) = await client.read("docs://")
        for path in ("notes/SKILL.md", "notes/page.html", "top.txt"):
            assert f'"path":"{path}"' in (listed.text or "").replace(" ", "")
        assert "..2026" not in (listed.text or "")
        assert [each.uri for each in await client.skills()] == ["skill://notes/SKILL.md"]
        assert (await client.complete("path", "notes/p", template="docs://{path*}")).values == ["notes/page.html"]
        for hidden in ("..data/top.txt", "..data/notes/page.html"):
            with pytest.raises(ClientError, match="not found"):
                await client.read(f"docs://{hidden}")


async def test_single_folder_of_a_config_map_is_found_again(tmp_path: Path, volume: Callable[[str], None]) -> None:
    """The served folder itself is a link to the current version."""
    volume("one")
    mcp = Server("s")
    mcp.files("docs://", tmp_path / "docs" / "notes")
    mcp.extend(Skills()).add(tmp_path / "docs" / "notes")
    async with Client(mcp, timeout=WAIT) as client:
        for text in ("one", "two", "three"):
            volume(text) if text != "one" else None
            for uri in ("docs://page.html", "skill://notes/page.html"):
                assert (await client.read(uri))[0].text == text


def test_opened_files_are_regular_visible_and_inside(tmp_path: Path) -> None:
    root, outside = fill(tmp_path / "root", "inside"), fill(tmp_path / "elsewhere", "SECRET")
    (root / ".hidden").write_text("SECRET")
    (root / "..two").mkdir()
    (root / "..two" / ".hidden").write_text("SECRET")
    (root / "sub" / "..two").mkdir(parents=True)
    (root / "sub" / "..two" / "x").write_text("SECRET")
    os.mkfifo(root / "pipe")
    for name, target in {
        "out": outside / "page.html", "up": tmp_path, "null": Path("/dev/null"), "to_pipe": root / "pipe",
        "to_hidden": root / ".hidden", "loop": root / "loop", "deep": root / "..two" / ".hidden",
        "nowhere": root / "no", "not_top": root / "sub" / "..two" / "x",
    }.items():  # fmt: skip
        (root / name).symlink_to(target)
        assert open_file(root, root / name) is None, name
    (tmp_path / "alias").symlink_to(root)
    (root / "inner").symlink_to(root / "page.html")
    for name in (
        "pipe",
        "sub",
        "up/elsewhere/page.html",
        "../elsewhere/page.html",
        "x" * 5000,
        "a\0b",
        "page.html/x",
        "",
    ):
        assert open_file(root, root / name) is None, name
    for folder, name in ((root, "page.html"), (root, "inner"), (tmp_path / "alias", "inner")):
        file = open_file(folder, folder / name)
        assert file is not None
        with file:
            assert file.read() == b"inside"
