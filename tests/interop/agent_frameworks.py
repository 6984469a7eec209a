# ruff: noqa: PLC0415  only the framework that runs is imported
"""An agent of one framework: `agent_frameworks.py FRAMEWORK GATEWAY MODEL KEY [CLIENT_ID SECRET]`.

The model is an OpenAI-compatible API, and Ollama's for LlamaIndex. Prints the answer of the run.
"""

import asyncio
import sys
from typing import Any

QUESTION = "Begin."


def send_key(key: str) -> dict[str, Any]:
    # region: key
    sign_in = {"headers": {"Authorization": f"Bearer {key}"}}
    # endregion
    return sign_in  # noqa: RET504


def get_tokens(url: str, issuer: str, client_id: str, secret: str) -> dict[str, Any]:
    # region: oauth-storage
    class Memory:
        tokens = client = None

        async def get_tokens(self) -> Any:
            return self.tokens

        async def set_tokens(self, tokens: Any) -> None:
            self.tokens = tokens

        async def get_client_info(self) -> Any:
            return self.client

        async def set_client_info(self, client_info: Any) -> None:
            self.client = client_info

    # endregion
    # region: oauth
    from mcp.client.auth.extensions.client_credentials import ClientCredentialsOAuthProvider

    sign_in = {"auth": ClientCredentialsOAuthProvider(url, Memory(), client_id, secret)}
    # endregion
    return sign_in  # noqa: RET504


async def langchain(url: str, api: str, sign_in: dict[str, Any]) -> str:
    from langchain_openai import ChatOpenAI

    model, question = ChatOpenAI(model="gpt-4o", base_url=api, api_key="x", max_retries=0), QUESTION
    # region: langchain
    from langchain.agents import create_agent
    from langchain_mcp_adapters.client import MultiServerMCPClient

    client = MultiServerMCPClient({"shop": {"transport": "streamable_http", "url": url, **sign_in}})
    agent = create_agent(model, await client.get_tools())
    run = await agent.ainvoke({"messages": [("user", question)]})
    answer = run["messages"][-1].content
    # endregion
    return str(answer)


async def openai_agents(url: str, api: str, sign_in: dict[str, Any]) -> str:
    from agents import OpenAIChatCompletionsModel, set_tracing_disabled
    from openai import AsyncOpenAI

    set_tracing_disabled(True)
    model = OpenAIChatCompletionsModel("gpt-4o", AsyncOpenAI(base_url=api, api_key="x", max_retries=0))
    question = QUESTION
    # region: openai-agents
    from agents import Agent, Runner
    from agents.mcp import MCPServerStreamableHttp

    async with MCPServerStreamableHttp({"url": url, **sign_in}) as shop:
        agent = Agent("Clerk", model=model, mcp_servers=[shop])
        run = await Runner.run(agent, question)
    answer = run.final_output
    # endregion
    return str(answer)


async def pydantic_ai(url: str, api: str, sign_in: dict[str, Any]) -> str:
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    model, question = OpenAIChatModel("gpt-4o", provider=OpenAIProvider(base_url=api, api_key="x")), QUESTION
    # region: pydantic-ai
    from pydantic_ai import Agent
    from pydantic_ai.mcp import MCPToolset

    shop = MCPToolset(url, tool_error_behavior="failed", **sign_in)
    agent = Agent(model, toolsets=[shop])
    run = await agent.run(question)
    answer = run.output
    # endregion
    return str(answer)


async def llama_index(url: str, api: str, sign_in: dict[str, Any]) -> str:
    from llama_index.llms.ollama import Ollama

    model, question = Ollama("gpt-4o", base_url=api.removesuffix("/v1"), context_window=100_000), QUESTION
    # region: llama-index
    from llama_index.core.agent.workflow import FunctionAgent
    from llama_index.tools.mcp import BasicMCPClient, McpToolSpec

    tools = await McpToolSpec(BasicMCPClient(url, **sign_in)).to_tool_list_async()
    agent = FunctionAgent(tools=tools, llm=model, streaming=False)
    answer = await agent.run(question)
    # endregion
    return str(answer)


async def smolagents(url: str, api: str, sign_in: dict[str, Any]) -> str:
    from smolagents import OpenAIServerModel, ToolCallingAgent, ToolCollection

    def run() -> str:
        chosen = OpenAIServerModel("gpt-4o", api_base=api, api_key="x")
        with ToolCollection.from_mcp(
            {"url": url, "transport": "streamable-http", **sign_in}, trust_remote_code=True, structured_output=False
        ) as tools:
            agent = ToolCallingAgent([*tools.tools], chosen, verbosity_level=-1, max_steps=20)
            return str(agent.run(QUESTION))

    return await asyncio.to_thread(run)


async def autogen(url: str, api: str, sign_in: dict[str, Any]) -> str:
    from autogen_agentchat.agents import AssistantAgent
    from autogen_ext.models.openai import OpenAIChatCompletionClient
    from autogen_ext.tools.mcp import McpWorkbench, StreamableHttpServerParams

    chosen = OpenAIChatCompletionClient(model="gpt-4o", base_url=api, api_key="x")
    async with McpWorkbench(StreamableHttpServerParams(url=url, **sign_in)) as workbench:
        agent = AssistantAgent("agent", chosen, workbench=workbench, max_tool_iterations=20)
        run = await agent.run(task=QUESTION)
    return str(run.messages[-1].content)


if __name__ == "__main__":
    framework, gateway, api, key, *client = sys.argv[1:]
    sign_in = get_tokens(gateway, api.removesuffix("/v1"), *client) if client else send_key(key)
    sys.stdout.write(asyncio.run(globals()[framework](gateway, api, sign_in)))
