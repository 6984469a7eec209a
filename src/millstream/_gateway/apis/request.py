"""The request for one operation of an API: where each argument is sent, and how it's encoded. The styles follow OpenAPI
3.1.1, Style Values, and RFC 6570 for ``simple``, ``label``, ``matrix``, and ``form``. A body is encoded according to
its media type.
"""

import mimetypes
import re
import secrets
from base64 import b64decode, b64encode
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from functools import partial
from typing import Any
from urllib.parse import quote, unquote, unquote_to_bytes

from msgspec import Struct

from millstream import ToolError
from millstream._http.client import UnsendableRequest
from millstream._http.client.request import encode_part
from millstream._protocol.foreign import charset_of, encode_text
from millstream._protocol.json_schema import is_integral
from millstream.protocol import Confidential, Json, encode, is_array, is_object

FORM, MULTIPART, JSON = "application/x-www-form-urlencoded", "multipart/form-data", "application/json"
IN_BODY = "field", "body"
DEEP = "deepObject"
BINARY = "application/octet-stream"
FILE_NAME = "__filename"
"""Suffix of the argument that contains a file's name."""
_MAX_DECODINGS = 5
_MAX_NAME = 56
"""Maximum characters of a name or path in an error."""
_MAX_NESTED = 1024
"""Maximum characters of the names around a nested value, which are repeated for each value."""
_LEADS = {"label": (".", "."), "matrix": (";", ";")}
"""Style -> text before a value in a path, and separator of exploded items."""
_SEPARATORS = {"pipeDelimited": "|", "spaceDelimited": " ", "tabDelimited": "\t"}
"""Style -> separator of items that aren't exploded, by default a comma."""
_RESERVED = ":/?@!$'()*,=[]"
"""Reserved characters that don't end a parameter (``allowReserved``)."""
_TEXT = re.compile(
    r"text/.*|.*[/+](?:xml|yaml|javascript|csv|graphql|sql|jsonl)|application/(?:x-)?(?:ndjson|yaml|toml)|.*\+xml"
)
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105  RFC 9110 §5.6.2
_MEDIA_TYPE = re.compile(rf'{_TOKEN}/{_TOKEN}(?:[ \t]*+;[ \t]*+(?:{_TOKEN}=(?:{_TOKEN}|"[\t -!#-\[\]-~]*"))?)*+')
_QUOTED = str.maketrans({"\\": "\\\\", '"': "%22", "\r": "%0D", "\n": "%0A"})


class Argument(Struct, frozen=True, eq=False):
    """The place of a tool's argument in the request."""

    name: str
    """Name in the API."""
    place: str
    """``path``, ``query``, ``header``, ``cookie``, ``field`` of the body, or ``body``."""
    style: str = "form"
    explode: bool = True
    members: frozenset[str] | None = frozenset()
    """Properties of an object that become pairs of their own, or None for any."""
    media: str = ""
    """Media type of the value: of a parameter with `content`, or of a part."""
    allows_reserved: bool = False
    is_binary: bool = False
    """Whether the value is base64, and sent as bytes."""
    taken: Mapping[str, int] = {}
    """Names that its members can't have, because they belong to other arguments. See `count_names`."""


class RequestTemplate(Struct, frozen=True, kw_only=True):
    """The part of an operation from which requests are built and responses read."""

    path: str
    method: str
    arguments: Mapping[str, Argument]
    """Arguments by the names that models use."""
    media: str = ""
    """Media type of the body."""
    kind: str = ""
    """How the body is written (see `kind_of_body`), or empty without one."""
    needs_body: bool = False
    """Whether a body is sent even if it has no members."""
    output_schema: Json | None = None
    wrapped: bool = False
    """Whether the response isn't an object, and is wrapped as `result`."""
    takes_members: bool = False
    """Whether arguments with other names become members of the body."""
    server: str = ""
    """URL of the operation's server, without a slash at its end."""


class ApiRequest(Confidential, Struct, frozen=True):
    """A request to an API."""

    method: str
    url: str
    headers: dict[str, str]
    content: bytes | None


