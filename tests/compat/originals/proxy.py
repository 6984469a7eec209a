"""A proxy for a program that is named by the environment, with a tool of its own."""

import os

from fastmcp.server import create_proxy

proxy = create_proxy(
    {"mcpServers": {"books": {"command": os.environ["BEHIND"].split()[0], "args": os.environ["BEHIND"].split()[1:]}}},
    name="proxy",
)


@proxy.tool
def own(words: str) -> str:
    return words[::-1]


if __name__ == "__main__":
    proxy.run(show_banner=False)
