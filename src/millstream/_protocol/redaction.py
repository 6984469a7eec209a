"""Removes credentials from errors that quote them, and from logs.

Servers often quote the request in their error messages, and its credentials with it. The sender removes its
credentials from errors, results of failed tools, and lines of standard error, in the spellings that quoting produces.
Other results don't change.
"""

import re
from base64 import b64decode
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, unquote

import msgspec

from millstream._protocol.json_schema import is_array, is_object
from millstream._protocol.jsonrpc import MALFORMED, exceeds_limits

REDACTED = "[redacted]"
HIDDEN = "***"
MAX_TEXT = 8192
"""Maximum characters of a text in a log."""
_FORMS = (
    r"""(?P<scheme>\b(?:bearer|dpop)\s{1,3})[\w.~+/=-]{8,}"""
    r"""|(?P<query>[?&][\w-]{0,32}(?:password|passwd|secret|token|key|code)=)[^\s&"']+"""
    r"""|(?P<user>://[^\s/:@]{0,256}:)[^\s/@]+(?=@)"""
    # JWTs, and keys for GitHub, AWS, webhooks, Slack, model providers, and payment providers
    r"""|(?<![\w-])(?:eyJ[\w-]{8,}\.[\w.-]{8,}|gh[a-z]_\w{16,}|github_pat_\w{16,}|A[KS]IA[0-9A-Z]{16}\b"""
    r"""|whsec_[\w+/=-]{8,}|xox[a-z]-[\w-]{8,}|sk[-_][\w-]{16,})"""
    r"""|-----BEGIN [\w ]{0,32}PRIVATE KEY-----(?s:.*?)(?:-----END [\w ]{0,32}-----|\Z)"""
)
"""Credentials that are recognized without a name."""
_STARTS = "(?=[acpstbdegwx?&:-])"  # most letters in a plain line can't start a secret
_SECRET_FORM = re.compile(f"{_STARTS}(?:{_FORMS})", re.IGNORECASE)
_SECRET_TEXT = re.compile(
    rf"""{_STARTS}(?:"""
    r"""(?P<header>(?:authorization|cookie)["']?\s{0,3}[:=]\s{0,3})[^\r\n]*"""
    r"""|(?P<pair>(?:password|passwd|secret|token|api[_-]?key|[?&]code)["']?\s{0,3}[=:]\s{0,3}["']?)[^\s&,;"']+"""
    r"""|(?P<basic>\bbasic\s{1,3})[\w.~+/=-]{8,}"""
    rf"""|{_FORMS})""",
    re.IGNORECASE,
)
_SECRET_HINTS = (
    "://", "authorization", "basic", "bearer", "code", "cookie", "dpop", "eyj", "gh", "github_pat_", "key", "passw",
    "secret", "sk-", "sk_", "token", "whsec_", "xox", "akia", "asia",
)  # fmt: skip
"""Every ASCII match of `_SECRET_TEXT` contains one of these in lower case. Searching for them is faster."""
_SHORTEST = 4
"""Minimum characters of a secret. Replacing shorter texts would make errors unreadable."""
_ORDINARY = frozenset({"true", "false", "none", "null", "basic", "bearer"})
"""Values that aren't secret even if their names say so, such as that of ``X-Token-Type``."""
_SURE = 8
"""Minimum characters of a secret that's also replaced within a word."""
_COMPARED = 48
"""Characters of a long secret that are compared, so that matching takes linear time."""
_LONG = 20
"""Minimum letters and digits of a secret that's found without what separates them. Ordinary text has shorter ones."""
_MAX_QUOTED = 4
"""How often a text can be quoted in another."""
_ENCODED = re.compile(
    r"(%(?:25){0,3}[0-9A-Fa-f]{2}|\\{1,8}+(?:u[0-9A-Fa-f]{4}|x[0-9A-Fa-f]{2}|[bfnrt])"
    r"|&#[xX]0{0,8}[0-9A-Fa-f]{1,6};?|&#\d{1,9};?|&[A-Za-z]{2,8};)"
)
_MARKUP = re.compile("<[^<>]*+>")
_LOWER_CASE = bytes(range(256)).lower()
_SEPARATORS = bytes(each for each in range(128) if not chr(each).isalnum())
_MAX_DEPTH = 100
"""Maximum nesting of a value, because a decoder accepts more than Python's stack has space for."""
_REST = r"""(?:[^\s"'<>\\]++|\\{1,8}[/u])*+"""
_MAX_REMEMBERED = 256
"""Maximum characters of a name whose result is cached, because callers choose the names of arguments."""
_SECRET_NAME = re.compile(
    r"authorization|cookie|passwo?r?d|passphrase|secret|token(?!s)|credential|sessionid|requeststate"
    r"|(?:api|access|private|signing)key|key$|.auth$|pass$|jwt|bearer|signature|accesscode"
)
_USER = re.compile(r"://([^\s/:@?#]{0,256}):([^\s/@?#]+)@")
"""Matches the user name and password in a URL."""
_SCHEME = re.compile(r"([A-Za-z][\w-]*) +(\S+)")
"""Matches a scheme and its credentials (RFC 9110 §11.4)."""
_NAMED = re.compile(r"(?:--?)?([A-Za-z][\w.-]*)\s*[:=]\s*(.+)", re.DOTALL)
"""Matches an argument with a name: ``--api-key=…``, ``API_KEY=…``, ``Authorization: …``."""
_WORD = re.compile("[0-9A-Za-z]+")
_ENTITIES = {"&": "amp", "<": "lt", ">": "gt", '"': "quot", "'": "apos"}


