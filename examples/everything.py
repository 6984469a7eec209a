"""Every fixture that the official conformance suite asks of a server, one function each.

After ``pip install "millstream[schema]"``, run it with ``millstream run examples/everything.py --port 8001``, and point
the suite at ``/mcp``. The first tool takes no arguments and the first resource can be read, because two scenarios use
whatever is listed first.
"""

import asyncio
import base64
import warnings
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from millstream import (
    Audio,
    Context,
    Elicit,
    EmbeddedResource,
    Field,
    Image,
    ProtocolError,
    Roots,
    Sample,
    Server,
    Text,
    ToolError,
)
from millstream.extensions.skills import Skills

mcp = Server("everything", version="1.0.0", instructions="Fixtures for the MCP conformance suite.")

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
WAV = base64.b64decode("UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAIA+AAACABAAZGF0YQIAAAAAAA==")


# Content of every kind


@mcp.tool
def test_simple_text() -> str:
    """Answers with one text block."""
    return "This is a simple text response for testing."


@mcp.tool
def test_image_content() -> Image:
    """Answers with one image."""
    return Image(PNG, "image/png")


@mcp.tool
def test_audio_content() -> Audio:
    """Answers with one sound."""
    return Audio(WAV, "audio/wav")


@mcp.tool
def test_embedded_resource() -> EmbeddedResource:
    """Answers with one embedded resource."""
    return EmbeddedResource(
        "test://embedded-resource", text="This is an embedded resource content.", mime_type="text/plain"
    )


@mcp.tool
def test_multiple_content_types() -> list[Text | Image | EmbeddedResource]:
    """Answers with text, an image, and a resource."""
    return [
        Text("Multiple content types test:"),
        Image(PNG, "image/png"),
        EmbeddedResource(
            "test://mixed-content-resource", text='{"test":"data","value":123}', mime_type="application/json"
        ),
    ]


@mcp.tool
def test_error_handling() -> str:
    """Fails with a text for the model."""
    raise ToolError("This tool intentionally returns an error for testing")


@mcp.tool
async def test_tool_with_progress(ctx: Context) -> str:
    """Reports progress three times."""
    for done in (0, 50, 100):
        await ctx.progress(done, 100, f"Completed step {done} of 100")
        await asyncio.sleep(0.05)
    return "Progress reported."


SCHEMA_2020_12: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it's for validators: Claude's API rejects allOf at the root

    @mcp.tool(input_schema=SCHEMA_2020_12)
    def json_schema_2020_12_tool(arguments: dict[str, Any]) -> str:
        """Takes a hand-written JSON Schema 2020-12."""
        return f"Called with: {sorted(arguments)}"


# Notifications and questions


@mcp.tool
async def test_tool_with_logging(ctx: Context) -> str:
    """Sends three log messages."""
    for message in ("Tool execution started", "Tool processing data", "Tool execution completed"):
        await ctx.info(message)
        await asyncio.sleep(0.05)
    return "Logged three messages."


@mcp.tool
async def test_sampling(prompt: str, ctx: Context) -> str:
    """Asks the client's model."""
    answer = await ctx.sample(prompt, max_tokens=100)
    return f"LLM response: {answer.text}"


@dataclass
class Account:
    username: str
    email: str


@mcp.tool
async def test_elicitation(message: str, ctx: Context) -> str:
    """Asks the person for an account."""
    account = await ctx.elicit(message, Account)
    return f"User response: {account.username} <{account.email}>"


@dataclass
class Profile:
    name: str = "John Doe"
    age: int = 30
    score: float = 95.5
    status: Literal["active", "inactive", "pending"] = "active"
    verified: bool = True


@mcp.tool
async def test_elicitation_sep1034_defaults(ctx: Context) -> str:
    """Asks with a default for every primitive type."""
    profile = await ctx.elicit("Please check your profile.", Profile)
    return f"Elicitation completed: {profile}"


VALUES = [{"const": f"value{n}", "title": title} for n, title in enumerate(("First", "Second", "Third"), 1)]
OPTIONS = ["option1", "option2", "option3"]
ENUMS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "untitledSingle": {"type": "string", "enum": OPTIONS},
        "titledSingle": {"type": "string", "oneOf": VALUES},
        "legacyEnum": {"type": "string", "enum": ["opt1", "opt2", "opt3"], "enumNames": ["One", "Two", "Three"]},
        "untitledMulti": {"type": "array", "items": {"type": "string", "enum": OPTIONS}},
        "titledMulti": {"type": "array", "items": {"anyOf": VALUES}},
    },
}


