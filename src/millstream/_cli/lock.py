"""``millstream lock`` and ``check``: save the definitions that clients see, and find changes that break clients.

The file has the form of a gateway's accepted definitions.
"""

import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from millstream._cli.connect_options import DEFAULTS, FAILED, ConnectOptions, Target
from millstream._cli.diagnosis import open_target, upstream_step
from millstream._cli.items import wait_for_upstreams
from millstream._cli.program import Json
from millstream._cli.tables import print_json, print_rows, print_text, report
from millstream._gateway.catalog.catalog import AcceptedFile, Description, fetch
from millstream._gateway.catalog.changes import describe_changes
from millstream._protocol.errors import METHOD_NOT_FOUND, LocalError
from millstream._protocol.json_schema import is_array, is_integral, is_object, members, value_at_pointer, walk
from millstream.client import ClientError, ServerError
from millstream.protocol import encode

_KEY = "mcp"
"""The file's only member, where a gateway's file has one for each upstream."""
_MAX_BYTES = 64 * 1024 * 1024
_MINIMA = frozenset(("exclusiveMinimum", "minItems", "minLength", "minProperties", "minimum"))
_MAXIMA = frozenset(("exclusiveMaximum", "maxItems", "maxLength", "maxProperties", "maximum"))
_ANNOTATIONS = frozenset(
    ("$comment", "$defs", "$id", "$schema", "default", "definitions", "deprecated", "description", "discriminator",
     "examples", "readOnly", "title", "writeOnly")
)  # fmt: skip
"""Keywords that don't restrict values."""
_COMPARED = frozenset(("additionalProperties", "const", "enum", "items", "prefixItems", "properties", "required"))
"""Keywords that are compared one by one."""

_Definitions = dict[str, dict[str, Description]]
"""Kind -> name -> definition."""
LockFile = Annotated[Path, Parameter(help="The file with the saved definitions.")]


async def lock(
    target: Target,
    /,
    *,
    file: LockFile = Path("millstream-lock.json"),
    options: ConnectOptions = DEFAULTS,
    json: Json = False,
) -> None:
    """Save the tools, resources, prompts, and instructions that clients see, so that `check` can compare them later.

    **Example**

    - `millstream lock shop.py`
    """
    server, found = await _fetch(target, options)
    try:
        AcceptedFile(file).replace(_KEY, found)
    except OSError as exc:
        raise ClientError(f"{file} can't be written: {exc.strerror}.", remedy="Use another file: --file FILE") from exc
    except LocalError as exc:
        raise ClientError(str(exc)) from exc
    count = sum(map(len, found.values()))
    report(
        f"Saved {count} definitions of {server!r} in {file}.",
        {"server": server, "file": str(file), "definitions": count},
        json=json,
    )


async def check(
    target: Target,
    /,
    *,
    file: LockFile = Path("millstream-lock.json"),
    options: ConnectOptions = DEFAULTS,
    json: Json = False,
) -> int:
    """Show what has changed since `millstream lock`, and which changes break clients.

    The exit status is 1 if a change breaks clients: a removed item, a new required argument, arguments that accept
    less, or results that promise less.

    **Examples**

    - `millstream check shop.py`

    - `millstream check gateway.toml --file gateway-lock.json --json`
    """
    if not file.exists():
        raise ClientError(f"There is no file {file}.", remedy="Create it: millstream lock SERVER")
    _, found = await _fetch(target, options)
    try:
        saved = AcceptedFile(file).of(_KEY)
    except LocalError as exc:
        raise ClientError(str(exc), remedy="Create it again: millstream lock SERVER") from exc
    if not saved:
        raise ClientError(f"{file} has no definitions of `millstream lock`.", remedy="Use another file: --file FILE")
    changes = list(_compare(saved, found))
    broken = sum(breaks for _, _, breaks in changes)
    if json:
        rows = [{"item": item, "change": text, "breaks": breaks} for item, text, breaks in changes]
        print_json({"changes": rows, "breaks": broken > 0})
    elif changes:
        print_rows(
            [["breaks" if breaks else "fits", item, text] for item, text, breaks in changes],
            ["CLIENTS", "ITEM", "CHANGE"],
        )
        sys.stdout.flush()  # logs of CI join both streams
        print_text(f"{broken} of {len(changes)} changes can break clients.", sys.stderr)
    else:
        print_text("Nothing has changed.", sys.stderr)
    return FAILED if broken else 0


