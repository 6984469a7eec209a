import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from conformance.official import FOLDER, KEEP_ALIVE, SUITE
from millstream.protocol import BY_DATE
from patience import WAIT
from processes import NODE

pytestmark = pytest.mark.server

OLD, NEW = list(BY_DATE)[-2:]
BOTH = (
    "tools_call", "auth/metadata-default", "auth/metadata-var1", "auth/metadata-var2", "auth/metadata-var3",
    "auth/basic-cimd", "auth/scope-from-www-authenticate", "auth/scope-from-scopes-supported",
    "auth/scope-omitted-when-undefined", "auth/scope-step-up", "auth/scope-retry-limit",
    "auth/token-endpoint-auth-basic", "auth/token-endpoint-auth-post", "auth/token-endpoint-auth-none",
    "auth/pre-registration",
)  # fmt: skip
ONLY_OLD = ("initialize", "elicitation-sep1034-client-defaults", "sse-retry")
ONLY_NEW = (
    "request-metadata", "auth/resource-mismatch", "auth/offline-access-scope", "auth/offline-access-not-supported",
    "auth/authorization-server-migration", "auth/iss-supported", "auth/iss-not-advertised",
    "auth/iss-supported-missing", "auth/iss-wrong-issuer", "auth/iss-unexpected", "auth/iss-normalized",
    "auth/metadata-issuer-mismatch", "sep-2322-client-request-state", "http-standard-headers", "http-custom-headers",
    "http-invalid-tool-headers", "json-schema-ref-no-deref",
)  # fmt: skip
SCORED = [*((name, OLD) for name in (*ONLY_OLD, *BOTH)), *((name, NEW) for name in (*BOTH, *ONLY_NEW))]
UNSCORED = (
    "json-schema-2020-12-preservation", "auth/client-credentials-basic", "auth/client-credentials-jwt", "auth/dpop",
    "auth/dpop-nonce", "auth/enterprise-managed-authorization", "auth/wif-jwt-bearer",
)  # fmt: skip
"""Scenarios that the suite runs with both revisions and scores for neither."""
SKILLS = ("client-no-prefetch", "client-verify-digest", "client-verify-size", "client-verify-frontmatter")
"""Scenarios of the skills extension, which no scored revision includes."""
OLDER = ("auth/2025-03-26-oauth-metadata-backcompat", "auth/2025-03-26-oauth-endpoint-fallback")
"""Scenarios that no scored revision includes."""
NOT_EXERCISED = {"initialize", "notifications_initialized"}
"""Methods of the other era, which `http-standard-headers` also checks."""


def test_all_scored_client_scenarios_run() -> None:
    for revision in (OLD, NEW):
        command = [NODE, str(SUITE), "list", "--client", "--requirements", revision]
        done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=WAIT, check=True)
        listed = done.stdout.partition("Client scenarios")[2].partition("Run and reported")[0]
        names = {line.strip("- ") for line in listed.splitlines() if line.startswith("  - ")}
        assert names == {name for name, date in SCORED if date == revision}


def test_authorization_extension_scenarios_are_unscored() -> None:
    command = [NODE, str(SUITE), "list"]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=WAIT, check=True)
    unpublished = ("dpop", "enterprise", "wif-", "id-jag", "identity-assertion")
    listed = [line.strip("- ") for line in done.stdout.splitlines() if any(each in line for each in unpublished)]
    assert listed == [
        "auth/enterprise-managed-authorization [extension]", "auth/dpop [extension]", "auth/dpop-nonce [extension]",
        "auth/wif-jwt-bearer [extension]",
    ]  # fmt: skip
    assert not any(each in name for each in unpublished for name, _ in SCORED)


Checks = list[dict[str, Any]]
"""The checks of one scenario."""


def found(output: Path, *options: str) -> dict[str, Checks]:
    """Run the suite, and return the checks by scenario; a scenario's folder is `NAME-TIME`."""
    client = shlex.join([sys.executable, str(FOLDER / "client.py")])
    wait = str(int(WAIT * 1000))
    node = [NODE, "--require", str(KEEP_ALIVE), str(SUITE)]
    done = subprocess.run(
        [*node, "client", "--command", client, "-o", str(output), "--timeout", wait, *options],
        cwd=FOLDER, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=5 * WAIT, check=False,
        env={**os.environ, "KEEP_ALIVE_MS": wait},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return {
        re.sub(r"-\d{4}-\d\d-\d\dT[\d-]+Z$", "", str(file.parent.relative_to(output))): json.loads(file.read_bytes())
        for file in output.rglob("checks.json")
    }


@pytest.fixture(scope="module")
def of_revision(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Checks]]:
    """Return a function that runs the suite once for each revision."""
    return cache(lambda revision: found(tmp_path_factory.mktemp("suite"), "--requirements", revision))


def judge(checks: Checks) -> None:
    """Check that there were successes, and neither failures nor warnings."""
    assert any(check["status"] == "SUCCESS" for check in checks)
    odd = [check for check in checks if check["status"] in ("FAILURE", "WARNING")]
    assert [check for check in odd if not any(check["name"].endswith(method) for method in NOT_EXERCISED)] == []


@pytest.mark.parametrize(
    ("scenario", "revision"), [*SCORED, *((name, revision) for revision in (OLD, NEW) for name in UNSCORED)]
)
def test_official_suite_passes_for_the_client(
    of_revision: Callable[[str], dict[str, Checks]], scenario: str, revision: str
) -> None:
    judge(of_revision(revision)[scenario])


@pytest.mark.parametrize("revision", [OLD, NEW])
def test_every_scenario_that_runs_is_checked(of_revision: Callable[[str], dict[str, Checks]], revision: str) -> None:
    assert set(of_revision(revision)) == {name for name, date in SCORED if date == revision} | set(UNSCORED)


@pytest.mark.parametrize("scenario", [*OLDER, *(f"sep-2640-{name}" for name in SKILLS)])
def test_official_suite_passes_for_older_revisions(scenario: str, tmp_path: Path) -> None:
    (checks,) = found(tmp_path, "--scenario", scenario).values()
    judge(checks)
