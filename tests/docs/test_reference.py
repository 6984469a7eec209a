import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from msgspec.structs import fields

from cases import for_each
from command_line import commands, long_options, parameters
from http_peer import listed_paths
from millstream import Client, Context, Server, auth
from millstream._app.routes import Routes
from millstream._cli.program import program
from millstream._config import Settings
from millstream._gateway.files.read import load_file
from millstream._gateway.options.credentials import Credentials
from millstream._gateway.options.upstream import UpstreamConfig
from millstream._gateway.upstreams.links import MAX_OWN_SESSIONS
from millstream._gateway.upstreams.resource_watches import MAX_WATCHED
from millstream._http.client import LINES_PER_SECOND
from millstream._http.hosts import EXEMPT
from millstream._http.message import MAX_FRAMING, HttpLimits
from millstream._http.server.connection import MAX_PIPELINE
from millstream._protocol.jsonrpc import MAX_CONTAINERS, MAX_ID, MAX_LONG_NUMBERS, MAX_MEMBERS, MAX_NESTING
from millstream._protocol.metadata import MAX_CAPABILITIES, MAX_DISPLAYED
from millstream._protocol.seal import MAX_TOKEN
from millstream._server import handlers
from millstream._server.calls.parked_calls import MAX_BYTES as PARKED_BYTES
from millstream._server.calls.session_state import MAX_STATE
from millstream._server.calls.sessions import MAX_HELD, MAX_RECORD
from millstream._server.control import LIGHT, PER_SECOND
from millstream._server.features.registry import MAX_URI
from millstream._server.functions import msgspec_engine
from millstream._server.functions.core_engine import MAX_ERRORS
from millstream._server.functions.engine import MAX_BACKTRACKS
from millstream._server.handlers import MAX_URI_BYTES
from millstream._server.sweep import SILENCE
from millstream._telemetry.metrics import MAX_SERIES, Metrics, Reading, dump
from millstream._text import MAX_SHOWN
from millstream._transports.connection import MAX_ITEMS
from millstream._transports.streamable import MAX_DELETES, MAX_MESSAGES
from millstream._transports.websocket import Dialect
from millstream._web.playground import MAX_CONVERSATIONS
from millstream.auth._authorization_server import clients as oauth_clients
from millstream.auth._authorization_server.authorize import REMEMBERED
from millstream.auth._authorization_server.config import ACCESS_SECONDS, REFRESH_SECONDS
from millstream.auth._authorization_server.grants import CODE_SECONDS
from millstream.auth._authorization_server.tickets import PERSON_SECONDS
from millstream.auth._jose import LEEWAY
from millstream.auth._sign_in import LIFETIME as PAGE_SECONDS
from millstream.client import Options
from millstream.client import _errors as errors
from millstream.extensions.events._outbox import MAX_QUEUED
from millstream.hub import Hub
from millstream.hub import _delivery as hub_delivery
from millstream.hub._channels import HubLimits
from millstream.hub._replay import REPLAYS
from problem_kinds import KINDS
from scripts.docs import ROOT
from scripts.option_tables import HEAD, with_options
from scripts.option_tables import TABLE as OPTIONS
from scripts.option_tables import TABLES as OPTION_TABLES

pytestmark = pytest.mark.check

REFERENCE = ROOT / "docs" / "reference"


def rows(page: str) -> dict[str, list[str]]:
    """Return the rows of a page's tables by the first code word of their first cell."""
    found: dict[str, list[str]] = {}
    for line in (REFERENCE / page).read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| `"):
            found[cells[0].split("`")[1]] = cells
    return found


def test_settings_are_listed() -> None:
    missing = set(Settings.__struct_fields__) - rows("settings.md").keys()
    assert not missing, f"Add these rows to a table of docs/reference/settings.md, and run `make docs`: {missing}"


