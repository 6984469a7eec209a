import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from cases import for_each
from client.misbehaving_servers import ReceivedRequest, misbehaving, with_discovery
from millstream import Client, Server, Settings
from millstream._protocol.skills import Skill
from millstream.client import ServerError, SkillMismatch
from millstream.extensions.skills import Skills, _sources
from millstream.extensions.skills._sources import SkillFolder
from millstream.protocol import BY_DATE, FrontmatterError, read_frontmatter
from millstream.testing import connect
from processes import ROOT

TEXT = "---\nname: {name}\ndescription: About {name}\nlicense: MIT\nmetadata:\n  since: 2026-01-02\n---\n\n# Body\n"


def write(folder: Path, path: str, text: str | bytes = "x") -> Path:
    """Write one file."""
    place = folder / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(text if isinstance(text, bytes) else text.encode())
    return place


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with two nested skills and a binary file."""
    root = tmp_path / "skills"
    write(root, "acme/refunds/SKILL.md", TEXT.format(name="refunds"))
    write(root, "acme/refunds/assets/a b.bin", b"\xff\x00")
    write(root, "acme/refunds/later/SKILL.md", TEXT.format(name="later"))
    write(root, "acme/refunds/.secret", "hidden")
    write(tmp_path, "outside.md", "outside")
    return root


def served(folder: Path, **more: Any) -> Server:
    """Return a server with the skills of the folder."""
    server = Server("shop", **more)
    server.extend(Skills()).add(folder)
    return server


@for_each("revision", list(BY_DATE))
async def test_folder_is_served_with_a_valid_manifest(folder: Path, revision: str) -> None:
    async with connect(served(folder), revision=revision) as client:
        refunds, later = await client.skills()
        assert (refunds.uri, later.uri) == ("skill://acme/refunds/SKILL.md", "skill://acme/refunds/later/SKILL.md")
        assert refunds.frontmatter == {
            "name": "refunds", "description": "About refunds", "license": "MIT", "metadata": {"since": "2026-01-02"}
        }  # fmt: skip
        assert isinstance(refunds.resources, list)
        assert [each.uri.removeprefix(refunds.root) for each in refunds.resources] == [
            "/SKILL.md", "/assets/a%20b.bin", "/later/SKILL.md"
        ]  # fmt: skip
        data = await client.read_skill(refunds, "assets/a%20b.bin")
        entry = refunds.entry(refunds.uri_of("assets/a%20b.bin"))
        assert entry is not None
        assert (data, entry.size) == (b"\xff\x00", 2)
        assert entry.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
        assert (await client.read_skill(refunds)).decode() == TEXT.format(name="refunds")
        assert await client.skill(refunds.uri) == refunds
        shown = {each.uri: (each.name, each.mime_type) for each in await client.resources()}
        assert shown[refunds.uri] == ("refunds", "text/markdown")


async def test_directories_are_read_one_level_at_a_time(folder: Path) -> None:
    async with connect(served(folder)) as client:
        read = await client.request("resources/directory/read", {"uri": "skill://acme/refunds"})
        size = len(TEXT.format(name="refunds").encode())
        assert [(each["name"], each["mimeType"], each.get("size", "none")) for each in read["resources"]] == [
            ("refunds", "text/markdown", size),
            ("assets", "inode/directory", "none"),
            ("later", "inode/directory", "none"),
        ]
        top = await client.request("resources/directory/read", {"uri": "skill://acme"})
        assert [each["uri"] for each in top["resources"]] == ["skill://acme/refunds"]
        for uri in ("skill://acme/refunds/SKILL.md", "skill://acme/", "skill://nothing", "https://acme"):
            with pytest.raises(ServerError, match="isn't a directory resource"):
                await client.request("resources/directory/read", {"uri": uri})
        with pytest.raises(ServerError, match="No skill is served at"):
            await client.skill("skill://acme/refunds/assets/SKILL.md")


async def test_skill_lists_are_paginated(folder: Path) -> None:
    server = served(folder, settings=Settings(page_size=1, list_ttl_ms=7))
    async with connect(server) as client:
        first = await client.request("skills/list")
        assert (len(first["skills"]), first["ttlMs"], first["cacheScope"]) == (1, 7, "public")
        second = await client.request("skills/list", {"cursor": first["nextCursor"]})
        assert "nextCursor" not in second
        assert len(await client.skills()) == 2
        page = await client.request("resources/directory/read", {"uri": "skill://acme/refunds"})
        assert len(page["resources"]) == 1
        with pytest.raises(ServerError, match="unknown cursor"):
            await client.request("skills/list", {"cursor": "7"})


async def test_files_outside_the_folder_are_not_served(folder: Path) -> None:
    (folder / "acme/refunds/leak.md").symlink_to(folder.parent / "outside.md")
    (folder / "acme/refunds/loop").symlink_to(folder / "acme/refunds/loop")
    (folder / "acme/refunds/inner.md").symlink_to(folder / "acme/refunds/SKILL.md")
    write(folder.parent, "elsewhere/SKILL.md", TEXT.format(name="elsewhere"))
    (folder / "elsewhere").symlink_to(folder.parent / "elsewhere")
    async with connect(served(folder)) as client:
        skills = await client.skills()
        names = {each.uri for skill in skills if isinstance(skill.resources, list) for each in skill.resources}
        assert not [each for each in names if "leak" in each or "secret" in each or "elsewhere" in each]
        assert any(each.endswith("/inner.md") for each in names)
        for uri in (
            "skill://acme/refunds/leak.md", "skill://acme/refunds/.secret", "skill://acme/../../outside.md",
            "skill://acme/refunds/%2e%2e/%2e%2e/%2e%2e/outside.md", "skill://acme/refunds", "skill://",
        ):  # fmt: skip
            with pytest.raises(ServerError):
                await client.read(uri)
    place = folder / "acme/refunds/assets/a b.bin"
    watched = SkillFolder(str(folder))
    assert watched.read("acme/refunds/assets/a b.bin") == (b"\xff\x00", "application/octet-stream")
    place.unlink()
    place.symlink_to(folder.parent / "outside.md")
    assert watched.read("acme/refunds/assets/a b.bin") is None


def test_only_changed_files_are_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    skills = SkillFolder(str(folder), clock=lambda: now[0])
    digests: list[bytes] = []

    def digest_of(data: bytes) -> str:
        digests.append(data)
        return f"sha256:{'0' * 64}"

    monkeypatch.setattr(_sources, "digest_of", digest_of)
    place = folder / "acme/refunds/later/SKILL.md"
    place.write_text("---\nname: other\n---\n")
    assert len(skills.snapshot().skills) == 2
    now[0] = 100.0
    assert list(skills.snapshot().skills) == ["skill://acme/refunds/SKILL.md"]
    assert digests == [b"---\nname: other\n---\n"]
    place.write_text(TEXT.format(name="later"))
    now[0] = 200.0
    assert len(skills.snapshot().skills) == 2


@for_each(
    ("text", "problem"),
    [
        ("# nothing", "doesn't begin with YAML"),
        ("---\nname: a\n", "doesn't begin with YAML"),
        ("---\nname: wrong\ndescription: x\n---\n", "its name is 'wrong', but its folder is 'bad'"),
        ("---\nname: Bad\ndescription: x\n---\n", "lowercase letters"),
        ("---\nname: bad\n---\n", "no description"),
        ("---\n- bad\n---\n", "isn't a YAML mapping"),
        ("---\nname: bad\ndescription: [\n---\n", "isn't YAML"),
        ("---\na: &a [1]\nname: bad\ndescription: x\nb: *a\n---\n", "YAML alias"),
        ("---\nname: bad\ndescription: x\nsize: .inf\n---\n", "a value that JSON can't represent"),
        ("---\nname: bad\ndescription: x\n1: 2\n---\n", "isn't a string"),
        (b"---\nname: bad\ndescription: \xff\n---\n", "isn't UTF-8"),
    ],
)
def test_invalid_skills_prevent_startup(tmp_path: Path, text: str | bytes, problem: str) -> None:
    write(tmp_path, "skills/bad/SKILL.md", text)
    with pytest.raises(ValueError, match=problem) as refused:
        served(tmp_path / "skills")
    assert f"skills{os.sep}bad" in str(refused.value)


@for_each(
    "value", ["!!bool foo", "!!timestamp foo", f"!!float '{'1:' * 400}1'", "!!int x", "!!set a", f"0x{'f' * 5_000}"]
)
def test_malformed_skill_does_not_affect_others(folder: Path, value: str) -> None:
    now = [0.0]
    skills = SkillFolder(str(folder), clock=lambda: now[0])
    text = TEXT.format(name="later")
    place = write(folder, "acme/refunds/later/SKILL.md", text.replace("---\n", f"---\nx: {value}\n", 1))
    now[0] = 100.0
    assert list(skills.snapshot().skills) == ["skill://acme/refunds/SKILL.md"]
    assert skills.read("acme/refunds/SKILL.md")
    place.write_text(text)


def test_skill_size_and_file_count_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="There is no folder"):
        served(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"contains no skill"):
        served(tmp_path / "empty")
    write(tmp_path, "skills/many/SKILL.md", TEXT.format(name="many"))
    monkeypatch.setattr(_sources, "MAX_SKILL_BYTES", 200)
    write(tmp_path, "skills/many/large", "x" * 200)
    with pytest.raises(ValueError, match="more than 200 bytes"):
        served(tmp_path / "skills")
    monkeypatch.setattr(_sources, "MAX_SKILL_FILES", 1)
    with pytest.raises(ValueError, match="it has 2 files"):
        served(tmp_path / "skills")


def test_frontmatter_is_bounded() -> None:
    for text, problem in (
        (f"---\na: {'x' * 70_000}\n---\n", "more than 16384 bytes"),
        (f"---\na: {'[' * 40}{']' * 40}\n---\n", "levels deep"),
        (f"---\na: {'[' * 10_000}\n---\n", "levels deep"),
    ):
        with pytest.raises(FrontmatterError, match=problem):
            read_frontmatter(text)
    assert read_frontmatter("\ufeff---\r\na: 2026-01-02T03:04:05Z\r\nb: yes\r\n---") == {
        "a": "2026-01-02T03:04:05Z", "b": "yes"
    }  # fmt: skip


async def test_functions_define_skills() -> None:
    server = Server("shop")
    skills = server.extend(Skills())
    reads = [0]

    @skills.skill(files={"a/b.md": "b", "c.bin": b"\xff"}, frontmatter={"license": "MIT"})
    def gift_wrapping() -> str:
        """Wrap: it's "a gift"."""
        return "Ask for the name."

    @skills.skill(prefix="live", dynamic=True)
    async def stock() -> str:
        """The current stock."""
        reads[0] += 1
        return f"{reads[0]} left"

    async with connect(server) as client:
        gift, live = await client.skills()
        assert gift.frontmatter == {"name": "gift-wrapping", "description": 'Wrap: it\'s "a gift".', "license": "MIT"}
        assert (await client.read_skill(gift)).decode().endswith("---\n\nAsk for the name.\n")
        assert await client.read_skill(gift, "c.bin") == b"\xff"
        assert (live.uri, live.resources, reads) == ("skill://live/stock/SKILL.md", "dynamic", [0])
        for number in (1, 2):
            assert (await client.read_skill(live)).decode().endswith(f"{number} left\n")
        read = await client.request("resources/directory/read", {"uri": gift.root})
        assert [each["name"] for each in read["resources"]] == ["gift-wrapping", "a", "c.bin"]


