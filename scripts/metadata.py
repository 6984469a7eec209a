"""Metadata that a package index shows: addresses, and README.md as an index can display it. hatchling calls this.

Both come from one setting, `repository` in ``[tool.hatch.metadata.hooks.custom]`` of pyproject.toml. While it's empty,
the package has no addresses, and links to files of the repository are plain text.
"""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"^<!--.*?-->\n| ?<!--.*?-->", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(!?)\[((?:!\[[^\]]*\]\([^)]*\)|[^\]])*)\]\(([^)\s]+)\)")
"""A link or an image; the text of a link may be an image."""


class IndexMetadata(MetadataHookInterface):
    """Adds the long description and the addresses."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the dynamic fields of ``[project]``."""
        repository, tag = self.config["repository"].rstrip("/"), f"v{metadata['version']}"
        text = (Path(self.root) / "README.md").read_text("utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": describe(text, repository, tag)}
        metadata["urls"] = addresses(repository, tag) if repository else {}


def addresses(repository: str, tag: str) -> dict[str, str]:
    """Return the project's addresses."""
    return {
        "Homepage": repository,
        "Documentation": f"{repository}/blob/{tag}/docs/contents.md",
        "Source": repository,
        "Changelog": f"{repository}/blob/{tag}/CHANGELOG.md",
        "Issues": f"{repository}/issues",
    }


def describe(readme: str, repository: str, tag: str) -> str:
    """Return the README without comments, and with addresses instead of the repository's relative links.

    Args:
        readme: The text of the file.
        repository: The repository's address. If it's empty, links become plain text, and images are left out.
        tag: The tag that the links lead to.
    """

    def link(found: re.Match[str]) -> str:
        image, text, target = found.groups()
        text = _LINK.sub(link, text)
        if re.match(r"[a-z]+:", target):
            return f"{image}[{text}]({target})"
        if not repository:
            return "" if image else text
        return f"{image}[{text}]({repository}/{'raw' if image else 'blob'}/{tag}/{target})"

    blocks: list[str] = []

    def keep(found: re.Match[str]) -> str:
        blocks.append(found[0])
        return f"```{len(blocks) - 1}```"

    text = _LINK.sub(link, _COMMENT.sub("", _BLOCK.sub(keep, readme)))
    text = re.sub(r"\n{3,}", "\n\n", text)
    return re.sub(r"```(\d+)```", lambda found: blocks[int(found[1])], text)
