"""A person with a browser: ``person.py LINK BACK`` opens a link, signs in as ada, consents, and prints the redirect.

It fills in whatever form comes, so it works with any issuer. It needs only the standard library, for any Python.
"""

import re
import sys
import time
import urllib.error
import urllib.request
from email.message import Message
from html import unescape
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any
from urllib.parse import unquote_plus, urlencode, urljoin, urlsplit

TYPED = {"name": "ada", "username": "ada", "login": "ada", "password": "correct horse", "answer": "allow"}
"""Field of a form -> what ada enters."""
_FORM = re.compile(r"<form\b(?P<head>[^>]*)>(?P<body>.*?)</form>", re.DOTALL)
_FIELD = re.compile(r"<(?:input|button)\b[^>]*>")


class Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirect, so that the last one is seen."""

    def redirect_request(self, *arguments: Any) -> None:
        """Return no request."""


def attribute(tag: str, name: str) -> str:
    """Return an attribute of a tag; empty without one."""
    found = re.search(rf'\b{name}="([^"]*)"', tag)
    return unescape(found[1]) if found else ""


def visit(link: str, back: str) -> str:
    """Return the URL to which the browser is sent in the end, which begins with `back`.

    Raises:
        RuntimeError: A page has no form. Its text is shown.
    """
    # Browsers accept secure cookies of this machine without TLS, too.
    policy = DefaultCookiePolicy(secure_protocols=("http", "https"))
    cookies = urllib.request.HTTPCookieProcessor(CookieJar(policy))
    browser = urllib.request.build_opener(Stay, cookies)
    form: dict[str, str] | None = None
    for _ in range(12):
        parts = urlsplit(link)
        headers = {"accept": "text/html", "origin": f"{parts.scheme}://{parts.netloc}"}
        body = None if form is None else urlencode(form).encode()
        try:
            reply: Any = browser.open(urllib.request.Request(link, body, headers), timeout=60)  # noqa: S310
        except urllib.error.HTTPError as exc:
            reply = exc
        told: Message = reply.headers
        text = reply.read().decode("utf-8", "replace")
        following = told.get("location") or _meta(text)
        if following:
            link, form = urljoin(link, following), None
            if link.startswith(back):
                if "error=" in link:
                    raise RuntimeError(f"Error of the issuer: {unquote_plus(urlsplit(link).query)}")
                return link
            continue
        page = _FORM.search(text)
        if page is None:
            plain = " ".join(re.sub(r"<style.*?</style>|<[^>]*>", " ", text, flags=re.DOTALL).split())
            raise RuntimeError(f"{reply.status}: {plain[:300]}")
        fields = [each for each in _FIELD.findall(page["body"]) if attribute(each, "name")]
        form = {}
        for each in fields:
            name = attribute(each, "name")
            if name not in form:
                form[name] = TYPED.get(name) or attribute(each, "value")
        link = urljoin(link, attribute(page["head"], "action") or link)
    raise RuntimeError("The sign-in doesn't end.")


def _meta(text: str) -> str:
    """Return where a page leads on by itself."""
    found = re.search(r'http-equiv="refresh"[^>]*content="\d+;\s*url=([^"]+)"', text, re.IGNORECASE)
    return unescape(found[1]) if found else ""


def deliver(redirect: str) -> None:
    """Open the redirect, at a program that may begin to listen only now."""
    for _ in range(200):
        try:
            urllib.request.urlopen(redirect, timeout=60).close()  # noqa: S310  on this machine
        except urllib.error.HTTPError as exc:
            raise RuntimeError(f"{exc.code}: {exc.read()[:200]!r}") from exc
        except OSError:
            time.sleep(0.05)
        else:
            return


if __name__ == "__main__":
    sys.stdout.write(visit(sys.argv[1], sys.argv[2]))
