"""Apps (``io.modelcontextprotocol/ui``): HTML views of tool results.

Experimental: a minor version can change it. See Stability in the documentation.

``apps.add("orders/")`` serves a folder's views, and ``@apps.tool("ui://orders/table")`` links a tool to one. The views
are resources, with their content security policy and permissions. The specification is
https://github.com/modelcontextprotocol/ext-apps, specification/2026-01-26/apps.mdx.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, Unpack

from millstream._override import override
from millstream.extensions import Extension, LocalError, ToolOptions
from millstream.files import find_file, open_file
from millstream.protocol import Json

if TYPE_CHECKING:
    from millstream import Server

__all__ = ["AppOptions", "Apps"]

F = TypeVar("F", bound=Callable[..., Any])
MIME_TYPE = "text/html;profile=mcp-app"
MAX_BYTES = 8 * 1024 * 1024
"""Maximum size of a view."""
_ORIGIN = re.compile(r"(?:https?|wss?)://(?:\*\.)?[A-Za-z0-9.-]+(?::[0-9]{1,5})?")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_CSP = {
    "connect": "connectDomains",
    "resources": "resourceDomains",
    "frames": "frameDomains",
    "base_uris": "baseUriDomains",
}
_PERMISSIONS = {
    "camera": "camera",
    "microphone": "microphone",
    "geolocation": "geolocation",
    "clipboard-write": "clipboardWrite",
}
"""Name in a permissions policy -> name in the metadata."""
Permission = Literal["camera", "microphone", "geolocation", "clipboard-write"]


class AppOptions(TypedDict, total=False):
    """Options of `Apps.add`."""

    connect: Sequence[str]
    """Origins that the view can send requests to, such as ``https://api.example.com``; none by default."""
    resources: Sequence[str]
    """Origins that the view loads scripts, styles, images, and fonts from."""
    frames: Sequence[str]
    """Origins of frames inside the view."""
    base_uris: Sequence[str]
    """Origins that the view can use as base URLs."""
    permissions: Sequence[Permission]
    """Permissions that the view requests: ``camera``, ``microphone``, ``geolocation``, or ``clipboard-write``."""
    domain: str
    """The origin of the view, in the format of the host."""
    border: bool
    """Whether the host draws a border and a background. By default, the host decides."""
    title: str
    description: str


class Apps(Extension):
    """A server's views, and the tools that use them to show results.

    Example:
        ``apps = mcp.extend(Apps())``, then ``apps.add("orders/")`` and ``@apps.tool("ui://orders/table")``.
    """

    name = "io.modelcontextprotocol/ui"
    settings: Mapping[str, Any] | None = {}
    in_sets = True

    def __init__(self) -> None:
        self._tool_of_view: dict[str, str] = {}
        """URI of a view -> a tool that is linked to it."""

    @override
    def unmet(self, server: "Server") -> str:
        """Return an error if a tool links to a view that doesn't exist, because hosts couldn't show its results."""
        registry = server.registry
        for uri, tool in self._tool_of_view.items():
            exists = uri in registry.resources or any(
                template.template.match(uri) is not None for template in registry.templates.values()
            )
            if not exists:
                return f"the tool {tool!r} shows {uri!r}, but there is no such resource. Add it with apps.add(…)"
        return ""

    def add(self, source: str | PathLike[str], *, uri: str = "", **options: Unpack[AppOptions]) -> None:
        """Serve HTML views for tool results: ``apps.add("orders/")``.

        A folder's ``table.html`` has the URI ``ui://FOLDER/table``. A view is one file, because a host's sandbox
        doesn't load anything else unless `resources` allows it. It's read at each request, so changes appear
        immediately.

        Args:
            source: An ``.html`` file of at most 8 MiB, or a folder of them, relative to the current directory.
            uri: The URI of the file. For a folder, the beginning of its files' URIs.
            options: See `AppOptions`.

        Raises:
            ValueError: The file or folder doesn't exist, or the URI or an option is invalid.
        """
        path = Path(source)
        if path.is_dir():
            base = uri.rstrip("/") or f"ui://{_check_name(path.resolve().name)}"
            files = sorted(each for each in path.glob("*.html") if each.is_file())
            if not files:
                raise ValueError(f"{str(source)!r} contains no .html file. Add one for each view.")
            for each in files:
                self._serve(each, f"{base}/{_check_name(each.stem)}", options)
        elif path.is_file():
            self._serve(
                path,
                uri or f"ui://{_check_name(path.resolve().parent.name)}/{_check_name(path.stem)}",
                options,
            )
        else:
            raise ValueError(f"There is no file or folder {str(source)!r} in {Path.cwd()}.")

    def _serve(self, file: Path, uri: str, options: AppOptions) -> None:
        check_uri(uri)
        path = file.absolute()
        if find_file(path.parent.resolve(), path) is None:
            path = file.resolve()  # a link to another folder, which the program has chosen
        read_view(path)
        labels: Json = {key: value for key, value in options.items() if key in ("title", "description")}

        def view() -> str:
            try:
                return read_view(path)
            except (OSError, ValueError) as exc:
                raise LocalError(f"The view {path.name} can't be read: {str(exc).rstrip('.')}.") from exc

        meta = metadata_of(options) or None
        self.server.resource(uri, name=path.stem, mime_type=MIME_TYPE, meta=meta, **labels)(view)

    def tool(
        self, uri: str, *, visibility: Sequence[Literal["model", "app"]] | None = None, **options: Unpack[ToolOptions]
    ) -> Callable[[F], F]:
        """Register a function as a tool with a view for its results: ``@apps.tool("ui://orders/table")``.

        Clients without the apps extension see the tool without the view.

        Args:
            uri: The URI of the view.
            visibility: Who may call the tool, for clients to enforce: ``["app"]`` for the view only. By default, the
                model and the view may.
            options: Options of ``@mcp.tool``.

        Raises:
            ValueError: The URI or the visibility is invalid.
        """
        check_uri(uri)
        ui: Json = {"resourceUri": uri}
        if visibility is not None:
            ui["visibility"] = audience = [visibility] if isinstance(visibility, str) else list(visibility)
            if not audience or not set(audience) <= {"model", "app"}:
                raise ValueError(f"visibility={visibility!r}: use ['model'], ['app'], or both.")
        # Hosts of 2025 read the second member.
        options["meta"] = {"ui": ui, "ui/resourceUri": uri, **(options.get("meta") or {})}

        def register(function: F) -> F:
            self._tool_of_view[uri] = str(options.get("name") or getattr(function, "__name__", ""))
            return self.server.tool(**options)(function)

        return register