def build_request(
    template: RequestTemplate, arguments: Mapping[str, Any], headers: Mapping[str, str] = {}
) -> ApiRequest:
    """Return the request for one operation of an API.

    Args:
        template: Operation to call.
        arguments: Arguments of its tool.
        headers: Additional headers. Arguments can't set them.

    Raises:
        ToolError: An argument is missing, changes the path, or can't be sent.
    """
    encode_body, body = BODIES.get(template.kind), list[tuple[Argument, Any]]()
    texts: dict[str, dict[str, str]] = {place: {} for place in _WRITERS}
    for name, given in arguments.items():
        argument = template.arguments.get(name) or (Argument(name, "field") if template.takes_members else None)
        if argument is None or (given is None and (argument.place not in IN_BODY or encode_body is not _json_body)):
            continue
        value = is_integral(given)
        if argument.place in IN_BODY:
            body.append((argument, value))
        else:
            texts[argument.place][argument.name] = _WRITERS[argument.place](argument, value)
    fields, cookies, query = texts["header"], texts["cookie"], "&".join(filter(None, texts["query"].values()))
    if cookies:
        fields["cookie"] = "; ".join(map("=".join, cookies.items()))
    fields |= headers
    content: bytes | None = None
    if encode_body is not None and (body or template.needs_body):
        content, fields["content-type"] = encode_body(template.media, body, arguments)
    url = f"{template.server}/{_path(template.path, texts['path']).removeprefix('/')}"
    if query:
        url += ("&" if "?" in url else "?") + query
    return ApiRequest(template.method, url, fields, content)


# Media types


def plain_media(media: str) -> str:
    """Return a media type without parameters."""
    return media.partition(";")[0].strip().lower()


def is_media_type(media: str) -> bool:
    """Return whether a text is a media type or a range of them, which may have parameters (RFC 9110 §8.3.1)."""
    return _MEDIA_TYPE.fullmatch(media.strip()) is not None


def is_json(media: str) -> bool:
    """Return whether a media type is JSON."""
    return media == JSON or media.endswith("+json") or media in ("*/*", "application/*", "text/json")


def is_text(media: str) -> bool:
    """Return whether a media type is text."""
    return _TEXT.fullmatch(media) is not None


def kind_of_body(media: str) -> str:
    """Return how a body is written: as ``json``, ``multipart``, ``form``, ``text``, or ``bytes``."""
    plain = plain_media(media)
    if is_json(plain):
        return "json"
    if plain == FORM:
        return "form"
    return "multipart" if plain.startswith("multipart/") else "text" if is_text(plain) else "bytes"


# Bodies: media type, members, and all arguments -> bytes and content type

_Members = Sequence[tuple[Argument, Any]]


def _json_body(media: str, given: _Members, arguments: Mapping[str, Any]) -> tuple[bytes, str]:
    is_whole = given and given[0][0].place == "body"
    body = given[0][1] if is_whole else {argument.name: value for argument, value in given}
    return encode(body), JSON if "*" in media else media


def _form_body(media: str, given: _Members, arguments: Mapping[str, Any]) -> tuple[bytes, str]:
    return "&".join(filter(None, (_write_query(*each) for each in given))).encode(), media


def _multipart_body(media: str, given: _Members, arguments: Mapping[str, Any]) -> tuple[bytes, str]:
    boundary, parts = secrets.token_hex(16), list[bytes]()
    for argument, whole in given:
        names = arguments.get(argument.name + FILE_NAME) or ""
        names = names if is_array(names) else [names]
        for number, (name, value) in enumerate(_parts(argument, whole)):
            disposition = f'form-data; name="{name.translate(_QUOTED)}"'
            content, kind = _content(argument, value)
            if argument.is_binary:
                file_name = str(names[number]) if number < len(names) else ""
                kind = _file_type(argument.media, file_name, kind)
                file_name = file_name or name + (mimetypes.guess_extension(kind) or "")
                disposition += f'; filename="{file_name.translate(_QUOTED)}"'
            headers = {"Content-Disposition": disposition, **({"Content-Type": kind} if kind else {})}
            try:
                part = encode_part(headers, content)
            except UnsendableRequest:
                raise ToolError(
                    f"The name or file name of {argument.name} has characters that can't be sent."
                ) from None
            parts += f"--{boundary}\r\n".encode(), part, b"\r\n"
    return b"".join(parts) + f"--{boundary}--\r\n".encode(), f"{plain_media(media)}; boundary={boundary}"


def _plain_body(media: str, given: _Members, arguments: Mapping[str, Any]) -> tuple[bytes, str]:
    if not given:
        return b"", media
    argument, value = given[0]
    content, kind = _content(argument, value, media)
    return content, _file_type(media, "" if argument.is_binary else "a.txt", kind) if "*" in media else media


BODIES: Mapping[str, Callable[[str, _Members, Mapping[str, Any]], tuple[bytes, str]]] = {
    "json": _json_body, "multipart": _multipart_body, "form": _form_body, "text": _plain_body, "bytes": _plain_body,
}  # fmt: skip
"""Kind of body -> its encoder. For a body with several media types, earlier kinds are preferred."""


def _parts(argument: Argument, value: Any) -> Iterable[tuple[str, Any]]:
    """Return the parts of a value in a multipart body."""
    if argument.place == "body" and is_object(value):
        return value.items()
    if argument.members is None or not argument.explode:
        return _pairs(argument, value, str)
    is_list = is_array(value) and not is_json(plain_media(argument.media))
    return [(argument.name, each) for each in (value if is_list else (value,))]


