"""Find words that a native speaker wouldn't write, by a table of patterns with replacements.

It reads the documents, and the visible text in the sources: docstrings, help texts, and messages of errors and logs.
Code in documents isn't prose. ``make check`` fails on any match. A pattern with false alarms is removed from the table.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SENTENCE = r"(?:(?:^|(?<=[.!?:] ))(?:\*\*|[-*] |> )?)"
"""Matches the beginning of a sentence."""
ADVICE = {
    r"\b(?:is|are|be|was|were) told\b(?! (?:apart|from)\b)": 'say who says it: "the client receives", "the log says"',
    SENTENCE
    + r"Who (?!(?:is|are|can|may|does|did|was|will|am|it|we|you|they)\b)\w+\b(?![^.!?:]*[?:])[^.!?:]*"
    + r"\b(?:is|may|can|must|has|gets|hears|sees|takes|misses|receives)\b": '"a client that …", "if you …"',
    SENTENCE + r"(?:Kept|Told|Sent|Given|Served|Refused|Counted|Left|Missing) (?:is|are) (?!not\b)\w+": "subject first",
    SENTENCE + r"(?:Back|Behind it|Beside it|Inside) comes?\b": "subject first",
    SENTENCE + r"(?:Never|Nowhere|Only then|Seldom|Rarely) (?:is|are|does|do|was|has|have)\b": "subject first",
    r"(?<![Tt]here )\b(?:is|are) no (?!(?:longer|more|less|better|worse|one|different)\b)": '"isn\'t a", "has no"',
    r"\b(?:that|which|what|who|it) (?:is|are) none\b(?! of)": '"isn\'t one"',
    r"\b[Oo]f which not even\b": "say it in two sentences",
    r"\bof any age\b": '"old or new"',
    r"\bbelongs? into\b": '"belongs in"',
    r"\b(?:begins?|ends?|looks?) alike\b": '"begins the same way", "looks the same"',
    r"\b[Ss]hall\b(?! we\b)": '"will", "should" or "must"',
    r"\banew\b": '"again", "from scratch"',
    r"\b(?:allows?|enables?|permits?) to\b": '"lets you"',
    r"\b(?:[Aa]n|with|the) own\b": '"its own", "your own"',
    r"\ball what\b": '"everything that", "what"',
    r"\b(?:for|to|of|with|than) who (?:wants?|gave|gives?|has|uses?|asks?)\b": '"for those who", "than whoever"',
    r"\b(?:thereof|therein|thereby|whereby|wherein|hereby|hereof|thereafter|whereupon)\b": "use a short sentence",
    r"\bone's own\b|\boneself\b": '"your own", "yourself"',
    r"\bresp\.|\be\.g\.|\bi\.e\.|\bviz\b": '"or", "for example", "that is"',
    r"\b[Ii]n order to\b": '"to"',
    r"\b(?:[Uu]tiliz|[Ll]everag)\w+": '"use"',
    r"\b[Pp]lease note\b|\b[Ii]t should be noted\b": "say it without the announcement",
    r"\b(?:blazing|seamless|cutting-edge|world-class|effortless)\w*": "say what it does, and leave out the praise",
    r"\b(?:informations|advices|softwares|feedbacks)\b": "the word has no plural",
    r"\bcancell(?:ed|ing|able)\b": "American spelling: canceled",
}
PATTERNS = {re.compile(pattern): advice for pattern, advice in ADVICE.items()}
BRITISH = re.compile(
    r"(?:behavi|col|fav|flav|harb|hon|lab|neighb|rum)our(?!s?e)|catalogue|centre|licence|defence|offence|artefact|whilst"
    r"|amongst|towards|judgement|acknowledgement|fulfil(?![il])|travell|modell|labell(?!edby)|signall(?:ed|ing)|learnt"
    r"|spelt|burnt|dialogue|(?:organ|recogn|initial|serial|normal|author|optim|synchron|summar|minim|maxim"
    r"|final|general|local|special|standard|visual|token|custom|capital|categor|priorit|sanit|util)is(?:e|ed|es|ing|ation)"
    r"\b",
    re.IGNORECASE,
)
"""British spellings, including in names, because searches must also find code and tests."""
UNFINISHED = re.compile(r"(?:The|An?|This|These|There|It|You|No|Only|Use|Set|Write|Add|Pass|Check|Send) [^:]*[^.?!:`…]")
"""Matches an error message that's a sentence without a period. One with a colon may end with code to copy."""
SHOWN = {"help", "short_help", "epilog", "title", "description", "detail", "message"}
"""Arguments with visible text."""
LOGGING = {"debug", "info", "warning", "error", "exception", "critical"}
CODE = re.compile(r"^( *)(```|~~~).*?^\1\2\s*?$|<!--.*?-->", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"``.+?``|`[^`]*`|\]\([^)]*\)|https?://\S+", re.DOTALL)
SOURCES = ("src", "examples", "tests", "benches", "scripts", "docs", "deploy", ".github")
SUFFIXES = {".py", ".md", ".js", ".mjs", ".ts", ".html", ".css", ".toml", ".yml", ".yaml", ".sh"}
FOREIGN = {"node_modules", "schemas", "target", "prose.py", "test_prose.py"}
"""Folders and files with other people's words, or with a list of the spellings."""
DOCUMENTS = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CODE_OF_CONDUCT.md", "SECURITY.md")


