import json
import tomllib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cases import for_each
from millstream import _jsonc as jsonc
from millstream._cli.installer.documents import (
    put_toml,
    put_yaml,
    remove_toml,
    remove_yaml,
    yaml_entry,
)
from millstream._jsonc import JsonSyntaxError

ENTRY = {"command": "run", "args": ["a b", 'c"d']}
VSCODE = """\
// Where my servers are
{
\t"inputs": [], // none yet
\t/* servers */
\t"servers": {
\t\t"other": { "type": "http", "url": "https://example.com/mcp" }, // the other one
\t\t// "old": {},
\t},
}
"""
DESKTOP = '{\n  "globalShortcut": "",\n  "mcpServers": {\n    "files": {\n      "command": "npx"\n    }\n  }\n}\n'


def added(before: str, after: str) -> list[str]:
    """Return the added lines, after checking that no old line was removed or moved."""
    old, new = before.splitlines(), []
    for line in after.splitlines():
        if old and line == old[0]:
            old.pop(0)
        else:
            new.append(line)
    assert old == [], f"lost: {old}"
    return new


class TestJson:
    """https://code.visualstudio.com/docs/languages/json#_json-with-comments"""

    def test_comments_tabs_and_trailing_commas_are_kept(self) -> None:
        after = jsonc.put(VSCODE, ("servers", "shop"), {"command": "run"})
        assert added(VSCODE, after) == ['\t\t"shop": {', '\t\t\t"command": "run"', "\t\t},"]
        assert jsonc.take(after, ("servers", "shop")) == VSCODE

    def test_new_entry_adds_a_comma_and_keeps_comments(self) -> None:
        text = '{\n  "mcpServers": {\n    "a": {} // mine\n  }\n}\n'
        after = jsonc.put(text, ("mcpServers", "b"), {})
        assert after == '{\n  "mcpServers": {\n    "a": {}, // mine\n    "b": {}\n  }\n}\n'
        assert jsonc.take(after, ("mcpServers", "b")) == text

    @for_each(
        ("before", "after"),
        [
            ("", '{\n  "m": {\n    "x": 1\n  }\n}\n'),
            ("{}", '{\n  "m": {\n    "x": 1\n  }\n}'),
            ('{"a":1}', '{"a":1,"m":{"x":1}}'),
            ('{"m":{}}', '{"m":{"x":1}}'),
            ('{\n    "m": {}\n}', '{\n    "m": {\n        "x": 1\n    }\n}'),
            ('{\n  "m": {"y": 2}\n}', '{\n  "m": {"y": 2, "x": 1}\n}'),
            ('{\r\n  "m": {\r\n    "y": 2\r\n  }\r\n}', '{\r\n  "m": {\r\n    "y": 2,\r\n    "x": 1\r\n  }\r\n}'),
            ('\ufeff{\n  "m": {"x": 0}\n}', '\ufeff{\n  "m": {"x": 1}\n}'),
            ('{\n  "m": {"x": 0, "x": 2}\n}', '{\n  "m": {"x": 0, "x": 1}\n}'),
            ('{\n  // nothing\n}\n', '{\n  // nothing\n  "m": {\n    "x": 1\n  }\n}\n'),
        ],
    )  # fmt: skip
    def test_documents_keep_their_style(self, before: str, after: str) -> None:
        assert jsonc.put(before, ("m", "x"), 1) == after

    @for_each(
        "text",
        ["{", '{"a": 1', '{"a" 1}', '{"a": 1 "b": 2}', '{"a": nope}', "[1 2]", '{"a": 1}}', '{"a": "x\ny"}', "/* {}",
         '{"a": tru}', "{'a': 1}", '{"a": 01x}', "[" * 5000],
    )  # fmt: skip
    def test_broken_documents_are_refused(self, text: str) -> None:
        with pytest.raises(JsonSyntaxError, match="line 1"):
            jsonc.put(text, ("m", "x"), 1)

    def test_parents_that_are_not_objects_are_refused(self) -> None:
        with pytest.raises(JsonSyntaxError, match="m isn't an object"):
            jsonc.put('{"m": []}', ("m", "x"), 1)

    @given(st.data())
    def test_edits_do_not_change_other_content(self, data: st.DataObject) -> None:
        names = st.text(max_size=3)
        values = st.recursive(
            st.none() | st.booleans() | st.integers() | names,
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
            max_leaves=8,
        )
        document = data.draw(st.dictionaries(names, values, max_size=3))
        document["m"] = data.draw(st.dictionaries(names, values, max_size=3))
        text = json.dumps(document, indent=data.draw(st.sampled_from([None, 2, "\t"])))
        after = jsonc.put(text, ("m", "x"), ENTRY)
        wanted = {**document, "m": {**document["m"], "x": ENTRY}}
        assert json.loads(after) == wanted == jsonc.read(after).value
        if "x" not in document["m"]:
            assert json.loads(jsonc.take(after, ("m", "x"))) == document


