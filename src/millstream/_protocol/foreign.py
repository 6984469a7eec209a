"""Tolerance for messages that violate the schema but that other SDKs send and accept.

A message may begin with a byte order mark, and contain NaN, bytes in another encoding, lone surrogates, or an id as
text. For an optional member, null means absent, and so does an empty array for an object, as PHP writes it. A missing
list is empty. Base64 may be the variant for URLs, a data URI, broken into lines, or without padding. Malformed hints
about content are left out, as are malformed optional members of a listed item. If the item still can't be decoded, only
the item is left out.
`schema_repair` does the same for the keywords of a JSON Schema.
"""

import re
from collections.abc import Callable
from functools import cache
from types import UnionType
from typing import Any, NamedTuple, TypeVar, Union, get_args, get_origin

import msgspec
from msgspec import UNSET, Raw, Struct
from msgspec.structs import fields, replace

from millstream._protocol.content import Annotations
from millstream._protocol.errors import PARSE_ERROR, ProtocolError
from millstream._protocol.json_schema import is_array, is_object
from millstream._protocol.jsonrpc import MALFORMED, Envelope, Json, decoder, encode, exceeds_limits, is_utf8, read

T = TypeVar("T", bound=Struct)
_Kinds = tuple[type[Struct], ...]


class _Member(NamedTuple):
    """A member of one type, or of several."""

    instead: Any
    """The meaning of null. UNSET if it has none."""
    kinds: _Kinds
    """Types of the value."""
    is_binary: bool
    """Whether the value is base64."""
    is_list: bool
    """Whether the value can be a list."""


def read_foreign(body: bytes) -> Envelope:
    """Decode one message from another implementation.

    Args:
        body: The bytes of the message.

    Raises:
        ProtocolError: PARSE_ERROR if they can't be repaired, INVALID_REQUEST if they aren't a JSON-RPC message.
    """
    if not (body.isascii() or is_utf8(body)):  # a client would reject the message that contains it
        body = body.decode("utf-8", "replace").encode()
    try:
        envelope = read(body, fails_answers=False)
    except ProtocolError as exc:
        # The repair takes many times as long and as much memory.
        if exc.code != PARSE_ERROR or len(body) > _MAX_REPAIRED or exceeds_limits(body):
            raise
        try:
            repaired = repair_json(body.decode("utf-8-sig"))
        except MALFORMED:
            raise exc from None
        envelope = read(repaired)
    if envelope.is_answer and isinstance(envelope.id, str) and _NUMBER.fullmatch(envelope.id):
        return replace(envelope, id=int(envelope.id))
    return envelope


def repair_json(text: str) -> bytes:
    """Return JSON without NaN, infinities, and lone surrogates: ``repair_json('{"a":NaN}')``.

    Args:
        text: JSON as other libraries write it.

    Raises:
        ValueError: It isn't JSON.
        RecursionError: It's nested too deeply.
    """
    import json  # noqa: PLC0415  few servers need it

    found = json.loads(text, parse_constant=lambda name: None)
    return _HALVES.sub("\ufffd", json.dumps(found, ensure_ascii=False, separators=(",", ":"))).encode()


_MAX_REPAIRED = 2 * 1024 * 1024
_NUMBER = re.compile("[0-9]{1,15}")
_HALVES = re.compile("[\ud800-\udfff]")
"""Surrogates without their other half. JavaScript makes them from shortened text."""


def foreign_decoder(kind: type[T], warn: Callable[[str], None] | None = None) -> Callable[[bytes], T]:
    """Return a decoder for messages from other implementations. It raises `MALFORMED`.

    Args:
        kind: Type of the message.
        warn: Called when an item of a list, or a part of it, is left out. By default, every item must be valid. A
            result that isn't a page of a list, and has nothing else, needs at least one.

    Example:
        ``read = foreign_decoder(ListToolsResult, logger.warning)``
    """
    decode = decoder(kind)

    def read(data: bytes) -> T:
        try:
            return decode(data)
        except msgspec.ValidationError:
            if exceeds_limits(data):
                raise
            found = drop_nulls(msgspec.json.decode(data), kind)
            known = _members((kind,))
            may_be_empty = is_object(found) and ("nextCursor" in known or "structuredContent" in found)
            for name, member in known.items() if is_object(found) else ():
                if member.instead == []:
                    found.setdefault(name, [])
                if warn is not None and member.kinds and is_array(found.get(name)):
                    usable = _usable(found[name], member.kinds, warn)
                    found[name] = usable if usable or may_be_empty else found[name]
            return decode(encode(found))

    return read


