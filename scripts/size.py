"""Measure the sources: tokens outside docstrings and comments, code lines, files, and functions of each package.

``python scripts/size.py`` prints the table. Measure before and after a change. Nothing fails because of a figure.

An f-string is one token on every Python, and NEWLINE, INDENT, and DEDENT are none. The pages' JavaScript is counted
without comments and vendored libraries. In a template literal, each text around an expression is one token, and so is
each token of an expression.
"""

import ast
import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "millstream"
SCRIPTS = "pages' JavaScript"
TOTAL = "Python in all"
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
    """The size of a package."""

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


def sizes() -> dict[str, Size]:
    """Return the size of each package. Modules outside of packages count as one."""
    found: defaultdict[str, Size] = defaultdict(Size)
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).parts
        name = parts[0] if len(parts) > 1 else "modules"
        found[name] = found[name].plus(python_size(path.read_text("utf-8")))
    for path in sorted(PACKAGE.rglob("*.js")):
        if "vendor" not in path.parts:
            found[SCRIPTS] = found[SCRIPTS].plus(script_size(path.read_text("utf-8")))
    return dict(sorted(found.items(), key=lambda item: -item[1].tokens))


def total(found: dict[str, Size]) -> Size:
    """Return the size of all Python packages."""
    python = Size()
    for name, size in found.items():
        python = python if name == SCRIPTS else python.plus(size)
    return python


def main() -> None:
    """Print the table."""
    found = sizes()
    print(f"{'package':<20}{'tokens':>9}{'lines':>9}{'files':>7}{'functions':>11}")
    for name, size in {**found, TOTAL: total(found)}.items():
        print(f"{name:<20}{size.tokens:>9,}{size.lines:>9,}{size.files:>7,}{size.functions:>11,}")


if __name__ == "__main__":
    main()