CODEX = """\
# My settings
model = "gpt-5.1-codex"   # the good one

[mcp_servers.other]
command = "npx"
args = ["-y", "other"]

[mcp_servers.other.env]
KEY = "1"

# what I see
[tui]
theme = "dark"
"""


class TestToml:
    """https://toml.io/en/v1.0.0"""

    def test_tables_are_added_and_removed(self) -> None:
        after = put_toml(CODEX, ("mcp_servers", "shop"), {**ENTRY, "env": {"A B": "é"}})
        assert tomllib.loads(after)["mcp_servers"]["shop"] == {**ENTRY, "env": {"A B": "é"}}
        assert all(line in ("", *CODEX.splitlines()) or "shop" in line or "=" in line for line in after.splitlines())
        added(CODEX, after)
        assert tomllib.loads(remove_toml(after, ("mcp_servers", "shop"))) == tomllib.loads(CODEX)

    def test_tables_are_replaced_in_place(self) -> None:
        after = put_toml(CODEX, ("mcp_servers", "other"), {"url": "https://example.com/mcp"})
        assert "npx" not in after
        assert "# what I see" in after
        assert tomllib.loads(after)["mcp_servers"] == {"other": {"url": "https://example.com/mcp"}}

    def test_names_are_quoted_if_needed(self) -> None:
        after = put_toml("", ("mcp_servers", "a.b"), {"url": "x\x7f"})
        assert tomllib.loads(after) == {"mcp_servers": {"a.b": {"url": "x\x7f"}}}

    def test_unusual_documents_keep_their_meaning(self) -> None:
        for text in (
            "mcp_servers = { other = { command = 'x' } }\n",
            "mcp_servers.shop.command = 'x'\n",
            'note = """\n[mcp_servers.shop]\n"""\n[x]\n',
        ):
            after = tomllib.loads(put_toml(text, ("mcp_servers", "shop"), ENTRY))
            assert after["mcp_servers"]["shop"] == ENTRY
            before = tomllib.loads(text)
            assert {name: after[name] for name in before if name != "mcp_servers"} == {
                name: before[name] for name in before if name != "mcp_servers"
            }

    def test_broken_documents_are_refused(self) -> None:
        for text in ("mcp_servers = 1\n", "[mcp_servers.shop\n", "a = 1\na = 2\n"):
            with pytest.raises(JsonSyntaxError):
                put_toml(text, ("mcp_servers", "shop"), ENTRY)


GOOSE = """\
GOOSE_PROVIDER: openai   # paid by work
extensions:
  developer:
    enabled: true
    type: builtin

  # mine
  "other":
    cmd: npx
    args:
    - -y
    - other
GOOSE_MODEL: gpt-5
"""


class TestYaml:
    """https://yaml.org/spec/1.2.2/"""

    def test_entries_are_appended_and_removed(self) -> None:
        after = put_yaml(GOOSE, ("extensions", "shop"), ENTRY)
        assert len(added(GOOSE, after)) == 5
        assert yaml_entry(after, ("extensions", "shop")) == ENTRY
        assert remove_yaml(after, ("extensions", "shop")) == GOOSE

    def test_entries_are_replaced_in_place(self) -> None:
        after = put_yaml(GOOSE, ("extensions", "developer"), {"a": 1})
        assert yaml_entry(after, ("extensions", "developer")) == {"a": 1}
        assert yaml_entry(after, ("extensions", "other")) == {"cmd": "npx", "args": ["-y", "other"]}
        assert "# paid by work" in after

    def test_documents_keep_their_style(self) -> None:
        for before, after in (
            ("", "extensions:\n  x:\n    a: 1\n"),
            ("a: 1", "a: 1\nextensions:\n  x:\n    a: 1\n"),
            ("extensions:\n    y:\n        a: 2\n", "extensions:\n    y:\n        a: 2\n    x:\n        a: 1\n"),
            ("a: 1\r\n", "a: 1\r\nextensions:\r\n  x:\r\n    a: 1\r\n"),
            ("l:\n  - 1\n  - 2\n", "l:\n  - 1\n  - 2\nextensions:\n  x:\n    a: 1\n"),
        ):
            assert put_yaml(before, ("extensions", "x"), {"a": 1}) == after

    def test_unsafe_edits_are_refused(self) -> None:
        for text in ("extensions: [1]\n", "extensions:\n  - x\n", "extensions:\n\tx: 1\n", "{a: 1\n", "- 1\n"):
            with pytest.raises(JsonSyntaxError):
                put_yaml(text, ("extensions", "x"), {"a": 1})


@for_each(
    ("take", "text"), [(jsonc.take, DESKTOP), (remove_toml, CODEX), (remove_yaml, GOOSE), (remove_yaml, "a: 1\n")]
)
def test_removing_a_missing_entry_changes_nothing(take: Callable[[str, Any], str], text: str) -> None:
    assert take(text, ("mcpServers", "nothing")) == text
