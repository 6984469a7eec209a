"""URI templates (RFC 6570, levels 1-3, and ``{path*}``): expansion, and matching in linear time.

The RFC defines expansion only. Matching returns values that could have produced a URI, by these rules:

* ``{path*}`` (one variable, exploded) is the rest of a path, as in other MCP servers: it crosses ``/``, has no empty
  segment, and expands with its slashes. In the RFC the notation is for lists (level 4).
* ``{x}``, ``{+x}``, and ``{x*}`` match at least one character. The other operators and each of their variables are
  optional; absent variables aren't in the result. Query names can have any order, unknown ones are ignored, and a
  repeated name doesn't match. With fewer values than variables, the leftmost variables are defined. With more values,
  the last variable takes the rest.
* Only ``{+x}`` and ``{#x}`` cross ``/``, ``?``, and ``#``. Of the others, ``{path*}`` crosses ``/``, and ``{?x}`` and
  ``{&x}`` cross ``?``. Other characters need no percent-encoding in a URI.
* If a URI can be split in several ways, it's read from the right: ``{x}`` and ``{+x}`` take as little as possible, the
  others as much as possible. So ``{a}-{b}`` splits at the last ``-``, and ``{a}{.b}`` at the first ``.``.
* A template also matches URIs in normal form (see `uri.py`), however its literals are encoded.
* Values are percent-decoded once. A decoded value has no segment ``.`` or ``..``, and only ``{+x}``, ``{#x}``, and
  ``{x*}`` contain slashes or backslashes, because functions use values as file names. A value never contains NUL.
"""

import re
from collections.abc import Mapping
from functools import cache, reduce
from itertools import count
from urllib.parse import quote, unquote_to_bytes

from msgspec import Struct

from millstream._override import override
from millstream._protocol.uri import NOT_IN_URI, STRAY_PERCENT, normalize_uri

_RESERVED = ":/?#[]@!$&'()*+,;="
_STRAY_PERCENT = re.compile(STRAY_PERCENT)
_NAME = re.compile(r"(?:(?:\w|%[0-9A-Fa-f]{2})(?:\.(?!\Z))?)*", re.ASCII)
"""RFC 6570 §2.3: letters, digits, underscores, and percent-encoded characters, with dots between them."""
_PART = re.compile(r"\{([^{}]*)\}|[^{]+|\{")
"""An expression, a literal, or an expression without an end."""
_ASCII = "".join(map(chr, range(0x80)))
_CONTINUATION = "".join(map(chr, range(0x80, 0xC0)))
"""UTF-8 continuation bytes, as latin-1."""


class _Operator(Struct, frozen=True, gc=False):
    """An operator: a column of RFC 6570 appendix A, and how to match it."""

    lead: str
    separator: str
    named: bool = False
    if_empty: str = ""
    reserved: bool = False
    whole: bool = False
    """Whether segments of a value must not be empty."""
    stops: str = "/?#"
    """Characters that the text after `lead` doesn't contain."""


_REST = _Operator("", ",", whole=True, stops="?#")
_OPERATORS = {
    "": _Operator("", ","),
    "+": _Operator("", ",", reserved=True, stops=""),
    "#": _Operator("#", ",", reserved=True, stops=""),
    ".": _Operator(".", "."),
    "/": _Operator("/", "/"),
    ";": _Operator(";", ";", named=True),
    "?": _Operator("?", "&", named=True, if_empty="=", stops="/#"),
    "&": _Operator("&", "&", named=True, if_empty="=", stops="/#"),
}


class _Expression(Struct, frozen=True, gc=False):
    operator: _Operator
    names: tuple[str, ...]
    lead: bytes
    """Translation table for the operator's lead characters."""
    run: bytes
    """Translation table for the characters that can follow the lead."""
    repeat: int
    """How often lead and run can occur: once, or for ``{/a,b}`` once per variable."""


