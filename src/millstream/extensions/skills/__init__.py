"""Skills (``io.modelcontextprotocol/skills``): instructions for models, as folders or in code.

``skills.add("skills/")`` serves folders with a `SKILL.md`, ``@skills.skill`` defines a skill by a function, and
``await client.skills()`` lists the skills of a server.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload
from urllib.parse import quote, unquote

from msgspec import Struct

from millstream import EmbeddedResource, ProtocolError, ResourceContents
from millstream._override import override
from millstream.extensions import Extension, method
from millstream.extensions.skills._sources import (
    FunctionSkill,
    SkillError,
    SkillFolder,
    SkillOptions,
    media_type,
    skill_of,
)
from millstream.protocol import INVALID_PARAMS, SKILL_FILE, SKILLS, Json, Skill, shorten

if TYPE_CHECKING:
    from millstream import Server
    from millstream.extensions import Host

__all__ = ["SkillOptions", "Skills"]

F = TypeVar("F", bound=Callable[..., Any])
_TEMPLATE = "skill://{path*}"
_DIRECTORY = "inode/directory"
"""The media type of a directory."""


class _Page(Struct):
    cursor: str | None = None


class _Uri(Struct):
    uri: str
    cursor: str | None = None


class Skills(Extension):
    """The skills of a server.

    Example:
        ``skills = mcp.extend(Skills())``, then ``skills.add("skills/")`` or ``@skills.skill`` on a function.
    """

    name = SKILLS
    settings: Mapping[str, Any] | None = {"directoryRead": True}
    _page_size = 0

    def __init__(self) -> None:
        self._folders: list[SkillFolder] = []
        self._functions: dict[str, FunctionSkill] = {}
        """URI of the `SKILL.md` -> skill."""
        self._hints: Json = {}

    @override
    def register(self, server: "Server") -> None:
        """Serve all files through one resource template."""
        server.resource(_TEMPLATE, name="skills", description="Files of this server's skills.")(self._read_resource)

    @override
    async def open(self, host: "Host") -> None:
        """Read the page size and the caching hints from the settings."""
        self._page_size = host.settings.page_size
        scope = "private" if host.private else "public"
        self._hints = {"ttlMs": host.settings.list_ttl_ms, "cacheScope": scope}

    # Registration

    def add(self, folder: str | PathLike[str], *, prefix: str = "") -> None:
        """Offer the skills of a folder: directories in it with a `SKILL.md`, or the folder itself.

        Changes to the files show within a second. Hidden files, and files outside the folder, even through symbolic
        links, aren't read. A skill has at most 512 files and 16 MiB.

        Args:
            folder: Path of the folder, relative to the current directory.
            prefix: Beginning of the URIs, after ``skill://``.

        Raises:
            ValueError: The folder doesn't exist, contains no skill, or contains an invalid one.
            MissingExtra: The extra ``skills`` isn't installed.

        Example:
            ``skills.add("skills/")``
        """
        added = SkillFolder(fspath(folder), prefix)
        self._add(added.snapshot().skills.values())
        self._folders.append(added)

    @overload
    def skill(self, function: F, /) -> F: ...
    @overload
    def skill(self, /, **options: Unpack[SkillOptions]) -> Callable[[F], F]: ...
    def skill(self, function: Any = None, /, **options: Unpack[SkillOptions]) -> Any:
        """Offer a skill with instructions from a function: ``@skills.skill``, or ``@skills.skill(name="refunds")``.

        Keyword options: see `SkillOptions`.

        Args:
            function: The function, without parameters. It returns the text of the `SKILL.md`.
            options: The options of `SkillOptions`, such as ``name`` and ``description``.

        Raises:
            ValueError: The skill is invalid, or its URI is already used.
            TypeError: The function takes arguments, or doesn't return text.
        """

        def register(function: F) -> F:
            added = skill_of(function, options)
            self._add([added.skill])
            self._functions[added.skill.uri] = added
            return function

        return register if function is None else register(function)

    def _add(self, skills: Collection[Skill]) -> None:
        known = self._all()
        for skill in skills:
            if skill.uri in known:
                raise SkillError(f"There is already a skill {skill.uri}. Give one of them a prefix.")
        for skill in skills:
            self._list(skill)

    def _list(self, skill: Skill) -> None:
        """List a `SKILL.md` as a resource, for clients without the skills extension."""

        async def read_skill() -> EmbeddedResource | None:
            return await self._read_resource(unquote(skill.uri.removeprefix("skill://")))

        self.server.resource(
            skill.uri, name=skill.name, description=skill.description, mime_type=media_type(SKILL_FILE)
        )(read_skill)

    # Methods

    @method("skills/list")
    async def _list_skills(self, params: _Page) -> Json:
        """Return a page of the skills, sorted by URI."""
        skills = await asyncio.to_thread(self._all)
        page, more = self._page(sorted(skills), params.cursor)
        return {"skills": [skills[uri] for uri in page], **more, **self._hints}

    @method("skills/get")
    async def _get_skill(self, params: _Uri) -> Json:
        skill = (await asyncio.to_thread(self._all)).get(params.uri)
        if skill is None:
            raise ProtocolError(INVALID_PARAMS, f"No skill is served at {shorten(params.uri)}.")
        return {"skill": skill, **self._hints}

    @method("resources/directory/read")
    async def _read_directory(self, params: _Uri) -> Json:
        """Return a page of a directory's entries, sorted by URI."""
        children = await asyncio.to_thread(self._children, params.uri)
        if children is None:
            raise ProtocolError(INVALID_PARAMS, f"{shorten(params.uri)} isn't a directory resource.")
        page, more = self._page(sorted(children), params.cursor)
        return {"resources": [children[uri] for uri in page], **more}

    def _page(self, uris: list[str], cursor: str | None) -> tuple[list[str], dict[str, str]]:
        """Return a page of sorted URIs, and the cursor of the next page, which is the last URI of this one."""
        if cursor is not None and "://" not in cursor:
            raise ProtocolError(INVALID_PARAMS, "Invalid params: unknown cursor")
        remaining = uris if cursor is None else [uri for uri in uris if uri > cursor]
        page = remaining[: self._page_size]
        return page, {"nextCursor": page[-1]} if len(page) < len(remaining) else {}

    # Contents

    def _all(self) -> dict[str, Skill]:
        found = {uri: each.skill for uri, each in self._functions.items()}
        for folder in self._folders:
            found |= folder.snapshot().skills
        return found

    def _children(self, uri: str) -> dict[str, Json] | None:
        """Return the entries of a directory by URI, or None if it doesn't exist."""
        base, skills = f"{uri}/", self._all()
        sizes: dict[str, int | None] = {}
        for each, skill in skills.items():
            if isinstance(skill.resources, str):  # a dynamic skill has no manifest
                sizes |= {each: None, **{file: len(data) for file, data in self._functions[each].content.items()}}
            else:
                sizes |= {file.uri: file.size for file in skill.resources}
        found: dict[str, Json] = {}
        for each, size in sizes.items():
            if not each.startswith(base):
                continue
            first, below, _ = each[len(base) :].partition("/")
            child = base + first
            if below:
                found[child] = {"uri": child, "name": unquote(first), "mimeType": _DIRECTORY}
                continue
            entry = {"uri": child, "name": unquote(first), "mimeType": media_type(first)}
            if child in skills:
                entry |= {"name": skills[child].name, "description": skills[child].description}
            found[child] = entry if size is None else {**entry, "size": size}
        return found if found and uri.startswith("skill://") and not uri.endswith("/") else None

    # Reading

    async def _read_resource(self, path: str) -> EmbeddedResource | None:
        """Return the contents of a file, or None if there's none at the path."""
        uri = f"skill://{quote(path)}"
        for each in self._functions.values():
            data = each.content.get(uri)
            if data is None and each.make is not None and uri == each.skill.uri:
                data = (await each.make()).encode()
            if data is not None:
                return _contents(data, media_type(path))
        for folder in self._folders:
            result = await asyncio.to_thread(folder.read, path)
            if result is not None:
                return _contents(*result)
        return None


def _contents(data: bytes, kind: str) -> EmbeddedResource:
    try:
        contents = ResourceContents("", kind, text=data.decode())
    except UnicodeDecodeError:
        binary = "application/octet-stream" if kind.startswith("text/") else kind
        contents = ResourceContents("", binary, blob=data)
    return EmbeddedResource(resource=contents)