class Found(NamedTuple):
    """A text to change."""

    path: str
    line: int
    words: str
    advice: str


def blank(match: re.Match[str]) -> str:
    """As many lines, without what isn't prose."""
    return "`…`" + "\n" * match[0].count("\n")


def prose(text: str) -> str:
    """Return a page or docstring without its code."""
    return INLINE.sub(blank, CODE.sub(blank, text))


def judged(path: str, start: int, text: str) -> Iterator[Found]:
    """Yield the matches in a text. A continued line forms one sentence with the next."""
    plain = prose(text)
    joined = re.sub(r"(?<=\S)\n[ \t]*(?=[^\s|#>*-])", " ", plain)
    seen = re.sub(r"(?<=\S)\n[ \t]*(?=[^\s|#>*-])", "\v", plain)
    lines = [(number, words) for number, line in enumerate(joined.split("\n")) if (words := line.strip())]
    for pattern, advice in PATTERNS.items():
        for number, words in lines:
            for match in pattern.finditer(words):
                before = seen.split("\n")[: number + 1]
                at = number + sum(each.count("\v") for each in before[:-1])
                yield Found(path, start + at, match[0].strip(), advice)


def constant(node: ast.expr) -> str:
    """Return the text of a string, with dots for placeholders, or an empty string for other nodes."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(constant(part) or "`…`" for part in node.values)
    if isinstance(node, ast.BinOp):
        return constant(node.left) + constant(node.right)
    return ""


def texts(tree: ast.Module, *, everything: bool) -> Iterator[tuple[int, str]]:
    """Yield line and text of each docstring, error or log message, and help text, or of every string."""
    for node in ast.walk(tree):
        if everything and isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
        elif isinstance(node, ast.Expr):
            yield node.lineno, constant(node.value)
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            yield from ((each.lineno, constant(each)) for each in node.exc.args)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LOGGING:
            yield from ((each.lineno, constant(each)) for each in node.args[:1])
        elif isinstance(node, ast.Call):
            yield from ((each.value.lineno, constant(each.value)) for each in node.keywords if each.arg in SHOWN)


def unfinished(path: str, tree: ast.Module) -> Iterator[Found]:
    """Yield errors that are sentences without a period."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            for each in node.exc.args:
                if UNFINISHED.fullmatch(text := constant(each)):
                    yield Found(path, each.lineno, text, "a sentence ends with a period")


def misspelled() -> Iterator[Found]:
    """Yield British spellings in any line of any file."""
    roots = [ROOT / name for name in (*DOCUMENTS, "Makefile", "pyproject.toml", "mkdocs.yml")]
    inside = [path for folder in SOURCES for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
    for path in [*roots, *sorted(inside)]:
        place = path.relative_to(ROOT)
        if FOREIGN.isdisjoint(place.parts) and path.is_file():
            for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
                yield from (
                    Found(place.as_posix(), number, match[0], "American spelling") for match in BRITISH.finditer(line)
                )
            yield from (
                Found(place.as_posix(), 1, match[0], "American spelling") for match in BRITISH.finditer(place.name)
            )


def everything() -> Iterator[Found]:
    """Yield all matches in the project's texts."""
    yield from misspelled()
    for page in [*(ROOT / name for name in DOCUMENTS), *sorted((ROOT / "docs").rglob("*.md"))]:
        yield from judged(page.relative_to(ROOT).as_posix(), 1, page.read_text("utf-8"))
    for source in sorted(path for folder in ("src", "examples") for path in (ROOT / folder).rglob("*.py")):
        path = source.relative_to(ROOT).as_posix()
        tree = ast.parse(source.read_text("utf-8"))
        for line, text in texts(tree, everything=path.endswith("cli/help.py")):
            yield from judged(path, line, text)
        if path.startswith("src/") and "/compat/" not in path:  # its messages are those of the package that it replaces
            yield from unfinished(path, tree)


def main() -> int:
    """Print the findings. Return 1 if there are any."""
    found = sorted(set(everything()))
    for each in found:
        print(f'{each.path}:{each.line}: "{each.words}": {each.advice}')
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
