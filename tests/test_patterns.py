import ast
import random
import re
from pathlib import Path

import pytest

from backtracking import find_backtracking
from millstream._server.functions.patterns import find_backtracking as find_unproven

pytestmark = pytest.mark.check

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "millstream"
FUNCTIONS = {"compile", "findall", "finditer", "fullmatch", "match", "search", "split", "sub", "subn"}
_SHOWN = 20
EXCEPTIONS = {
    '_cli/errors.py: (Invalid value "[^"]': "it has a backreference, and reads messages of our own command line",
    "_http/message.py: \\s*q\\s*=\\s*(?=[0.])0": "its lookahead separates the two repeats of blanks",
    "client/_endpoint.py: (?is)<(script|style|": "it has a backreference, to one of three names of elements",
    '_gateway/files/read.py: """(?:[^"\\\\]++|\\\\.|"': "its repeats are possessive",
    "_jsonc.py: (?:[ \\t\\r\\n\\ufeff:]+": "its repeats are possessive",
    "_jsonc.py: (?:(?:[ \\t]++|/\\*[^\\": "its repeats are possessive",
}
"""File and beginning of an expression that the analysis can't follow, and why it takes linear time."""


def _expressions(path: Path) -> list[tuple[int, str, int]]:
    """Return the line, text, and flags of each regular expression that a file has as a literal."""
    found: list[tuple[int, str, int]] = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
            continue
        module, text = node.func.value, node.args[0]
        if not (isinstance(module, ast.Name) and module.id == "re" and node.func.attr in FUNCTIONS):
            continue
        if isinstance(text, ast.Constant) and isinstance(text.value, str | bytes):
            others = [*node.args[1:], *(each.value for each in node.keywords)]
            names = {each.attr for other in others for each in ast.walk(other) if isinstance(each, ast.Attribute)}
            flags = sum(getattr(re, name) for name in names if name.isupper() and hasattr(re, name))
            literal = text.value if isinstance(text.value, str) else text.value.decode("latin-1")
            found.append((node.lineno, literal, flags))
    return found


def test_repeats_in_an_expression_cannot_match_the_same_text() -> None:
    slow: dict[str, str] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for line, text, flags in _expressions(path):
            if why := find_backtracking(text, flags, search=False):
                name = f"{path.relative_to(PACKAGE).as_posix()}: {text[:_SHOWN]}"
                slow[name] = f"{name} in line {line}: {why}"
    assert [text for name, text in slow.items() if name not in EXCEPTIONS] == []
    assert sorted(EXCEPTIONS.keys() - slow.keys()) == [], "These need no exception any more."


def _random_expression(numbers: random.Random, depth: int) -> str:
    kind = numbers.random()
    if not depth or kind < 0.4:
        return numbers.choice(["a", "b", "-", ".", "[ab]", "[^a]", r"\w", r"\s"])
    one, two = (_random_expression(numbers, depth - 1) for _ in range(2))
    if kind < 0.75:
        return one + two if kind < 0.6 else f"(?:{one}|{two})"
    return f"(?:{one}){numbers.choice(['*', '+', '?', '{2}', '+?'])}"


def test_expressions_that_registration_accepts_take_linear_time() -> None:
    numbers, accepted = random.Random(5), 0
    for _ in range(1_000):
        text = f"^{_random_expression(numbers, 4)}{numbers.choice(['', '$'])}"
        if not find_unproven(text):
            accepted += 1
            assert "the same text" not in find_backtracking(text), text
    assert accepted > 300


@pytest.mark.parametrize(
    "text",
    [
        "^(a*b)*", "^(?:a|b)*$", "[a-z]+", r"\d{4}-\d\d-\d\d", "foo|bar", r"^\d+\.\d+\.\d+$", r"^https?://\S+$",
        r"^[\w.+-]+@[\w-]+\.[\w.-]+$", "^[a-z][a-z0-9-]{0,61}[a-z0-9]$", r"^\w+(\s\w+)*$", "^[a-zäöüß]+$", "(ab)+",
        "^(?P<sign>[+-])?0$", "^a++a$", "", "^$",
    ],
)  # fmt: skip
def test_common_expressions_are_accepted_by_registration(text: str) -> None:
    assert find_unproven(text) == ""


