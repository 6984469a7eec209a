"""Skills in a folder and skills in code.

In a folder, a directory with a `SKILL.md` is a skill, including the visible files under it. In code, a skill is a
function that returns the instructions.

Paths come from clients, and skills often from others. `open_file` compares each file that it has opened with the
folder. Names that start with a dot aren't served.
"""

import inspect
import logging
import os
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from mimetypes import guess_type
from pathlib import Path, PurePath
from typing import Any, TypedDict
from urllib.parse import quote

from msgspec import Struct

from millstream.files import Stamp, find_file, open_file, read_at_once, stamp_of, walk_files
from millstream.protocol import (
    MAX_SKILL_BYTES,
    MAX_SKILL_FILES,
    SKILL_FILE,
    FrontmatterError,
    Json,
    Skill,
    SkillResource,
    digest_of,
    encode,
    name_problem,
    read_frontmatter,
)

MAX_WALKED = 10_000
"""Maximum number of files to list in a folder. Further ones aren't served."""
FRESH_SECONDS = 1.0
"""Minimum seconds for which a listing is cached. A slow one is cached for ten times its duration."""
_logger = logging.getLogger("millstream")


class SkillError(ValueError):
    """A skill is invalid. The message identifies the skill and the problem."""


class File(Struct, frozen=True):
    """A file of a skill, at the time of the last listing."""

    path: PurePath
    """Path under the folder."""
    digest: str
    size: int
    stamp: Stamp
    """The digest is valid while it stays the same."""


class Snapshot(Struct, frozen=True):
    """The contents of a folder at one point in time."""

    skills: dict[str, Skill]
    """URI of the `SKILL.md` -> entry, sorted."""
    files: dict[str, File]
    """URI -> file."""


