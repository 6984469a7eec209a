"""Weigh the sources: tokens outside docstrings and comments, code lines, files, and functions of each package.

``python scripts/size.py`` prints the table. ``--check`` compares it with the budgets in docs/decisions/0047-weight.md.
A package may exceed its budget by 1 %, the pages' JavaScript by 4 %, and all the Python by nothing. ``--record``
lowers each budget to what its package weighs; it never raises one.

An f-string is one token on every Python, and NEWLINE, INDENT, and DEDENT are none. The pages' JavaScript is counted by
a pattern for its tokens, without comments and the libraries of others.
"""

import ast
import io
import re
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "millstream"
BUDGETS = ROOT / "docs" / "decisions" / "0047-weight.md"
SCRIPTS = "pages' JavaScript"
TOTAL = "Python in all"
HEADROOM = 0.01
"""Fraction by which a package may exceed its budget, so an ordinary change needs no entry in the table."""
SCRIPTS_HEADROOM = 0.04
_START, _END = (getattr(tokenize, name, -1) for name in ("FSTRING_START", "FSTRING_END"))
_LAYOUT = {tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
_IGNORED = {tokenize.COMMENT, tokenize.NL, tokenize.ENCODING, tokenize.ENDMARKER}
_JS_COMMENT = re.compile(
    r"""("(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|`(?:\\.|[^`\\])*`)|//[^\n]*|/\*.*?\*/""", re.DOTALL
)
_JS_TOKEN = re.compile(
    r"""[\w$]+|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|`(?:\\.|[^`\\])*`"""
    r"""|=>|\.\.\.|\?\?=?|\?\.|&&=?|\|\|=?|[=!]==?|[<>]=?|[-+*/%&|^]=?|[^\s\w]"""
)
_ROW = re.compile(r"^\| `?([^`|]+?)`? \| ([\d,]+) \|", re.MULTILINE)


class Size(NamedTuple):
    """The weight of a package."""

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


def script_size(text: str) -> Size:
    code = _JS_COMMENT.sub(lambda match: match[1] or "", text)
    lines = sum(bool(line.strip()) for line in code.splitlines())
    return Size(len(_JS_TOKEN.findall(code)), lines, 1, len(re.findall(r"\bfunction\b|=>", code)))


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


def budgets() -> dict[str, int]:
    """Return the recorded maximum of tokens for each package, and for all of them."""
    return {name: int(tokens.replace(",", "")) for name, tokens in _ROW.findall(BUDGETS.read_text("utf-8"))}


def total(found: dict[str, Size]) -> Size:
    """Return the size of all Python packages."""
    python = Size()
    for name, size in found.items():
        python = python if name == SCRIPTS else python.plus(size)
    return python


def complaints(found: dict[str, Size], allowed: dict[str, int]) -> Iterator[str]:
    """Yield what's wrong with the sizes."""
    for name, size in {**found, TOTAL: total(found)}.items():
        if name not in allowed:
            yield f"{name} has no budget. Add a row to {BUDGETS.relative_to(ROOT)}."
            continue
        headroom = {TOTAL: 0.0, SCRIPTS: SCRIPTS_HEADROOM}.get(name, HEADROOM)
        if size.tokens > allowed[name] * (1 + headroom):
            yield (
                f"{name} has {size.tokens:,} tokens, and its budget is {allowed[name]:,} and {headroom:.0%}. "
                f"Delete something, or raise the budget in {BUDGETS.relative_to(ROOT)} with the reason."
            )


def record(found: dict[str, Size]) -> None:
    """Lower the budgets of packages."""
    text = BUDGETS.read_text("utf-8")
    for name, tokens in budgets().items():
        if name in found:
            row = re.compile(rf"^(\| `?{re.escape(name)}`? \|) [\d,]+ \|", re.MULTILINE)
            text = row.sub(rf"\g<1> {min(tokens, found[name].tokens):,} |", text)
    BUDGETS.write_text(text, "utf-8")


def main(arguments: list[str]) -> int:
    """Print the table or the complaints. Return the exit status."""
    found = sizes()
    if "--record" in arguments:
        record(found)
    if "--check" in arguments:
        problems = list(complaints(found, budgets()))
        for problem in problems:
            print(problem)
        return 1 if problems else 0
    print(f"{'package':<20}{'tokens':>9}{'lines':>9}{'files':>7}{'functions':>11}")
    for name, size in found.items():
        print(f"{name:<20}{size.tokens:>9,}{size.lines:>9,}{size.files:>7,}{size.functions:>11,}")
    size = total(found)
    print(f"{TOTAL:<20}{size.tokens:>9,}{size.lines:>9,}{size.files:>7,}{size.functions:>11,}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
