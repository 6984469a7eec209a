"""Client side of skills: listing, checking, and reading them (``io.modelcontextprotocol/skills``)."""

import asyncio
from typing import TYPE_CHECKING

from msgspec import Raw

from millstream._frontmatter import FrontmatterError, read_frontmatter
from millstream._protocol.foreign import foreign_decoder
from millstream._protocol.json_schema import members
from millstream._protocol.jsonrpc import MALFORMED, encode
from millstream._protocol.notifications import CacheableResult, PaginatedResult
from millstream._protocol.skills import (
    MAX_SKILL_BYTES,
    MAX_SKILL_FILES,
    SKILL_FILE,
    SKILLS,
    Skill,
    mismatch,
    name_problem,
)
from millstream.client._conversation import Conversation
from millstream.client._errors import SkillMismatch, client_logger
from millstream.client._requests import RawRequest
from millstream.client._results import PaginatedList, read

if TYPE_CHECKING:
    from millstream import Client

_logger = client_logger(__name__)


class _Skills(PaginatedResult, frozen=True, kw_only=True):
    skills: list[Raw]


class _Skill(CacheableResult, frozen=True, kw_only=True):
    skill: Skill


_decode_list = foreign_decoder(_Skills)
_decode_one = foreign_decoder(_Skill)
_decode_skill = foreign_decoder(Skill)


def list_skills(conversation: Conversation, *, fresh: bool) -> PaginatedList[Skill]:
    """List the skills of a server without reading their files. The list is empty without the extension."""

    def valid(result: _Skills) -> list[Skill]:
        found: list[Skill] = []
        for raw in result.skills:
            try:
                skill = _decode_skill(bytes(raw))
            except MALFORMED as exc:
                _logger.warning("Skipped a skill that can't be decoded: %s", exc)
                continue
            if problem := problem_of(skill):
                _logger.warning("Skipped the skill %.200s: %s", skill.uri, problem)
            else:
                found.append(skill)
        return found

    return conversation.list(
        "skills/list",
        _decode_list,
        valid,
        fresh=fresh,
        offered=lambda: SKILLS in members(conversation.negotiated.capabilities.get("extensions")),
    )


def problem_of(skill: Skill) -> str:
    """Return why an entry is invalid, or an empty string."""
    if problem := name_problem(skill.frontmatter.get("name")):
        return problem
    if not skill.uri.endswith(f"/{skill.name}/{SKILL_FILE}"):
        return "its URI doesn't end with its name and SKILL.md"
    if not skill.description:
        return "it has no description"
    if isinstance(skill.resources, str):
        return ""
    uris = [each.uri for each in skill.resources]
    if skill.uri not in uris or len(set(uris)) != len(uris):
        return "its manifest lacks SKILL.md, or lists a file twice"
    if not all(uri.startswith(f"{skill.root}/") for uri in uris):
        return "its manifest lists a file outside of its directory"
    if len(uris) > MAX_SKILL_FILES or sum(each.size for each in skill.resources) > MAX_SKILL_BYTES:
        return f"it has more than {MAX_SKILL_FILES} files, or more than {MAX_SKILL_BYTES:,} bytes"
    return ""


async def get_skill(conversation: Conversation, uri: str) -> Skill:
    """Return the entry of one skill."""
    ask = RawRequest(method="skills/get", params=encode({"uri": uri}), repeatable=True)
    result: _Skill = read("skills/get", _decode_one, await conversation.requests.ask(ask))
    problem = problem_of(result.skill) or ("" if result.skill.uri == uri else "it's not the requested skill")
    if problem:
        raise SkillMismatch(f"The server's entry for the skill {uri} is invalid: {problem}.")
    return result.skill


async def read_file(client: "Client", skill: Skill, path: str) -> bytes:
    """Read a file of a skill and check it against the manifest.

    Raises:
        SkillMismatch: The file differs, or the manifest doesn't list it.
    """
    uri = skill.uri_of(path)
    entry = skill.entry(uri)
    if entry is None and not isinstance(skill.resources, str):
        raise SkillMismatch(f"The manifest of the skill {skill.name!r} doesn't list {uri}.")
    contents = await client.read(uri, fresh=True)
    if len(contents) != 1:
        raise SkillMismatch(f"The server returned {len(contents)} files for {uri} instead of one.")
    text, blob = contents[0].text, contents[0].blob
    data = text.encode() if text is not None else blob or b""

    def find_problem() -> str:
        problem = ""
        if entry is not None:
            problem = mismatch(entry, data)
        elif len(data) > MAX_SKILL_BYTES:
            problem = f"{uri} has more than {MAX_SKILL_BYTES:,} bytes"
        return problem or (_frontmatter_problem(skill, data) if uri == skill.uri else "")

    if problem := await asyncio.to_thread(find_problem):
        raise SkillMismatch(
            f"The skill {skill.name!r} differs from what the server announced: {problem}.",
            remedy="It may have changed. Get its entry again, and review it before you use it.",
        )
    return data


def _frontmatter_problem(skill: Skill, data: bytes) -> str:
    try:
        found = read_frontmatter(data.decode())
    except (FrontmatterError, UnicodeDecodeError) as exc:
        return f"SKILL.md can't be read: {exc}"
    return "" if found == skill.frontmatter else "the frontmatter of SKILL.md differs from its entry"