@mcp.tool
async def test_elicitation_sep1330_enums(ctx: Context) -> str:
    """Asks with every form of enumeration."""
    answer = await ctx.elicit("Please choose.", ENUMS)
    return f"Elicitation completed: {answer}"


@mcp.tool
async def test_reconnection(ctx: Context) -> str:
    """Closes its stream; the result waits for the client to come back."""
    await ctx.close_stream(retry_ms=100)
    await asyncio.sleep(0.15)
    return "Reconnection test completed."


# Capabilities, logging, list changes and parameter headers of the per-request era


@mcp.tool(requires={"sampling": {}})
async def test_missing_capability(ctx: Context) -> str:
    """Needs a client that declares sampling."""
    return "The client declares sampling."


@dataclass
class Name:
    name: str


@mcp.tool
async def test_streaming_elicitation(ctx: Context) -> str:
    """Asks the person; never by a request on the stream in the per-request era."""
    person = await ctx.elicit("Who is there?", Name)
    return f"It is {person.name}."


@mcp.tool
async def test_logging_tool(ctx: Context) -> str:
    """Write to the log of a request that asks for logs."""
    await ctx.info("This is logged.")
    return "Logged."


def passing_by() -> str:
    """Comes and goes."""
    return "Hello and goodbye."


@mcp.tool
async def test_trigger_tool_change() -> str:
    """Adds a tool and removes it again."""
    mcp.tool(name="test_dummy_tool")(passing_by)
    mcp.remove_tool("test_dummy_tool")
    return "The list of tools changed."


@mcp.tool
async def test_trigger_prompt_change() -> str:
    """Adds a prompt and removes it again."""
    mcp.prompt(name="test_dummy_prompt")(passing_by)
    mcp.remove_prompt("test_dummy_prompt")
    return "The list of prompts changed."


@mcp.tool
def test_x_mcp_header(region: Annotated[str, Field(header="Region")] = "") -> str:
    """Has a parameter that travels as a header, too."""
    return f"Region: {region or 'none'}"


# Questions that the suite knows by key


@mcp.tool
async def test_input_required_result_elicitation(ctx: Context) -> str:
    """Asks for a name."""
    person = await ctx.elicit("What is your name?", Name, key="user_name")
    return f"Hello, {person.name}!"


@mcp.tool
async def test_input_required_result_sampling(ctx: Context) -> str:
    """Asks the client's model."""
    answer = await ctx.sample("What is the capital of France?", max_tokens=100, key="capital_question")
    return f"The model says: {answer.text}"


@mcp.tool
async def test_input_required_result_list_roots(ctx: Context) -> str:
    """Asks for the client's roots."""
    roots = await ctx.roots(key="client_roots")
    return f"{len(roots)} roots: " + ", ".join(root.uri for root in roots)


@dataclass
class Confirmation:
    ok: bool


@mcp.tool
async def test_input_required_result_request_state(ctx: Context) -> str:
    """Asks for a confirmation and carries state to the next round."""
    answer = await ctx.elicit("Please confirm.", Confirmation, key="confirm")
    return f"state-ok, confirmed: {answer.ok}"


@mcp.tool
async def test_input_required_result_tampered_state(ctx: Context) -> str:
    """Asks for a confirmation; a changed state is refused."""
    answer = await ctx.elicit("Please confirm.", Confirmation, key="confirm")
    return f"Confirmed: {answer.ok}"


# region: ask
@mcp.tool
async def test_input_required_result_multiple_inputs(ctx: Context) -> str:
    """Asks three questions in one round."""
    answers = await ctx.ask(
        user_name=Elicit("What is your name?", Name),
        greeting=Sample("Write a short greeting.", max_tokens=50),
        client_roots=Roots(),
    )
    return f"{answers['greeting'].text} {answers['user_name'].name}, {len(answers['client_roots'])} roots."


# endregion


@dataclass
class Color:
    color: str


@mcp.tool
async def test_input_required_result_multi_round(ctx: Context) -> str:
    """Asks two questions, one after the other."""
    person = await ctx.elicit("Step 1: what is your name?", Name, key="step1")
    liked = await ctx.elicit("Step 2: what is your favorite color?", Color, key="step2")
    return f"{person.name} likes {liked.color}."


@mcp.tool
async def test_input_required_result_capabilities(ctx: Context) -> str:
    """Asks only what the client can answer."""
    questions: dict[str, Elicit | Sample | Roots] = {
        "elicitation": Elicit("What is your name?", Name),
        "sampling": Sample("Say hello.", max_tokens=50),
        "roots": Roots(),
    }
    asked = {kind: question for kind, question in questions.items() if kind in ctx.client.capabilities}
    answers = await ctx.ask(**asked)
    return f"Answered: {sorted(answers)}"


