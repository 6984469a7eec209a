"""Facts of the protocol, for extensions and other programs that send messages themselves: codes, dates, and names.

Error codes are for `millstream.ProtocolError`. `encode` and `decoder` write and read JSON the way this package does.

Example:
    >>> raise ProtocolError(INVALID_PARAMS, f"There is no book {shorten(params.isbn)!r}.")
"""

from millstream._confidential import Confidential
from millstream._copies import CopyableError, NotCopyable
from millstream._frontmatter import FrontmatterError, read_frontmatter
from millstream._protocol.content import image_type
from millstream._protocol.errors import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    OVERLOADED,
    RATE_LIMITED,
    ToolUnavailable,
)
from millstream._protocol.json_schema import is_array, is_object, members
from millstream._protocol.jsonrpc import MALFORMED, Envelope, Json, decode_object, decoder, encode, notification_message
from millstream._protocol.metadata import EVENTS, ORIGIN_KEY, SUBSCRIPTION_KEY, TASKS, ClientInfo
from millstream._protocol.notifications import (
    Completion,
    CreateMessageRequestParams,
    GetPromptResult,
    InputRequest,
    PromptDescription,
    ResourceDescription,
    TemplateDescription,
    ToolDescription,
)
from millstream._protocol.revisions import (
    ALL,
    BY_DATE,
    NEWEST,
    NEWEST_HANDSHAKE,
    Revision,
    project_tool_result,
)
from millstream._protocol.schema_repair import repair_schema
from millstream._protocol.skills import (
    MAX_SKILL_BYTES,
    MAX_SKILL_FILES,
    SKILL_FILE,
    SKILLS,
    Skill,
    SkillResource,
    digest_of,
    name_problem,
)
from millstream._suggestions import SuggestionMeta, suggest_keywords
from millstream._text import shorten

__all__ = [
    "BY_DATE",
    "EVENTS",
    "INTERNAL_ERROR",
    "INVALID_PARAMS",
    "INVALID_REQUEST",
    "MALFORMED",
    "MAX_SKILL_BYTES",
    "MAX_SKILL_FILES",
    "METHOD_NOT_FOUND",
    "NEWEST",
    "NEWEST_HANDSHAKE",
    "ORIGIN_KEY",
    "OVERLOADED",
    "PER_REQUEST",
    "RATE_LIMITED",
    "REVISIONS",
    "SKILLS",
    "SKILL_FILE",
    "SUBSCRIPTION_KEY",
    "TASKS",
    "ClientInfo",
    "Completion",
    "Confidential",
    "CopyableError",
    "CreateMessageRequestParams",
    "Envelope",
    "FrontmatterError",
    "GetPromptResult",
    "InputRequest",
    "Json",
    "NotCopyable",
    "PromptDescription",
    "ResourceDescription",
    "Revision",
    "Skill",
    "SkillResource",
    "SuggestionMeta",
    "TemplateDescription",
    "ToolDescription",
    "ToolUnavailable",
    "decode_object",
    "decoder",
    "digest_of",
    "encode",
    "image_type",
    "is_array",
    "is_object",
    "members",
    "name_problem",
    "notification_message",
    "project_tool_result",
    "read_frontmatter",
    "repair_schema",
    "shorten",
    "suggest_keywords",
]

REVISIONS: tuple[str, ...] = tuple(each.date for each in ALL)
"""Dates of the supported revisions, oldest first. The first one has HTTP+SSE, and the others Streamable HTTP."""
PER_REQUEST: tuple[str, ...] = tuple(each.date for each in ALL if not each.handshake)
"""Dates of the revisions without sessions, in which each request stands alone, oldest first."""