async def _fetch(target: str, options: ConnectOptions) -> tuple[str, _Definitions]:
    """Return a server's name and its definitions.

    Raises:
        ClientError: They aren't complete.
    """
    async with open_target(target, options) as (client, describe):
        if not await wait_for_upstreams(client, options.timeout):
            raise ClientError("The lists aren't complete.", remedy="Try again, or wait longer with --timeout.")
        if down := [each.name for each in describe().upstream_states if not upstream_step(each).ok]:
            raise ClientError(
                f"The lists aren't complete: {', '.join(down)} can't be used.", remedy=f"millstream doctor {target}"
            )
        failures: dict[str, ClientError] = {}
        catalog = await fetch(
            client.conversation,
            max_bytes=_MAX_BYTES,
            failures=failures,
            warn=lambda text: print_text(f"Warning: {text}", sys.stderr),
        )
        for error in failures.values():
            if not isinstance(error, ServerError) or error.code != METHOD_NOT_FOUND:
                raise error
        found: _Definitions = {}
        for kind, name, definition in catalog.pinned():
            found.setdefault(kind, {})[name] = definition
        return client.server.name, found


def _compare(saved: _Definitions, found: _Definitions) -> Iterator[tuple[str, str, bool]]:
    """Yield each change: the item, what has changed, and whether that breaks clients."""
    for kind in sorted({*saved, *found}):
        before, after = saved.get(kind, {}), found.get(kind, {})
        for name in sorted({*before, *after}):
            new = after.get(name, before.get(name, {}))
            item, changes = describe_changes(kind, name, before.get(name), new)
            if name not in after:
                yield item, "removed", kind != "server"  # instructions are text
            for member, text in changes.items():
                losses = _find_losses(member, before.get(name, {}).get(member), new.get(member))
                for each in losses or [text]:
                    yield item, each, bool(losses)


def _find_losses(member: str, old: Any, new: Any) -> Collection[str]:
    """Return why a changed member of a definition breaks clients, if it does."""
    if member == "inputSchema":
        return _Comparison(old, new, sent=True).find_all("arguments")
    if member == "arguments":
        return _find_losses("inputSchema", _as_schema(old), _as_schema(new))
    if member == "outputSchema" and old is not None:
        if new is None:
            return ["result has no schema now"]
        return _Comparison(new, old, sent=False).find_all("result")
    if member == "execution":
        before, after = (str(members(each).get("taskSupport", "forbidden")) for each in (old, new))
        words = {"required": "runs only as a task now", "forbidden": "doesn't run as a task now"}
        return [words[after]] if before != after and after in words else []
    return [f"mimeType was {old}, and is {new} now"] if member == "mimeType" and old is not None else []


def _as_schema(arguments: Any) -> Description:
    """Return the arguments of a prompt as a schema."""
    named = {each["name"]: each for each in arguments or ()}
    required = [name for name, each in named.items() if each.get("required")]
    return {"properties": {name: {} for name in named}, "required": required}