# Tasks


@mcp.tool
def greet(name: str) -> str:
    """Greets; it's never a task."""
    return f"Hello, {name}!"


@mcp.tool(task="allowed")
async def slow_compute(seconds: float, label: str) -> str:
    """Computes for some seconds."""
    await asyncio.sleep(seconds)
    return f"{label}: computed for {seconds:g} seconds."


@mcp.tool(task="required")
async def failing_job() -> str:
    """Fails as a tool does, with a text for the model."""
    await asyncio.sleep(1)
    raise ToolError("The job failed.")


@mcp.tool(task="required")
async def protocol_error_job() -> str:
    """Fails as a request does, with an error."""
    raise ProtocolError(-32603, "The job can't run.")


@dataclass
class Approval:
    confirm: bool


@mcp.tool(task="allowed")
async def confirm_delete(filename: str, ctx: Context) -> str:
    """Asks before it deletes."""
    approval = await ctx.elicit(f"Delete {filename}?", Approval)
    return f"{filename} was {'deleted' if approval.confirm else 'kept'}."


@dataclass
class Partner:
    name: str
    confirm: bool


@mcp.tool(task="allowed")
async def multi_input(ctx: Context) -> str:
    """Asks two questions at once."""
    answers = await ctx.ask(first=Elicit("Who comes first?", Partner), second=Elicit("Who comes second?", Partner))
    return f"{answers['first'].name} and {answers['second'].name} come."


@mcp.tool(task="required", defer_task=True)
async def test_tool_with_task(ctx: Context) -> str:
    """Asks for a name, and then becomes a task."""
    person = await ctx.elicit("What is your name?", Name, key="user_name")
    await ctx.start_task()
    return f"Hello, {person.name}!"


# Resources


@mcp.resource("test://static-text", mime_type="text/plain")
def static_text() -> str:
    """A fixed text."""
    return "This is the content of the static text resource."


@mcp.resource("test://static-binary", mime_type="image/png")
def static_binary() -> bytes:
    """A fixed image."""
    return PNG


@mcp.resource("test://template/{id}/data", mime_type="application/json")
def template_data(id: str) -> dict[str, Any]:
    """Data for any id."""
    return {"id": id, "templateTest": True, "data": f"Data for ID: {id}"}


@mcp.resource("test://watched-resource", mime_type="text/plain")
def watched_resource() -> str:
    """A text that clients subscribe to."""
    return "Watch this."


# Prompts


@mcp.prompt
def test_simple_prompt() -> str:
    """A prompt without arguments."""
    return "This is a simple prompt for testing."


@mcp.prompt
def test_prompt_with_arguments(arg1: str, arg2: str) -> str:
    """A prompt with two arguments."""
    return f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"


@mcp.complete("test_prompt_with_arguments", argument="arg1")
def complete_arg1(value: str, arguments: dict[str, str]) -> list[str]:
    """Words that begin with what was typed."""
    return [word for word in ("test", "testing", "tested") if word.startswith(value)]


@mcp.prompt
def test_prompt_with_embedded_resource(resourceUri: str) -> list[EmbeddedResource | str]:
    """A prompt that carries a resource (the suite chose the argument's name)."""
    resource = EmbeddedResource(resourceUri, text="Embedded resource content for testing.", mime_type="text/plain")
    return [resource, "Please process the embedded resource above."]


@mcp.prompt
def test_prompt_with_image() -> list[Image | str]:
    """A prompt that carries an image."""
    return [Image(PNG, "image/png"), "Please analyze the image above."]


@dataclass
class Situation:
    context: str


@mcp.prompt
async def test_input_required_result_prompt(ctx: Context) -> str:
    """A prompt that asks the person first."""
    situation = await ctx.elicit("What is the context?", Situation, key="user_context")
    return f"Use this context: {situation.context}"


# Skills

skills = mcp.extend(Skills())


@skills.skill(
    files={"references/FORMS.md": "# Forms\n\nFill in every field.\n", "scripts/fill.py": "print('filled')\n"},
    frontmatter={"license": "Apache-2.0", "metadata": {"version": "2.1.0"}},
)
def pdf_processing() -> str:
    """Extract, fill, and assemble PDF documents."""
    return "# PDF processing\n\nRead `references/FORMS.md` first.\n"


@skills.skill(prefix="support/billing", dynamic=True)
async def refunds() -> str:
    """Process refund requests of customers."""
    return "# Refunds\n\nAsk for the receipt.\n"


if __name__ == "__main__":
    mcp.run()