def _content(argument: Argument, value: Any, media: str = "") -> tuple[bytes, str]:
    """Return the bytes of a value, and their media type if it's known.

    Raises:
        ToolError: It isn't base64, or has characters that the charset lacks.
    """
    if argument.is_binary:
        return _read_file(argument.name, str(value))
    media = media or argument.media
    kind = media or (JSON if is_object(value) or is_array(value) else "")
    try:
        return encode_text(_text(value), charset_of(media) or "utf-8"), kind
    except ValueError:
        raise ToolError(f"{argument.name} has characters that can't be sent as {media}.") from None


def _read_file(name: str, text: str) -> tuple[bytes, str]:
    """Return the bytes and the media type of a file in base64 or in a data URI (RFC 2397)."""
    kind = ""
    try:
        if text.startswith("data:"):
            head, _, text = text.removeprefix("data:").partition(",")
            kind = plain_media(head)
            if not head.endswith(";base64"):
                return unquote_to_bytes(text), kind
        words = text.translate(_URL_SAFE).split()
        joined = "".join(words)
        padded = joined + "=" * (-len(joined) % 4)
        content = b64decode(padded, validate=True)
        is_unsure = padded != joined or len(words) > 1
        if is_unsure and (all(map(_WORD.fullmatch, words)) or b64encode(content).decode() != padded):
            raise ValueError("rather other text than base64 without padding")
        return content, kind
    except ValueError:
        raise ToolError(f"{name} must be base64, because it's sent as a file.") from None


_URL_SAFE = str.maketrans("-_", "+/")
_WORD = re.compile("[A-Z]?[a-z]{,40}|[0-9]{1,9}")


def _file_type(allowed: str, file_name: str, known: str) -> str:
    """Return the media type of a file: one that the document allows, if possible."""
    types = [plain_media(each) for each in allowed.split(",") if each.strip()]
    guesses = known, mimetypes.guess_type(file_name)[0] or "", *types
    fitting = (
        each
        for each in guesses
        if is_media_type(each) and "*" not in each and any(fnmatch(each, one) for one in types or ("?*",))
    )
    return next(fitting, BINARY)


def items_of(value: Any) -> list[Any]:
    """Return a document's value if it's a list, or else an empty list."""
    return value if is_array(value) else []


def _text(value: Any) -> str:
    """Return a value as text: strings unchanged, and all others as JSON."""
    if isinstance(value, str):
        return value
    return "" if value is None else encode(value).decode()


# Parameters: place and style -> text or pairs

_quote = partial(quote, safe="")
_quote_reserved = partial(quote, safe=_RESERVED)
_Escape = Callable[[str], str]


def _write_query(argument: Argument, value: Any) -> str:
    escape = _quote_reserved if argument.allows_reserved else _quote
    return "&".join(map("=".join, _pairs(argument, value, escape)))


def _write_header(argument: Argument, value: Any) -> str:
    text = _join(argument, value, str)
    if not (text.isascii() and text.isprintable()):
        raise ToolError(f"The header {argument.name} contains characters that aren't allowed in headers.")
    return text


_WRITERS: Mapping[str, Callable[[Argument, Any], str]] = {
    "path": lambda argument, value: _join(argument, value, _quote),
    "query": _write_query,
    "header": _write_header,
    "cookie": lambda argument, value: _join(argument, value, quote),
}


def _join(argument: Argument, value: Any, escape: _Escape) -> str:
    """Encode a value as text in an argument's style."""
    style, exploded = argument.style, argument.explode
    lead, separator = _LEADS.get(style, ("", ","))
    if not exploded:
        separator = escape(_SEPARATORS[style]) if style in _SEPARATORS else ","
    if argument.media:
        items = [escape(_write_content(argument, value))]
    elif is_object(value):
        pairs = [(escape(key), escape(_text(each))) for key, each in value.items()]
        items = list(map("=".join, pairs)) if exploded else [text for pair in pairs for text in pair]
    else:
        items = [escape(_text(each)) for each in (value if is_array(value) else (value,))]
    if style == "matrix" and not (exploded and is_object(value)):
        items = items if exploded else [separator.join(items)]
        items = [f"{argument.name}={each}" if each else argument.name for each in items]
    return lead + separator.join(items) if items else ""


def _write_content(argument: Argument, value: Any) -> str:
    """Return a value as text: as JSON for a parameter whose `content` is JSON."""
    return encode(value).decode() if is_json(plain_media(argument.media)) else _text(value)


