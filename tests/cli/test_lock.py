"""`millstream lock` and `millstream check`, with a server of the official SDK."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from command_line import Result, run_in_process
from patience import WAIT
from processes import ROOT, free_port, run_server

pytestmark = pytest.mark.server

BEFORE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "isbn": {"type": "string", "maxLength": 20},
        "copies": {"type": "integer", "minimum": 1},
        "tone": {"enum": ["dry", "warm"]},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "tags": {"type": "array", "items": {"type": "string"}},
        "sent_to": {"$ref": "#/$defs/Address"},
        "tree": {"$ref": "#/$defs/Tree"},
        "bill": {"allOf": [{"$ref": "#/$defs/Bill"}]},
    },
    "required": ["isbn"],
    "$defs": {
        "Bill": {"type": "integer"},
        "Address": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        "Tree": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "parts": {"type": "array", "items": {"$ref": "#/$defs/Tree"}}},
        },
    },
}
SERVER = """
import json, sys
import anyio
import mcp.types as types
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server

offers = json.load(open(sys.argv[1]))
server = Server("stranger", instructions=offers.get("instructions"))


@server.list_tools()
async def tools():
    if offers.get("fails"):
        raise ValueError("The list is gone.")
    return [types.Tool(**each) for each in offers["tools"]]


@server.list_resources()
async def resources():
    return [types.Resource(**each) for each in offers["resources"]]


@server.list_prompts()
async def prompts():
    return [types.Prompt(**each) for each in offers["prompts"]]


async def main():
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())


