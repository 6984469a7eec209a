"""The official conformance suite's scenarios for clients, each against `client.py` in a process of its own.

These are the scored ones of both revisions that aren't about authorization, and one that came later. There's no
file of expected failures.
"""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from conformance.official import FOLDER, SUITE
from millstream.protocol.revisions import BY_DATE
from patience import WAIT
from processes import NODE

pytestmark = pytest.mark.server

OLD, NEW = list(BY_DATE)[-2:]
SCENARIOS = [
    ("initialize", OLD),
    ("tools_call", OLD),
    ("elicitation-sep1034-client-defaults", OLD),
    ("sse-retry", OLD),
    ("json-schema-2020-12-preservation", OLD),
    ("tools_call", NEW),
    ("request-metadata", NEW),
    ("sep-2322-client-request-state", NEW),
    ("http-standard-headers", NEW),
    ("http-custom-headers", NEW),
    ("http-invalid-tool-headers", NEW),
    ("json-schema-ref-no-deref", NEW),
    ("json-schema-2020-12-preservation", NEW),
]
NOT_EXERCISED = {"initialize", "notifications_initialized"}
"""Methods of the other era, whose headers `http-standard-headers` would look at."""


@pytest.mark.parametrize(("scenario", "revision"), SCENARIOS)
def test_the_suite_finds_nothing_wrong_with_the_client(scenario: str, revision: str, tmp_path: Path) -> None:
    """Neither a failure nor a warning, nor anything left out."""
    client = shlex.join([sys.executable, str(FOLDER / "client.py")])
    command = [NODE, str(SUITE), "client", "--command", client, "--scenario", scenario, "--spec-version", revision]
    done = subprocess.run(
        [*command, "--timeout", str(int(WAIT * 1000)), "-o", str(tmp_path)],
        cwd=FOLDER,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=3 * WAIT,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    checks = [check for file in tmp_path.glob("*/checks.json") for check in json.loads(file.read_text("utf-8"))]
    assert checks
    odd = [check for check in checks if check["status"] not in ("SUCCESS", "INFO")]
    assert [check for check in odd if not any(check["name"].endswith(method) for method in NOT_EXERCISED)] == []
