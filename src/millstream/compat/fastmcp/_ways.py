"""How the two libraries differ where they have the same names. Each way is a table that the door looks things up in."""

from msgspec import Struct


class Ways(Struct, frozen=True):
    """What one library does."""

    library: str
    keeps_first: bool
    """Of two items with one name the first one stays; else the last one."""
    titles: bool
    """Schemas have the titles that pydantic derives from names, and descriptions are whole docstrings."""
    closed: bool
    """Arguments that a function does not have are refused; else they are ignored."""
    opens_json: bool
    """An argument that is JSON as text is what the text says, where no text is wanted: some hosts send lists so."""
    indent: int | None
    """Of values as JSON text."""
    one_text: bool
    """A list of plain values is one text; else each value has its own."""
    content_schema: bool
    """A return annotation with content blocks makes an output schema."""
    structured_dicts: bool
    """A dict is structured content without an output schema, too."""
    wrap_mark: str
    """The keyword that marks a schema whose value stands under `result`; empty for none."""
    failure: str
    """The text of a tool that raised, with `{name}` and `{error}`."""
    plain_failures: bool
    """What a `ToolError` says is the whole text."""
    pairs: bool
    """`call_tool` gives content, or a pair of content and structured content; else a `ToolResult`."""
    logs_objects: bool
    """A log message is an object with `msg` and `extra`; else it's the message itself, if there is no `extra`."""
    prompt_meta: bool
    """What a prompt gives has the `_meta` of the prompt."""
    invents_sessions: bool
    """A call without a session has an id of its own: programs keep things by it."""
    empty_description: bool
    """Nothing described is described as an empty text."""


SDK = Ways(
    library="mcp",
    keeps_first=True,
    titles=True,
    closed=False,
    opens_json=True,
    indent=2,
    one_text=False,
    content_schema=True,
    structured_dicts=False,
    wrap_mark="",
    failure="Error executing tool {name}: {error}",
    plain_failures=False,
    pairs=True,
    logs_objects=False,
    prompt_meta=False,
    invents_sessions=False,
    empty_description=True,
)
"""The official SDK's ``mcp.server.fastmcp`` and ``mcp.server.mcpserver``."""

STANDALONE = Ways(
    library="fastmcp",
    keeps_first=False,
    titles=False,
    closed=True,
    opens_json=False,
    indent=None,
    one_text=True,
    content_schema=False,
    structured_dicts=True,
    wrap_mark="x-fastmcp-wrap-result",
    failure="Error calling tool {name!r}: {error}",
    plain_failures=True,
    pairs=False,
    logs_objects=True,
    prompt_meta=True,
    invents_sessions=True,
    empty_description=False,
)
"""The package ``fastmcp``."""