anyio.run(main)
"""


def properties(**changed: Any) -> dict[str, Any]:
    """Return the schema with some properties changed, or without those that are None."""
    found = {name: each for name, each in {**BEFORE["properties"], **changed}.items() if each is not None}
    return {**BEFORE, "properties": found}


def definition(name: str, changed: Any) -> dict[str, Any]:
    return {**BEFORE, "$defs": {**BEFORE["$defs"], name: changed}}


CITY = {"type": "string"}
NARROWER: dict[str, tuple[dict[str, Any], str]] = {
    "a new required argument": ({**BEFORE, "required": ["isbn", "copies"]}, "copies is required now"),
    "a removed argument": (properties(tone=None), "tone was removed"),
    "a narrower type": (properties(copies={"type": "string"}), "copies accepts less: type"),
    "no alternative": (properties(note={"type": "string"}), "note accepts less: types"),
    "a removed value": (properties(tone={"enum": ["dry"]}), "tone accepts less: enum"),
    "one value": (properties(tone={"const": "dry"}), "tone accepts less: enum"),
    "a higher minimum": (properties(copies={"type": "integer", "minimum": 2}), "copies accepts less: minimum"),
    "a lower maximum": (properties(isbn={"type": "string", "maxLength": 9}), "isbn accepts less: maxLength"),
    "a new limit": (properties(isbn={**BEFORE["properties"]["isbn"], "pattern": "^9"}), "isbn accepts less: pattern"),
    "elements": (properties(tags={"type": "array", "items": {"type": "integer"}}), "tags[] accepts less: type"),
    "closed": ({**BEFORE, "additionalProperties": False}, "* was removed"),
    "a definition": (
        definition(
            "Address", {"type": "object", "properties": {"city": CITY, "street": CITY}, "required": ["city", "street"]}
        ),
        "sent_to.street is required now",
    ),
    "a definition in a keyword": (definition("Bill", {"type": "string"}), "bill accepts less: type"),
    "a recursive definition": (
        definition("Tree", {**BEFORE["$defs"]["Tree"], "required": ["name"]}),
        "tree.name is required now",
    ),
}
WIDER: dict[str, dict[str, Any]] = {
    "a new argument": properties(gift={"type": "boolean"}),
    "nothing required": {**BEFORE, "required": []},
    "a wider type": properties(copies={"type": "number", "minimum": 1}),
    "one more type": properties(copies={"type": ["integer", "null"], "minimum": 1}),
    "types in a list": properties(note={"type": ["null", "string"]}),
    "one alternative": properties(copies={"anyOf": [{"type": "integer", "minimum": 1}]}),
    "a new value": properties(tone={"enum": ["dry", "warm", "loud"]}),
    "any text": properties(tone={}),
    "a lower minimum": properties(copies={"type": "integer", "minimum": 0}),
    "no limit": properties(isbn={"type": "string"}),
    "text": properties(isbn={**BEFORE["properties"]["isbn"], "description": "The number."}),
    "written out": properties(sent_to=BEFORE["$defs"]["Address"]),
    "a recursive definition": definition(
        "Tree", {**BEFORE["$defs"]["Tree"], "properties": {**BEFORE["$defs"]["Tree"]["properties"], "name": {}}}
    ),
}


def takes(argument: Any, **definitions: Any) -> dict[str, Any]:
    """Return the schema of a tool with one argument."""
    return {"type": "object", "properties": {"x": argument}, "$defs": definitions}


def chain(kind: int) -> dict[str, Any]:
    """Return two definitions that refer to each other."""
    start = {"type": "object", "properties": {"kind": {"const": kind}, "next": {"$ref": f"#/$defs/end{kind}"}}}
    return {
        f"start{kind}": start,
        f"end{kind}": {"type": "object", "properties": {"back": {"$ref": f"#/$defs/start{kind}"}}},
    }


def nested(leaf: Any) -> dict[str, Any]:
    """Return an argument with 20 nested objects, each of which can be null."""
    for _ in range(20):
        leaf = {"type": ["object", "null"], "properties": {"inner": leaf}}
    return takes(leaf)


def union(*kinds: str) -> dict[str, Any]:
    """Return a union as pydantic writes it."""
    mapping = {each: f"#/$defs/{each}" for each in kinds}
    found = {each: {"type": "object", "properties": {"kind": {"const": each}}} for each in kinds}
    named = {"discriminator": {"mapping": mapping, "propertyName": "kind"}}
    return takes({**named, "oneOf": [{"$ref": each} for each in mapping.values()]}, **found)


CLOSED = {"type": "object", "additionalProperties": False}
PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    # before, after, and whether that breaks clients
    "a pair that was assumed to fit": (
        {
            **takes({"anyOf": [{"$ref": "#/$defs/start1"}, {"type": "null"}]}, **chain(1)),
            "properties": {
                "x": {"anyOf": [{"$ref": "#/$defs/start1"}, {"type": "null"}]},
                "y": {"$ref": "#/$defs/end1"},
            },
        },
        {
            **takes(True, **chain(1), **chain(2)),
            "properties": {
                "x": {"anyOf": [{"$ref": "#/$defs/start2"}, {"$ref": "#/$defs/start1"}, {"type": "null"}]},
                "y": {"$ref": "#/$defs/end2"},
            },
        },
        True,
    ),
    "nested objects": (nested({"type": "integer"}), nested({"type": "number"}), False),
    "narrower nested objects": (nested({"type": "number"}), nested({"type": "integer"}), True),
    "one more kind": (union("cat", "dog"), union("cat", "dog", "cow"), False),
    "a removed kind": (union("cat", "dog"), union("cat"), True),
    "booleans for numbers": (takes({"enum": [0, 1]}), takes({"enum": [False, True]}), True),
    "the same number": (takes({"const": 1}), takes({"const": 1.0}), False),
    "titled choices": (
        takes({"enum": ["a", "b"]}),
        takes({"oneOf": [{"const": "a", "title": "A"}, {"const": "b", "title": "B"}]}),
        False,
    ),
    "a closed pattern": (takes({**CLOSED, "patternProperties": {"^a": {}}}), takes(CLOSED), True),
    "a wider tuple": (
        takes({"type": "array", "prefixItems": [{"type": "integer"}]}),
        takes({"type": "array", "prefixItems": [{"type": "number", "title": "Number"}]}),
        False,
    ),
    "a narrower tuple": (
        takes({"type": "array", "prefixItems": [{"type": "number"}]}),
        takes({"type": "array", "prefixItems": [{"type": "integer"}]}),
        True,
    ),
    "one in allOf": (
        takes({"allOf": [{"$ref": "#/$defs/A"}]}, A={"type": "string"}),
        takes({"$ref": "#/$defs/A"}, A={"type": "string"}),
        False,
    ),
    "a private keyword": (takes({"type": "string"}), takes({"type": "string", "x-order": 1}), False),
}


class Stranger:
    """A server of the official SDK, whose definitions a test changes, and its lock file."""

    def __init__(self, folder: Path) -> None:
        self.lock_file = folder / "stranger.lock"
        self._offers, program = folder / "offers.json", folder / "stranger.py"
        program.write_text(SERVER, "utf-8")
        python = ROOT / ".venv-mcp1" / "bin" / "python"
        self.command = shlex.join([str(python), str(program), str(self._offers)])

    def offer(self, **offers: Any) -> None:
        self._offers.write_text(json.dumps({"tools": [], "resources": [], "prompts": [], **offers}), "utf-8")

    def run(self, command: str, *options: str) -> Result:
        return run_in_process(command, self.command, "--file", str(self.lock_file), *options)

    def find_changes(self) -> dict[str, list[tuple[str, bool]]]:
        """Return the changes of each item, and whether each breaks clients."""
        checked = self.run("check", "--json")
        shown = json.loads(checked.stdout)
        found: dict[str, list[tuple[str, bool]]] = {}
        for each in shown["changes"]:
            found.setdefault(each["item"], []).append((each["change"], each["breaks"]))
        assert shown["breaks"] is any(breaks for changes in found.values() for _, breaks in changes)
        assert checked.exit_code == shown["breaks"], checked.stderr
        return found


@pytest.fixture
def stranger(tmp_path: Path) -> Stranger:
    return Stranger(tmp_path)


def tools(schemas: dict[str, Any], member: str = "inputSchema") -> list[dict[str, Any]]:
    return [{"name": name, "inputSchema": {"type": "object"}, member: each} for name, each in schemas.items()]


def test_arguments_that_accept_less_break_clients(stranger: Stranger) -> None:
    stranger.offer(tools=tools(dict.fromkeys(NARROWER, BEFORE)))
    assert stranger.run("lock").exit_code == 0
    assert stranger.find_changes() == {}
    stranger.offer(tools=tools({name: schema for name, (schema, _) in NARROWER.items()}))
    found = stranger.find_changes()
    for name, (_, text) in NARROWER.items():
        [(change, breaks)] = found[f"tool {name!r}"]
        assert (change.removeprefix("arguments."), breaks) == (text, True)


def test_arguments_that_accept_more_do_not_break_clients(stranger: Stranger) -> None:
    stranger.offer(tools=tools(dict.fromkeys(WIDER, BEFORE)))
    stranger.run("lock")
    stranger.offer(tools=tools(WIDER))
    found = stranger.find_changes()
    assert {item: [breaks for _, breaks in changes] for item, changes in found.items()} == {
        f"tool {name!r}": [False] for name in WIDER
    }


def test_results_break_clients_in_the_other_direction(stranger: Stranger) -> None:
    strict = {**BEFORE, "required": ["isbn", "copies"]}
    before = {**dict.fromkeys(WIDER, strict), **{name: schema for name, (schema, _) in NARROWER.items()}}
    after = {**WIDER, **dict.fromkeys(NARROWER, BEFORE)}
    del before["a removed argument"], after["a removed argument"]  # as a result, it's a new member
    stranger.offer(tools=tools(before, "outputSchema"))
    stranger.run("lock")
    stranger.offer(tools=tools(after, "outputSchema"))
    found = stranger.find_changes()
    compared = dict.fromkeys(after, True) | {"closed": False}  # clients read what they know
    for name, breaks in compared.items():
        assert any(each for _, each in found[f"tool {name!r}"]) is breaks, name
    assert ("result.copies can be missing now", True) in found["tool 'text'"]


def test_removed_results_break_clients_and_new_ones_do_not(stranger: Stranger) -> None:
    both = {"type": "object", "properties": {"total": {"type": "integer"}, "note": {"type": "string"}}}
    one = {"type": "object", "properties": {"total": {"type": "integer"}}}
    stranger.offer(tools=tools({"less": both, "more": one, "none": one}, "outputSchema"))
    stranger.run("lock")
    stranger.offer(tools=[*tools({"less": one, "more": both}, "outputSchema"), *tools({"none": {"type": "object"}})])
    found = stranger.find_changes()
    assert found["tool 'less'"] == [("result.note was removed", True)]
    assert [breaks for _, breaks in found["tool 'more'"]] == [False]
    assert found["tool 'none'"] == [("result has no schema now", True)]


def test_items_and_texts_are_compared(stranger: Stranger) -> None:
    item = {"inputSchema": {"type": "object"}}
    stranger.offer(
        instructions="Be kind.",
        tools=[{"name": "gone", **item}, {"name": "hinted", "annotations": {"readOnlyHint": True}, **item}],
        resources=[
            {"uri": "a://gone", "name": "gone"},
            {"uri": "a://typed", "name": "typed", "mimeType": "text/plain"},
        ],
        prompts=[{"name": "asks", "arguments": [{"name": "a"}, {"name": "b"}]}],
    )
    stranger.run("lock")
    stranger.offer(
        instructions="Be brief.",
        tools=[{"name": "new", "description": "Says \x1b[31mhello.", **item}, {"name": "hinted", **item}],
        resources=[{"uri": "a://typed", "name": "typed", "mimeType": "text/html"}],
        prompts=[{"name": "asks", "arguments": [{"name": "a", "required": True}]}],
    )
    assert stranger.find_changes() == {
        "instructions": [("instructions is now 'Be brief.'", False)],
        "prompt 'asks'": [("arguments.b was removed", True), ("arguments.a is required now", True)],
        "resource 'a://gone'": [("removed", True)],
        "resource 'a://typed'": [("mimeType was text/plain, and is text/html now", True)],
        "tool 'gone'": [("removed", True)],
        "tool 'hinted'": [("annotations is now 'null'", False)],
        "tool 'new'": [("new: 'Says \\\\u001b[31mhello.'", False)],
    }
    shown = stranger.run("check")
    assert shown.exit_code == 1
    assert "breaks\ttool 'gone'\tremoved\n" in shown.stdout
    assert shown.stderr.endswith("5 of 8 changes can break clients.\n")


def test_incomplete_lists_are_neither_saved_nor_compared(stranger: Stranger) -> None:
    stranger.offer(tools=tools({"order": BEFORE}))
    assert stranger.run("lock", "--json").stdout
    saved = stranger.lock_file.read_bytes()
    stranger.offer(fails=True)
    for command in ("lock", "check"):
        failed = stranger.run(command)
        assert (failed.exit_code, stranger.lock_file.read_bytes()) == (1, saved), failed.output
        assert "The list is gone" in failed.stderr
    stranger.offer(tools=tools({"order": BEFORE}))
    assert stranger.run("check").exit_code == 0


def test_a_gateway_that_is_starting_is_not_saved(tmp_path: Path) -> None:
    gateway, lock_file = tmp_path / "gateway.toml", tmp_path / "gateway.lock"
    command = json.dumps([sys.executable, "-c", "import time; time.sleep(3600)"])
    gateway.write_text(f"[upstreams.slow]\ncommand = {command}\n", "utf-8")
    failed = run_in_process("lock", str(gateway), "--file", str(lock_file), "--timeout", "5")
    assert "Error: The lists aren't complete." in failed.stderr
    assert failed.exit_code == 1
    assert not lock_file.exists()


def test_schemas_are_compared_by_the_values_that_they_accept(stranger: Stranger) -> None:
    stranger.offer(tools=tools({name: before for name, (before, _, _) in PAIRS.items()}))
    assert stranger.run("lock").exit_code == 0
    stranger.offer(tools=tools({name: after for name, (_, after, _) in PAIRS.items()}))
    found = stranger.find_changes()
    said = {name: any(breaks for _, breaks in found.get(f"tool {name!r}", [])) for name in PAIRS}
    assert said == {name: breaks for name, (_, _, breaks) in PAIRS.items()}


def test_definitions_of_a_gateway_without_an_upstream_are_not_saved(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(f'[upstreams.gone]\nurl = "http://127.0.0.1:{free_port()}/mcp"\n', "utf-8")
    done = run_in_process("lock", str(file), "--file", str(tmp_path / "lock.json"))
    assert (done.exit_code, "gone can't be used" in done.stderr) == (1, True), done.stderr
    assert not (tmp_path / "lock.json").exists()


def test_files_that_cannot_be_read_are_refused(stranger: Stranger) -> None:
    stranger.offer()
    missing = stranger.run("check")
    assert missing.exit_code == 1
    assert missing.stderr == f"Error: There is no file {stranger.lock_file}. Create it: millstream lock SERVER\n"
    stranger.lock_file.write_text("[]", "utf-8")
    for command in ("lock", "check"):
        failed = stranger.run(command)
        assert failed.exit_code == 1
        assert f"The accepted definitions in {stranger.lock_file} can't be read" in failed.stderr
    assert stranger.lock_file.read_text("utf-8") == "[]"
    stranger.lock_file.unlink()
    assert stranger.run("lock").exit_code == 0  # without an item
    assert "has no definitions of `millstream lock`" in stranger.run("check").stderr
    stranger.lock_file.unlink()
    stranger.lock_file.mkdir()
    assert "can't be" in stranger.run("lock").stderr


def test_definitions_are_compared_at_each_address_of_a_server(stranger: Stranger, tmp_path: Path) -> None:
    stranger.offer(tools=tools({"order": BEFORE}))
    bookshop, gateway, port = str(ROOT / "examples" / "bookshop.py"), tmp_path / "gateway.toml", free_port()
    slow = f"start_timeout = {WAIT}\n"  # as long as it takes
    gateway.write_text(f"[upstreams.strange]\ncommand = {json.dumps(stranger.command)}\n{slow}", "utf-8")
    command = [sys.executable, "-m", "millstream", "run", bookshop, "--port", str(port)]
    with run_server(command, port, tmp_path / "log"):
        for locked, checked in (
            (bookshop, f"http://127.0.0.1:{port}/mcp"), (f"http://127.0.0.1:{port}/mcp", bookshop),
            (str(gateway), str(gateway)),
        ):  # fmt: skip
            for name, target in (("lock", locked), ("check", checked)):
                done = run_in_process(name, target, "--file", str(stranger.lock_file))
                assert done.exit_code == 0, done.output
            assert "Nothing has changed." in done.stderr