class UriTemplate:
    """A compiled template.

    Example:
        >>> UriTemplate("book://{isbn}{?lang}").match("book://0-19-852663-6?lang=en")
        {'isbn': '0-19-852663-6', 'lang': 'en'}

    Raises:
        ValueError: The template isn't of level 1-3. The text names the position.
    """

    def __init__(self, template: str) -> None:
        self.template = template
        parts = _parse(template)
        self._prefix = parts[0] if parts and isinstance(parts[0], str) else ""
        self._parts = tuple(parts[1:] if self._prefix else parts)
        names = (name for part in parts if not isinstance(part, str) for name in part.names)
        self.variables: tuple[str, ...] = tuple(dict.fromkeys(names))
        """Names in order of first appearance."""
        normal = normalize_template(template)
        self._normal: UriTemplate | None = None if normal == template else UriTemplate(normal)

    @override
    def __repr__(self) -> str:
        return f"UriTemplate({self.template!r})"

    def expand(self, values: Mapping[str, str]) -> str:
        """Return the URI for `values`. Missing variables are undefined (RFC 6570 §3.2.1).

        Args:
            values: Name of a variable -> its text, or a list of strings.
        """
        texts = (part if isinstance(part, str) else _expand(part, values) for part in self._parts)
        return self._prefix + "".join(texts)

    def match(self, uri: str) -> dict[str, str] | None:
        """Return the values of the variables in `uri`, or ``None`` if it doesn't match. Time is linear in the length of
        `uri`.

        Args:
            uri: The URI that a client sent, or its normal form.
        """
        found = self._match(uri)
        return found if found is not None or self._normal is None else self._normal.match(uri)

    def _match(self, uri: str) -> dict[str, str] | None:
        try:
            if uri.isascii():
                text = uri
            elif self.template.isascii():  # only literals must be found in percent-encoded form
                text = uri.encode().decode("latin-1")
            else:
                text = quote(uri, safe=_ASCII)
        except UnicodeEncodeError:
            return None
        if not text.startswith(self._prefix):
            return None
        return self._match_parts(text[len(self._prefix) :])

    def _match_parts(self, text: str) -> dict[str, str] | None:
        # Sets of positions are integers: bit i is the position before character i. An addition then follows a run of
        # allowed characters, as its carry moves along the run (bit-parallel matching, as in Parabix). The number of
        # operations depends on the template only.
        positions = _Positions(text)
        reached = 1
        trail: list[tuple[_Expression, list[int]] | int] = []
        for part in self._parts:
            if isinstance(part, str):
                reached = positions.after_literal(part, reached)
                trail.append(len(part))
            else:
                levels = positions.after_expression(part, reached)
                reached = reduce(int.__or__, levels) if part.lead else levels[-1]
                trail.append((part, levels))
        if not reached >> len(text):
            return None
        values: dict[str, str] = {}
        end = len(text)
        for step in reversed(trail):
            if isinstance(step, int):
                end -= step
                continue
            part, levels = step
            start = positions.start(part, levels, end)
            if start < end and not _collect(part, text[start:end], values):
                return None
            end = start
        return {name: values[name] for name in self.variables if name in values}


class _Positions:
    """The text as sets of positions, one for each character class."""

    def __init__(self, text: str) -> None:
        self._backwards = text.encode("latin-1")[::-1]
        self._sets: dict[bytes, int] = {}
        percent = self.of(_table("%")) if "%" in text else 0
        continued = 0 if text.isascii() else self.of(_table(_CONTINUATION))
        self._inside = percent << 1 | percent << 2 | continued
        """Positions inside a percent-encoded octet or a UTF-8 sequence, where no expression can end."""

    def of(self, table: bytes) -> int:
        """Return the positions of characters that `table` maps to ``1``. Parsing base 2 is linear and has no length
        limit.
        """
        found = self._sets.get(table)
        if found is None:
            found = self._sets[table] = int(b"0" + self._backwards.translate(table), 2)
        return found

    def after_literal(self, literal: str, reached: int) -> int:
        for character in literal:
            reached = (reached & self.of(_table(character))) << 1
        return reached

    def after_expression(self, part: _Expression, reached: int) -> list[int]:
        """Return the positions reached with the expression repeated 0 to `repeat` times."""
        levels = [reached]
        run = self.of(part.run)
        # An operator without a lead starts with the first character of its run, so it's never empty.
        lead = self.of(part.lead or part.run)
        for _ in range(part.repeat):
            reached = (reached & lead) << 1
            reached = ((((reached & run) + run) ^ run) | reached) & ~self._inside
            levels.append(reached)
        return levels

    def start(self, part: _Expression, levels: list[int], end: int) -> int:
        """Return the start of an expression's text that ends at `end`."""
        below = (1 << end) - 1
        if not part.lead:
            return (levels[0] & below).bit_length() - 1
        taken = max(times for times, level in enumerate(levels) if times == 0 or level >> end & 1)
        for level in reversed(levels[:taken]):
            # The lead is before the run that ends here, or inside it.
            first = (below & ~self.of(part.run)).bit_length() - 1
            candidates = level & self.of(part.lead) & below & -(1 << max(first, 0))
            end = (candidates & -candidates).bit_length() - 1
            below = (1 << end) - 1
        return end


def _collect(part: _Expression, text: str, values: dict[str, str]) -> bool:
    """Add the values in an expression's text. Return False if one is malformed, unsafe, or conflicts with another."""
    operator = part.operator
    body = text[len(operator.lead) :]
    if operator.named:
        pairs = [(name, value) for name, _, value in (pair.partition("=") for pair in body.split(operator.separator))]
        pairs = [pair for pair in pairs if pair[0] in part.names]
        if len(dict(pairs)) < len(pairs):
            return False
    else:
        pairs = list(zip(part.names, body.split(operator.separator, len(part.names) - 1), strict=False))
    for name, raw in pairs:
        value = _decode(raw)
        if value is None or not _is_safe(value, operator) or values.setdefault(name, value) != value:
            return False
    return True