def is_secret(name: str) -> bool:
    """Return whether a field of this name contains a secret (``X-Api-Key``, ``accessToken``, ``set-cookie``)."""
    return _remembered(name) if len(name) <= _MAX_REMEMBERED else _names_secret(name)


def _names_secret(name: str) -> bool:
    return _SECRET_NAME.search(re.sub(r"[^a-z0-9]", "", name.lower())) is not None


_remembered = lru_cache(1024)(_names_secret)


def find_secrets(values: Mapping[str, str], known: Iterable[str] = ()) -> set[str]:
    """Return the secrets among headers, parameters, or variables: ``find_secrets({"x-api-key": "…"})``.

    A value is secret if its name says so (`is_secret`). Other values may contain passwords in URLs, or `known` secrets.

    Args:
        values: Values by name.
        known: Secrets that other values may contain, for example because a configuration file refers to them.
    """
    found: set[str] = set()
    for name, value in values.items():
        if is_secret(name):
            found |= secret_parts(value)
        else:
            found.update(password for user in _USER.findall(value) for password in {user[1], unquote(user[1])})
    found.update(each for each in known if any(each in value for value in values.values()))
    return found


def find_argument_secrets(arguments: Sequence[str], known: Iterable[str] = ()) -> set[str]:
    """Return the secrets in the arguments of a command, such as ``--token`` and the argument after it.

    Args:
        arguments: The command and its arguments.
        known: See `find_secrets`.
    """
    values: dict[str, str] = {}
    for argument, following in zip(arguments, (*arguments[1:], "-"), strict=True):
        named = _NAMED.fullmatch(argument)
        if named is not None and "://" not in named[1]:
            values[named[1]] = named[2]
        elif argument.startswith("-") and not following.startswith("-"):
            values[argument] = following
    found = find_secrets(values) | find_secrets({f"{number}": each for number, each in enumerate(arguments)}, known)
    return found.union(*map(find_query_secrets, arguments))


def find_query_secrets(url: str) -> set[str]:
    """Return the secrets in the query of a URL: ``find_query_secrets("/mcp?api_key=…")``."""
    return find_secrets(dict(parse_qsl(url.partition("?")[2])))


def environment_secrets(environment: Mapping[str, str]) -> list[str]:
    """Return the values of variables whose names say that they're secret, without short ones."""
    return [value for name, value in environment.items() if len(value) >= _SURE and is_secret(name)]


def secret_parts(value: str) -> set[str]:
    """Return the secrets in the value of a header or variable that contains credentials: the whole value, what follows
    a scheme, the decoded password of ``Basic``, the values of cookies, and each line of a key.
    """
    found = {value.strip()}
    if (scheme := _SCHEME.fullmatch(value.strip())) is not None:
        found.add(scheme[2])
        if scheme[1].lower() == "basic":
            try:
                user = b64decode(scheme[2] + "=" * (-len(scheme[2]) % 4)).decode()
            except ValueError:
                user = ""
            found |= {user, user.partition(":")[2]}
    elif "=" in value and (";" in value or value.count("=") == 1 != value.endswith("=")):
        found.update(each.partition("=")[2].strip() for each in value.split(";"))
    found.update(password for _, password in _USER.findall(value))
    found.update(line.strip() for line in value.splitlines() if len(line) >= _SURE)
    return found


