"""Facts of the protocol, for extensions and other programs that send messages themselves: codes, dates, and names.

Error codes are for `millstream.ProtocolError`. `encode` and `decoder` write and read JSON the way this package does.

Example:
    >>> raise ProtocolError(INVALID_PARAMS, f"There is no book {shorten(params.isbn)!r}.")
"""

from millstream._protocol.errors import (
    HEADER_MISMATCH,
    INSUFFICIENT_SCOPE,
    INTERNAL_ERROR,
    INVALID_PARAMS,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    OVERLOADED,
    RATE_LIMITED,
    RESOURCE_NOT_FOUND,
    UNSUPPORTED_VERSION,
    URL_ELICITATION_REQUIRED,
    closest_name,
    shorten,
    suggest,
)
from millstream._protocol.foreign import foreign_decoder, repair_schema
from millstream._protocol.json_schema import inline_references, is_array, is_object, members, value_at_pointer
from millstream._protocol.jsonrpc import MALFORMED, Envelope, decoder, encode, exceeds_limits, notification_message
from millstream._protocol.metadata import (
    CAPABILITIES_KEY,
    CLIENT_KEY,
    LOG_LEVEL_KEY,
    LOG_LEVELS,
    ORIGIN_KEY,
    SERVER_KEY,
    SUBSCRIPTION_KEY,
    TASKS,
    VERSION_KEY,
    Implementation,
    declares,
)
from millstream._protocol.notifications import (
    CallToolResult,
    CompleteRequestParams,
    CreateMessageRequestParams,
    DiscoverResult,
    ElicitResult,
    EmptyResult,
    GetPromptResult,
    InputRequest,
    InputRequiredResult,
    InputResponseRequestParams,
    ListRootsResult,
    PromptDescription,
    ReadResourceResult,
    ResourceDescription,
    SubscriptionFilter,
    TemplateDescription,
    ToolDescription,
)
from millstream._protocol.param_headers import decode_name, find_annotations
from millstream._protocol.revisions import ALL, REGISTRY_SCHEMA
from millstream._protocol.skills import (
    DIRECTORY,
    MAX_SKILL_BYTES,
    MAX_SKILL_FILES,
    SKILL_FILE,
    SKILLS,
    Skill,
    SkillResource,
    digest_of,
    name_problem,
)
from millstream._protocol.uri_template import UriTemplate

__all__ = [
    "CAPABILITIES_KEY",
    "CLIENT_KEY",
    "DIRECTORY",
    "HEADER_MISMATCH",
    "INSUFFICIENT_SCOPE",
    "INTERNAL_ERROR",
    "INVALID_PARAMS",
    "INVALID_REQUEST",
    "LOG_LEVELS",
    "LOG_LEVEL_KEY",
    "MALFORMED",
    "MAX_SKILL_BYTES",
    "MAX_SKILL_FILES",
    "METHOD_NOT_FOUND",
    "ORIGIN_KEY",
    "OVERLOADED",
    "PER_REQUEST",
    "RATE_LIMITED",
    "REGISTRY_SCHEMA",
    "RESOURCE_NOT_FOUND",
    "REVISIONS",
    "SERVER_KEY",
    "SKILLS",
    "SKILL_FILE",
    "SUBSCRIPTION_KEY",
    "TASKS",
    "UNSUPPORTED_VERSION",
    "URL_ELICITATION_REQUIRED",
    "VERSION_KEY",
    "CallToolResult",
    "CompleteRequestParams",
    "CreateMessageRequestParams",
    "DiscoverResult",
    "ElicitResult",
    "EmptyResult",
    "Envelope",
    "GetPromptResult",
    "Implementation",
    "InputRequest",
    "InputRequiredResult",
    "InputResponseRequestParams",
    "ListRootsResult",
    "PromptDescription",
    "ReadResourceResult",
    "ResourceDescription",
    "Skill",
    "SkillResource",
    "SubscriptionFilter",
    "TemplateDescription",
    "ToolDescription",
    "UriTemplate",
    "closest_name",
    "declares",
    "decode_name",
    "decoder",
    "digest_of",
    "encode",
    "exceeds_limits",
    "find_annotations",
    "foreign_decoder",
    "inline_references",
    "is_array",
    "is_object",
    "members",
    "name_problem",
    "notification_message",
    "repair_schema",
    "shorten",
    "suggest",
    "value_at_pointer",
]

REVISIONS: tuple[str, ...] = tuple(each.date for each in ALL)
"""Dates of the supported revisions, oldest first. The first one has HTTP+SSE, and the others Streamable HTTP."""
PER_REQUEST: tuple[str, ...] = tuple(each.date for each in ALL if not each.handshake)
"""Dates of the revisions without sessions, in which each request stands alone, oldest first."""