def _decode(text: str) -> str | None:
    raw = text.encode("latin-1")
    decoded = unquote_to_bytes(raw)
    # A malformed triplet stays unchanged, so the length reveals it.
    if len(decoded) != len(raw) - 2 * raw.count(b"%"):
        return None
    try:
        return decoded.decode()
    except UnicodeDecodeError:
        return None


def _is_safe(value: str, operator: _Operator) -> bool:
    segments = value.replace("\\", "/").split("/")
    if operator.whole and "" in segments:
        return False
    return (
        (operator.reserved or operator.whole or len(segments) == 1)
        and "." not in segments
        and ".." not in segments
        and "\0" not in value
    )


def _expand(part: _Expression, values: Mapping[str, str]) -> str:
    operator = part.operator
    texts: list[str] = []
    for name in part.names:
        if name in values:
            safe = "~/" if operator.whole else "~"
            text = values[name]
            if operator.reserved:  # percent-encode all but unreserved, reserved, and triplet characters
                text = quote(_STRAY_PERCENT.sub("%25", text), safe=f"%{_RESERVED}")
            else:
                text = quote(text, safe=safe)
            if operator.named:
                text = f"{name}={text}" if text else name + operator.if_empty
            texts.append(text)
    return operator.lead + operator.separator.join(texts) if texts else ""


def normalize_template(template: str) -> str:
    """Return a template that matches the normal forms of the URIs that `template` matches."""
    taken = set(re.findall("x([0-9]+)y", template.lower()))
    mark = f"x{next(number for number in count() if str(number) not in taken)}y"
    expressions: list[tuple[str, str]] = []
    """Text in place of each expression, and the expression."""

    def hide(found: re.Match[str]) -> str:
        if found[1] is None:
            return found[0]
        lead = found[1][:1] if found[1][:1] in "#./;?&" else ""
        expressions.append((f"{lead}{mark}{len(expressions)}y", found[0]))
        return expressions[-1][0]

    plain = _PART.sub(hide, template)
    normal = normalize_uri(plain)
    # A variable can be the segment that ".." removes, or contain the path after a host. Then the form is unknown.
    host = re.split("[/?#]", plain.partition("://")[2], maxsplit=1)[0]
    if mark in host and normal.count("/") > plain.count("/"):
        return template
    parts: list[str] = []
    end = 0
    for hidden, expression in expressions:
        start = normal.find(hidden, end)
        if start < 0:
            return template
        parts += (normal[end:start], expression)
        end = start + len(hidden)
    return "".join((*parts, normal[end:]))


def _parse(template: str) -> list[str | _Expression]:
    """Return the literals, as they appear in a URI, and the expressions."""
    parts: list[str | _Expression] = []
    for found in _PART.finditer(template):
        text, inside = found[0], found[1]
        if inside is not None:
            parts.append(_parse_expression(template, *found.span(1)))
        elif text == "{":
            raise _bad(template, found.start(), "'{' isn't closed")
        elif bad := NOT_IN_URI.search(text):
            what = (
                "isn't followed by two hexadecimal digits" if bad[0] == "%" else "isn't allowed outside an expression"
            )
            raise _bad(template, found.start() + bad.start(), f"{bad[0]!r} {what}")
        else:
            parts.append(quote(text, safe=_ASCII))
    return parts


def _parse_expression(template: str, at: int, end: int) -> _Expression:
    symbol = template[at] if template[at] in "+#./;?&=,!@|" else ""
    operator = _OPERATORS.get(symbol)
    if operator is None:
        raise _bad(template, at, f"operator {symbol!r} is reserved")
    at += len(symbol)
    if not symbol and template[at:end].endswith("*") and "," not in template[at:end]:
        operator, end = _REST, end - 1
    names: list[str] = []
    for name in template[at:end].split(","):
        if not name:
            raise _bad(template, at, "a variable name is missing")
        if bad := _NAME.sub("", name, count=1):
            what = f"modifier {bad[0]!r} (level 4) isn't supported" if bad[0] in "*:" else f"{bad[0]!r} isn't allowed"
            raise _bad(template, at + len(name) - len(bad), what)
        names.append(name)
        at += len(name) + 1
    return _Expression(
        operator,
        tuple(names),
        _table(operator.lead) if operator.lead else b"",
        _table(operator.stops, "0", "1"),
        len(names) if symbol == "/" else 1,
    )


def _bad(template: str, at: int, reason: str) -> ValueError:
    return ValueError(f"Bad URI template {template!r} at position {at}: {reason}.")


@cache
def _table(characters: str, inside: str = "1", outside: str = "0") -> bytes:
    return "".join(inside if chr(byte) in characters else outside for byte in range(256)).encode()
