"""``millstream list``, ``call``, ``read``, ``prompt``, and ``tasks``: use the items of a server, now or as tasks.

``millstream call --task`` saves each task that it starts in a file of the user, for ``millstream tasks``.
"""

import asyncio
import json as json_module
import os
import re
import shlex
import sys
import time
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import chain, count, pairwise
from pathlib import Path
from typing import Annotated, Any, cast

import msgspec
from cyclopts import Parameter
from msgspec import Struct

from millstream._cli.connect_options import (
    DEFAULTS,
    FAILED,
    ConnectOptions,
    Target,
    list_items,
    pairs,
    person,
    unknown,
)
from millstream._cli.errors import UsageError
from millstream._cli.program import Json
from millstream._cli.signals import stop_without_reader
from millstream._cli.tables import Progress, print_block, print_json, print_rows, print_text, style, value_of
from millstream._protocol.content import Block, EmbeddedResource, Media, ResourceContents, ResourceLink, Text
from millstream._protocol.errors import INVALID_PARAMS, RESOURCE_NOT_FOUND
from millstream._protocol.json_schema import is_array, members
from millstream._protocol.notifications import PromptDescription, ToolDescription
from millstream.client import Client, ClientError, Result, ServerError
from millstream.client._tasks import Task
from millstream.files import write_private

_USAGE = "Arguments must be NAME=VALUE"
_NO_TASKS = (
    "The server doesn't support tasks, so this is a plain call, which Ctrl-C cancels. "
    'To allow tasks: @mcp.tool(task="allowed")'
)
_NOT_FOUND = (INVALID_PARAMS, RESOURCE_NOT_FOUND)
_POLL_SECONDS = 0.3


async def list_(target: Target, /, *, options: ConnectOptions = DEFAULTS, tool: str = "", json: Json = False) -> None:
    """Show the tools, resources, templates, prompts, and skills of a server, or the arguments of one tool.

    In a pipe, each line has the kind, the name or URI, and the description, separated by tabs.

    **Examples**

    - `millstream list shop.py`

    - `millstream list https://example.com/mcp --login`

    Args:
        tool: Show the arguments of this tool as `millstream call` takes them.
    """
    async with options.client(target) as client:
        await wait_for_upstreams(client, options.timeout)
        tools = await list_items(client.tools)
        if tool:
            schemas = {each.name: each.input_schema for each in tools}
            if error := unknown("tool", tool, list(schemas)):
                raise error
            if json:
                print_json(schemas[tool])
            else:
                print_rows(_arguments_of(schemas[tool]), ["KIND", "NAME", "DESCRIPTION"], paint=_paint)
            return
        resources = await list_items(client.resources)
        templates, prompts = await list_items(client.templates), await list_items(client.prompts)
        skills = await list_items(client.skills)  # no request without the extension
        if json:
            offers = {"tools": tools, "resources": resources, "resourceTemplates": templates, "prompts": prompts}
            print_json({**offers, "skills": skills} if skills else offers)
            return
        signed = sys.stdout.isatty()  # in a pipe, print only the name
        rows = [
            ["tool", signature_of(each) if signed else each.name, each.description or each.title or ""]
            for each in tools
        ]
        rows += [["resource", each.uri, each.description or each.name] for each in resources]
        rows += [["template", each.uri_template, each.description or each.name] for each in templates]
        rows += [
            ["prompt", _prompt_of(each) if signed else each.name, each.description or each.title or ""]
            for each in prompts
        ]
        rows += [["skill", each.uri, each.description] for each in skills]
        if not rows:
            print_text("The server has no tools, resources, or prompts. Write @mcp.tool above a function.", sys.stderr)
            return
        print_rows(rows, ["KIND", "NAME", "DESCRIPTION"], paint=_paint)


