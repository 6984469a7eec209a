import re
import shutil
import subprocess
import sys
import tarfile
from email import message_from_bytes
from email.message import Message
from html.parser import HTMLParser
from pathlib import Path

import pytest
from readme_renderer import markdown

import millstream
from patience import WAIT
from processes import ROOT
from scripts.dist import find_unfinished

pytestmark = pytest.mark.server
ADDRESS = "https://example.com/owner/millstream"
TAG = f"v{millstream.__version__}"


def build_metadata(folder: Path, repository: str, version: str = "") -> Message:
    """Build a source archive with only what its metadata needs, and return its metadata."""
    for name in ("pyproject.toml", "README.md", "LICENSE", "scripts/metadata.py", "src/millstream/_version.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    project = folder / "pyproject.toml"
    text, changed = re.subn(
        '^repository = ".*"$', f'repository = "{repository}"', project.read_text(), flags=re.MULTILINE
    )
    assert changed == 1
    project.write_text(text)
    if version:
        (folder / "src" / "millstream" / "_version.py").write_text(f'__version__ = "{version}"\n')
    command = [sys.executable, "-m", "uv", "build", "--quiet", "--sdist", "--out-dir", folder / "dist", folder]
    subprocess.run(command, check=True, timeout=WAIT)
    (archive,) = (folder / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        (name,) = (each for each in opened.getnames() if each.endswith("PKG-INFO"))
        content = opened.extractfile(name)
        assert content is not None
        return message_from_bytes(content.read())


class Links(HTMLParser):
    """Addresses in a page, but for working ones of its own headings, and its comments."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.comments: list[str] = []
        ids = {f"#{each}" for each in re.findall(r'id="([^"]+)"', text)}
        self.feed(text)
        self.found = [each for each in self.found if each not in ids]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the addresses."""
        self.found += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_comment(self, data: str) -> None:
        """Keep it."""
        self.comments.append(data)


def described(metadata: Message) -> str:
    """Return the long description."""
    text = metadata.get_payload(decode=True)
    assert isinstance(text, bytes)
    return text.decode()


def render(metadata: Message) -> Links:
    """Return the long description as an index shows it."""
    page = markdown.render(described(metadata))
    assert page
    assert "&lt;" not in re.sub(r"<pre.*?</pre>", "", page, flags=re.DOTALL), "raw HTML is shown as text"
    return Links(page)


def test_long_description_has_no_comments_raw_html_or_dead_links(tmp_path: Path) -> None:
    metadata = build_metadata(tmp_path, ADDRESS)
    assert "<!--" not in described(metadata)
    page = render(metadata)
    assert page.comments == []
    own = [re.fullmatch(rf"{ADDRESS}/(blob|raw)/{TAG}/([^#]+)(#.*)?", each) for each in page.found]
    paths = [(found[1], found[2]) for found in own if found is not None]
    assert len(paths) > 20
    assert [path for _, path in paths if not (ROOT / path).is_file()] == []
    assert {Path(path).suffix for kind, path in paths if kind == "raw"} == {".png"}
    assert [each for each, found in zip(page.found, own, strict=True) if found is None and "://" not in each] == []


def test_long_description_without_an_address_has_no_links_to_files(tmp_path: Path) -> None:
    metadata = build_metadata(tmp_path, "")
    assert [each for each in render(metadata).found if "://" not in each] == []
    assert "[" not in re.sub(r"```.*?```|`[^`]*`", "", described(metadata), flags=re.DOTALL)
    assert metadata.get_all("Project-URL") is None


def test_addresses_and_version_come_from_one_place_each(tmp_path: Path) -> None:
    metadata = build_metadata(tmp_path, f"{ADDRESS}/", "7.8.9")
    assert metadata["Version"] == "7.8.9"
    urls = dict(each.split(", ") for each in metadata.get_all("Project-URL", []))
    assert urls == {
        "Homepage": ADDRESS,
        "Documentation": f"{ADDRESS}/blob/v7.8.9/docs/contents.md",
        "Source": ADDRESS,
        "Changelog": f"{ADDRESS}/blob/v7.8.9/CHANGELOG.md",
        "Issues": f"{ADDRESS}/issues",
    }
    assert (ROOT / "docs" / "contents.md").is_file()
    assert metadata["Author"]
    systems = [each for each in metadata.get_all("Classifier", []) if each.startswith("Operating System")]
    assert systems == ["Operating System :: POSIX :: Linux"]


def test_tag_without_an_address_is_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_REF_TYPE", "tag")
    command = [sys.executable, ROOT / "scripts" / "dist.py", "--out", tmp_path / "dist"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10 * WAIT, check=False)
    metadata = build_metadata(tmp_path / "tree", "")
    assert done.returncode == 1
    assert find_unfinished(metadata)[0] in done.stderr
    ready = build_metadata(tmp_path / "ready", ADDRESS)
    assert "repository" not in " ".join(find_unfinished(ready))


def test_wheel_and_sdist_install_and_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_REF_TYPE", raising=False)
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "dist.py", "--out", tmp_path / "dist"],
        capture_output=True, text=True, timeout=10 * WAIT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.partition(":")[2] for line in done.stdout.splitlines()] == [
        f" installs, says it is {millstream.__version__}, and answers over stdio"
    ] * 2
    contents = (tmp_path / "dist" / f"millstream-{millstream.__version__}.cdx.json").read_text()
    assert all(f'"name": "{name}"' in contents for name in ("millstream", "starlette", "cryptography"))