class _Comparison:
    """Finds why values that fit one schema may not fit another.

    Args:
        wide: Schema of the values: the old one for what clients send, and the new one for what they get.
        narrow: Schema that they may not fit.
        sent: Whether clients send the values.
    """

    def __init__(self, wide: Description, narrow: Description, *, sent: bool) -> None:
        self._wide, self._narrow, self._sent = wide, narrow, sent
        self._verb = "accepts" if sent else "promises"
        self._failed: dict[bytes, list[str]] = {}
        """A pair of subschemas -> why values may not fit."""
        self._assumed: set[bytes] = set()
        """Pairs whose values fit if those of the other pairs here do. Schemas can refer to themselves."""

    def find_all(self, place: str) -> Collection[str]:
        """Return the reasons for the two schemas, which describe what's at a place."""
        while True:
            known = len(self._failed)
            self._assumed.clear()
            found = self.find(self._wide, self._narrow, place)
            if len(self._failed) == known:  # what was assumed is true
                return dict.fromkeys(found)

    def find(self, wide: Any, narrow: Any, place: str) -> list[str]:
        """Return the reasons for subschemas of the two, as far as they're known."""
        wide, narrow = members(wide), members(narrow)
        key = encode([wide, narrow])
        if key in self._assumed:
            return []
        if key not in self._failed:
            self._assumed.add(key)
            own, others = _follow(wide, self._wide), _follow(narrow, self._narrow)
            if reasons := list(self._compare(own, others, place)):
                self._assumed.discard(key)
                self._failed[key] = reasons
                return reasons
            return []
        return self._failed[key]

    def _compare(self, wide: Description, narrow: Description, place: str) -> Iterator[str]:
        own, others = _split(wide), _split(narrow)
        if len(own) > 1 or len(others) > 1:
            if any(all(self.find(each, other, place) for other in others) for each in own):
                yield f"{place} {self._verb} less: types"
        elif (own, others) != ([wide], [narrow]):
            yield from self.find(own[0], others[0], place)
        else:
            accepted = _values(narrow)
            if accepted is not None and not (_values(wide) or {b""}) <= accepted:
                yield f"{place} {self._verb} less: enum"
            for key, limit in narrow.items():
                known = key in _COMPARED or key in _ANNOTATIONS or key.startswith("x-")
                if not known and self._restricts(key, limit, wide.get(key)):
                    yield f"{place} {self._verb} less: {key}"
            for key, rest in (("patternProperties", "additionalProperties"), ("prefixItems", "items")):
                if narrow.get(rest) is False and key in wide and key not in narrow:
                    yield f"{place} {self._verb} less: {key}"
            yield from self._compare_members(wide, narrow, place)

    def _compare_members(self, wide: Description, narrow: Description, place: str) -> Iterator[str]:
        given, wanted = members(wide.get("properties")), members(narrow.get("properties"))
        before, after = (given, wanted) if self._sent else (wanted, given)
        yield from (f"{place}.{name} was removed" for name in before if name not in after)
        required = {*_names(narrow)} - {*_names(wide)}
        for name in sorted(required if self._sent else required - (before.keys() - after.keys())):
            yield f"{place}.{name} {'is required now' if self._sent else 'can be missing now'}"
        for name in sorted(before.keys() & after.keys()):
            yield from self.find(given[name], wanted[name], f"{place}.{name}")
        for at, each in enumerate(narrow.get("prefixItems") or ()):
            yield from self.find(dict(enumerate(wide.get("prefixItems") or ())).get(at), each, f"{place}[{at}]")
        for key, mark in (("items", "[]"), ("additionalProperties", ".*")):
            if self._sent and narrow.get(key) is False and wide.get(key) is not False:
                yield f"{place}{mark} was removed"
            elif key in narrow and wide.get(key) is not False:
                yield from self.find(wide.get(key), narrow[key], f"{place}{mark}")

    def _restricts(self, key: str, limit: Any, before: Any) -> bool:
        """Return whether a keyword may accept less than it did."""
        limit, before = _restrictions(limit), _restrictions(before)
        if limit == before:  # its references may lead elsewhere
            return any(self.find(each, each, "") for each in walk({key: limit}) if "$ref" in each)
        if key == "type" and (limit, before) == ("number", "integer"):
            return False
        if before is not None and key in _MINIMA | _MAXIMA:
            return bool(limit > before if key in _MINIMA else limit < before)
        return True


def _follow(schema: Description, root: Description) -> Description:
    """Return a schema with the one that it refers to, or without restrictions if that doesn't exist."""
    alone = schema.get("allOf")
    if is_array(alone) and len(alone) == 1:
        schema = {**{key: each for key, each in schema.items() if key != "allOf"}, **members(alone[0])}
    rest = {key: each for key, each in schema.items() if key != "$ref"}
    try:
        return {**members(value_at_pointer(root, schema["$ref"])), **rest} if "$ref" in schema else rest
    except (LookupError, ValueError):
        return rest


def _split(schema: Description) -> list[Description]:
    """Return the alternatives of a schema, or the schema. Constants are one alternative."""
    for key in ("anyOf", "oneOf"):
        if is_array(schema.get(key)):
            parts = list(map(members, schema[key]))
            rest = {name: each for name, each in schema.items() if name != key}
            if parts and all(each.keys() - _ANNOTATIONS == {"const"} for each in parts):
                return [{**rest, "enum": [each["const"] for each in parts]}]
            return [{**rest, **each} for each in parts]
    kinds = schema.get("type")
    return [{**schema, "type": each} for each in kinds] if is_array(kinds) else [schema]


def _values(schema: Description) -> set[bytes] | None:
    """Return the values that a schema lists as JSON, if it does."""
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    return None if values is None else {encode(is_integral(each)) for each in values}


def _restrictions(value: Any) -> Any:
    """Return a keyword's value without annotations."""
    if is_array(value):
        return list(map(_restrictions, value))
    if is_object(value):
        return {key: _restrictions(each) for key, each in value.items() if key not in _ANNOTATIONS}
    return value


def _names(schema: Description) -> Collection[str]:
    return schema.get("required") or ()
