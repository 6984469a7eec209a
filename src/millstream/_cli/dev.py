"""``millstream dev``: serve a file while you write it, with an inspector."""

import os
import shutil
import subprocess
import sys
import threading
import webbrowser
from contextlib import ExitStack
from typing import Annotated

from cyclopts import Parameter

from millstream._app.server_process import CommandError
from millstream._app.server_process.facts import Facts, show
from millstream._cli.program import Editable, EnvFile, Packages, Port
from millstream._cli.run import Inspect
from millstream._cli.serve import run_with, serve_http, use_file

INSPECTOR = "@modelcontextprotocol/inspector"
NODE = 22
"""Oldest major version of Node.js that the MCP Inspector supports."""


def dev(
    target: Annotated[str, Parameter(name="FILE[:OBJECT]")],
    /,
    *,
    port: Port = None,
    no_open: bool = False,
    mcp_inspector: Annotated[
        bool, Parameter(help=f"Start the MCP Inspector ({INSPECTOR}) instead; requires Node.js.")
    ] = False,
    packages: Packages = (),
    editable: Editable = (),
    env_file: EnvFile = None,
    inspect: Inspect = (),
) -> None:
    """Serve a file while you write it.

    The server restarts when a Python file in the folder changes. If your change fails, it shows the error and keeps the
    last working version running. It opens `/inspect`, a page for trying your tools. Only this machine can reach it.

    **Examples**

    - `millstream dev shop.py`

    - `millstream dev shop.py --with pandas --no-open`

    - `millstream dev shop.py --mcp-inspector`: with the MCP Inspector

    Args:
        target: A Python file or module; add OBJECT if it has several servers.
        no_open: Don't open a browser.
    """
    command = npx() if mcp_inspector else ""
    run_with(packages, editable)
    use_file(env_file)
    with ExitStack() as closing:

        def open_inspector(facts: Facts) -> None:
            show(facts)
            if command:
                words = [command, "-y", INSPECTOR, "--transport", "http", "--server-url", facts.url]
                environment = {**os.environ, "MCP_AUTO_OPEN_ENABLED": "false" if no_open else "true"}
                # No shell, and no user input.
                inspector = closing.enter_context(subprocess.Popen(words, env=environment))  # noqa: S603
                closing.callback(inspector.terminate)
                return
            page = next(each for each in facts.pages if each.endswith("/inspect"))
            if sys.stderr.isatty():
                sys.stderr.write(f"Try your tools at {page}\n")
            if not no_open and has_browser():
                threading.Thread(target=webbrowser.open, args=(page,), daemon=True).start()

        serve_http(
            target,
            "127.0.0.1",
            port,
            reload=True,
            on_ready=open_inspector,
            web=True,
            settings={"inspect_urls": inspect or None, "show_errors": True},
        )


def npx() -> str:
    """Return the program that starts Node packages.

    Raises:
        CommandError: Node.js isn't installed, or is too old.
    """
    found = shutil.which("npx")
    if found is None:
        raise CommandError(
            "--mcp-inspector requires Node.js, which isn't installed: there is no npx on the PATH.",
            why=f"The MCP Inspector is a Node package, {INSPECTOR}.",
            fix="Install Node.js 22 or newer, or use /inspect, without --mcp-inspector.",
        )
    # The MCP Inspector exits silently on older versions.
    try:
        output = subprocess.run(["node", "--version"], capture_output=True, text=True, timeout=10, check=False).stdout  # noqa: S607  the one on the PATH
    except (OSError, subprocess.TimeoutExpired):
        return found
    major = output.strip().removeprefix("v").partition(".")[0]
    if major.isdigit() and int(major) < NODE:
        raise CommandError(
            f"--mcp-inspector requires Node.js {NODE} or newer, but this is {output.strip()}.",
            why=f"The MCP Inspector, {INSPECTOR}, doesn't run on older versions.",
            fix="Install a newer Node.js, or use /inspect, without --mcp-inspector.",
        )
    return found


def has_browser() -> bool:
    """Return whether there's a graphical browser. Otherwise, Python would open a text browser in this terminal."""
    if sys.platform in ("win32", "darwin"):
        return True
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