def test_invalid_skill_functions_are_rejected() -> None:
    skills = Server("shop").extend(Skills())
    with pytest.raises(ValueError, match="no description"):
        skills.skill(lambda: "text", name="x")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="a skill's function"):
        skills.skill(description="x")(abs)
    with pytest.raises(ValueError, match=r"has a file '\.\./a'"):
        skills.skill(name="x", description="x", files={"../a": ""})(lambda: "text")
    with pytest.raises(TypeError, match="must return text"):
        skills.skill(name="x", description="x")(lambda: 7)
    skills.skill(name="x", description="x")(lambda: "text")
    with pytest.raises(ValueError, match=r"There is already a skill skill://x/SKILL\.md"):
        skills.skill(name="x", description="x")(lambda: "text")


class _MismatchedServer:
    """A server whose skill differs from its list entry."""

    def __init__(self, text: str, entry: dict[str, Any]) -> None:
        self.reads: list[str] = []
        server = self.server = Server("liar")
        lie = {"skills": [entry]}

        from millstream.extensions import Extension, method  # noqa: PLC0415

        class Lying(Extension):
            name = "io.modelcontextprotocol/skills"

            @method("skills/list")
            async def list(self) -> dict[str, Any]:
                """Return the entry."""
                return lie

        server.extend(Lying())

        @server.resource("skill://{path*}")
        def read(path: str) -> str:
            """Return the text."""
            self.reads.append(path)
            return text