class SkillFolder:
    """The skills in a folder. Thread-safe."""

    def __init__(self, folder: str, prefix: str = "", *, clock: Callable[[], float] = time.monotonic) -> None:
        """Read a folder's skills.

        Args:
            folder: Folder of skills, or of one skill.
            prefix: Start of the URIs, after ``skill://``.
            clock: Monotonic clock in seconds.

        Raises:
            ValueError: The folder doesn't exist, contains no skill, or contains an invalid one.
        """
        path = Path(folder)
        if not path.is_dir():
            raise SkillError(f"There is no folder {folder!r} in {Path.cwd()}.")
        self._root = path.absolute()
        self._name = PurePath(path.resolve().name)
        self._prefix = prefix.strip("/")
        self._clock = clock
        self._lock = threading.Lock()
        self._warned: set[str] = set()
        self._snapshot = self._look(Snapshot({}, {}), strict=True)
        self._until = clock() + FRESH_SECONDS
        if not self._snapshot.skills:
            raise SkillError(f"{folder!r} contains no skill. A skill is a folder with a {SKILL_FILE}.")

    def snapshot(self) -> Snapshot:
        """Return the contents of the folder, possibly cached."""
        with self._lock:
            if self._clock() >= self._until:
                began = self._clock()
                self._snapshot = self._look(self._snapshot, strict=False)
                now = self._clock()
                self._until = now + max(FRESH_SECONDS, 10 * (now - began))
            return self._snapshot

    def read(self, path: str) -> tuple[bytes, str] | None:
        """Return a file's bytes and media type by the rest of its URI, or None if it isn't served."""
        uri = f"skill://{quote(path)}"
        file = self.snapshot().files.get(uri)
        with suppress(OSError, SkillError):
            if file is not None:
                return self._read(file.path, MAX_SKILL_BYTES)[0], media_type(path)
        return None

    # Listing

    def _look(self, before: Snapshot, *, strict: bool) -> Snapshot:
        snapshot, problems = read_at_once(self._root, lambda: self._read_skills(before))
        for problem in problems:
            self._refuse(problem, strict=strict)
        return snapshot

    def _read_skills(self, before: Snapshot) -> tuple[Snapshot, list[str]]:
        """Return the contents of the folder, and the reasons why skills can't be served."""
        walked = dict(self._walk())
        files: dict[str, File] = {}
        skills: dict[str, Skill] = {}
        problems: list[str] = []
        for root in [path.parent for path in walked if path.name == SKILL_FILE]:
            try:
                inside = {path: resolved for path, resolved in walked.items() if path.is_relative_to(root)}
                skill = self._skill(root, inside, before, files)
                skills[skill.uri] = skill
            except (SkillError, FrontmatterError, OSError) as exc:
                problems.append(f"The skill {self._name / root} can't be served: {exc}.")
        return Snapshot(dict(sorted(skills.items())), files), problems

    def _refuse(self, problem: str, *, strict: bool) -> None:
        if strict:
            raise SkillError(problem)
        if problem not in self._warned and len(self._warned) < MAX_WALKED:
            self._warned.add(problem)
            _logger.warning("%s", problem)

    def _walk(self) -> Iterator[tuple[PurePath, Path]]:
        """Yield the paths of the files under the folder, each with its path without links."""
        root = self._root.resolve()
        for path in islice(walk_files(root), MAX_WALKED):
            if (resolved := find_file(root, path)) is not None:
                yield path.relative_to(root), resolved

    def _skill(self, root: PurePath, paths: dict[PurePath, Path], before: Snapshot, files: dict[str, File]) -> Skill:
        if len(paths) > MAX_SKILL_FILES:
            raise SkillError(f"it has {len(paths)} files, but hosts accept only {MAX_SKILL_FILES}")
        below = root.as_posix()
        # If the folder itself is a skill, use its name.
        path = f"{self._prefix}/{self._name if below == '.' else below}".lstrip("/")
        base = f"skill://{quote(path)}"
        resources: list[SkillResource] = []
        total = 0
        for file_path, resolved in paths.items():
            uri = f"{base}/{quote(file_path.relative_to(root).as_posix())}"
            file = files.get(uri) or self._file(file_path, resolved, before.files.get(uri), MAX_SKILL_BYTES - total)
            files[uri] = file
            total += file.size
            resources.append(SkillResource(uri, file.digest, file.size))
        try:
            frontmatter = read_frontmatter(self._read(root / SKILL_FILE, MAX_SKILL_BYTES)[0].decode())
        except UnicodeDecodeError as exc:
            raise SkillError(f"{SKILL_FILE} isn't UTF-8") from exc
        check_frontmatter(frontmatter, path.rpartition("/")[2])
        return Skill(f"{base}/{SKILL_FILE}", frontmatter, resources)

    def _file(self, path: PurePath, resolved: Path, before: File | None, max_bytes: int) -> File:
        if before is not None and before.stamp == stamp_of(resolved):
            return before
        data, stamp = self._read(path, max_bytes)
        return File(path, digest_of(data), len(data), stamp)

    def _read(self, path: PurePath, max_bytes: int) -> tuple[bytes, Stamp]:
        """Return the bytes of a file of a skill, and its stamp.

        Raises:
            SkillError: It's too large, or was removed since it was listed.
            OSError: It can't be read.
        """
        file = open_file(self._root, self._root / path)
        if file is None:
            raise SkillError(f"its file {path} was removed")
        with file:
            status = os.fstat(file.fileno())
            if status.st_size > max_bytes or len(data := file.read(max_bytes + 1)) > max_bytes:
                raise SkillError(f"its files have more than {MAX_SKILL_BYTES:,} bytes, the most that hosts accept")
        return data, (status.st_mtime_ns, status.st_size, status.st_ino)


def check_frontmatter(frontmatter: dict[str, object], folder: str) -> None:
    """Check the required members of a skill's frontmatter.

    Raises:
        SkillError: The name or description is missing, or the name differs from the folder's.
    """
    name, description = frontmatter.get("name"), frontmatter.get("description")
    if problem := name_problem(name):
        raise SkillError(problem)
    if name != folder:
        raise SkillError(f"its name is {name!r}, but its folder is {folder!r}. They must be the same")
    if not isinstance(description, str) or not description.strip():
        raise SkillError("its frontmatter has no description")


