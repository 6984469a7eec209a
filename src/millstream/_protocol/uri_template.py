"""URI templates (RFC 6570, levels 1-3, and ``{path*}``): expanded, and matched in linear time.

The RFC defines expansion only. Matching here answers which values could have made a URI, by these rules:

* ``{path*}`` (one variable, exploded) is the rest of a path, as servers in the field have it: it crosses ``/``, no
  segment of it is empty, and it expands with its slashes. The RFC has the same notation, for lists (level 4).
* ``{x}``, ``{+x}`` and ``{x*}`` match at least one character; the other operators are optional, and so is each of their
  variables: absent ones are not in the result. Names of a query stand in any order; unknown ones are ignored, a name
  given twice isn't a match. When there are fewer values than variables, the leftmost are defined; when more, the last
  variable takes the rest.
* Only ``{+x}`` and ``{#x}`` cross ``/``, ``?`` and ``#``. Other characters need not be percent-encoded in a URI.
* Where a URI can be split in several ways, it is read from the right: ``{x}`` and ``{+x}`` take as little as they can,
  the others as much as they can. So ``{a}-{b}`` splits at the last ``-``, and ``{a}{.b}`` at the first ``.``.
* Values are percent-decoded once, and then no value has a segment ``.`` or ``..`` and only ``{+x}``, ``{#x}`` and
  ``{x*}`` have slashes, whichever way they lean: functions use values as file names. A NUL is never a value.
"""

from collections.abc import Mapping
from functools import cache
from urllib.parse import quote, unquote_to_bytes

from msgspec import Struct

_RESERVED = ":/?#[]@!$&'()*+,;="
_HEX = frozenset("0123456789ABCDEFabcdef")
_NAME = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_")
_NOT_LITERAL = frozenset('"<>\\^`{|}\x7f').union(map(chr, range(0x21)))
_ASCII = "".join(map(chr, range(0x80)))
_CONTINUATION = "".join(map(chr, range(0x80, 0xC0)))
"""UTF-8 octets that do not begin a character, as latin-1."""


class _Operator(Struct, frozen=True, gc=False):
    """A column of RFC 6570 appendix A, and how its text is found in a URI."""

    lead: str
    separator: str
    named: bool = False
    if_empty: str = ""
    reserved: bool = False
    whole: bool = False
    """No segment of a value is empty."""
    stops: str = "/?#"
    """Characters that the text after `lead` does not contain."""


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
    """Translation table: which characters are the operator's lead."""
    run: bytes
    """Translation table: which characters may follow the lead."""
    repeat: int
    """How often lead and run may occur: once, but for ``{/a,b}`` once a variable."""


class UriTemplate:
    """A compiled template.

    Example:
        >>> UriTemplate("book://{isbn}{?lang}").match("book://0-19-852663-6?lang=en")
        {'isbn': '0-19-852663-6', 'lang': 'en'}

    Raises:
        ValueError: the template is not of level 1-3; the text names the position.
    """

    __slots__ = ("_parts", "_prefix", "template", "variables")

    def __init__(self, template: str) -> None:
        self.template = template
        self._prefix, parts = _split_prefix(_parse(template))
        self._parts = tuple(parts)
        names = (name for part in parts if not isinstance(part, str) for name in part.names)
        self.variables: tuple[str, ...] = tuple(dict.fromkeys(names))
        """Names in order of first appearance."""

    def __repr__(self) -> str:
        return f"UriTemplate({self.template!r})"

    def expand(self, values: Mapping[str, str]) -> str:
        """The URI for `values`; variables that are not in it are undefined (RFC 6570 §3.2.1)."""
        texts = (part if isinstance(part, str) else _expand(part, values) for part in self._parts)
        return self._prefix + "".join(texts)

    def match(self, uri: str) -> dict[str, str] | None:
        """The values of the variables that occur in `uri`, or ``None``. The time is linear in the length of `uri`."""
        try:
            text = self._one_character_a_byte(uri)
        except UnicodeEncodeError:
            return None
        if not text.startswith(self._prefix):
            return None
        return self._match_parts(text[len(self._prefix) :])

    def _one_character_a_byte(self, uri: str) -> str:
        if uri.isascii():
            return uri
        # Only a literal needs to be found in its percent-encoded form.
        return uri.encode().decode("latin-1") if self.template.isascii() else quote(uri, safe=_ASCII)

    def _match_parts(self, text: str) -> dict[str, str] | None:
        # Sets of positions in the text are integers: bit i stands for the place before character i. A run of allowed
        # characters is then followed by one addition, whose carry travels along the run (bit-parallel matching, as in
        # Parabix), and the number of operations depends on the template only, never on the text.
        positions = _Positions(text)
        reached = 1
        trail: list[tuple[_Expression, list[int]] | int] = []
        for part in self._parts:
            if isinstance(part, str):
                reached = positions.after_literal(part, reached)
                trail.append(len(part))
            else:
                levels = positions.after_expression(part, reached)
                reached = _union(part, levels)
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
    """The text as sets of positions, one for each class of characters asked for."""

    __slots__ = ("_backwards", "_inside", "_sets")

    def __init__(self, text: str) -> None:
        self._backwards = text.encode("latin-1")[::-1]
        self._sets: dict[bytes, int] = {}
        percent = self.of(_table("%")) if "%" in text else 0
        continued = 0 if text.isascii() else self.of(_table(_CONTINUATION))
        self._inside = percent << 1 | percent << 2 | continued
        """Positions inside a percent-encoded octet or inside a UTF-8 sequence: no expression ends there."""

    def of(self, table: bytes) -> int:
        """Positions of the characters that `table` translates to ``1``. Reading base 2 is linear and has no limit."""
        found = self._sets.get(table)
        if found is None:
            found = self._sets[table] = int(b"0" + self._backwards.translate(table), 2)
        return found

    def after_literal(self, literal: str, reached: int) -> int:
        for character in literal:
            reached = (reached & self.of(_table(character))) << 1
        return reached

    def after_expression(self, part: _Expression, reached: int) -> list[int]:
        """Positions reached with the expression taken 0 times, 1 time … `repeat` times."""
        levels = [reached]
        run = self.of(part.run)
        # An operator without a lead takes the first character of its run instead: it is never empty.
        lead = self.of(part.lead or part.run)
        for _ in range(part.repeat):
            reached = (reached & lead) << 1
            reached = ((((reached & run) + run) ^ run) | reached) & ~self._inside
            levels.append(reached)
        return levels

    def start(self, part: _Expression, levels: list[int], end: int) -> int:
        """Where the text of an expression begins that ends at `end`."""
        below = (1 << end) - 1
        if not part.lead:
            return (levels[0] & below).bit_length() - 1
        taken = max(times for times, level in enumerate(levels) if times == 0 or level >> end & 1)
        for level in reversed(levels[:taken]):
            # The lead stands in front of the run that ends here, or somewhere in it.
            first = (below & ~self.of(part.run)).bit_length() - 1
            candidates = level & self.of(part.lead) & below & -(1 << max(first, 0))
            end = (candidates & -candidates).bit_length() - 1
            below = (1 << end) - 1
        return end