def _entry(text: str, **changes: Any) -> dict[str, Any]:
    data = text.encode()
    file = {
        "uri": "skill://refunds/SKILL.md", "digest": f"sha256:{hashlib.sha256(data).hexdigest()}", "size": len(data)
    }  # fmt: skip
    entry: dict[str, Any] = {
        "uri": "skill://refunds/SKILL.md", "frontmatter": read_frontmatter(text), "resources": [file]
    }  # fmt: skip
    return {**entry, **changes}


async def test_client_rejects_files_that_differ_from_the_manifest() -> None:
    text = TEXT.format(name="refunds")
    changed = text.replace("Body", "Evil")
    for served_text, entry, problem in (
        (text + "more", _entry(text), "its manifest says"),
        (changed, _entry(text), "digest"),
        (changed, _entry(changed, frontmatter={"name": "refunds", "description": "Other"}), "frontmatter"),
        ("no frontmatter", {**_entry(text), "resources": "dynamic"}, "can't be read"),
    ):
        liar = _MismatchedServer(served_text, entry)
        async with Client(liar.server) as client:
            (skill,) = await client.skills()
            assert liar.reads == []
            with pytest.raises(SkillMismatch, match=problem):
                await client.read_skill(skill)
            if skill.resources != "dynamic":
                with pytest.raises(SkillMismatch, match="doesn't list"):
                    await client.read_skill(skill, "other.md")
            assert len(liar.reads) == 1