def media_type(name: str) -> str:
    """Return the media type of a file by its name."""
    if name.endswith(".md"):
        return "text/markdown"
    return guess_type(name)[0] or "text/plain"


_FILE = re.compile(r"(?!\.)[^/\\\x00]+(?:/(?!\.)[^/\\\x00]+)*")


class SkillOptions(TypedDict, total=False):
    """Options of `Skills.skill`."""

    name: str
    """Name, by default the function's, with hyphens."""
    description: str
    """Description, by default the docstring."""
    prefix: str
    """Start of the URI, after ``skill://``."""
    files: Mapping[str, str | bytes]
    """Path -> content of the files next to `SKILL.md`."""
    frontmatter: Mapping[str, Any]
    """Additional members of the frontmatter, such as ``license``."""
    dynamic: bool
    """Whether to call the function at each read. Such a skill has no manifest, and hosts may reject it."""


class FunctionSkill(Struct, frozen=True):
    """A skill defined by a function."""

    skill: Skill
    content: Mapping[str, bytes]
    """URI -> content of static files."""
    make: Callable[[], Awaitable[str]] | None
    """Generates `SKILL.md` at each read."""


def skill_of(function: Callable[..., Any], options: SkillOptions) -> FunctionSkill:
    """Return the skill of a function.

    Raises:
        ValueError: The skill is invalid.
        TypeError: The function takes arguments, or doesn't return text.
    """
    if not callable(function):
        raise TypeError("@skills.skill must decorate a function that returns the instructions.")
    if any(each.default is each.empty for each in inspect.signature(function).parameters.values()):
        raise TypeError(f"{function.__name__}: a skill's function can't have parameters.")
    name = options.get("name") or function.__name__.strip("_").replace("_", "-").lower()
    description = options.get("description") or inspect.getdoc(function) or ""
    frontmatter: Json = {"name": name, "description": description, **options.get("frontmatter", {})}
    try:
        check_frontmatter(frontmatter, name)
    except SkillError as exc:
        raise SkillError(f"The skill {name!r} is invalid: {exc}.") from exc
    # The values are JSON, which is valid YAML.
    lines = "".join(f"{encode(key).decode()}: {encode(value).decode()}\n" for key, value in frontmatter.items())
    head = f"---\n{lines}---\n\n"
    prefix = options.get("prefix", "").strip("/")
    base = f"skill://{quote(f'{prefix}/{name}'.lstrip('/'))}"
    uri = f"{base}/{SKILL_FILE}"
    files = _files(name, base, options.get("files", {}))
    if options.get("dynamic"):

        async def make() -> str:
            body = function()
            return head + _text(await body if inspect.isawaitable(body) else body, name)

        return FunctionSkill(Skill(uri, frontmatter, "dynamic"), files, make)
    if inspect.iscoroutinefunction(function):
        raise TypeError(
            f"{name}: the function runs once, at the start, so it can't be async. Use def, or set dynamic=True."
        )
    content = {uri: (head + _text(function(), name)).encode(), **files}
    resources = [SkillResource(each, digest_of(data), len(data)) for each, data in content.items()]
    return FunctionSkill(Skill(uri, frontmatter, resources), content, None)


def _text(body: Any, name: str) -> str:
    if not isinstance(body, str):
        raise TypeError(f"{name}: a skill's function must return text, not {type(body).__name__}.")
    return body if body.endswith("\n") else f"{body}\n"


def _files(name: str, base: str, files: Mapping[str, str | bytes]) -> dict[str, bytes]:
    content: dict[str, bytes] = {}
    for path, data in files.items():
        if not _FILE.fullmatch(path) or path == SKILL_FILE:
            raise SkillError(f"The skill {name!r} has a file {path!r}. Write a relative path, such as 'a/b.md'.")
        content[f"{base}/{quote(path)}"] = data.encode() if isinstance(data, str) else data
    return content
