"""Versioned imports between the pages' modules, using digests like the pages do for their files.

A browser that has a page's modules requests none of them again, and a new browser requests all of them at once, instead
of discovering imports level by level. The imports of the inspector are ten levels deep.
"""

import posixpath
import re
from collections.abc import Callable, Mapping
from functools import partial

_IMPORT = re.compile(rb'^((?:import|export|\})(?: [^"\n]+)? from |import )"(\.{1,2}/[\w./-]+\.js)', re.MULTILINE)

_FILE = re.compile(rb'(?<=url\(")([\w./-]+)(?="\))')
"""A file that a style sheet loads."""


def add_digests(files: Mapping[str, bytes], digest: Callable[[bytes], bytes]) -> dict[str, bytes]:
    """All files, in whose imports and styles each file's name ends with ``?DIGEST``.

    The digest of a module goes over those in its imports, so a change reaches all who import it.

    Args:
        files: the content by the name below one folder: ``shell/theme.js``. No modules import each other in a circle.
        digest: of a file's content.

    Raises:
        KeyError: a module imports a file that does not exist.
    """
    finished: dict[str, bytes] = {}
    digests: dict[str, bytes] = {}

    def finish(name: str) -> bytes:
        if name not in finished:
            finished[name] = _IMPORT.sub(lambda found: link(name, found), files[name])
            digests[name] = digest(finished[name])
        return digests[name]

    def link(name: str, found: re.Match[bytes]) -> bytes:
        return b'%b"%b?%b' % (found[1], found[2], finish(_target(name, found[2])))

    for name, body in files.items():
        if name.endswith(".js"):
            finish(name)
        elif name.endswith(".css"):
            finished[name] = _FILE.sub(partial(_with_digest, name, files, digest), body)
        else:
            finished[name] = body
    return {name: finished[name] for name in files}


def _with_digest(
    name: str, files: Mapping[str, bytes], digest: Callable[[bytes], bytes], found: re.Match[bytes]
) -> bytes:
    return b"%b?%b" % (found[1], digest(files[_target(name, found[1])]))


def imports_of(module: str, files: Mapping[str, bytes]) -> list[str]:
    """Return the transitive imports of a module, each once, versioned or not."""
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