MAX_WARNINGS = 10
"""Maximum items per list before a warning is logged."""


def _usable(items: list[Any], kinds: _Kinds, warn: Callable[[str], None]) -> list[Any]:
    usable: list[Any] = []
    faults, annotation = 0, _union(kinds)
    for item in items:
        if _has_type(item, annotation):
            usable.append(item)
            continue
        left_out: list[str] = []
        kind = _kind_of(item, kinds)
        kept = drop_misfits(item, kind, left_out.append) if is_object(item) and kind is not None else item
        done, why = f"Left out {', '.join(left_out)} of", ""
        try:
            msgspec.convert(kept, annotation)
            usable.append(kept)
        except msgspec.ValidationError as exc:
            done, why = "Skipped", f": {exc}"
        faults += 1
        if faults <= MAX_WARNINGS:
            warn(f"{done} an item from a server, {item!r:.100}{why}")
    if (more := faults - MAX_WARNINGS) > 0:
        warn(f"Skipped the warnings about {more:,} more items from there.")
    return usable


def present(members: Json) -> Json:
    """Return the members that aren't null: ``present({"title": None, "name": "add"})``

    Args:
        members: Members of an object.
    """
    return {name: value for name, value in members.items() if value is not None}


def drop_nulls(value: Any, *kinds: type[Struct]) -> Any:
    """Return a JSON value in which optional members that are null, or an empty array in place of an object, are left
    out. Where a member is required, they become an empty array or object. Malformed hints about content are left
    out, and base64 is repaired.

    Args:
        value: The decoded value.
        kinds: Types that it may have.

    Example:
        ``drop_nulls(description, ToolDescription)``
    """
    if is_array(value):
        return [drop_nulls(each, *kinds) for each in value]
    if not kinds or not is_object(value):
        return value
    named = _kind_of(value, kinds)  # kinds of one list can have members of the same name but different types
    known = _members(kinds if named is None else (named,))
    found: Json = {}
    for name, each in value.items():
        member = known.get(name, _OTHER)
        if name == "_meta" and known and not is_object(each):
            continue
        if each is not None and (member.is_list or each != []):
            kept = (
                _standard_base64(each)
                if member.is_binary and isinstance(each, str)
                else drop_nulls(each, *member.kinds)
            )
            if member.kinds == (Annotations,):
                kept = _fit(kept, Annotations)
            if kept is not UNSET:
                found[name] = kept
        elif member.instead is not UNSET:
            found[name] = member.instead
    return found


_OTHER = _Member(None, (), is_binary=False, is_list=True)


def _standard_base64(text: str) -> str:
    text = "".join(text.rpartition(",")[2].replace("-", "+").replace("_", "/").split()).rstrip("=")
    return text + "=" * (-len(text) % 4)


_fields = cache(fields)


def drop_misfits(value: Json, kind: type[Struct], warn: Callable[[str], object]) -> Json:
    """Return an object without the optional members, and the items of lists, that have the wrong type. A content's
    `text` or `blob` stays.

    Args:
        value: The decoded object.
        kind: Its type.
        warn: Called with the name of each member that's left out or shortened.

    Example:
        ``drop_misfits(description, ToolDescription, logger.warning)``
    """
    made = dict(value)
    for each in _fields(kind):
        name = each.encode_name
        if name in made:
            fitting = _fit(made[name], each.type)
            if fitting is not made[name]:
                warn(name)
            if fitting is not UNSET:
                made[name] = fitting
            elif not (each.required or name in _PAYLOAD):
                del made[name]
    return made


_PAYLOAD = ("blob", "text")
"""Optional members without which contents are empty."""