async def test_skill_is_requested_again_on_a_stale_connection() -> None:
    """RFC 9110 §9.2.2."""
    dead: list[str] = []

    async def behave(asked: ReceivedRequest) -> None:
        if not dead:
            dead.append(asked.method)
            raise ConnectionError
        entry = _entry(TEXT.format(name="refunds"))
        await asked.result({"resultType": "complete", "skill": entry, "ttlMs": 0, "cacheScope": "private"})

    async with misbehaving(with_discovery(behave)) as server, Client(server.url) as client:
        assert (await client.skill("skill://refunds/SKILL.md")).name == "refunds"
    assert dead == ["skills/get"]


async def test_client_skips_entries_that_hosts_must_not_load() -> None:
    text = TEXT.format(name="refunds")
    good = _entry(text)
    wrong: list[dict[str, Any]] = [
        {**good, "resources": None},
        {key: value for key, value in good.items() if key != "resources"},
        {**good, "resources": []},
        {**good, "uri": "skill://other/SKILL.md"},
        {**good, "frontmatter": {"name": "refunds"}},
        {**good, "frontmatter": {"description": "x"}},
        {**good, "resources": [*good["resources"], {**good["resources"][0], "uri": "skill://b/c"}]},
        {
            **good,
            "resources": [*good["resources"], {**good["resources"][0], "uri": "skill://refunds/b", "size": 2**24}],
        },
    ]
    for bad in wrong:
        async with Client(_MismatchedServer(text, bad).server) as client:
            assert await client.skills() == []
    async with Client(_MismatchedServer(text, good).server) as client:
        assert [skill.name for skill in await client.skills()] == ["refunds"]
    async with Client(Server("plain")) as client:
        assert await client.skills() == []
        with pytest.raises(ServerError, match="Method not found"):
            await client.skill("skill://refunds/SKILL.md")


async def test_documented_example_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / "examples")
    from examples import skilled  # noqa: PLC0415  it reads its folder

    async with connect(skilled.mcp) as client:
        skills: list[Skill] = await client.skills()
        assert [skill.name for skill in skills] == ["gift-wrapping", "refunds"]
        assert b"{amount}" in await client.read_skill(skills[1], "templates/granted.md")
    assert "# Refunds" in await skilled.load(skilled.mcp)  # type: ignore[arg-type]