UNITS = {
    "KiB": 1024, "MiB": 1024**2, "seconds": 1, "minutes": 60, "hour": 3600, "hours": 3600, "day": 86400, "days": 86400,
}  # fmt: skip
AMOUNT = re.compile(rf"([\d,]*\d)(?: ({'|'.join(UNITS)})\b)?")
HTTP_LIMITS = HttpLimits.of(Settings())
FIXED = {
    "headers of a request": HTTP_LIMITS.max_header_count,
    "size of a request's headers": HTTP_LIMITS.max_header_bytes,
    "a request target, such as `/mcp?a=b`": HTTP_LIMITS.max_url,
    "overhead of a chunked body": MAX_FRAMING,
    "pipelined requests waiting on one connection": MAX_PIPELINE,
    "messages in a batch of 2025-03-26": MAX_ITEMS,
    "nesting of one message": MAX_NESTING,
    "arrays and objects in one message": MAX_CONTAINERS,
    "numbers in one message that are slow to parse: with an exponent beyond ±200, or with 20 digits and a two-digit "
    "exponent": MAX_LONG_NUMBERS,
    "values in the arguments of a tool with a hand-written schema, or with other parameters than [simple types]"
    "(types.md)": msgspec_engine.MAX_VALUES,
    "problems that pydantic may find in one set of arguments": MAX_ERRORS,
    "steps of a `pattern` with lookahead, lookbehind, or backreferences, per string": MAX_BACKTRACKS,
    "members in `inputResponses`, at all levels": MAX_MEMBERS,
    "a `requestState`": MAX_TOKEN,
    "members in the parameters of `prompts/get` and `completion/complete`, and in the answer to a form": MAX_MEMBERS,
    "an id": MAX_ID,
    "a progress token": MAX_ID,
    "a resource's URI": MAX_URI,
    "a client's capabilities": MAX_CAPABILITIES,
    "a client's name, and its version": MAX_DISPLAYED,
    "values of a completion": handlers.MAX_VALUES,
    "an unknown name or method in an error message": MAX_SHOWN,
    "the time without output before the reply to a call becomes an event stream": SILENCE,
    "messages in a broken call stream that can be resumed": MAX_MESSAGES,
    "URIs that a session or stream watches, together": MAX_URI_BYTES,
    "memory for sessions on connections and for subscribed URIs": MAX_HELD,
    "the subscribers' channels and patterns": hub_delivery._MAX_MEMORY,
    "data of an event": HubLimits().max_event,
    "the largest request that doesn't count toward `max_call_bytes`": LIGHT,
    "playground conversations": MAX_CONVERSATIONS,
    "ended sessions of one caller that the server remembers until their expiration": MAX_DELETES,
    "messages to other workers, from one session": PER_SECOND,
    "`ctx.session_state`, in the store": MAX_STATE,
    "`ctx.user_state`, in the store": MAX_STATE,
    "queued webhook deliveries": MAX_QUEUED,
    "series of one metric": MAX_SERIES,
    "client sessions at upstreams that keep sessions": MAX_OWN_SESSIONS,
    "requests of calls waiting for an answer, which count three times": PARKED_BYTES,
    "watched resources at an upstream": MAX_WATCHED,
    "lines of event streams from one connection": LINES_PER_SECOND,
}
"""Limits that aren't settings, by the first cell of their row."""


def limit_rows() -> list[dict[str, str]]:
    """Return the rows of the page's tables of limits, by the names of their columns."""
    found: list[dict[str, str]] = []
    columns: list[str] = []
    for line in (REFERENCE / "limits.md").read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if not line.startswith("|"):
            columns = []
        elif not columns:
            columns = cells
        elif columns[1] == "limit" and not line.startswith("|---"):
            found.append(dict(zip(columns, cells, strict=True)))
    return found


def amount(cell: str) -> int | None:
    """Return the first number of a cell, in bytes or seconds if it has a unit."""
    found = AMOUNT.search(cell)
    return int(found[1].replace(",", "")) * UNITS.get(found[2], 1) if found else None


def test_fixed_limits_are_listed() -> None:
    listed = {row["what"]: amount(row["limit"]) for row in limit_rows()}
    assert {name: listed.get(name) for name in FIXED} == FIXED
    assert MAX_RECORD == MAX_URI_BYTES
    (scans,) = (row for row in limit_rows() if row["what"].startswith("events that resuming subscribers can scan"))
    assert amount(scans["for one caller"]) == REPLAYS.count