async def wait_for_upstreams(
    client: Client, seconds: float, items: Callable[[], Awaitable[list[Any]]] | None = None, name: str = ""
) -> bool:
    """Wait a limited time for the upstreams of a gateway that are still starting. Return whether they've started.

    Args:
        client: The client of the gateway.
        seconds: Maximum time to wait.
        items: Lists items. Once there's one with the name or URI, the other upstreams don't matter.
        name: The name or URI.
    """
    connection, end, waits = client.conversation.negotiated, time.monotonic() + seconds, False
    capabilities: Mapping[str, Any] = connection.capabilities
    while members(members(capabilities.get("experimental")).get("millstream.gateway")).get("starting"):
        if items is not None and name in {getattr(each, "uri", each.name) for each in await list_items(items)}:
            return True
        if connection.revision.handshake or time.monotonic() > end:  # a handshake isn't repeated
            print_text("Warning: items are missing, because servers behind this gateway are starting.", sys.stderr)
            return False
        if not waits:
            waits = True
            print_text("Waiting for servers that are starting behind this gateway. Press Ctrl-C to stop.", sys.stderr)
        await asyncio.sleep(_POLL_SECONDS)
        capabilities = members((await client.request("server/discover")).get("capabilities"))
    return True


_SIGNATURE = re.compile(r"^(\w+ +)(?:([^\s(]+)|$)|(: \w+)(?=[=,?)])")


def _paint(text: str) -> str:
    """Color the kind, the name, and the types of an item."""
    return _SIGNATURE.sub(
        lambda found: style(found[1] or "", "dim") + style(found[2] or "", "cyan") + style(found[3] or "", "dim"), text
    )


async def call(
    target: Target,
    tool: str,
    /,
    *arguments: Annotated[str, Parameter(name="NAME=VALUE")],
    input: Annotated[str, Parameter(metavar="JSON", allow_leading_hyphen=True)] = "",
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    task: bool = False,
    options: ConnectOptions = DEFAULTS,
    json: Json = False,
) -> int:
    """Call a tool and print its result. Progress goes to standard error.

    Values are converted to the types in the tool's schema: `copies=2` becomes a number or text. Write lists and
    objects as JSON. A list of words can also be separated by commas. The exit status is 1 if the tool reports an
    error.

    **Examples**

    - `millstream call shop.py order isbn=978-0 copies=2`

    - `echo '{"isbn": "978-0"}' | millstream call http://127.0.0.1:8000/mcp order --input -`

    - `millstream call https://example.com/mcp report year=2026 --task`

    Args:
        tool: Name of the tool.
        arguments: Arguments, converted to the types in the tool's schema, or one JSON object.
        input: All arguments as one JSON object; - reads it from standard input.
        output: Save the image or audio of the result in this new file, and others beside it, with free numbers.
        task: Let the server run the call as a task, which continues after this command ends.
    """
    if output is not None:
        _check_new(output)  # before the call, which may have effects
    label = "--input"
    if len(arguments) == 1 and arguments[0].startswith("{") and not input:
        label, input, arguments = "The argument", arguments[0], ()
    bare, given = _split(arguments)
    values = _object(input, label)

    async with options.client(target, elicit=person()) as client:
        await wait_for_upstreams(client, options.timeout, client.tools, tool)
        tools = {each.name: each.input_schema for each in await client.tools()} if arguments else {}
        fields = members(tools.get(tool, {}).get("properties"))
        if bare:
            open_ = [each for each in fields if each not in {**values, **given}]
            raise unknown("tool", tool, list(tools)) or _unnamed_error(bare, tool, open_)
        typed = {name: value_of(text, fields.get(name)) for name, text in given.items()}
        try:
            if task and client.tasks.supported:
                result = await follow(client, await start(client, target, tool, {**values, **typed}))
            else:
                if task:
                    print_text(_NO_TASKS, sys.stderr)
                with progress_shown() as progress:
                    result = await client.call(tool, {**values, **typed}, progress=progress, raise_on_error=False)
        except ServerError as exc:
            if exc.code == INVALID_PARAMS:
                raise (await _missing(client, "tool", tool, target) or exc) from exc
            raise
        status = print_result(result, as_json=json, hint="" if output or json else ": save it with --output FILE")
    if output is not None:
        _save_media(result, output)
    return status


