"""Skills in code: functions that return the instructions."""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, TypedDict
from urllib.parse import quote

from msgspec import Struct

from millstream.extensions.skills._folder import SkillError, check_frontmatter
from millstream.protocol import SKILL_FILE, Skill, SkillResource, digest_of, encode

_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9 ,.'/()-]*")
_FILE = re.compile(r"(?!\.)[^/\\\x00]+(?:/(?!\.)[^/\\\x00]+)*")


class SkillOptions(TypedDict, total=False):
    """Options of `Skills.skill`."""

    name: str
    """Name; by default the function's, with hyphens."""
    description: str
    """Description; by default the docstring."""
    prefix: str
    """Start of the URI, after ``skill://``."""
    files: Mapping[str, str | bytes]
    """Path -> content of the files next to `SKILL.md`."""
    frontmatter: Mapping[str, Any]
    """Further members of the frontmatter, such as ``license``."""
    dynamic: bool
    """Whether to call the function at each read. Such a skill has no manifest, and hosts may reject it."""


class FunctionSkill(Struct, frozen=True):
    """A skill defined by a function."""

    skill: Skill
    content: Mapping[str, bytes]
    """URI -> content of static files."""
    make: Callable[[], Any] | None
    """Generates `SKILL.md` at each read; plain or asynchronous."""


def skill_of(function: Callable[..., Any], options: SkillOptions) -> FunctionSkill:
    """Return the skill of a function.

    Raises:
        ValueError: The skill is invalid.
        TypeError: The function takes arguments, or doesn't return text.
    """
    if not callable(function):
        raise TypeError("@skills.skill decorates a function that returns the instructions")
    if any(each.default is each.empty for each in inspect.signature(function).parameters.values()):
        raise TypeError(f"{function.__name__}: the function of a skill can't have parameters")
    name = options.get("name") or function.__name__.strip("_").replace("_", "-").lower()
    description = options.get("description") or inspect.getdoc(function) or ""
    frontmatter: dict[str, Any] = {"name": name, "description": description, **options.get("frontmatter", {})}
    try:
        check_frontmatter(frontmatter, name)
    except SkillError as exc:
        raise SkillError(f"The skill {name!r} is invalid: {exc}") from exc
    head = _head(frontmatter)
    prefix = options.get("prefix", "").strip("/")
    base = f"skill://{quote(f'{prefix}/{name}' if prefix else name)}"
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
        raise TypeError(f"{name}: the function of a skill must return text, not {type(body).__name__}")
    return body if body.endswith("\n") else f"{body}\n"


def _files(name: str, base: str, files: Mapping[str, str | bytes]) -> dict[str, bytes]:
    content: dict[str, bytes] = {}
    for path, data in files.items():
        if not _FILE.fullmatch(path) or path == SKILL_FILE:
            raise SkillError(f"The skill {name!r} has a file {path!r}. Write a relative path, such as 'a/b.md'.")
        content[f"{base}/{quote(path)}"] = data.encode() if isinstance(data, str) else data
    return content


def _head(frontmatter: Mapping[str, Any]) -> str:
    """Return frontmatter as JSON, which is valid YAML."""
    lines = "".join(f"{encode(name).decode()}: {encode(value).decode()}\n" for name, value in frontmatter.items())
    return f"---\n{lines}---\n\n"
