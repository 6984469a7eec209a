"""The documentation site, built as `make docs-site` builds it, and served from a folder."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from patience import WAIT
from processes import ROOT


def build_site(factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the built site. All workers of a test run share it. A broken link is an error."""
    import fcntl  # noqa: PLC0415  Windows, which collects the tests, doesn't have it

    base = factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else factory.getbasetemp()
    folder = base / "documentation-site"
    with (base / "documentation-site.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            command = [str(ROOT / ".venv-docs/bin/python"), "-m", "mkdocs", "build", "--strict", "--site-dir"]
            built = base / "documentation-site.new"
            done = subprocess.run(
                [*command, built], capture_output=True, text=True, timeout=5 * WAIT, cwd=ROOT, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
            built.rename(folder)
    return folder


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@contextmanager
def serve_folder(folder: Path) -> Iterator[str]:
    """Serve the files of a folder on a free port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(WAIT)
