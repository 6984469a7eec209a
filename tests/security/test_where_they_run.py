import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cases import for_each

pytestmark = pytest.mark.check

HERE = Path(__file__).parent
TO_FOUR = re.compile(r"\b(FOUR|ON_FOUR|STORE_KINDS)\b|--workers")

PURE = "a function is tested, without any server"
CLIENT = "our client or fetcher is attacked; the server is the attacker's"
INSIDE = "it looks at objects, connections or the calls inside the server's own process"
GIVEN = "it needs other settings, or another clock, than a server that tests share can have"
ELSEWHERE = {
    "adv_04": ("test_session_streams_cannot_be_stolen_or_ended", "test_theft_anywhere"),
    "adv_27": ("test_state_is_bound_to_its_principal", "test_theft_anywhere"),
    "adv_13": ("test_servers_on_one_origin_reject_each_others_tokens", "test_adv_13"),
}
"""Tests that run on one worker; another test in the named file makes the same attack on four."""

ON_ONE_WORKER: dict[str, dict[str, str]] = {
    "adv_03": {"test_loopback_pages_are_foreign": GIVEN, "test_frames_after_a_rejected": INSIDE,
               "test_credentials_in_urls": INSIDE},
    "adv_05": {"test_thousands_of": INSIDE, "test_session_memory": INSIDE, "test_tombstones_are": GIVEN,
               "test_small_capabilities": INSIDE, "test_sessions_work_with": INSIDE},
    "adv_08": {"": PURE},
    "adv_10": {"": PURE},
    "adv_12": {"test_gates_run_once": INSIDE, "test_handshake_requests": INSIDE},
    "adv_13": {"test_caller_tokens": INSIDE},
    "adv_15": {"": CLIENT},
    "adv_16": {"": CLIENT},
    "adv_17": {"": CLIENT},
    "adv_19": {"test_servers_have_no_default_key": PURE, "test_source_code_contains": PURE},
    "adv_20": {"test_served_files_are": PURE},
    "adv_21": {"test_no_route_starts": INSIDE, "test_client_opens": CLIENT, "test_commands_run_without": PURE},
    "adv_25": {"test_peers_that_": INSIDE, "test_channels_per_socket": GIVEN, "test_repeated_subscriptions": INSIDE},
    "adv_26": {"": CLIENT},
    "adv_27": {"test_state_expires": GIVEN},
    "adv_28": {"": "Redis itself is asked what was run in it"},
    "credentials_in_reprs": {"": PURE},
    "crowds": {"test_slow_senders": GIVEN, "test_unknown_key_ids": INSIDE},
    "behind_nginx": {"test_users_sign_in": GIVEN, "test_websockets_pass": GIVEN},
    "policies_in_every_era": {"": GIVEN},
    "cpu_of_headers": {"": "it compares the time of requests to one process"},
    "memory_of_": {"": "what a caller makes one process keep is counted by process"},
    "here_only": {"": "it depends on what each worker is bound to, as test_behind_nginx checks on four"},
    "kept_capabilities": {"": INSIDE},
    "replaced_links": {"": "a hook of Python replaces files when this process opens them"},
    "credentials_in_errors": {"": CLIENT},
    "redaction_for_callers": {"": "each worker redacts in the same way"},
    "request_heads": {"": CLIENT},
    "message_lines": {"": "each worker relays messages in the same way"},
    "second_tenant": {"": "shares count for one process; across workers, only the store limits"},
}  # fmt: skip
"""Prefix of a file -> prefix of a test -> reason to run on one worker only."""


def alone(path: Path) -> Iterator[str]:
    """Return the tests of a file that never use four workers, directly, in a fixture, or in a helper."""
    text = path.read_text("utf-8")
    lines = text.splitlines()
    parts: dict[str, str] = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            parts[node.name] = "\n".join(lines[first - 1 : node.end_lineno])
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            parts[node.targets[0].id] = ast.unparse(node)
    reach = [name for name, said in parts.items() if TO_FOUR.search(said)]
    shared = [name for name in reach if name.isupper() or "@pytest.fixture" in parts[name]]
    named = re.compile(r"\b(" + "|".join(shared or ["FOUR"]) + r")\b")
    for name, said in parts.items():
        if name.startswith("test_") and name not in reach and not named.search(said):
            yield name


@for_each("path", sorted(HERE.glob("test_*.py")), ids=lambda path: path.stem)
def test_single_worker_tests_have_a_reason(path: Path) -> None:
    if path == Path(__file__):
        return
    said = next((why for name, why in ON_ONE_WORKER.items() if path.stem.startswith(f"test_{name}")), {})
    other = dict([ELSEWHERE[path.stem[5:11]]] if path.stem[5:11] in ELSEWHERE else [])
    found = set(alone(path))
    unexplained = {name for name in found if name not in other and not any(name.startswith(each) for each in said)}
    assert unexplained == set()
    assert all(any(name.startswith(each) for name in found) for each in (*said, *other)), "an entry too many"


def test_tests_that_run_elsewhere_exist() -> None:
    for _, where in ELSEWHERE.values():
        (path,) = HERE.glob(f"{where}*.py")
        assert TO_FOUR.search(path.read_text("utf-8"))
