"""A server with options: people sign in with keys, calls are limited, and pages show what happens."""

from pathlib import Path

from millstream import Info, Server, Settings, auth

mcp = Server(
    "archive",
    version="1.2.0",
    instructions="Search before you write. Notes are short.",
    info=Info(title="The archive", website_url="https://archive.example.com"),
    serve="web",
    auth=auth.keys(file=Path("millstream-keys.json")),
    store="sqlite:///archive.db",
    settings=Settings.load(limit_calls="60/minute", log_level="info"),
)
