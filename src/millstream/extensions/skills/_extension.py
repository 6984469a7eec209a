"""`Skills`: the methods of the skills extension on a server."""

import asyncio
import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, Unpack
from urllib.parse import unquote

from msgspec import Struct

from millstream._override import override
from millstream._protocol.content import EmbeddedResource, ResourceContents
from millstream._protocol.errors import INVALID_PARAMS, ProtocolError, shorten
from millstream._protocol.skills import DIRECTORY, SKILL_FILE, SKILLS, Skill
from millstream.extensions import Extension, method
from millstream.extensions.skills._folder import SkillError, SkillFolder, media_type
from millstream.extensions.skills._function import FunctionSkill, SkillOptions, media_type_of, skill_of

if TYPE_CHECKING:
    from millstream import Server
    from millstream.extensions import ServerHost

F = TypeVar("F", bound=Callable[..., Any])
_TEMPLATE = "skill://{path*}"


class _Page(Struct):
    cursor: str | None = None


class _Uri(Struct):
    uri: str
    cursor: str | None = None


class Skills(Extension):
    """The skills of a server. `Server.skills` and `Server.skill` add this extension: ``mcp.skills("skills/")``."""

    name = SKILLS
    settings: Mapping[str, Any] | None = {"directoryRead": True}

    def __init__(self) -> None:
        self._server: Server
        self._folders: list[SkillFolder] = []
        self._functions: dict[str, FunctionSkill] = {}
        """URI of the `SKILL.md` -> skill."""
        self._page_size = 0
        self._hints: dict[str, Any] = {}

    @override
    def register(self, server: "Server") -> None:
        """Serve all files through one resource template."""
        self._server = server
        server.resource(_TEMPLATE, name="skills", description="Files of the skills of this server.")(
            self._read_resource
        )

    @override
    async def open(self, host: "ServerHost") -> None:
        """Read the settings."""
        self._page_size = host.settings.page_size
        scope = "private" if host.private else "public"
        self._hints = {"ttlMs": host.settings.list_ttl_ms, "cacheScope": scope}

    # Registration

    def add_folder(self, folder: str, prefix: str = "") -> None:
        """Serve the skills of a folder.

        Raises:
            ValueError: the folder doesn't exist, contains no skill, or contains an invalid one.
        """
        skills = SkillFolder(folder, prefix)
        self._check_free(skills.snapshot().skills)
        self._folders.append(skills)
        for skill in skills.snapshot().skills.values():
            self._list(skill, partial(self._read_resource, unquote(skill.uri.removeprefix("skill://"))))

    def add_function(self, function: F, **options: Unpack[SkillOptions]) -> F:
        """Serve the skill defined by a function. Return the function.

        Raises:
            ValueError: the skill is invalid.
            TypeError: the function takes arguments, or doesn't return text.
        """
        skill = skill_of(function, options)
        self._check_free((skill.skill.uri,))
        self._functions[skill.skill.uri] = skill
        self._list(skill.skill, partial(self._read_resource, unquote(skill.skill.uri.removeprefix("skill://"))))
        return function

    def _check_free(self, uris: Iterable[str]) -> None:
        for uri in uris:
            if self._find(uri) is not None:
                raise SkillError(f"There is already a skill {uri}. Give one of them a prefix")

    def _list(self, skill: Skill, read: Callable[[], Any]) -> None:
        """List each `SKILL.md` as a resource, for clients without the skills extension."""

        async def read_skill() -> EmbeddedResource | None:
            found: EmbeddedResource | None = await read()
            return found

        self._server.resource(
            skill.uri, name=skill.name, description=skill.description, mime_type=media_type(SKILL_FILE)
        )(read_skill)

    # Methods

    @method("skills/list")
    async def list_skills(self, params: _Page) -> dict[str, Any]:
        """Return a page of the skills, sorted by URI."""
        skills = await asyncio.to_thread(self._all)
        page, more = self._page(sorted(skills), params.cursor)
        return {"skills": [skills[uri] for uri in page], **more, **self._hints}

    @method("skills/get")
    async def get_skill(self, params: _Uri) -> dict[str, Any]:
        """Return one skill."""
        skill = await asyncio.to_thread(self._find, params.uri)
        if skill is None:
            raise ProtocolError(INVALID_PARAMS, f"No skill is served at {shorten(params.uri)}")
        return {"skill": skill, **self._hints}

    @method("resources/directory/read")
    async def read_directory(self, params: _Uri) -> dict[str, Any]:
        """Return a page of the entries of a directory, sorted by name."""
        children = await asyncio.to_thread(self._children, params.uri)
        if children is None:
            raise ProtocolError(INVALID_PARAMS, f"{shorten(params.uri)} is not a directory resource")
        page, more = self._page(sorted(children), params.cursor)
        return {"resources": [children[uri] for uri in page], **more}

    def _page(self, uris: list[str], cursor: str | None) -> tuple[list[str], dict[str, str]]:
        """Return a page of sorted URIs, and the cursor of the next one: the last URI of the page."""
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

    def _find(self, uri: str) -> Skill | None:
        skill_of_function = self._functions.get(uri)
        if skill_of_function is not None:
            return skill_of_function.skill
        return next((skill for each in self._folders if (skill := each.snapshot().skills.get(uri)) is not None), None)

    def _files(self) -> dict[str, int | None]:
        """Return the URI and size of every file; the size is None for generated content."""
        files: dict[str, int | None] = {}
        for folder in self._folders:
            files |= {uri: file.size for uri, file in folder.snapshot().files.items()}
        for uri, skill in self._functions.items():
            files |= {each: len(data) for each, data in skill.content.items()}
            files.setdefault(uri, None)
        return files

    def _children(self, uri: str) -> dict[str, dict[str, Any]] | None:
        """Return the entries of a directory by URI; None if it doesn't exist."""
        base = f"{uri}/"
        skills = self._all()
        found: dict[str, dict[str, Any]] = {}
        for each, size in self._files().items():
            if not each.startswith(base):
                continue
            first, below, _ = each[len(base) :].partition("/")
            child = base + first
            if below:
                found[child] = {"uri": child, "name": unquote(first), "mimeType": DIRECTORY}
                continue
            entry = {"uri": child, "name": unquote(first), "mimeType": media_type_of(child)}
            skill = skills.get(child)
            if skill is not None:
                entry |= {"name": skill.name, "description": skill.description}
            found[child] = entry if size is None else {**entry, "size": size}
        return found if found and uri.startswith("skill://") and not uri.endswith("/") else None

    # Reading

    async def _read_resource(self, path: str) -> EmbeddedResource | None:
        """Return the contents of a file; None if there's none at the path."""
        for uri, skill in self._functions.items():
            root = unquote(uri.removesuffix(SKILL_FILE).removeprefix("skill://"))
            if path.startswith(root):
                return await _read_function(skill, path, root)
        for folder in self._folders:
            result = await asyncio.to_thread(folder.read, path)
            if result is not None:
                return _contents(*result)
        return None


async def _read_function(skill: FunctionSkill, path: str, root: str) -> EmbeddedResource | None:
    if skill.make is not None and path == f"{root}{SKILL_FILE}":
        text = skill.make()
        return _contents((await text if inspect.isawaitable(text) else text).encode(), media_type(SKILL_FILE))
    found = next((each for each in skill.content if unquote(each.removeprefix("skill://")) == path), None)
    return None if found is None else _contents(skill.content[found], media_type(path))


def _contents(data: bytes, kind: str) -> EmbeddedResource:
    try:
        contents = ResourceContents("", kind, text=data.decode())
    except UnicodeDecodeError:
        binary = "application/octet-stream" if kind.startswith("text/") else kind
        contents = ResourceContents("", binary, blob=data)
    return EmbeddedResource(resource=contents)
