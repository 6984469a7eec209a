"""The messages of the skills extension (``io.modelcontextprotocol/skills``), and the check of files against a manifest.

See https://github.com/modelcontextprotocol/ext-skills, specification/beta/skills.mdx.
"""

import hashlib
import re
from collections.abc import Sequence
from typing import Any, Literal

from msgspec import Struct

SKILLS = "io.modelcontextprotocol/skills"
"""The identifier of the skills extension."""
SKILL_FILE = "SKILL.md"
"""The name of the file with a skill's instructions."""
MAX_SKILL_FILES = 512
"""Number of files in one skill that every host accepts."""
MAX_SKILL_BYTES = 16 * 1024 * 1024
"""Total size of one skill's files that every host accepts."""
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
    """A skill offered by a server: ``for skill in await client.skills(): print(skill.name, skill.description)``."""

    uri: str
    """The URI of its `SKILL.md`."""
    frontmatter: dict[str, Any]
    """The frontmatter of its `SKILL.md`, as JSON values."""
    resources: list[SkillResource] | Literal["dynamic"]
    """Every file of the skill, or ``dynamic`` for a skill whose content is generated at each read."""

    @property
    def name(self) -> str:
        """Return the name in the frontmatter. Names aren't unique."""
        return str(self.frontmatter.get("name", ""))

    @property
    def description(self) -> str:
        """Return the description in the frontmatter."""
        return str(self.frontmatter.get("description", ""))

    @property
    def root(self) -> str:
        """Return the URI of its directory, without a trailing slash."""
        return self.uri.removesuffix(f"/{SKILL_FILE}")

    def uri_of(self, path: str) -> str:
        """Return the URI of a file from its path inside the skill.

        Args:
            path: Path of the file, with slashes: ``scripts/check.py``.
        """
        return f"{self.root}/{path}"

    def entry(self, uri: str) -> SkillResource | None:
        """Return a file's entry in the manifest, or None.

        Args:
            uri: URI of the file.
        """
        listed: Sequence[SkillResource] = () if isinstance(self.resources, str) else self.resources
        return next((each for each in listed if each.uri == uri), None)


def digest_of(data: bytes) -> str:
    """Return the digest of a file, as written in a manifest: ``digest_of(path.read_bytes())``.

    Args:
        data: Content of the file.
    """
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def name_problem(name: object) -> str:
    """Return why a skill's name is invalid, or an empty string: ``if problem := name_problem(folder.name)``.

    See https://agentskills.io/specification.

    Args:
        name: The name of a skill, which is the name of its folder.
    """
    if isinstance(name, str) and len(name) <= _MAX_NAME and _NAME.fullmatch(name):
        return ""
    return (
        f"a skill's name must have at most {_MAX_NAME} lowercase letters, digits, and single hyphens, not {name!r:.80}"
    )


def mismatch(entry: SkillResource, data: bytes) -> str:
    """Return how the bytes of a file differ from its entry in the manifest, or an empty string."""
    if len(data) != entry.size:
        return f"{entry.uri} has {len(data):,} bytes, but its manifest says {entry.size:,}"
    if digest_of(data) != entry.digest:
        return f"the digest of {entry.uri} differs from the one in its manifest"
    return ""