def _check_new(file: Path) -> None:
    """Check that a file can be created.

    Raises:
        UsageError: It exists, also as a link to nothing, or its folder can't be written to.
    """
    folder = file.parent
    if os.path.lexists(file):
        raise UsageError(f"{file} already exists. Use another file: --output FILE")
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder}. Create it, or use another file: --output FILE")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"The folder {folder} can't be written to. Use another file: --output FILE")


def _save_media(result: Result, output: Path) -> None:
    """Save images, audio, and embedded binary resources, each in a new file.

    Raises:
        ClientError: A file can't be written.
    """
    media = [each.data for each in result.content if isinstance(each, Media)]
    resources = [each.resource for each in result.content if isinstance(each, EmbeddedResource)]
    media += [each.blob for each in resources if each is not None and each.blob]
    if not media:
        print_text(f"The result has no image or audio, so {output} wasn't written.", sys.stderr)
    paths = chain([output], (output.with_stem(f"{output.stem}-{number}") for number in count(2)))
    for data in media:
        for path in paths:
            try:
                with path.open("xb") as file:
                    file.write(data)
            except FileExistsError:
                continue  # with the next number
            except OSError as exc:
                text = f"{path} can't be written: {exc.strerror}. Use another file: --output FILE"
                raise ClientError(text) from exc
            print_text(f"Wrote {path}.", sys.stderr)
            break


def print_result(result: Result, *, as_json: bool, hint: str = "") -> int:
    """Print the result of a tool and return the exit status.

    Args:
        as_json: Whether to print all of it as JSON.
        hint: How to save binary content, which isn't printed.
    """
    structured = result.structured_content
    if as_json:
        shown: dict[str, Any] = {"content": result.content, "isError": result.is_error}
        if isinstance(structured, msgspec.Raw):
            shown["structuredContent"] = result.data
        if result.meta:
            shown["_meta"] = result.meta
        print_json(shown)
    else:
        file = sys.stderr if result.is_error else None
        for block in result.content:
            text = describe(block)
            if hint and isinstance(block, Media) and sys.stdout.isatty():
                text = f"{text[:-1]}{hint}]"
            print_block(text, file)
        if isinstance(structured, msgspec.Raw) and not result.text:
            print_block(bytes(structured).decode("utf-8", "replace"), file)
    return FAILED if result.is_error else 0


async def read(
    target: Target,
    uri: str,
    /,
    *,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    options: ConnectOptions = DEFAULTS,
    json: Json = False,
) -> None:
    """Print a resource, or save it to a file. Binary content isn't printed to a terminal.

    **Examples**

    - `millstream read shop.py book://978-0`

    - `millstream read http://127.0.0.1:8000/mcp logo://small --output logo.png`

    Args:
        uri: URI of the resource.
        output: Write the content to this file.
    """
    async with options.client(target) as client:
        await wait_for_upstreams(client, options.timeout, client.resources, uri)
        try:
            contents = await client.read(uri)
        except ServerError as exc:
            found = await no_such_resource(client, uri) if exc.code in _NOT_FOUND else None
            raise (await _missing(client, "resource", uri, target, found) if found else None) or exc from exc
        if json:
            print_json({"contents": contents})
        elif output is not None:
            content = b"".join((each.text or "").encode() if each.blob is None else each.blob for each in contents)
            try:
                output.write_bytes(content)
            except OSError as exc:
                text = f"{output} can't be written: {exc.strerror}. Use another file: --output FILE"
                raise ClientError(text) from exc
        else:
            for each in contents:
                if each.blob is None:
                    print_text(each.text or "")
                elif sys.stdout.isatty():
                    kind, size = each.mime_type or "bytes", len(each.blob)
                    print_text(f"[{kind}, {size:,} bytes: use --output FILE or a pipe]")
                else:
                    sys.stdout.buffer.write(each.blob)
                    sys.stdout.buffer.flush()