def test_limits_that_settings_change_have_the_defaults_of_these_settings() -> None:
    of_upstreams = {each.name: each.default for each in fields(UpstreamConfig)}
    checked: set[str] = set()
    for row in limit_rows():
        names = re.findall(r"`(\w+)`", row.get("change it with", ""))
        if not names or row["what"] in FIXED or "as many as" in row["limit"]:
            continue
        is_upstreams = "of the upstream" in row["change it with"]
        default = of_upstreams[names[0]] if is_upstreams else getattr(Settings(), names[0])
        wanted = int(default.partition("/")[0] or 0) if isinstance(default, str) else default
        assert (amount(row["limit"]) or 0) == wanted, row
        checked.add(names[0])
    assert len(checked) > 30


NAMES = re.compile(r"`\w+`(?:, `\w+`)*")
"""Matches a cell with names of commands."""


def sections(page: str) -> dict[str, list[str]]:
    """Return the lines of a page's sections by their headings."""
    parts = re.split(r"^## ", (REFERENCE / page).read_text("utf-8"), flags=re.MULTILINE)[1:]
    return {lines[0]: lines[1:] for lines in map(str.splitlines, parts)}


def described_options() -> dict[str, set[str]]:
    """Return the options that the page describes for each command, and for groups of commands, such as `keys`.

    The options in a command's row are the command's. A row that begins with an option is for the commands in its second
    cell, or else for the commands of the section. A section about one command may describe options in sentences, too.
    """
    found: dict[str, set[str]] = {}
    for title, lines in sections("cli.md").items():
        about = re.findall("^`millstream (.+)`$", title)
        for command in (here := about or re.findall(r"^\| `millstream (\w+)", "\n".join(lines), re.MULTILINE)):
            found.setdefault(command, set())
        for line in lines:
            options = set(re.findall(r"`(--[\w-]+)", line))
            if match := re.match(r"\| `millstream ([a-z ]*[a-z])", line):
                commands = [match[1]]
            elif line.startswith("| `--"):
                first, second, *_ = line.strip("| ").split(" | ")
                options = set(re.findall(r"`(--[\w-]+)", first))
                commands = re.findall(r"\w+", second) if NAMES.fullmatch(second) and not about else here
            else:
                commands = about
            for command in commands:
                found.setdefault(command, set()).update(options)
    return found


def test_run_options_are_listed() -> None:
    listed = [line.split("`")[1] for line in sections("cli.md")["`millstream run`"] if line.startswith("| `--")]
    assert sorted(listed) == sorted(long_options(dict(commands())["run"]))


def test_options_for_other_commands_are_listed() -> None:
    page = described_options()
    assert {name.partition(" ")[0] for name in page} == {name.partition(" ")[0] for name, _ in commands()}
    for name, command in (*commands(), ("gateway", program()["gateway"])):
        assert name in page or name == "audit verify", f"docs/reference/cli.md needs a row for `millstream {name}`."
        missing = set(long_options(command)) - page.get(name, set()) - page[name.partition(" ")[0]]
        assert not missing, f"docs/reference/cli.md lacks {sorted(missing)} of `millstream {name}`."


def test_rows_of_options_name_commands_that_have_them() -> None:
    known = {
        name.removesuffix(" verify"): {option for each in parameters(command) for option in each.names}
        for name, command in commands()
    }
    rows = [line for title, lines in sections("cli.md").items() if title[0] != "`" for line in lines]
    cells = [line.strip("| ").split(" | ") for line in rows if line.startswith("| `--")]
    pairs = [(options, names) for options, names, *_ in cells if NAMES.fullmatch(names)]
    assert len(pairs) > 20
    for options, names in pairs:
        for name in re.findall(r"\w+", names):
            assert set(re.findall(r"--[\w-]+", options)) <= known[name], f"`millstream {name}` lacks {options}."


def test_every_client_member_option_and_error_is_listed() -> None:
    page = rows("client.md")
    members = {f"client.{name}" for name, _ in inspect.getmembers(Client) if not name.startswith("_")}
    assert members == {name.partition("(")[0] for name in page if name.startswith("client.")}
    assert set(Options.__struct_fields__) <= set(page)
    kinds = {
        name for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, errors.ClientError)
    }
    assert kinds - {"ClientError"} <= set(page)
    assert set(inspect.signature(Client).parameters) <= set(page)


