import gzip
import hashlib
import posixpath
import re
from importlib import resources

import pytest

from cases import for_each
from millstream._web.pages import add_digests, asset, asset_handler, page_names, pages
from rest_world import post

HEADERS = ("content-security-policy", "x-content-type-options", "referrer-policy", "content-type", "cache-control")


def headers(head: bytes) -> dict[str, str]:
    """Header lines by name."""
    return dict(line.split(": ", 1) for line in head.decode().split("\r\n")[:-1])


def own_files() -> list[str]:
    """The paths of the pages and files that aren't a vendored library."""
    return [path for path in pages() if not path.startswith("/assets/vendor/")]


def test_pages_and_assets_are_served() -> None:
    assert "docs" in page_names()
    assert {"/docs", "/assets/base.css", "/assets/docs/page.js", "/assets/docs/docs.css", "/assets/mark.svg"} <= set(
        pages()
    )
    for path in pages():
        response = asset(path)
        assert response.status == 200
        assert response.body


def test_replies_have_content_type_and_policy() -> None:
    kinds = {"/docs": "text/html; charset=utf-8", "/assets/docs/page.js": "text/javascript; charset=utf-8"}
    for path, kind in kinds.items():
        found = headers(asset(path).head)
        assert set(HEADERS) <= set(found)
        assert found["content-type"] == kind
        assert found["x-content-type-options"] == "nosniff"
        policy = dict(part.strip().split(" ", 1) for part in found["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == policy["font-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'"


@for_each("name", ["docs"])
def test_pages_comply_with_their_policy(name: str) -> None:
    page = asset(f"/{name}").body.decode()
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", page)
    assert re.findall(r"<script(?![^>]*\ssrc=)", page) == []
    loaded = re.findall(r'(?:src|href)="([^"#][^"]*)"', page)
    assert loaded
    assert not any(re.match(r"[a-z]+:|/", address) for address in loaded), "addresses are relative to the mount point"


def test_assets_load_nothing_from_other_hosts() -> None:
    for path in own_files():
        text = asset(path).body.decode().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"(?:https?|wss?):?//(?!127\.0\.0\.1|localhost)\w", text), path
        assert "@import" not in text
        assert "innerHTML" not in text


def test_page_assets_are_small() -> None:
    bodies = {path: asset(path).body for path in pages()}
    fonts = [bodies.pop(path) for path in list(bodies) if path.endswith(".woff2")]
    assert len(fonts) == 2
    assert sum(map(len, fonts)) < 120 * 1024
    assert sum(len(gzip.compress(body)) for path, body in bodies.items() if path.startswith("/assets/")) < 245_000


VENDORED = {
    "markdown-it.js": "40ee4f75f35a4c8d24f1d7a902f4c56a26da8bd9eec5bb02ad4a672d6ba05525",
}
"""Libraries in `_web/assets/vendor`, from their packages at npm: markdown-it 15.0.3, dist/browser, without the line
that names a source map."""
FONTS = {
    "inter.woff2": "3100e775e8616cd2611beecfa23a4263d7037586789b43f035236a2e6fbd4c62",
    "geist-mono.woff2": "684ad5b531f81d43c1e8c7038262d5db7cdc1f68006e04d6c7769efa8d33c8cc",
}
"""Variable fonts from npm, latin subset: @fontsource-variable/inter 5.3.0, @fontsource-variable/geist-mono 5.3.0."""


def test_fonts_match_their_digests_and_are_cached_forever() -> None:
    folder = resources.files("millstream._web") / "assets" / "vendor"
    assert {each.name for each in folder.iterdir() if each.name.endswith(".woff2")} == set(FONTS)
    styles = asset("/assets/shell.css").body.decode()
    for name, digest in FONTS.items():
        body = (folder / name).read_bytes()
        assert hashlib.sha256(body).hexdigest() == digest
        license = (folder / f"{name.removesuffix('.woff2')}.LICENSE.txt").read_text("utf-8")
        assert "SIL OPEN FONT LICENSE Version 1.1" in license
        assert f'url("vendor/{name}?{digest[:16]}")' in styles
        reply = headers(asset(f"/assets/vendor/{name}", query=digest[:16].encode()).head)
        assert (reply["content-type"], "immutable" in reply["cache-control"]) == ("font/woff2", True)
    assert f'href="assets/vendor/inter.woff2?{FONTS["inter.woff2"][:16]}"' in asset("/docs").body.decode()


def test_vendored_libraries_match_their_digests() -> None:
    folder = resources.files("millstream._web") / "assets" / "vendor"
    assert {each.name for each in folder.iterdir() if each.name.endswith(".js")} == set(VENDORED)
    for name, digest in VENDORED.items():
        body = (folder / name).read_bytes()
        assert hashlib.sha256(body).hexdigest() == digest
        assert "Permission is hereby granted" in (folder / f"{name.removesuffix('.js')}.LICENSE.txt").read_text("utf-8")
        assert not re.search(rb"\b(?:eval|Function)\(", body)


def test_digest_named_files_are_immutable() -> None:
    """RFC 8246."""
    page = asset("/docs").body.decode()
    digest = re.search(r'"assets/base\.css\?([0-9a-f]{16})"', page)
    assert digest
    found = headers(asset("/assets/base.css", query=digest[1].encode()).head)
    assert found["cache-control"] == "public, max-age=31536000, immutable"
    for query in (b"", b"0" * 16):
        assert headers(asset("/assets/base.css", query=query).head)["cache-control"] == "no-cache"
    assert headers(asset("/docs").head)["cache-control"] == "no-cache"


@for_each("name", page_names())
def test_pages_preload_their_modules(name: str) -> None:
    page = asset(f"/{name}").body.decode()
    named = dict(re.findall(r'"assets/([\w./-]+\.js)\?([0-9a-f]{16})"', page))
    for module, digest in named.items():
        reply = asset(f"/assets/{module}", query=digest.encode())
        assert "immutable" in headers(reply.head)["cache-control"], module
        imported = re.findall(r' "(\.{1,2}/[^"]+)";$', reply.body.decode(), re.MULTILINE)
        assert {posixpath.normpath(posixpath.join(posixpath.dirname(module), each)) for each in imported} <= {
            f"{each}?{of}" for each, of in named.items()
        }
    assert len(named) > 10
    assert len(re.findall(r"assets/[\w./-]+\.js", page)) == len(named)


def test_changed_modules_get_new_names() -> None:
    def names(leaf: bytes) -> dict[str, bytes]:
        files = {
            "page.js": b'import "./a/one.js";\n',
            "a/one.js": b'export {\n  x,\n} from "../two.js";\n',
            "two.js": leaf,
        }
        return add_digests(files, lambda body: b"%d" % (sum(body) % 10_007))

    before, after = names(b"export const x = 1;\n"), names(b"export const x = 2;\n")
    assert [name for name in before if before[name] != after[name]] == ["page.js", "a/one.js", "two.js"]
    assert re.fullmatch(rb'import "./a/one.js\?\d+";\n', before["page.js"])
    with pytest.raises(KeyError, match="two"):
        add_digests({"one.js": b'import "./two.js";\n'}, lambda body: b"")


def test_scripts_are_served_without_jsdoc() -> None:
    kept = b"""export const own = {
  /** @type {any} */ last: null, // beside code
  get: (key) => /** @type {any} */ (key)
};
"""
    lines = kept.splitlines(keepends=True)
    lines.insert(2, b"  /**\n   * Return it.\n   *\n   * @param {any} key\n   */\n")
    script = b"/** What the page has. @type {object} */\n" + b"".join(lines)
    files = add_digests({"one.js": script, "two.css": script}, lambda body: b"")
    assert files == {"one.js": kept, "two.css": script}


async def test_unchanged_files_get_304() -> None:
    """RFC 9110 §13.1.2."""
    tag = headers(asset("/docs").head)["etag"]
    held = await asset_handler()(post("/docs", b"", if_none_match=f'"other", {tag}'))
    assert (held.status, held.body) == (304, b"")
    assert headers(held.head)["etag"] == tag
    assert (await asset_handler()(post("/docs", b"", if_none_match='"other"'))).status == 200


@for_each(
    "path",
    ["/", "/docs.html", "/assets/docs.html", "/assets/", "/assets/../pages.py", "/assets/%2e%2e/pages.py", "/x/docs"],
)
def test_unknown_assets_get_404(path: str) -> None:
    assert asset(path).status == 404