async def prompt(
    target: Target,
    name: str,
    /,
    *arguments: Annotated[str, Parameter(name="NAME=VALUE")],
    options: ConnectOptions = DEFAULTS,
    json: Json = False,
) -> None:
    """Print a prompt's messages.

    **Example**

    - `millstream prompt shop.py pitch title=Emma`

    Args:
        name: Name of the prompt.
        arguments: Arguments of the prompt.
    """
    bare, given = _split(arguments)

    async with options.client(target) as client:
        await wait_for_upstreams(client, options.timeout, client.prompts, name)
        if bare:
            prompts = {each.name: each.arguments or () for each in await client.prompts()}
            open_ = [each.name for each in prompts.get(name, ()) if each.name not in given]
            raise unknown("prompt", name, list(prompts)) or _unnamed_error(bare, name, open_)
        try:
            result = await client.prompt(name, given)
        except ServerError as exc:
            if exc.code == INVALID_PARAMS:
                raise (await _missing(client, "prompt", name, target) or exc) from exc
            raise
        if json:
            print_json({"description": result.description, "messages": result.messages})
            return
        for message in result.messages:
            for block in message.blocks:
                print_text(f"{message.role}: {describe(block)}")


async def _missing(
    client: Client, kind: str, name: str, target: str, error: ClientError | None = None
) -> ClientError | None:
    """Return the error for an item that the server doesn't have, or has as another kind, or None if it has it.

    Args:
        kind: The kind of item that the command uses.
        name: The name, or the URI.
        target: The server.
        error: The error without another kind, if it's known.
    """
    names = {
        "tool": [each.name for each in await list_items(client.tools)],
        "prompt": [each.name for each in await list_items(client.prompts)],
        "resource": [each.uri for each in await list_items(client.resources)],
    }
    error = error or unknown(kind, name, names[kind])
    for other, command in {"tool": "call", "prompt": "prompt", "resource": "read"}.items():
        if other != kind and (name in names[other] or (other == "resource" and "://" in name)):
            words = shlex.join(["millstream", command, target, name])
            remedy = f"It's a {other}: {words}" if name in names[other] else f"To read a resource: {words}"
            return error and ClientError(f"The server has no {kind} {name!r}.", remedy=remedy)
    return error


