"""``millstream dev``: serve a file while you write it, with an inspector."""

import os
import sys
import threading
import webbrowser
from typing import Annotated

from cyclopts import Parameter

from millstream._app.server_process.startup_message import Facts, show
from millstream._cli.program import Editable, EnvFile, Packages, Port
from millstream._cli.run import Inspect
from millstream._cli.serve import run_with, serve_http, use_file


def dev(
    target: Annotated[str, Parameter(name="FILE[:OBJECT]")],
    /,
    *,
    port: Port = None,
    no_open: bool = False,
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

    Args:
        target: A Python file or module; add OBJECT if it has several servers.
        no_open: Don't open a browser.
    """
    run_with(packages, editable)
    use_file(env_file)

    def open_inspector(facts: Facts) -> None:
        show(facts)
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


def has_browser() -> bool:
    """Return whether there's a graphical browser. Otherwise, Python would open a text browser in this terminal."""
    if sys.platform in ("win32", "darwin"):
        return True
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