def _fit(value: Any, annotation: Any) -> Any:
    """Return the part of a value that has a type, or UNSET."""
    if _has_type(value, annotation):
        return value
    made: Any = UNSET
    kinds = _structs(annotation)
    if is_array(value) and kinds:
        made = [each for each in (_fit(each, _union(kinds)) for each in value) if each is not UNSET]
    elif is_object(value) and (kind := _kind_of(value, kinds)) is not None:
        made = drop_misfits(value, kind, lambda name: None)
    return made if _has_type(made, annotation) else UNSET


def _union(kinds: _Kinds) -> Any:
    combine: Any = Union
    return combine[kinds]


def _kind_of(value: Any, kinds: _Kinds) -> type[Struct] | None:
    """Return the type of an object: the only one, or the one that its tag names."""
    if not is_object(value):
        return None
    for kind in kinds:
        config = kind.__struct_config__
        if config.tag is None or value.get(str(config.tag_field)) == config.tag:
            return kind
    return None


def _has_type(value: Any, annotation: Any) -> bool:
    try:
        msgspec.convert(value, annotation)
    except msgspec.ValidationError:
        return False
    return True


@cache
def _members(kinds: _Kinds) -> dict[str, _Member]:
    """Return the members of types, by name."""
    found: dict[str, _Member] = {}
    for each in (each for kind in kinds for each in fields(kind)):
        choices = get_args(each.type) if get_origin(each.type) in (Union, UnionType) else (each.type,)
        free = Any in choices or Raw in choices
        empties: dict[Any, Any] = {list: [], dict: {}}
        empty = empties.get(get_origin(each.type))
        instead = None if free else empty if each.required else UNSET
        is_list = free or any(get_origin(choice) in (list, tuple) for choice in choices)
        found[each.encode_name] = _Member(instead, _structs(each.type), bytes in choices, is_list)
    return found


def _structs(annotation: Any) -> _Kinds:
    if isinstance(annotation, type) and issubclass(annotation, Struct):
        return (annotation,)
    if get_origin(annotation) is dict:
        return ()
    return tuple(kind for part in get_args(annotation) for kind in _structs(part))


def charset_of(media: str) -> str:
    """Return the charset of a media type, or an empty string."""
    found = re.search(r";\s*charset\s*=\s*[\"']?([\w.:-]+)", media, re.IGNORECASE)
    return found[1] if found else ""


def decode_text(content: bytes, charset: str = "") -> str:
    """Return text in a charset that its sender names: ``decode_text(body, "iso-8859-1")``.

    Bytes that don't belong to the charset are replaced, and a byte order mark is removed. Without a
    known charset, the first bytes decide between UTF-8, UTF-16, and UTF-32.

    Args:
        content: The bytes.
        charset: Name of the charset, or empty.
    """
    import json  # noqa: PLC0415  few servers need it

    codec = _codecs().get(charset.strip().lower(), "") or json.detect_encoding(content[:4])
    return content.decode(codec, "replace").removeprefix("\ufeff")


def encode_text(text: str, charset: str) -> bytes:
    """Return text in a charset that its receiver names: ``encode_text("Zoë", "iso-8859-1")``.

    Args:
        charset: Name of the charset.

    Raises:
        ValueError: The charset is unknown, or lacks a character.
    """
    name = charset.strip().lower()
    if name not in _codecs():
        raise ValueError(f"{charset[:40]!r} isn't a charset.")
    try:
        return text.encode(name)  # a receiver may not read the superset that `_CHARSETS` names
    except LookupError:
        return text.encode(_codecs()[name])


@cache
def _codecs() -> dict[str, str]:
    return {label: codec for codec, labels in _CHARSETS.items() for label in labels.split()}