def _union(part: _Expression, levels: list[int]) -> int:
    if not part.lead:
        return levels[-1]
    reached = 0
    for level in levels:
        reached |= level
    return reached


def _collect(part: _Expression, text: str, values: dict[str, str]) -> bool:
    """Add the values in the text of an expression; false when one is malformed, unsafe or given differently before."""
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
    # A malformed triplet stays as it is, so that the length tells.
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
            text = _keep_reserved(values[name]) if operator.reserved else quote(values[name], safe=safe)
            if operator.named:
                text = f"{name}={text}" if text else name + operator.if_empty
            texts.append(text)
    return operator.lead + operator.separator.join(texts) if texts else ""


def _keep_reserved(value: str) -> str:
    """Percent-encode what is neither unreserved, reserved nor percent-encoded already."""
    head, *rest = value.split("%")
    texts = [quote(head, safe=_RESERVED)]
    texts.extend(("%" if _is_triplet(text) else "%25") + quote(text, safe=_RESERVED) for text in rest)
    return "".join(texts)


def _is_triplet(text: str) -> bool:
    """Whether `text`, which stands behind a ``%``, begins with two hexadecimal digits."""
    return len(text) >= 2 and text[0] in _HEX and text[1] in _HEX


def _split_prefix(parts: list[str | _Expression]) -> tuple[str, list[str | _Expression]]:
    if parts and isinstance(parts[0], str):
        return parts[0], parts[1:]
    return "", parts


def _parse(template: str) -> list[str | _Expression]:
    """Literals, as they stand in a URI, and expressions."""
    parts: list[str | _Expression] = []
    at = 0
    while at < len(template):
        if template[at] == "{":
            end = template.find("}", at)
            if end < 0:
                raise _bad(template, at, "'{' is not closed")
            parts.append(_parse_expression(template, at + 1, end))
            at = end + 1
        else:
            end = template.find("{", at)
            end = len(template) if end < 0 else end
            parts.append(_parse_literal(template, at, end))
            at = end
    return parts


def _parse_literal(template: str, at: int, end: int) -> str:
    for index in range(at, end):
        character = template[index]
        if character in _NOT_LITERAL:
            raise _bad(template, index, f"{character!r} is not allowed outside an expression")
        if character == "%" and not _is_triplet(template[index + 1 : end]):
            raise _bad(template, index, "'%' is not followed by two hexadecimal digits")
    return quote(template[at:end], safe=_ASCII)


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
        _check_name(template, at, name)
        names.append(name)
        at += len(name) + 1
    return _Expression(
        operator,
        tuple(names),
        _table(operator.lead) if operator.lead else b"",
        _table(operator.stops, "0", "1"),
        len(names) if symbol == "/" else 1,
    )


def _check_name(template: str, at: int, name: str) -> None:
    """RFC 6570 §2.3: letters, digits, ``_`` and percent-encoded characters; dots between them."""
    if not name:
        raise _bad(template, at, "a variable name is missing")
    for index, character in enumerate(name):
        if character in "*:":
            raise _bad(template, at + index, f"modifier {character!r} (level 4) is not supported")
        if character == ".":
            allowed = 0 < index < len(name) - 1 and name[index - 1] != "."
        elif character == "%":
            allowed = _is_triplet(name[index + 1 :])
        else:
            allowed = character in _NAME
        if not allowed:
            raise _bad(template, at + index, f"{character!r} is not allowed here in a variable name")


def _bad(template: str, at: int, reason: str) -> ValueError:
    return ValueError(f"Bad URI template {template!r} at position {at}: {reason}.")


@cache
def _table(characters: str, inside: str = "1", outside: str = "0") -> bytes:
    return "".join(inside if chr(byte) in characters else outside for byte in range(256)).encode()
