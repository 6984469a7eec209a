# ruff: noqa: PLC0415  only the framework that runs is imported
"""An agent of one framework: `agent_frameworks.py FRAMEWORK GATEWAY MODEL`.

The model is an OpenAI-compatible API. Prints the answer of the run.
"""

import asyncio
import sys
from typing import Any


async def read_tools(url: str) -> Any:
    # region: langchain
    from langchain_mcp_adapters.client import MultiServerMCPClient

    client = MultiServerMCPClient({"shop": {"transport": "streamable_http", "url": url}})
    tools = await client.get_tools()
    # endregion
    return tools  # noqa: RET504


async def langchain(gateway: str, model: str) -> str:
    from langchain.agents import create_agent
    from langchain_openai import ChatOpenAI

    tools = await read_tools(gateway)
    agent = create_agent(ChatOpenAI(model="gpt-4o", base_url=model, api_key="x", max_retries=0), tools)
    run = await agent.ainvoke({"messages": [("user", "Begin.")]}, {"recursion_limit": 100})
    return str(run["messages"][-1].content)


async def smolagents(gateway: str, model: str) -> str:
    from smolagents import OpenAIServerModel, ToolCallingAgent, ToolCollection

    def run() -> str:
        chosen = OpenAIServerModel("gpt-4o", api_base=model, api_key="x")
        with ToolCollection.from_mcp(
            {"url": gateway, "transport": "streamable-http"}, trust_remote_code=True, structured_output=False
        ) as tools:
            agent = ToolCallingAgent([*tools.tools], chosen, verbosity_level=-1, max_steps=20)
            return str(agent.run("Begin."))

    return await asyncio.to_thread(run)


async def autogen(gateway: str, model: str) -> str:
    from autogen_agentchat.agents import AssistantAgent
    from autogen_ext.models.openai import OpenAIChatCompletionClient
    from autogen_ext.tools.mcp import McpWorkbench, StreamableHttpServerParams

    chosen = OpenAIChatCompletionClient(model="gpt-4o", base_url=model, api_key="x")
    async with McpWorkbench(StreamableHttpServerParams(url=gateway)) as workbench:
        agent = AssistantAgent("agent", chosen, workbench=workbench, max_tool_iterations=20)
        run = await agent.run(task="Begin.")
    return str(run.messages[-1].content)


if __name__ == "__main__":
    sys.stdout.write(asyncio.run(globals()[sys.argv[1]](*sys.argv[2:])))