def _pairs(argument: Argument, value: Any, escape: _Escape) -> list[tuple[str, str]]:
    """Return the pairs of a value in a query or form. An empty list or object has none, and a list several."""
    pairs: Iterable[tuple[str, Any]]
    name, is_open = argument.name, is_object(value) and argument.members != frozenset()
    if is_open:
        _check_members(argument, value)
    if argument.media or not (is_open or is_array(value)):
        return [(escape(name), escape(_write_content(argument, value)))]
    if argument.style == DEEP:
        has_names = is_open or any(map(is_object, value))
        pairs = _flatten(name if has_names else f"{name}[]", value)
    elif argument.explode:
        pairs = value.items() if is_object(value) else ((name, value),)
        pairs = (
            (key, each)
            for key, whole in pairs
            if whole is not None
            for each in (whole if is_array(whole) else (whole,))
        )
    else:
        return [(escape(name), _join(argument, value, escape))] if value else []
    return [(escape(key), escape(_text(each))) for key, each in pairs]


def count_names(arguments: Iterable[Argument]) -> Mapping[tuple[str, bool], Mapping[str, int]]:
    """Return how many arguments have a name, as other arguments of their place could read it.

    Args:
        arguments: All arguments of an operation.

    Returns:
        Place, and whether its reader has the style `DEEP` -> name -> number of arguments.
    """
    names: dict[tuple[str, bool], Counter[str]] = defaultdict(Counter)
    for each in arguments:
        names[each.place, True][each.name.casefold()] += 1
        names[each.place, False][plain_name(each.name)] += 1
    return names


def _check_members(argument: Argument, value: Json) -> None:
    """Check that no member of an object can be read as another argument.

    Raises:
        ToolError: One can.
    """
    own = plain_name(argument.name)
    for key in value:
        name = f"{argument.name}[{key}]".casefold() if argument.style == DEEP else plain_name(key)
        others = argument.taken.get(name, 0) - (argument.style != DEEP and name == own)
        if others or (argument.members is not None and key not in argument.members):
            raise ToolError(f"{argument.name} can't contain {key[:_MAX_NAME]!r}. Remove it.")


def _flatten(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the pairs of a nested value: ``a[b][c]=1``. OpenAPI doesn't specify nesting, but most servers accept this
    form."""
    if len(name) > _MAX_NESTED:
        raise ToolError(f"{name[:_MAX_NAME]!r} is too long for a name. Shorten the names in this argument.")
    if is_object(value):
        for key, each in value.items():
            if "[" in key or "]" in key:
                raise ToolError(f"{name} can't contain {key[:_MAX_NAME]!r}. Remove it.")
            yield from _flatten(f"{name}[{key}]", each)
    elif is_array(value):
        is_nested = any(is_object(each) or is_array(each) for each in value)
        for number, each in enumerate(value):
            yield from _flatten(f"{name}[{number}]", each) if is_nested else ((name, each),)
    elif value is not None:
        yield name, value


def plain_name(name: str) -> str:
    """Return the name that lenient frameworks read: without brackets, and regardless of case, dots, and spaces."""
    return re.sub(r"\W", "_", name.partition("[")[0].strip().casefold())


def without_pairs(query: str, names: Iterable[str]) -> str:
    """Return a query without the parameters that the operator has fixed."""
    fixed = set(map(plain_name, names))
    return "&".join(each for each in query.split("&") if plain_name(unquote(each.partition("=")[0])) not in fixed)


# The path


def _path(path: str, values: Mapping[str, str]) -> str:
    """Return a path with its variables.

    Raises:
        ToolError: A variable is missing, or changes the path.
    """

    def part(found: re.Match[str]) -> str:
        if not (value := values.get(found[1])):
            raise ToolError(f"Without a value for {found[1]!r}, these arguments would change the path.")
        return value

    path = _VARIABLE.sub(part, path)
    # Several values in one segment can form a dot segment together, or with the text between them.
    if values and ("." in path or "%2" in path) and has_dot_segment(path):
        raise ToolError(f"These arguments would change the path to {unquote(path)[:_MAX_NAME]!r}.")
    return quote(path, safe=f"{_RESERVED}&%;+")


_VARIABLE = re.compile(r"\{([^{}]+)\}")


def path_variables(path: str) -> list[str]:
    """Return the names of a path's variables."""
    return list(dict.fromkeys(_VARIABLE.findall(path)))


def has_dot_segment(path: str) -> bool:
    """Return whether a path contains a segment such as ``..``, even after repeated decoding.

    Some servers ignore what follows a semicolon in a segment.
    """
    for _ in range(_MAX_DECODINGS):
        if any(part.partition(";")[0] in (".", "..") for part in re.split(r"[/\\]", path)):
            return True
        decoded = unquote(path)
        if decoded == path:
            return False
        path = decoded
    return True