def _split(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the arguments without names, and the others."""
    for word, following in pairwise(arguments):
        if re.fullmatch(r"[\w-]+=", word) and not re.search("[={]", following):
            raise UsageError(f"{word} is followed by a space. Write {shlex.quote(word + following)}.")
    named = [word for word in arguments if "=" in word]
    names = [word.partition("=")[0] for word in named]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise UsageError(f"{twice} has several values. Pass one. Separate list items with commas, as in {twice}=a,b.")
    return [word for word in arguments if word not in named], pairs(named, "=", _USAGE)


def _unnamed_error(words: Sequence[str], item: str, names: Sequence[str]) -> UsageError:
    """Return the error for arguments without names, and guess the names."""
    first = words[0]
    if len(words) > 1 and set(words[::2]) <= set(names):
        names, words = words[::2], words[1::2]  # name Ada
    pairs = [word.partition(":") for word in words]  # name:Ada
    if all(name in names for name, _, _ in pairs):
        names, words = [name for name, _, _ in pairs], [word or "VALUE" for _, _, word in pairs]
    named = [f"{name}={word}" for name, word in zip(names, words, strict=False)]
    remedy = f": {item} {shlex.join(named)}" if len(named) == len(words) else ""
    return UsageError(f"{_USAGE}, not {first!r}{remedy}.")


def _object(text: str, label: str) -> dict[str, Any]:
    if not text:
        return {}
    source = sys.stdin.read() if text == "-" else text
    try:
        found = json_module.loads(source)
    except (ValueError, RecursionError) as exc:
        raise UsageError(f"{label} isn't JSON: {exc}. Text needs double quotes, or write NAME=VALUE.") from exc
    if not isinstance(found, dict):
        raise UsageError(f"{label} must be a JSON object.")
    return cast("dict[str, Any]", found)


def signature_of(tool: ToolDescription) -> str:
    """Return a tool in the form of a call: ``order(isbn, copies: integer = 1)``."""
    schema = tool.input_schema
    required = schema.get("required")
    wanted = required if is_array(required) else ()
    words: list[str] = []
    for name, given in members(schema.get("properties")).items():
        field = members(given)
        kind = field.get("type")
        word = f"{name}: {kind}" if isinstance(kind, str) and kind != "string" else name
        if name not in wanted:
            word += f"={json_module.dumps(field['default'], ensure_ascii=False)}" if "default" in field else "?"
        words.append(word)
    return f"{tool.name}({', '.join(words)})"


def _arguments_of(schema: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of a tool's arguments: one for each value of those with choices."""
    rows: list[list[str]] = []
    for name, given in members(schema.get("properties")).items():
        field = members(given)
        parts: Any = field.get("anyOf")
        values: list[Any] = []
        for part in map(members, parts if is_array(parts) else [field]):
            choices: Any = [part["const"]] if "const" in part else part.get("enum")
            values += choices if is_array(choices) else [True, False] if part.get("type") == "boolean" else []
        texts = [each if isinstance(each, str) else json_module.dumps(each, ensure_ascii=False) for each in values]
        rows += [["argument", f"{name}={text}", str(field.get("description", ""))] for text in texts or [""]]
    return rows


def _prompt_of(prompt: PromptDescription) -> str:
    words = [each.name if each.required else f"{each.name}?" for each in prompt.arguments or ()]
    return f"{prompt.name}({', '.join(words)})"


def describe(block: Any) -> str:
    """Return the text of a block, or a description."""
    match block:
        case Text():
            return block.text
        case Media():
            return f"[{block.mime_type}, {len(block.data):,} bytes]"
        case ResourceLink():
            return f"[{block.uri}] {block.description or block.name}"
        case EmbeddedResource(resource=ResourceContents(text=str(text))):
            return text
        case EmbeddedResource(resource=ResourceContents() as resource):
            return f"[{resource.uri}, {len(resource.blob or b''):,} bytes]"
        case _:
            return f"[{type(block).__name__}]" if isinstance(block, Block) else str(block)


async def check_resource(client: Client, uri: str) -> None:
    """Check that a resource is listed, matches a template, or can be read.

    Raises:
        ClientError: The resource doesn't exist.
    """
    missing = await no_such_resource(client, uri)
    if missing is None:
        return
    if "resources" in client.capabilities:
        try:
            await client.read(uri)
        except ServerError as exc:
            if exc.code not in _NOT_FOUND:
                raise
        else:
            return
    raise missing


async def no_such_resource(client: Client, uri: str) -> ClientError | None:
    """Return the error for an unknown URI that can't match a template, or None."""
    templates = [each.uri_template for each in await list_items(client.templates)]
    if any(uri.startswith(each.partition("{")[0]) for each in templates):
        return None
    return unknown("resource", uri, [*(each.uri for each in await list_items(client.resources)), *templates])


_MOST = 500
"""Maximum number of tasks in the file. The oldest are removed first."""
_UNLIMITED = 30 * 86400.0
"""Seconds to keep a task without a time to live."""


class StartedTask(Struct):
    """A task that was started on this machine."""

    server: str
    id: str
    tool: str
    started: float
    """Unix time."""
    until: float
    """Unix time after which the server may have deleted it."""


def path_of_tasks() -> Path:
    """Return the path of the file that lists started tasks."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return state / "millstream" / "tasks.json"


def read_tasks() -> list[StartedTask]:
    """Return the tasks that may still exist, oldest first, or none if the file can't be read."""
    try:
        found = msgspec.json.decode(path_of_tasks().read_bytes(), type=list[StartedTask])
    except (OSError, ValueError, RecursionError):
        return []
    now = time.time()
    return [each for each in found if each.until > now]


async def start(client: Client, server: str, tool: str, arguments: Mapping[str, Any]) -> Task:
    """Start a task, save its id, and print the command that gets its result."""
    started = await client.tasks.start(tool, arguments)
    if started.task_id and server.startswith(("http://", "https://", "ws://", "wss://")):
        words = shlex.join(["millstream", "tasks", server, started.task_id])
        print_text(
            f"Started task {started.task_id}. It continues after Ctrl-C. To wait for it again: {words} --wait",
            sys.stderr,
        )
        now = time.time()
        until = now + (_UNLIMITED if started.ttl_ms is None else started.ttl_ms / 1000)
        tasks = [*read_tasks(), StartedTask(server, started.task_id, tool, now, until)][-_MOST:]
        try:
            write_private(path_of_tasks(), msgspec.json.encode(tasks))
        except OSError as exc:
            print_text(f"The id can't be saved ({exc.strerror}). Write it down.", sys.stderr)
    return started


@contextmanager
def progress_shown() -> Generator[Callable[[float, float | None, str | None], None]]:
    """Yield a progress handler that shows the progress on standard error inside the block."""
    progress = Progress()
    try:
        with stop_without_reader() as wrap:
            yield wrap(progress.step)
    finally:
        progress.close()


async def follow(client: Client, task: str | Task) -> Result:
    """Wait for a task and show its status messages."""
    with progress_shown() as progress:
        return await client.tasks.wait(task, progress=progress, raise_on_error=False)


async def tasks(
    target: Target,
    task: str = "",
    /,
    *,
    wait: bool = False,
    cancel: bool = False,
    options: ConnectOptions = DEFAULTS,
    json: Json = False,
) -> int:
    """List the tasks that were started on this machine, or show, wait for, or cancel one.

    `millstream call --task` starts them. With an id, it prints the state of that task, or its result
    when it's completed. The exit status is 1 if the tool reports an error.

    **Examples**

    - `millstream tasks https://example.com/mcp`

    - `millstream tasks https://example.com/mcp ID --wait`

    Args:
        task: The id of a task.
        wait: Wait until the task ends.
        cancel: Cancel the task.
    """
    if not task and (wait or cancel):
        raise UsageError("--wait and --cancel require a task: millstream tasks SERVER ID")

    async with options.client(target, elicit=person()) as client:
        if not task:
            await _show_all(client, target, as_json=json)
            return 0
        if cancel:
            await client.tasks.cancel(task)
            print_text(f"Canceled {task}.", sys.stderr)
            return 0
        if wait:
            return print_result(await follow(client, task), as_json=json)
        return _show(await client.tasks.get(task), as_json=json)


async def _show_all(client: Client, server: str, *, as_json: bool) -> None:
    rows: list[list[str]] = []
    found: list[Task] = []
    for each in read_tasks():
        if each.server != server:
            continue
        try:
            now = await client.tasks.get(each.id)
        except ServerError as exc:
            if exc.code != INVALID_PARAMS:
                raise
            continue  # the server has deleted it
        found.append(now)
        started = datetime.fromtimestamp(each.started, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        rows.append([each.id, each.tool, now.status, started, now.status_message])
    if as_json:
        print_json([_plain(each) for each in found])
    elif not rows:
        print_text(
            "No task of this server was started on this machine. Start one with `millstream call SERVER TOOL --task`.",
            sys.stderr,
        )
    else:
        print_rows(rows, ["TASK", "TOOL", "STATUS", "STARTED", "MESSAGE"])


def _show(task: Task, *, as_json: bool) -> int:
    if as_json:
        print_json(_plain(task))
    elif task.over:
        return print_result(task.outcome(), as_json=False)
    else:
        print_text(f"{task.status}: {task.status_message}" if task.status_message else task.status)
    return FAILED if task.status in ("failed", "cancelled") else 0


def _plain(task: Task) -> Any:
    return msgspec.json.decode(msgspec.json.encode(task))
