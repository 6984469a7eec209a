"""The client for the official suite: ``client.py URL``, with the scenario's name in the environment.

Each scenario does what a program would do with `millstream.Client`, without knowledge of the suite's checks.
"""

import asyncio
import base64
import contextlib
import json
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from millstream import Client
from millstream.client import Options, SkillMismatch
from millstream.client._oauth import MemoryTokenStore
from millstream.client._oauth.endpoints import fetch
from millstream.client._oauth.flow import IdentityProvider, OAuth, WorkloadIdentity
from millstream.client._questions import Question


def fill_in(question: Question) -> dict[str, Any]:
    """Confirm all booleans, and use the defaults of other fields."""
    fields = (question.requested_schema or {}).get("properties", {})
    confirmed = {name: True for name, field in fields.items() if field.get("type") == "boolean"}
    return confirmed | question.defaults


async def call_first(client: Client) -> None:
    tools = await client.tools()
    for tool in tools[:1]:
        numbers = {"a": 5, "b": 3} if "a" in tool.input_schema.get("properties", {}) else {}
        await client.call(tool.name, numbers)


async def list_tools(client: Client) -> None:
    await client.tools()


async def call_all(client: Client) -> None:
    for tool in await client.tools():
        values = dict.fromkeys(tool.input_schema.get("properties", {}), "x")
        await client.call(tool.name, values)


async def use_everything(client: Client) -> None:
    for tool in await client.tools():
        await client.call(tool.name)
    for resource in await client.resources():
        await client.read(resource.uri)
    for prompt in await client.prompts():
        await client.prompt(prompt.name)


async def call_given(client: Client) -> None:
    await client.tools()
    for call in json.loads(os.environ["MCP_CONFORMANCE_CONTEXT"])["toolCalls"]:
        await client.call(call["name"], call["arguments"])


async def ask_in_rounds(client: Client) -> None:
    names = [tool.name for tool in await client.tools()]
    async with asyncio.TaskGroup() as calls:
        for name in names:
            calls.create_task(client.call(name))


async def echo_schema(client: Client) -> None:
    schemas = {tool.name: tool.input_schema for tool in await client.tools()}
    await client.call("json_schema_echo", schema=schemas["json_schema_2020_12_tool"])


async def list_skills(client: Client) -> None:
    await client.skills()


async def load_skills(client: Client) -> None:
    for skill in await client.skills():
        with contextlib.suppress(SkillMismatch):
            await client.read_skill(skill)
            for resource in skill.resources if isinstance(skill.resources, list) else ():
                await client.read_skill(skill, resource.uri.removeprefix(f"{skill.root}/"))


SCENARIOS: dict[str, Callable[[Client], Awaitable[None]]] = {
    "json-schema-ref-no-deref": list_tools,
    "json-schema-2020-12-preservation": echo_schema,
    "http-standard-headers": use_everything,
    "http-custom-headers": call_given,
    "http-invalid-tool-headers": call_all,
    "sep-2322-client-request-state": ask_in_rounds,
    "sep-2640-client-no-prefetch": list_skills,
    "sep-2640-client-verify-digest": load_skills,
    "sep-2640-client-verify-size": load_skills,
    "sep-2640-client-verify-frontmatter": load_skills,
}


async def visit(url: str) -> str:
    """Approve the request, and return the redirect."""
    return (await fetch("GET", url)).header(b"location")


def identity(given: dict[str, str]) -> IdentityProvider:
    """Return the organization's identity provider."""
    return IdentityProvider(given["idp_issuer"], id_token=given["idp_id_token"], client_id=given["idp_client_id"])


def credentials() -> OAuth:
    """Return the scenario's credentials; without any, those that the server requires."""
    given = json.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT", "{}"))
    found = OAuth(
        store=MemoryTokenStore(),
        redirect_handler=visit,
        client_id=given.get("client_id", ""),
        client_secret=given.get("client_secret", ""),
        client_metadata_url="https://conformance-test.local/client-metadata.json",
        client_credentials="client-credentials" in os.environ["MCP_CONFORMANCE_SCENARIO"],
    )
    if "private_key_pem" in given:
        return found.with_private_key(given["private_key_pem"])
    if "valid_jwt" in given:
        issuer = json.loads(base64.urlsafe_b64decode(given["valid_jwt"].split(".")[1] + "=="))["aud"]
        return found.with_identity_provider(WorkloadIdentity(issuer, token=given["valid_jwt"]))
    return found.with_identity_provider(identity(given)) if "idp_id_token" in given else found


async def main(url: str) -> None:
    scenario = os.environ["MCP_CONFORMANCE_SCENARIO"]
    options = Options(auth=credentials(), probe_timeout=60)  # on a busy machine, servers need longer
    async with Client(url, elicit=fill_in, sample=lambda _: "Paris", roots=["file:///work"], options=options) as client:
        await SCENARIOS.get(scenario, call_first)(client)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[-1]))
