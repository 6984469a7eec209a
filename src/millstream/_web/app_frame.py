"""The document in which the inspector shows an app of a server (extension `io.modelcontextprotocol/ui`).

It has its own URL, because a `srcdoc` frame would inherit the page's policy, which blocks all apps. Its own policy
gives it an opaque origin: the app can't read the page, cookies, or storage, and can only connect to the domains that
its resource declares. WebRTC, preconnect, and name lookups aren't covered by that policy, but by `Connection-Allowlist`
in browsers that have it (Chrome 152 and later). The document receives the app's HTML as a message from the embedding
page, which must be on this server, and replaces itself with it.
"""

import re
from collections.abc import Mapping, Sequence

from millstream._http.message import HttpRequest, Response, query_values, refusal

PATH = "/inspect/app"
MAX_DOMAINS = 20
"""Maximum domains of each kind."""
_DOMAIN = re.compile(
    r"(?:https?|wss?)://(?:\*\.)?[A-Za-z0-9.-]{1,253}(?::\d{1,5})?|(?:https?|wss?)://\[[0-9a-fA-F:]+\](?::\d{1,5})?"
)
_KINDS = ("connect", "resource", "frame", "base")
_DOCUMENT = b"""<!doctype html>
<meta charset="utf-8">
<title>App</title>
<script>
addEventListener("message", function load({ source, data }) {
  if (source !== parent || typeof data?.html !== "string") return;
  removeEventListener("message", load);
  document.open();
  document.write(data.html);
  document.close();
});
parent.postMessage({ ready: true }, "*");
</script>
"""
_COMMON_HEADERS = b"cache-control: no-store\r\nx-content-type-options: nosniff\r\nreferrer-policy: no-referrer\r\n"
_INVALID_DOMAINS = refusal(
    400, f"Each domain looks like https://api.example.com, and there are at most {MAX_DOMAINS} of a kind."
)


def policy(domains: Mapping[str, Sequence[str]]) -> str:
    """Return the Content-Security-Policy of an app that declares these domains, by ``connect``, ``resource``, ``frame``
    and ``base``.
    """
    resources = " ".join(domains.get("resource", ()))

    def allow(*sources: str) -> str:
        return " ".join(each for each in sources if each) or "'none'"

    rules = {
        "default-src": "'none'",
        "script-src": allow("'unsafe-inline'", resources),
        "style-src": allow("'unsafe-inline'", resources),
        "img-src": allow("data: blob:", resources),
        "media-src": allow("data: blob:", resources),
        "font-src": allow("data:", resources),
        "connect-src": allow(*domains.get("connect", ())),
        "frame-src": allow(*domains.get("frame", ())),
        "base-uri": allow(*domains.get("base", ())),
        "object-src": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'self'",
        "sandbox": "allow-scripts",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def _allowlist(domains: Mapping[str, Sequence[str]]) -> str:
    """Return the Connection-Allowlist of an app that declares these domains. Without a parameter, WebRTC is off."""
    reached = {
        f'"{re.sub("^ws", "http", each)}"' for kind, found in domains.items() if kind != "base" for each in found
    }
    return f"({' '.join(sorted(reached))});redirects=allow"  # `policy` checks the targets of redirects


async def get(request: HttpRequest) -> Response:
    """Handle `GET` of the document. The query contains the app's domains."""
    query = query_values(request.query)
    domains = {kind: query.get(kind, []) for kind in _KINDS}
    if any(len(each) > MAX_DOMAINS or not all(map(_DOMAIN.fullmatch, each)) for each in domains.values()):
        return _INVALID_DOMAINS
    head = (
        "content-type: text/html; charset=utf-8\r\n"
        f"content-security-policy: {policy(domains)}\r\nconnection-allowlist: {_allowlist(domains)}\r\n"
    )
    return Response(_DOCUMENT, 200, head.encode() + _COMMON_HEADERS)