_CHARSETS = {
    "utf-8": "unicode-1-1-utf-8 unicode11utf8 utf-8 utf8 x-unicode20utf8",
    "cp866": "866 cp866 csibm866 ibm866",
    "iso8859-2": "csisolatin2 iso-8859-2 iso-ir-101 iso8859-2 iso88592 iso_8859-2 iso_8859-2:1987 l2 latin2",
    "iso8859-3": "csisolatin3 iso-8859-3 iso-ir-109 iso8859-3 iso88593 iso_8859-3 iso_8859-3:1988 l3 latin3",
    "iso8859-4": "csisolatin4 iso-8859-4 iso-ir-110 iso8859-4 iso88594 iso_8859-4 iso_8859-4:1988 l4 latin4",
    "iso8859-5": ("csisolatincyrillic cyrillic iso-8859-5 iso-ir-144 iso8859-5 iso88595 iso_8859-5 iso_8859-5:1988"),
    "iso8859-6": (
        "arabic asmo-708 csiso88596e csiso88596i csisolatinarabic ecma-114 iso-8859-6 iso-8859-6-e iso-8859-6-i "
        "iso-ir-127 iso8859-6 iso88596 iso_8859-6 iso_8859-6:1987"
    ),
    "iso8859-7": (
        "csisolatingreek ecma-118 elot_928 greek greek8 iso-8859-7 iso-ir-126 iso8859-7 iso88597 iso_8859-7 "
        "iso_8859-7:1987 sun_eu_greek"
    ),
    "iso8859-8": (
        "csiso88598e csiso88598i csisolatinhebrew hebrew iso-8859-8 iso-8859-8-e iso-8859-8-i iso-ir-138 iso8859-8 "
        "iso88598 iso_8859-8 iso_8859-8:1988 logical visual"
    ),
    "iso8859-10": "csisolatin6 iso-8859-10 iso-ir-157 iso8859-10 iso885910 l6 latin6",
    "iso8859-13": "iso-8859-13 iso8859-13 iso885913",
    "iso8859-14": "iso-8859-14 iso8859-14 iso885914",
    "iso8859-15": "csisolatin9 iso-8859-15 iso8859-15 iso885915 iso_8859-15 l9",
    "iso8859-16": "iso-8859-16",
    "koi8-r": "cskoi8r koi koi8 koi8-r koi8_r",
    "koi8-u": "koi8-ru koi8-u",
    "mac-roman": "csmacintosh mac macintosh x-mac-roman",
    "mac-cyrillic": "x-mac-cyrillic x-mac-ukrainian",
    "cp874": "dos-874 iso-8859-11 iso8859-11 iso885911 tis-620 windows-874",
    "cp1250": "cp1250 windows-1250 x-cp1250",
    "cp1251": "cp1251 windows-1251 x-cp1251",
    "cp1252": (
        "ansi_x3.4-1968 ascii cp1252 cp819 csisolatin1 ibm819 iso-8859-1 iso-ir-100 iso8859-1 iso88591 iso_8859-1 "
        "iso_8859-1:1987 l1 latin-1 latin1 us-ascii windows-1252 x-cp1252"
    ),
    "cp1253": "cp1253 windows-1253 x-cp1253",
    "cp1254": (
        "cp1254 csisolatin5 iso-8859-9 iso-ir-148 iso8859-9 iso88599 iso_8859-9 iso_8859-9:1989 l5 latin5 windows-1254 "
        "x-cp1254"
    ),
    "cp1255": "cp1255 windows-1255 x-cp1255",
    "cp1256": "cp1256 windows-1256 x-cp1256",
    "cp1257": "cp1257 windows-1257 x-cp1257",
    "cp1258": "cp1258 windows-1258 x-cp1258",
    "gb18030": "chinese csgb2312 csiso58gb231280 gb18030 gb2312 gb_2312 gb_2312-80 gbk iso-ir-58 x-gbk",
    "big5hkscs": "big5 big5-hkscs cn-big5 csbig5 x-x-big5",
    "euc-jp": "cseucpkdfmtjapanese euc-jp x-euc-jp",
    "iso2022-jp": "csiso2022jp iso-2022-jp",
    "cp932": "csshiftjis ms932 ms_kanji shift-jis shift_jis sjis windows-31j x-sjis",
    "cp949": (
        "cseuckr csksc56011987 euc-kr iso-ir-149 korean ks_c_5601-1987 ks_c_5601-1989 ksc5601 ksc_5601 windows-949"
    ),
    "utf-16": "csunicode iso-10646-ucs-2 ucs-2 unicode unicodefeff utf-16",
    "utf-16-le": "utf-16le",
    "utf-16-be": "unicodefffe utf-16be",
}
"""Codec -> the names of its charset, from https://encoding.spec.whatwg.org/#names-and-labels, and Python's ``latin-1``.

Foreign names don't choose Python's codecs, because Python remembers each name, and some codecs take quadratic time.
"""
