"""The messages of the skills extension (``io.modelcontextprotocol/skills``), and the check of what was read.

https://github.com/modelcontextprotocol/ext-skills, specification/stable/skills.mdx.
"""

import hashlib
import re
from collections.abc import Sequence
from typing import Any, Final, Literal

from msgspec import Struct

SKILLS: Final = "io.modelcontextprotocol/skills"
SKILL_FILE: Final = "SKILL.md"
DIRECTORY: Final = "inode/directory"
"""The media type of a directory."""
MAX_FILES: Final = 512
"""Files of one skill that every host accepts."""
MAX_BYTES: Final = 16 * 1024 * 1024
"""Bytes of one skill's files together that every host accepts."""
_NAME = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_MAX_NAME = 64


class SkillResource(Struct, frozen=True):
    """A file of a skill: ``skill.resources[0].uri``."""

    uri: str
    digest: str
    """``sha256:`` and 64 hexadecimal digits, of the raw bytes."""
    size: int
    """In bytes."""


class Skill(Struct, frozen=True):
    """A skill that a server offers: ``for skill in await client.skills(): print(skill.name, skill.description)``."""

    uri: str
    """Of its `SKILL.md`."""
    frontmatter: dict[str, Any]
    """What the frontmatter of its `SKILL.md` says, as JSON values."""
    resources: list[SkillResource] | Literal["dynamic"]
    """Every file of the skill, or ``dynamic`` for a skill whose content is made at each read."""

    @property
    def name(self) -> str:
        """What the author calls it. Not unique."""
        return str(self.frontmatter.get("name", ""))

    @property
    def description(self) -> str:
        """What it's for."""
        return str(self.frontmatter.get("description", ""))

    @property
    def root(self) -> str:
        """The URI of its directory, without a slash at the end."""
        return self.uri.removesuffix(f"/{SKILL_FILE}")

    def uri_of(self, path: str) -> str:
        """Return the URI of a file by its path below the skill."""
        return f"{self.root}/{path}"

    def entry(self, uri: str) -> SkillResource | None:
        """Return what the manifest says about a file; None if it's not in the manifest."""
        listed: Sequence[SkillResource] = () if isinstance(self.resources, str) else self.resources
        return next((each for each in listed if each.uri == uri), None)


def digest_of(data: bytes) -> str:
    """Return the digest of a file as a manifest has it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def name_problem(name: object) -> str:
    """Return what is wrong with the name of a skill, or an empty string. https://agentskills.io/specification"""
    if isinstance(name, str) and len(name) <= _MAX_NAME and _NAME.fullmatch(name):
        return ""
    return f"a skill's name has at most {_MAX_NAME} lowercase letters, digits, and single hyphens, not {name!r:.80}"


def mismatch(entry: SkillResource, data: bytes) -> str:
    """Return how the bytes of a file differ from its manifest, or an empty string."""
    if len(data) != entry.size:
        return f"{entry.uri} has {len(data):,} bytes, and its manifest says {entry.size:,}"
    if digest_of(data) != entry.digest:
        return f"the digest of {entry.uri} isn't the one of its manifest"
    return ""