@pytest.mark.parametrize(
    "text",
    [
        "a+b", "(a*b)+", r"\s+$", "^a|b+c", "^a*a*$", "^(a+)+$", r"^(\w+\s?)*$", "(a|b|ab)*c",
        "^[ä-ü]*ö*$", r"^\S+@\S+$",
        "^(a?){30}a{30}$", "^(a|a){30}$", "^[a-z]{1,30}[a-z]{1,30}[a-z]{1,9}$",
        "^(?=a)a", r"^(a)\1", "^a{300,}a", r"^\x61+a", "x{999}",
        "^(a|a|a|a|a|a|a|a){250}((b|b|b|b|b){250}){250}$",
    ],
)  # fmt: skip
def test_expressions_that_may_backtrack_are_rejected_by_registration(text: str) -> None:
    assert find_unproven(text)


_SCRIPT = re.compile(
    r"""//[^\n]*+|/\*.*?\*/|"(?:\\.|[^"\\\n])*+"|'(?:\\.|[^'\\\n])*+'|`(?:\\.|[^`\\])*+`"""
    r"""|(?:[(,=:\[!&|?{};>+]|\breturn)\s*+/(?![*/])(?P<body>(?:\\.|\[(?:\\.|[^\]\\\n])*+\]|[^/\\\[\n])++)/(?P<flags>[a-z]*+)"""
    r"""|\bRegExp\(\s*+(?:"(?P<text>(?:\\.|[^"\\])*+)"|(?P<raw>String\.raw`[^`]*+`)|(?P<made>\w++))""",
    re.DOTALL,
)
"""A comment, a text, or a regular expression in JavaScript."""
_SCRIPT_EXCEPTIONS = {
    "_web/assets/inspect/checks.js: RegExp(text": "people write it for their own checks",
    "_web/assets/schema/validate.js: RegExp(pattern": "patterns that could take long are left to the server",
    "_web/assets/schema/validate.js: \\\\.|\\[(?:\\\\.|[^\\]\\\\]": "a class always ends, at the latest with the text",
}
"""File and beginning of an expression that the analysis can't follow, and why it takes linear time."""


def _read_script(body: str, flags: str) -> tuple[str, int]:
    """Return a regular expression of JavaScript as Python writes it."""
    text = re.sub(r"\(\?<(?=\w)", "(?P<", body.replace(r"\/", "/").replace("[^]", r"[\s\S]"))
    text = re.sub(r"\\u\{(\w+)\}", lambda found: re.escape(chr(int(found[1], 16))), text)
    text = re.sub(r"\\p\{\w+\}", r"\\w", text)  # letters and digits are words, too
    found = {"i": re.IGNORECASE, "m": re.MULTILINE, "s": re.DOTALL}
    return text, re.ASCII * ("u" not in flags) | sum(found.get(each, 0) for each in flags)


@pytest.mark.filterwarnings("ignore:Possible nested set")  # which JavaScript doesn't know
def test_repeats_in_a_script_expression_cannot_match_the_same_text() -> None:
    slow: dict[str, str] = {}
    count = 0
    for path in sorted(PACKAGE.rglob("*.js")):
        if "vendor" in path.parts:
            continue
        for found in _SCRIPT.finditer(path.read_text("utf-8")):
            name = f"{path.relative_to(PACKAGE).as_posix()}: {(found['body'] or found[0])[:_SHOWN]}"
            if found["body"]:
                count += 1
                if why := find_backtracking(*_read_script(found["body"], found["flags"]), search=False):
                    slow[name] = f"{name}: {why}"
            elif found["text"] or found["raw"] or found["made"]:
                slow[name] = f"{name}: it isn't written as a literal"
    assert count > 20
    assert [text for name, text in slow.items() if name not in _SCRIPT_EXCEPTIONS] == []
    assert sorted(_SCRIPT_EXCEPTIONS.keys() - slow.keys()) == [], "These need no exception any more."
