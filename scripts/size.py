"""Measure the sources by mechanism: tokens outside docstrings and comments, code lines, files, and functions.

``python scripts/size.py`` prints the table. With ``--against REVISION``, it prints the rows that differ from that
revision, so a change can say which row grows and which one pays. Nothing fails because of a figure.

An f-string is one token on every Python, and NEWLINE, INDENT, and DEDENT are none. The pages' JavaScript is counted
without comments and vendored libraries. In a template literal, each text around an expression is one token, and so is
each token of an expression.
"""

import argparse
import ast
import io
import re
import subprocess
import tarfile
import tokenize
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SOURCES = "src/millstream"
TOTALS = {".py": "Python in all", ".js": "JavaScript in all"}
UNLISTED = "on no row"
ROWS = {
    "types, schemas, and arguments": "_server/functions _protocol/json_schema.py",
    "server: dispatch, registry, and items": """_server/__init__.py _server/dispatch.py _server/handlers.py
        _server/features _server/control.py _server/pool.py _server/sweep.py _server/peers.py _server/refusals.py
        _server/worker_queries.py items.py middleware.py""",
    "server: calls, context, sessions, and questions": "_server/calls",
    "server: application, routes, and runtime": """__init__.py _app/__init__.py _app/argument_checks.py
        _app/arguments.py _app/definition.py _app/folder.py _app/lifecycle.py _app/parts/__init__.py _app/routes.py
        _app/runtime.py _app/runtimes.py _app/server.py _app/user_routes.py _config.py _parts.py testing.py""",
    "server: worker processes": "_app/server_process",
    "protocol: messages, revisions, and errors": """protocol.py _protocol/__init__.py _protocol/admission.py
        _protocol/compose.py _protocol/content.py _protocol/errors.py _protocol/handlers.py _protocol/jsonrpc.py
        _protocol/metadata.py _protocol/notifications.py _protocol/principal.py _protocol/revisions.py _protocol/seal.py
        _protocol/sse.py _protocol/uri.py _protocol/uri_template.py""",
    "protocol: schema repair, foreign documents, and redaction": """_protocol/foreign.py _protocol/redaction.py
        _protocol/schema_repair.py _frontmatter.py _yaml.py""",
    "transports: Streamable HTTP, SSE, and stdio": """_transports/__init__.py _transports/connection.py
        _transports/http_sse.py _transports/open_streams.py _transports/stdio.py
        _transports/streamable _transports/usual.py""",
    "transports: WebSocket": """_http/server/websocket.py _http/websocket.py _transports/websocket.py
        client/_transports/websocket.py""",
    "transports: REST and its OpenAPI document": "_transports/openapi.py _transports/rest.py",
    "HTTP server and ASGI": """_http/__init__.py _http/asgi.py _http/hosts.py _http/message.py _http/server/__init__.py
        _http/server/connection.py _http/server/guard.py _http/server/listener.py""",
    "HTTP client": "_http/client",
    "client: requests, results, and watches": """client/__init__.py client/_blocking_client.py client/_client.py
        client/_conversation.py client/_endpoint.py client/_errors.py client/_extensions.py
        client/_questions.py client/_recovery.py client/_requests.py client/_results.py client/_server_messages.py
        client/_watches.py client/lowlevel.py client/_transports/__init__.py client/_transports/http.py
        client/_transports/memory.py client/_transports/stdio.py""",
    "client: sign-in": "_oauth.py client/_oauth",
    "client: targets, and other applications' files": """_cli/install.py client/_applications.py client/_targets.py
        gateway/_jsonc.py gateway/_mcp_servers.py
        _gateway/files/mcp_servers.py _jsonc.py""",
    "sign-in: guard, keys, tokens, and providers": "_app/parts/auth.py auth",
    "sign-in: authorization server": "auth/_authorization_server",
    "gateway: upstreams, links, lists, and items": """gateway/_catalog.py gateway/_followers.py gateway/_items.py
        gateway/_links.py gateway/_lists.py gateway/_mcp_upstream.py gateway/_names.py gateway/_offer.py
        gateway/_part.py gateway/_resource_watches.py gateway/_upstream.py
        _gateway/__init__.py _gateway/calls/items.py _gateway/catalog _gateway/errors.py _gateway/followers.py
        _gateway/log.py _gateway/loops.py _gateway/names.py _gateway/part.py _gateway/rules/__init__.py
        _gateway/upstreams""",
    "gateway: forwarded calls": """gateway/_breaker.py gateway/_bridge.py gateway/_failures.py
        gateway/_forwarded_call.py gateway/_messages.py gateway/_parked_calls.py gateway/_questions.py
        gateway/_results.py gateway/_route.py
        _gateway/calls _gateway/messages _gateway/questions _gateway/rules/results.py _gateway/upstreams/breaker.py""",
    "gateway: policy, patterns, and approval": """gateway/_approval.py gateway/_patterns.py gateway/_policy.py
        _gateway/options/policy.py _gateway/rules/approval.py _gateway/rules/patterns.py _gateway/rules/policy.py
        _gateway/rules/requests.py _gateway/approvals.py""",
    "gateway: upstream credentials": """gateway/_credentials
        _gateway/credentials _gateway/options/credentials.py""",
    "gateway: APIs": """gateway/_openapi.py gateway/_openapi_files.py gateway/_openapi_reply.py
        gateway/_openapi_request.py gateway/_openapi_tools.py gateway/_openapi_upstream.py
        _gateway/apis _gateway/options/api.py""",
    "gateway: processes": """gateway/_processes.py gateway/_watchdog.py
        _gateway/options/process.py _gateway/processes""",
    "gateway: programs of other libraries": """_app/other_libraries.py gateway/_programs
        _gateway/programs""",
    "gateway: file and live changes": """_app/gateway_server.py _cli/gateway.py gateway.py gateway/__init__.py
        gateway/_config.py gateway/_config_values.py gateway/_live.py gateway/_live_part.py gateway/_upstream_config.py
        _gateway/files _gateway/live_part.py _gateway/options/__init__.py _gateway/options/upstream.py""",
    "gateway: relay": """gateway/_passthrough.py
        _gateway/relay.py""",
    "gateway: sets": """_server/address.py gateway/_sets.py
        _gateway/catalog/sets.py _gateway/options/sets.py""",
    "gateway: tool search and resource tools": """gateway/_resource_tools.py gateway/_search.py
        _gateway/catalog/resource_tools.py _gateway/catalog/search.py""",
    "hub": "_app/parts/hub.py _transports/hub_routes.py hub",
    "stores: interfaces, tail, and workers": """stores.py _stores/__init__.py _stores/base.py _stores/health.py
        _stores/rates.py _stores/store.py _stores/tail.py _stores/workers.py _troubles.py""",
    "stores: memory, and its parent process": "_stores/local _stores/memory",
    "stores: SQLite": "_stores/sqlite",
    "stores: Redis": "_stores/redis",
    "stores: NATS": "_stores/nats",
    "extensions: host": "extensions/__init__.py extensions/_calls.py extensions/_extension.py extensions/_host.py",
    "extensions: events and webhooks": "client/_events.py extensions/events extensions/http_post.py",
    "extensions: tasks": "client/_tasks.py extensions/tasks",
    "extensions: skills, apps, and cards": """_protocol/skills.py client/_skills.py extensions/apps extensions/cards
        extensions/skills""",
    "agent, chat, and playground": "_cli/chat _web/playground.py agent",
    "logs, metrics, and the dashboard's figures": """_app/parts/operations.py _server/observability _telemetry
        _web/live.py""",
    "limits and quotas": "_app/throttle.py _limits.py",
    "pages": "_app/parts/web.py _web/__init__.py _web/error_pages.py _web/inspector.py _web/pages.py",
    "command line": "__main__.py _cli",
    "compatibility with SDK 1.x": "compat",
    "small modules": """_confidential.py _copies.py _lazy.py _modules.py _override.py _recent.py _suggestions.py
        _tasks.py _text.py _version.py files.py""",
    "JavaScript: inspector": "_web/assets/inspect",
    "JavaScript: chat and playground": "_web/assets/chat",
    "JavaScript: forms and schemas": "_web/assets/schema",
    "JavaScript: dashboard": "_web/assets/dashboard",
    "JavaScript: frame, client, rendering, and apps": """_web/assets/apps _web/assets/dom.js _web/assets/mcp
        _web/assets/render _web/assets/shell""",
    "JavaScript: gateway, connections, hub, and REST": """_web/assets/connect _web/assets/docs _web/assets/gateway
        _web/assets/hub.js""",
}
"""Each mechanism's files and folders. A file's own path takes precedence over its folder's. Earlier paths of files
stay, so that `--against` can measure older revisions."""
_START, _END = (getattr(tokenize, name, -1) for name in ("FSTRING_START", "FSTRING_END"))
_LAYOUT = {tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
_IGNORED = {tokenize.COMMENT, tokenize.NL, tokenize.ENCODING, tokenize.ENDMARKER}
_JS_TOKEN = re.compile(
    r"""(?P<ignored>\s++|//[^\n]*+|/\*.*?\*/)"""
    r"""|(?P<value>"(?:[^"\\\n]|\\.)*+"|'(?:[^'\\\n]|\\.)*+'|0[xXbBoO]\w++|\.?\d(?:[eE][-+]|[\w.])*+|\#?[\w$]++|\+\+|--)"""
    r"""|=>|\.\.\.|\?\?=?|\?\.(?!\d)|&&=?|\|\|=?|[=!]==?|>>>?=?|<<=?|\*\*=?|[-+*/%&|^<>]=?|.""",
    re.DOTALL,
)
_JS_TEXT = re.compile(r"(?:[^`\\$]|\\.|\$(?!\{))*+(?P<end>`|\$\{)", re.DOTALL)
"""Text of a template literal, up to the literal's end or the next expression."""
_JS_REGEX = re.compile(r"/(?![*/])(?:[^/\\\[\n]|\\.|\[(?:[^\]\\\n]|\\.)*+\])++/\w*+")
_JS_CONDITIONS = {"if", "while", "for", "with"}
"""Keywords whose parentheses aren't a value, so a slash after them begins a regular expression."""
_JS_CLOSING = set(")]}")
_JS_OPERATORS = set(
    "return typeof case in of instanceof delete void throw new do else yield await".split()  # noqa: SIM905
)
"""Words before an expression, so a slash after them begins a regular expression."""


class Size(NamedTuple):
    """The size of a mechanism."""

    tokens: int = 0
    lines: int = 0
    files: int = 0
    functions: int = 0

    def plus(self, other: "Size") -> "Size":
        return Size(*(mine + more for mine, more in zip(self, other, strict=True)))


def python_tokens(text: str) -> Iterator[int]:
    """Yield the line of each token that counts."""
    at_start, depth = True, 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in _LAYOUT:
            at_start = True
        elif token.type == _END:
            depth -= 1
        elif token.type not in _IGNORED:
            if not depth and not (at_start and token.type == tokenize.STRING):
                yield token.start[0]
            depth += token.type == _START
            at_start = False


def python_size(text: str) -> Size:
    lines = list(python_tokens(text))
    functions = sum(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in ast.walk(ast.parse(text)))
    return Size(len(lines), len(set(lines)), 1, functions)


def script_tokens(text: str) -> Iterator[tuple[str, int]]:
    """Yield each JavaScript token that counts, with its line."""
    place, line, before, after_value = 0, 1, "", False
    opened: list[str] = []
    """Each open bracket, with the word before it in a condition, and "${" for an expression in a template literal."""
    while place < len(text):
        regex = None if after_value else _JS_REGEX.match(text, place)
        found = _JS_TOKEN.match(text, place)
        assert found is not None  # noqa: S101  the last alternative is any character
        piece = regex[0] if regex else found[0]
        ends = opened.pop() if piece in _JS_CLOSING and opened else ""
        if piece == "`" or ends == "${":
            piece += _JS_TEXT.match(text, place + 1)[0]  # type: ignore[index]  pages have no unfinished template
        place += len(piece)
        if regex or not found["ignored"]:
            yield piece, line
            if piece[-1] in "([{":
                opened.append("${" if piece.endswith("${") else before + piece if before in _JS_CONDITIONS else piece)
            is_word = bool(found["value"]) and (before in {".", "?."} or piece not in _JS_OPERATORS)
            after_value = bool(regex) or is_word or piece[-1] == "`" or ends in {"(", "["}
            before = piece
        line += piece.count("\n")


def script_size(text: str) -> Size:
    tokens = list(script_tokens(text))
    functions = sum(token in {"function", "=>"} for token, _ in tokens)
    return Size(len(tokens), len({line for _, line in tokens}), 1, functions)


@cache
def _paths() -> dict[str, str]:
    return {path: row for row, paths in ROWS.items() for path in paths.split()}


def find_row(path: str) -> str:
    """Return the row of a file, by its path in the package."""
    place = PurePosixPath(path)
    return next((row for each in (place, *place.parents) if (row := _paths().get(str(each)))), UNLISTED)


def read_files() -> dict[str, str]:
    """Return the sources in the work tree, by their paths in the package."""
    package = ROOT / SOURCES
    files = [path for path in sorted(package.rglob("*")) if path.suffix in TOTALS]
    return {
        path.relative_to(package).as_posix(): path.read_text("utf-8") for path in files if "vendor" not in path.parts
    }


def read_revision(revision: str) -> dict[str, str]:
    """Return the sources of a Git revision, by their paths in the package."""
    command = ["git", "archive", "--format=tar", revision, SOURCES]
    archive = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    found = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if path.suffix in TOTALS and "vendor" not in path.parts and (file := tar.extractfile(member)):
                found[path.relative_to(SOURCES).as_posix()] = file.read().decode()
    return found


def measure(files: Mapping[str, str]) -> dict[str, Size]:
    """Return the size of each row, the largest first, and of all rows."""
    found: defaultdict[str, Size] = defaultdict(Size)
    totals = dict.fromkeys(TOTALS.values(), Size())
    for path, text in files.items():
        size = python_size(text) if path.endswith(".py") else script_size(text)
        name = TOTALS[PurePosixPath(path).suffix]
        found[find_row(path)] = found[find_row(path)].plus(size)
        totals[name] = totals[name].plus(size)
    return dict(sorted(found.items(), key=lambda item: -item[1].tokens)) | totals


def format_table(now: Mapping[str, Size], before: Mapping[str, Size] | None = None) -> Iterator[str]:
    """Yield the table's lines. With sizes from before, yield only the rows that differ."""
    change = "" if before is None else f"{'change':>9}"
    yield f"{'tokens':>7}{change}{'lines':>8}{'files':>7}{'functions':>11}  mechanism"
    for row in dict.fromkeys([*now, *(before or ())]):
        size = now.get(row, Size())
        old = size if before is None else before.get(row, Size())
        if before is None or size != old or row in TOTALS.values():
            change = "" if before is None else f"{size.tokens - old.tokens:>+9,}"
            yield f"{size.tokens:>7,}{change}{size.lines:>8,}{size.files:>7,}{size.functions:>11,}  {row}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Measure the sources by mechanism.")
    parser.add_argument("--against", metavar="REVISION", help="print the rows that differ from a Git revision")
    revision = parser.parse_args().against
    files = read_files()
    old_files = {} if revision is None else read_revision(revision)
    print(*format_table(measure(files), None if revision is None else measure(old_files)), sep="\n")
    for path in sorted(each for each in {*files, *old_files} if find_row(each) == UNLISTED):
        print(f"{UNLISTED}: {path}{'' if path in files else f', only in {revision}'}")


if __name__ == "__main__":
    main()
