"""Digests in the imports of the pages' modules, and the list of modules that a page imports.

Versioned imports let browsers cache modules for a year. With the list, pages preload all modules at once, instead of
discovering imports level by level: the imports of the inspector are ten levels deep.
"""

import posixpath
import re
from collections.abc import Callable, Mapping
from functools import partial

_IMPORT = re.compile(rb'^((?:import|export|\})(?: [^"\n]+)? from |import )"(\.{1,2}/[\w./-]+\.js)', re.MULTILINE)

_FILE = re.compile(rb'(?<=url\(")([\w./-]+)(?="\))')
"""A file that a style sheet loads."""


def add_digests(files: Mapping[str, bytes], digest: Callable[[bytes], bytes]) -> dict[str, bytes]:
    """Return the files with ``?DIGEST`` after each file name in imports and style sheets.

    A module's digest covers the digests of its imports, so a change reaches all modules that import it.

    Args:
        files: content by name, such as ``shell/theme.js``. Imports must not be circular.
        digest: returns the digest of a file's content.

    Raises:
        KeyError: a module imports a file that doesn't exist.
    """
    rewritten: dict[str, bytes] = {}
    digests: dict[str, bytes] = {}

    def rewrite(name: str) -> bytes:
        if name not in rewritten:
            rewritten[name] = _IMPORT.sub(lambda found: link(name, found), files[name])
            digests[name] = digest(rewritten[name])
        return digests[name]

    def link(name: str, found: re.Match[bytes]) -> bytes:
        return b'%b"%b?%b' % (found[1], found[2], rewrite(_target(name, found[2])))

    for name, body in files.items():
        if name.endswith(".js"):
            rewrite(name)
        elif name.endswith(".css"):
            rewritten[name] = _FILE.sub(partial(_with_digest, name, files, digest), body)
        else:
            rewritten[name] = body
    return {name: rewritten[name] for name in files}


def _with_digest(
    name: str, files: Mapping[str, bytes], digest: Callable[[bytes], bytes], found: re.Match[bytes]
) -> bytes:
    return b"%b?%b" % (found[1], digest(files[_target(name, found[1])]))


def imports_of(module: str, files: Mapping[str, bytes]) -> list[str]:
    """Return the transitive imports of a module, each once. Imports may have digests."""
    names: dict[str, None] = {}

    def collect(name: str) -> None:
        for found in _IMPORT.finditer(files[name]):
            target = _target(name, found[2])
            if target not in names:
                names[target] = None
                collect(target)

    collect(module)
    return list(names)


def _target(name: str, imported: bytes) -> str:
    """Return the name of an imported file."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), imported.decode()))