@for_each("name", [name for name, _ in inspect.getmembers(Context) if not name.startswith("_")])
def test_every_context_member_is_listed(name: str) -> None:
    text = (REFERENCE / "context.md").read_text("utf-8")
    assert f"ctx.{name}" in text or (name in ("debug", "info", "warning", "error") and f"/{name}" in text)


@for_each("parts", ["", "hub", "rest", "metrics", "all"])
async def test_routes_are_listed_with_methods_and_parts(parts: str) -> None:
    listed = {path: cells for path, cells in rows("routes.md").items() if path.startswith("/")}
    async with Server("listed", serve=parts).running() as runtime:
        routes = runtime.serve_http()
        for path, (_, methods, on_by, _) in listed.items():
            served = on_by == "always" or on_by.split("`")[1] in runtime.definition.parts
            for method in ("GET", "POST", "DELETE"):
                wanted = f"`{method}`" in methods or (method == "GET" and methods == "WebSocket")
                found = routes.find(method, path.replace("{file}", "base.css"))
                assert (found is not None and found.__name__ != "refuse") == (served and wanted), (method, path)
        assert served_paths(routes) <= {re.sub(r"\{.*", "", path).rstrip("/") for path in listed}


def served_paths(routes: Routes) -> set[str]:
    """Return paths and prefixes without a final slash, with all page files as one."""
    paths = {path.rstrip("*") for path in listed_paths(routes) if path not in EXEMPT}
    return {re.sub("^/assets/.*", "/assets", path).rstrip("/") for path in paths}


async def test_every_metric_is_listed_with_its_kind_and_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels: dict[str, set[str]] = {}

    def note_labels(create: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            given = inspect.signature(create).bind(*arguments, **options).arguments
            labels[given["name"]] = set(given.get("labels", ()))
            return create(*arguments, **options)

        return call

    for each in (Metrics.read, Metrics.histogram):
        monkeypatch.setattr(Metrics, each.__name__, note_labels(each))
    listed = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, (_, kind, labels, _) in metric_rows().items()}
    mcp = Server("listed", serve="all", settings=Settings(access_log=True, audit_log=str(tmp_path / "audit")))
    mcp.upstream("shop", Server("shop"))
    async with mcp.running() as runtime:
        assert runtime.host.observer is not None
        metrics = runtime.host.observer.registry
        kinds = {each.name: each.kind for each in msgspec.msgpack.decode(dump(metrics), type=list[Reading])}
        of_process = {"python_gc_objects_collected_total", "python_gc_objects_uncollectable_total"}
        labels |= {name: {"generation"} for name in (*of_process, "python_gc_collections_total")}
        kinds["millstream_connections_cut_total"] = "counter"  # of our own HTTP server
        # of a gateway with a file
        kinds |= {"gateway_config": "gauge", "gateway_config_refused": "gauge"}
        labels["gateway_config"] = {"version", "digest"}
        assert listed == {name: (kind, labels.get(name, set())) for name, kind in kinds.items()}