def leave_out(said: bytes, secrets: Collection[str]) -> Collection[str]:
    """Return the secrets that a caller's message doesn't contain as a whole. Replacing the others would tell the caller
    which of its guesses is right.

    Args:
        said: The message as it came from the caller, before a gateway added anything.
        secrets: See `redact`.
    """
    if not said or not secrets:
        return secrets
    with suppress(*MALFORMED):
        said = msgspec.json.encode(msgspec.json.decode(said)) if b"\\" in said and not exceeds_limits(said) else said
    texts = [text := said.decode("utf-8", "surrogateescape"), unquote(text)]
    left = [each for each in secrets if not any(_quote(each) in text for text in texts)]
    long = {each: letters for each in left if len(letters := _letters(each)) >= _LONG}
    seen = list(_readings(texts[0])) if long else []
    return [each for each in left if each not in long or not any(long[each] in letters for letters in seen)]


def _quote(secret: str) -> str:
    return msgspec.json.encode(secret)[1:-1].decode()


def redact(text: str, secrets: Collection[str]) -> str:
    """Return a text without secrets: ``redact("bad key hunter2!", {"hunter2!"})``.

    It finds them as they are, and encoded for URLs, JSON, and HTML, in time linear in the length of the text. If a
    reader can still read a long secret in the text's letters and digits, nothing of the text is returned.

    Args:
        text: Text from the peer that the secrets were sent to.
        secrets: The secrets. Those of fewer than four characters are ignored, and those of fewer than eight only match
            whole words.
    """
    for secret in sorted(secrets, key=len, reverse=True):
        # Quoting doesn't encode ASCII letters and digits, so most texts need no pattern.
        if (
            len(secret) >= _SHORTEST
            and secret.lower() not in _ORDINARY
            and max(_WORD.findall(secret) or ("",), key=len) in text
        ):
            text = _pattern(secret).sub(REDACTED, text)
    return REDACTED if _is_readable(text, secrets) else text


def _is_readable(text: str, secrets: Collection[str]) -> bool:
    """Return whether a reader sees the letters and digits of a long secret, however they're encoded or separated."""
    wanted = [each[:_COMPARED] for each in map(_letters, secrets) if len(each) >= _LONG]
    return bool(wanted) and len(text) >= _LONG and any(each in seen for seen in _readings(text) for each in wanted)


def _readings(text: str) -> Iterator[bytes]:
    """Yield the letters and digits of a text, with and without markup, each time less of it is encoded."""
    for _ in range(_MAX_QUOTED):
        yield _letters(text)
        yield _letters(_MARKUP.sub("", text))
        parts = _ENCODED.split(text.replace("&amp;", "&"))  # faster than replacing by a function
        parts[1::2] = map(_decode, parts[1::2])
        if (decoded := "".join(parts)) == text:
            return
        text = decoded


@lru_cache(1024)
def _decode(escaped: str) -> str:
    """Return the character that an escape or entity stands for, or NUL if it's no letter or digit."""
    digits = escaped.strip("\\&#;").replace("%25", "").lstrip("%uxX")
    try:
        return chr(int(digits, 10 if escaped[1:2] == "#" and escaped[2:3] not in "xX" else 16))
    except (ValueError, OverflowError):
        return "\0"


def _letters(text: str) -> bytes:
    return text.encode("ascii", "ignore").translate(_LOWER_CASE, _SEPARATORS)


def redact_bytes(data: bytes, secrets: Collection[str]) -> bytes:
    """Return a body without secrets. See `redact`. JSON stays JSON, although a number in it may look like a secret."""
    text = data.decode("utf-8", "surrogateescape")
    found = redact(text, secrets)
    if found is text:
        return data
    made = found.encode("utf-8", "surrogateescape")
    if data[:1] in (b"{", b"[") and not exceeds_limits(data):
        with suppress(*MALFORMED):
            value = msgspec.json.decode(data)
            try:
                msgspec.json.decode(made)
            except MALFORMED:
                made = msgspec.json.encode(redact_value(value, secrets))
                if _is_readable(made.decode(), secrets):
                    return msgspec.json.encode(REDACTED)
    return made


