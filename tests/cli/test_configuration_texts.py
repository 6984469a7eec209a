"""One entry of a configuration changes, and nothing else in its text: JSON with comments, TOML, YAML.

The rules are our choice: applications write these files, people edit them, and none of that may get lost.
"""

import json
import tomllib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream._cli.installing import jsonc, toml_tables, yaml_blocks
from millstream._cli.installing.broken import Broken

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
    """The lines that are new; none of the old ones is missing or in another order."""
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

    def test_comments_tabs_and_trailing_commas_stay(self) -> None:
        """An entry is written as its neighbors are."""
        after = jsonc.put(VSCODE, ("servers", "shop"), {"command": "run"})
        assert added(VSCODE, after) == ['\t\t"shop": {', '\t\t\t"command": "run"', "\t\t},"]
        assert jsonc.take(after, ("servers", "shop")) == VSCODE

    def test_the_last_entry_gets_a_comma_and_keeps_the_comment_behind_it(self) -> None:
        """A comment says something about the entry that it stands behind."""
        text = '{\n  "mcpServers": {\n    "a": {} // mine\n  }\n}\n'
        after = jsonc.put(text, ("mcpServers", "b"), {})
        assert after == '{\n  "mcpServers": {\n    "a": {}, // mine\n    "b": {}\n  }\n}\n'
        assert jsonc.take(after, ("mcpServers", "b")) == text

    @pytest.mark.parametrize(
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
    def test_a_document_keeps_its_style(self, before: str, after: str) -> None:
        """Indentation, line ends, one line or many, a mark of the byte order."""
        assert jsonc.put(before, ("m", "x"), 1) == after

    @pytest.mark.parametrize(
        "text",
        ["{", '{"a": 1', '{"a" 1}', '{"a": 1 "b": 2}', '{"a": nope}', "[1 2]", '{"a": 1}}', '{"a": "x\ny"}', "/* {}",
         '{"a": tru}', "{'a': 1}", '{"a": 01x}', "[" * 5000],
    )  # fmt: skip
    def test_broken_documents_are_refused(self, text: str) -> None:
        """With the line of it."""
        with pytest.raises(Broken, match="line 1"):
            jsonc.put(text, ("m", "x"), 1)

    def test_a_parent_that_is_no_object_is_refused(self) -> None:
        """Somebody means something by it."""
        with pytest.raises(Broken, match="m isn't an object"):
            jsonc.put('{"m": []}', ("m", "x"), 1)

    @given(st.data())
    def test_any_document_means_the_same_otherwise(self, data: st.DataObject) -> None:
        """Whatever it holds and however it's indented; and it can be taken out again."""
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

    def test_a_table_is_added_at_the_end(self) -> None:
        """And everything else stays."""
        after = toml_tables.put(CODEX, ("mcp_servers", "shop"), {**ENTRY, "env": {"A B": "é"}})
        assert after.startswith(CODEX)
        assert tomllib.loads(after)["mcp_servers"]["shop"] == {**ENTRY, "env": {"A B": "é"}}
        assert toml_tables.take(after, ("mcp_servers", "shop")) == CODEX

    def test_a_table_is_replaced_where_it_stands(self) -> None:
        """With those below it; the comment on what follows stays."""
        after = toml_tables.put(CODEX, ("mcp_servers", "other"), {"url": "https://example.com/mcp"})
        assert after == CODEX.replace(
            'command = "npx"\nargs = ["-y", "other"]\n\n[mcp_servers.other.env]\nKEY = "1"\n',
            'url = "https://example.com/mcp"\n',
        )

    def test_names_that_need_quotes_get_them(self) -> None:
        """A dot would be a level."""
        after = toml_tables.put("", ("mcp_servers", "a.b"), {"url": "x\x7f"})
        assert tomllib.loads(after) == {"mcp_servers": {"a.b": {"url": "x\x7f"}}}
        assert tomllib.loads(toml_tables.put(after, ("mcp_servers", "a.b"), {}))["mcp_servers"] == {"a.b": {}}

    @pytest.mark.parametrize(
        "text",
        [
            "mcp_servers = { other = { command = 'x' } }\n",
            "mcp_servers.shop.command = 'x'\n",
            "mcp_servers = 1\n",
            "[mcp_servers.shop\n",
            "a = 1\na = 2\n",
        ],
    )
    def test_what_cannot_be_changed_safely_is_refused(self, text: str) -> None:
        """Broken, or written in a form that lines don't show."""
        with pytest.raises(Broken):
            toml_tables.put(text, ("mcp_servers", "shop"), ENTRY)

    def test_a_header_inside_a_string_is_none(self) -> None:
        """The result is compared with what was wanted."""
        text = 'note = """\n[mcp_servers.shop]\n"""\n'
        after = toml_tables.put(text + "[x]\n", ("mcp_servers", "other"), ENTRY)
        assert tomllib.loads(after)["note"] == "[mcp_servers.shop]\n"
        with pytest.raises(Broken):
            toml_tables.put(text, ("mcp_servers", "shop"), ENTRY)


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

    def test_an_entry_is_added_behind_the_others(self) -> None:
        """And everything else stays."""
        after = yaml_blocks.put(GOOSE, ("extensions", "shop"), ENTRY)
        assert added(GOOSE, after) == ["  shop:", '    command: "run"', '    args: ["a b", "c\\"d"]']
        assert yaml_blocks.take(after, ("extensions", "shop")) == GOOSE

    def test_an_entry_is_replaced_where_it_stands(self) -> None:
        """The comment before the next one stays."""
        after = yaml_blocks.put(GOOSE, ("extensions", "developer"), {"a": 1})
        assert after == GOOSE.replace("    enabled: true\n    type: builtin\n", "    a: 1\n")
        assert yaml_blocks.entry(GOOSE, ("extensions", "other")) in GOOSE  # type: ignore[operator]  # it's there
        back = yaml_blocks.put(
            after, ("extensions", "developer"), yaml_blocks.entry(GOOSE, ("extensions", "developer"))
        )  # type: ignore[arg-type]  # it's there
        assert back == GOOSE

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ("", "extensions:\n  x:\n    a: 1\n"),
            ("a: 1", "a: 1\nextensions:\n  x:\n    a: 1\n"),
            ("extensions: {}\nb: 1\n", "extensions:\n  x:\n    a: 1\nb: 1\n"),
            ("extensions:\n    y:\n        a: 2\n", "extensions:\n    y:\n        a: 2\n    x:\n      a: 1\n"),
            ("a: 1\r\n", "a: 1\r\nextensions:\r\n  x:\r\n    a: 1\r\n"),
        ],
    )
    def test_a_document_keeps_its_style(self, before: str, after: str) -> None:
        """Indentation and line ends."""
        assert yaml_blocks.put(before, ("extensions", "x"), {"a": 1}) == after

    @pytest.mark.parametrize(
        "text",
        ["extensions: [1]\n", "extensions: &all\n  x: 1\n", "extensions:\n  - x\n", "extensions:\n\tx: 1\n", "{a: 1\n",
         "extensions: {x: {}}\n"],
    )  # fmt: skip
    def test_what_cannot_be_changed_safely_is_refused(self, text: str) -> None:
        """Broken, or in another form."""
        with pytest.raises(Broken):
            yaml_blocks.put(text, ("extensions", "x"), {"a": 1})


@pytest.mark.parametrize(
    ("take", "text"),
    [(jsonc.take, DESKTOP), (toml_tables.take, CODEX), (yaml_blocks.take, GOOSE), (yaml_blocks.take, "a: 1\n")],
)
def test_taking_out_what_is_not_there_changes_nothing(take: Callable[[str, Any], str], text: str) -> None:
    """Nor is it an error."""
    assert take(text, ("mcpServers", "nothing")) == text


def test_the_last_entry_of_a_block_leaves_an_empty_one() -> None:
    """A key without a value would be null."""
    assert yaml_blocks.take("extensions:\n  x:\n    a: 1\n", ("extensions", "x")) == "extensions: {}\n"