def check_uri(uri: str) -> None:
    """Check the URI of a view.

    Raises:
        ValueError: The URI is invalid.
    """
    if not uri.startswith("ui://") or len(uri) == len("ui://") or "{" in uri:
        raise ValueError(f"{uri!r} isn't the URI of a view: start it with ui://, such as 'ui://orders/table'.")


def metadata_of(options: AppOptions) -> Json:
    """Return the `_meta` of a view.

    Raises:
        ValueError: An origin or a permission is invalid.
        TypeError: An option doesn't exist.
    """
    unknown = set(options) - set(AppOptions.__annotations__)
    if unknown:
        raise TypeError(f"app has no option {min(unknown)!r}: use {', '.join(AppOptions.__annotations__)}.")
    permissions = options.get("permissions", ())
    for each in permissions:
        if each not in _PERMISSIONS:
            raise ValueError(f"permissions contains {each!r}: use {', '.join(_PERMISSIONS)}.")
    ui: Json = {
        "csp": {member: _origins(name, found) for name, member in _CSP.items() if (found := options.get(name))},
        "permissions": {_PERMISSIONS[each]: {} for each in permissions},
        "domain": options.get("domain"),
        "prefersBorder": options.get("border"),
    }
    ui = {name: value for name, value in ui.items() if value not in ({}, None)}
    return {"ui": ui} if ui else {}


def _origins(option: str, origins: Any) -> list[str]:
    values: Iterable[str] = [origins] if isinstance(origins, str) else origins
    for each in (result := list(values)):
        if not _ORIGIN.fullmatch(each):
            raise ValueError(
                f"{option} contains {each!r}: write origins such as 'https://api.example.com' or 'https://*.example.com'."
            )
    return result


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"The name {name!r} isn't allowed in a URI: use letters, digits, hyphens, and underscores.")
    return name


def read_view(path: Path) -> str:
    """Return the HTML of a view.

    Raises:
        ValueError: The file is missing, leads to another folder, is too large, or isn't UTF-8.
        OSError: The file can't be read.
    """
    file = open_file(path.parent, path)
    if file is None:
        raise ValueError(f"The view {path.name} isn't a file in {path.parent}.")
    with file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"The view {path.name} is larger than {MAX_BYTES:,} bytes.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise ValueError(f"The view {path.name} isn't UTF-8.") from exc