def metric_rows() -> dict[str, list[str]]:
    """Return the rows of the page, including empty cells."""
    text = (REFERENCE / "metrics.md").read_text("utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return {line.split("`")[1]: [cell.strip() for cell in line.split("|")[1:-1]] for line in lines}


def test_every_problem_is_listed_with_its_status() -> None:
    listed = rows("rest.md")
    assert {kind.slug: listed[kind.slug][1] for kind in KINDS} == {kind.slug: str(kind.status) for kind in KINDS}


def test_every_websocket_dialect_verb_is_listed() -> None:
    text = (REFERENCE / "websocket.md").read_text("utf-8")
    verbs = set(inspect.getmodule(Dialect)._VERBS)  # type: ignore[union-attr] # it has one
    assert set(re.findall(r'^\| `\{"type":"(\w+)".*? \| `\{"type":"', text, re.MULTILINE)) == verbs


@for_each("name", ["publish", "send", "presence", "history", "stats"])
def test_hub_methods_are_listed(name: str) -> None:
    assert hasattr(Hub, name)
    assert f"mcp.hub.{name}(" in (REFERENCE / "hub.md").read_text("utf-8")


def test_every_advisory_test_is_listed() -> None:
    page = (ROOT / "docs" / "contributing" / "tested.md").read_text("utf-8")
    text = page.partition("## Published vulnerabilities\n")[2]
    files = {path.name for path in (ROOT / "tests" / "security").glob("test_adv_*.py")}
    assert set(re.findall(r"`(test_adv_\w+\.py)`", text)) == files
    intro = text.partition("\n| ")[0]
    numbers = {int(number) for number in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    assert numbers | {int(number) for number in re.findall(r"\b(\d+), the", intro)} == set(range(1, 29))


@for_each("page", ["auth", "client", "gateway", "gateway-rules", "server", "settings"])
def test_options_have_their_names_types_defaults_and_a_sentence(page: str) -> None:
    text = (REFERENCE / f"{page}.md").read_text("utf-8")
    assert with_options(text) == text, "Run: make docs"
    for match in OPTIONS.finditer(text):
        assert re.findall(r"^\| `(\w+)` \|.*\|  \|$", match["body"], re.MULTILINE) == [], match["name"]


LIFETIMES = {
    "another issuer's token": (LEEWAY,),
    "an authorization code of `auth.issuer`": (CODE_SECONDS,),
    "an access token of `auth.issuer`": (ACCESS_SECONDS,),
    "a refresh token": (REFRESH_SECONDS,),
    "a consent": (REMEMBERED,),
    "a sign-in at the consent page": (PERSON_SECONDS,),
    "a sign-in to the server's pages": (PAGE_SECONDS,),
    "a grant of an `auth.identity_provider`, or a client's signed assertion": (oauth_clients._MAX_ASSERTION_SECONDS,),
    "the registration of a client": (oauth_clients.UNUSED, oauth_clients.USED),
}


def test_lifetimes_of_credentials_are_listed() -> None:
    text = (REFERENCE / "auth.md").read_text("utf-8").partition("\n## How long credentials last\n")[2]
    found = {
        line.split(" | ")[0].removeprefix("| "): [amount(each[0]) for each in AMOUNT.finditer(line.split(" | ")[1])]
        for line in text.partition("\n## ")[0].splitlines()
        if line.startswith("| ")
    }
    assert {name: tuple(found[name]) for name in LIFETIMES} == LIFETIMES


@for_each("name", auth.__all__)
def test_every_way_to_sign_in_is_on_its_page(name: str) -> None:
    assert f"`auth.{name}`" in (REFERENCE / "auth.md").read_text("utf-8")


def test_every_table_of_options_is_on_a_page() -> None:
    texts = "".join(path.read_text("utf-8") for path in REFERENCE.glob("*.md"))
    assert {match["name"] for match in OPTIONS.finditer(texts)} == set(OPTION_TABLES)


def test_new_options_get_a_row_without_a_sentence_and_removed_ones_lose_theirs() -> None:
    text = f"<!-- options: groups -->\n\n{HEAD}| `gone` | text | empty | x |\n"
    assert "| `allow` | list of strings | empty |  |\n" in with_options(text)
    assert "gone" not in with_options(text)


def test_shown_options_of_a_gateway_can_be_loaded() -> None:
    config = load_file(
        ROOT / "examples" / "recipes" / "options.toml", environ={"DOCS_TOKEN": "secret", "WIKI_TOKEN": "secret"}
    )
    assert {each.name for each in config.upstreams} == {"time", "docs", "orders", "files", "wiki", "shop"}


def test_credentials_are_listed_with_their_options() -> None:
    text = (REFERENCE / "gateway.md").read_text("utf-8")
    for kind in get_args(Credentials):
        names = ", ".join(f"`{each.name}`" for each in fields(kind) if each.name != "text")
        assert f"| `{kind.__struct_config__.tag}` | {names} |" in text
    table = text.partition("## Credentials\n")[2].partition("\n## ")[0].partition("Their options:")[2]
    named = {each.name for kind in get_args(Credentials) for each in fields(kind)} - {"text"}
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == named
