import json
from contextlib import suppress
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cases import for_each
from cpu import check_linear
from millstream import _jsonc as jsonc
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
    def test_edits_preserve_document_formatting(self, before: str, after: str) -> None:
        assert jsonc.put(before, ("m", "x"), 1) == after

    @for_each(
        "text",
        ["{", '{"a": 1', '{"a" 1}', '{"a": 1 "b": 2}', '{"a": nope}', "[1 2]", '{"a": 1}}', '{"a": "x\ny"}', "/* {}",
         '{"a": tru}', "{'a': 1}", '{"a": 01x}', "[" * 5000],
    )  # fmt: skip
    def test_broken_documents_are_rejected(self, text: str) -> None:
        with pytest.raises(JsonSyntaxError, match="line 1"):
            jsonc.put(text, ("m", "x"), 1)

    def test_only_the_last_of_duplicate_names_is_removed(self) -> None:
        assert json.loads(jsonc.take('{"m": {"x": 0, "x": 1}}', ("m", "x"))) == {"m": {"x": 0}}

    def test_parents_that_are_not_objects_are_rejected(self) -> None:
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


def test_removing_a_missing_entry_changes_nothing() -> None:
    assert jsonc.take(DESKTOP, ("mcpServers", "nothing")) == DESKTOP


@for_each("blank", [" ", "\t ", "/**/"])
def test_long_gap_after_a_value_is_parsed_in_linear_time(blank: str) -> None:
    def put(size: int) -> str:
        return jsonc.put(f'{{\n  "m": {{\n    "a": 1{blank * size}}}\n}}\n', ("m", "x"), 1)

    check_linear(put, 3)
    assert '"x": 1' in put(500)


_PIECES = (
    '\\"', '"', "\\", '"\\', "/* ", "/*", "/**", "*/ /*", "//", "// \n", '"/* ', '\\"/* ', '"//', "{", "[", '{"a":[',
    ",", ", ", ",\n", ",/**/", "[,", "[ ", " ", "\n", "\ufeff", ":", '"a",', '"a":1,', '"a\n', "\x0b", "1", "}", "\\\n",
)  # fmt: skip
"""Pieces that are repeated, most of them unclosed."""


@for_each("before", ["", '{"m": {"x": 1', '"', '{"m": {\n    "a": 1,'])
def test_broken_documents_are_read_in_linear_time(before: str) -> None:
    def put(piece: str, after: str, size: int) -> None:
        with suppress(JsonSyntaxError):
            jsonc.put(before + piece * (size // len(piece)) + after, ("m", "x"), 1)

    for piece in _PIECES:
        for after in ("", '"', "}}"):
            check_linear(partial(put, piece, after), 1_000)


@for_each(
    ("text", "message"),
    [
        ('{"a": "b // c\n}', "line 1"),
        ('{"a": 1} /* never closed', "line 1"),
        ('{"a": 1, /* never closed "b": 2}', "line 1"),
        ('{"a": "b /* c */\n, "d": 1}', "line 1"),
        ('{"a": ' + "1" * 5000 + "}", "digits"),
    ],
)
def test_unclosed_strings_and_comments_are_mistakes(text: str, message: str) -> None:
    with pytest.raises(JsonSyntaxError, match=message):
        jsonc.read(text)


def test_comment_marks_and_trailing_commas_in_strings_are_text() -> None:
    text = '{"a": "/* b", "c": "*/ // \\\\", "d\\"": ", }", /* "e": */ "f": "[ ,",}'
    assert jsonc.read(text).value == {"a": "/* b", "c": "*/ // \\", 'd"': ", }", "f": "[ ,"}
