"""The documentation site, built as `make docs-site` builds it, and served from a folder."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from patience import WAIT
from processes import ROOT

MKDOCS = [str(ROOT / ".venv-docs" / "bin" / "python"), "-m", "mkdocs", "build", "--strict", "--site-dir"]


def build_site(folder: Path) -> Path:
    """Build the site. A broken link is an error."""
    done = subprocess.run([*MKDOCS, folder], capture_output=True, text=True, timeout=5 * WAIT, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
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
