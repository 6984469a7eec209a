"""The two parts of a docstring that clients see: the text, and what it says about each parameter.

Understands Google style (``Args:`` with indented ``name (type): text``), NumPy style (``Parameters`` underlined,
``name : type`` and indented text) and Sphinx style (``:param type name: text``). What it does not understand stays in
the text.
"""

import inspect
import re
from collections.abc import Callable
from typing import Any

GOOGLE = re.compile(r"(Args|Arguments|Parameters|Params):\s*$")
GOOGLE_ITEM = re.compile(r"\*{0,2}(\w+)\s*(?:\([^)]*\))?:\s*(.*)$")
NUMPY = re.compile(r"(Parameters|Arguments)\s*$")
NUMPY_ITEM = re.compile(r"(\w+)\s*(?::.*)?$")
SPHINX_ITEM = re.compile(r":(?:param|parameter|arg|argument|key|keyword)\s+(?:[^:]*\s)?\*{0,2}(\w+)\s*:\s*(.*)$")
SPHINX_FIELD = re.compile(
    r":(?:param|parameter|arg|argument|key|keyword|type|returns?|rtype|raises?|except|exception|yields?|[ic]?var|meta)"
    r"(?:\s[^:]*)?:(?:\s|$)"
)
# Sections that speak to programmers; they end the text that a model reads.
OTHER = re.compile(r"(Returns|Return|Raises|Yields|Yield|Examples?|Notes?|See Also|References|Warns|Attributes):?\s*$")


def describe(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """Give the text of a docstring up to its first section, and the description of each parameter."""
    lines = (inspect.getdoc(function) or "").splitlines()
    text_end = len(lines)
    parameters: dict[str, str] = {}
    for index, line in enumerate(lines):
        underlined = index + 1 < len(lines) and len(lines[index + 1]) > 2 and not lines[index + 1].strip("-")
        if GOOGLE.match(line):
            parameters = _items(lines[index + 1 :], GOOGLE_ITEM, indented=True)
        elif underlined and NUMPY.match(line):
            parameters = _items(lines[index + 2 :], NUMPY_ITEM, indented=False)
        elif SPHINX_FIELD.match(line):
            parameters |= _field(lines[index:])
        elif not (OTHER.match(line) and (underlined or line.rstrip().endswith(":"))):
            continue
        text_end = min(text_end, index)
    return "\n".join(lines[:text_end]).strip(), parameters


def _items(lines: list[str], item: re.Pattern[str], *, indented: bool) -> dict[str, str]:
    """Read ``name: text`` entries and their deeper indented continuations, until the section ends."""
    found: dict[str, list[str]] = {}
    level: int | None = None if indented else 0
    texts: list[str] = []
    for line in lines:
        depth = len(line) - len(line.lstrip())
        if not line.strip():
            continue
        if level is None:
            level = depth
        if depth < level or (indented and depth == 0):
            break
        match = item.match(line.strip()) if depth == level else None
        if match is not None:
            texts = found.setdefault(match[1], [])
            texts += [text for text in match.groups()[1:] if text]
        elif depth > level:
            texts.append(line.strip())
        else:
            break
    return {name: " ".join(parts) for name, parts in found.items() if parts}


def _field(lines: list[str]) -> dict[str, str]:
    """Read one ``:param name: text`` and what follows it, up to the next field or an empty line."""
    match = SPHINX_ITEM.match(lines[0])
    if match is None:
        return {}
    texts = [match[2]]
    for line in lines[1:]:
        if not line.strip() or SPHINX_FIELD.match(line):
            break
        texts.append(line.strip())
    text = " ".join(filter(None, texts))
    return {match[1]: text} if text else {}