def redact_value(value: Any, secrets: Collection[str], depth: int = _MAX_DEPTH, *, names: bool = True) -> Any:
    """Return a value of JSON without secrets, and without what's nested deeper than `depth`. See `redact`.

    Args:
        value: The value.
        secrets: The secrets.
        depth: Number of levels.
        names: Whether to remove short secrets from the names of members as well. They may be words of the protocol.
    """
    if isinstance(value, str):
        return redact(value, secrets)
    if is_array(value):
        return [redact_value(each, secrets, depth - 1, names=names) for each in value] if depth else REDACTED
    if is_object(value):
        if not depth:
            return REDACTED
        in_names = secrets if names else [each for each in secrets if len(each) >= _SURE]
        return {
            redact(key, in_names): redact_value(each, secrets, depth - 1, names=names) for key, each in value.items()
        }
    return value


def redact_failure(result: bytes, secrets: Collection[str]) -> bytes:
    """Return the result of a failed tool without secrets in its texts and values. Words of the protocol stay, although
    one of them may look like a secret.
    """
    if redact_bytes(result, secrets) is result:
        return result
    try:
        value = msgspec.json.decode(result)
    except MALFORMED:
        return redact_bytes(result, secrets)
    found = redact_value(value, secrets, names=False)
    words = [(value, found, "resultType")]
    if is_array(value.get("content")):
        blocks = zip(value["content"], found["content"], strict=True)
        words += [(block, made, "type") for block, made in blocks if is_object(block)]
    for before, after, name in words:
        if name in before:
            after[name] = before[name]
    return msgspec.json.encode(found)


def _pattern(secret: str) -> re.Pattern[str]:
    if len(secret) < _SURE:
        return re.compile(rf"(?<![0-9A-Za-z]){''.join(_spellings(secret))}(?![0-9A-Za-z])")
    # The beginning of a long secret is compared, and the rest of the word belongs to the secret.
    is_long = len(secret) > _COMPARED and not re.search(r"\s", secret)
    return re.compile("".join(_spellings(secret[:_COMPARED])) + _REST if is_long else "".join(_spellings(secret)))


def _spellings(secret: str) -> Iterator[str]:
    """Yield a pattern for each letter of a secret. Repeats are bounded, so that matching takes linear time."""
    for run in re.findall(r"[0-9A-Za-z]+|\\+|.", secret, re.DOTALL):
        if run[0].isascii() and run[0].isalnum():
            yield run
            continue
        letter, size = run[0], len(run)
        units = [f"{number:04x}" for number in _utf16(letter)]
        percents = "".join(f"%(?:25){{0,3}}{_any_case(f'{byte:02x}')}" for byte in letter.encode("utf-8", "replace"))
        spellings = [
            percents,
            "".join(rf"\\{{1,8}}u{_any_case(unit)}" for unit in units),
            rf"&#0{{0,4}}{ord(letter)};",
            rf"&#[xX]0{{0,4}}{_any_case(f'{ord(letter):x}')};",
        ]
        if letter == "\\":
            yield rf"(?:\\{{{size},{16 * size}}}|(?:{'|'.join(spellings)}){{{size}}})"
            continue
        if letter in _ENTITIES:
            spellings.append(f"&{_ENTITIES[letter]};")
        if letter == " ":
            spellings.append(r"\+")
        if short := {"\n": "n", "\r": "r", "\t": "t", "\b": "b", "\f": "f"}.get(letter):
            spellings.append(rf"\\{{1,8}}{short}")
        yield rf"(?:\\{{0,8}}{re.escape(letter)}|{'|'.join(spellings)})"


def _utf16(letter: str) -> Iterator[int]:
    data = letter.encode("utf-16-be", "surrogatepass")
    return (int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))


def _any_case(digits: str) -> str:
    return "".join(f"[{each}{each.upper()}]" if each.isalpha() else each for each in digits)


def redact_foreign(text: str, end: str = "") -> str:
    """Return a peer's or a program's text without credentials, recognized by their names as well. See `redact_text`.

    Args:
        text: The text.
        end: Our own words, if the text ends with them. They stay.
    """
    said = text.removesuffix(end).rstrip()
    return redact_text(said, _SECRET_TEXT) + text[len(said) :]


def redact_text(text: str, pattern: re.Pattern[str] = _SECRET_FORM) -> str:
    """Return a text without credentials and lone surrogates, cut to `MAX_TEXT` characters."""
    rest = len(text) - MAX_TEXT
    if rest > 0:
        text = f"{text[:MAX_TEXT]}… ({rest} more)"
    if text.isascii() and not any(map(text.lower().__contains__, _SECRET_HINTS)):
        return text
    text = pattern.sub(lambda match: (match[match.lastgroup] if match.lastgroup else "") + HIDDEN, text)
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()
