import asyncio
import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from agent_world import KEY, ScriptedModel, calls, says
from auth.test_tls import make
from file_queue import get_selected_tests
from nats_parts import NatsServer
from processes import ROOT, free_port
from programs import MISSING
from proxies import NGINX
from reader_world import INITIALIZE, FileBlock, Reader, TextBlock, TypedCommand, install, steps
from redis_parts import RedisServer
from scripts.docs import blocks
from typed_page_exceptions import CLONE, INSTEAD, LEFT_OUT, PAGES, Page

pytestmark = pytest.mark.server

TYPED = [
    "README.md",
    "docs/tutorial.md",
    *sorted(
        f"docs/{kind}/{each.name}" for kind in ("guides", "recipes") for each in (ROOT / "docs" / kind).glob("*.md")
    ),
]
AT_ONCE = 4
"""Pages that are typed at the same time, each by its own reader."""
FOLDER = "/home/you/bookshop"
"""What the pages call the reader's folder."""


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environment of all readers."""
    return install(tmp_path_factory.mktemp("installed"))


@contextmanager
def model(reader: Reader) -> Iterator[None]:
    """A model that answers the questions of the page."""
    search = calls(("search", '{"words":"Tolkien"}'))
    order = calls(("order", '{"isbn": "9780141439600", "copies": 2}'))
    book = says("Yes: The Lord of the Rings.")
    with ScriptedModel(search, book, search, book, order, says("Two copies are on their way.")) as api:
        reader.places |= {"https://api.example.com/v1": api.url, "your_api_key": KEY, "your_model": "gpt-4.1"}
        yield


@contextmanager
def redis(reader: Reader) -> Iterator[None]:
    """Run Redis on a free port."""
    server = RedisServer()
    try:
        reader.places["redis://127.0.0.1:6379"] = server.url
        yield
    finally:
        server.close()


@contextmanager
def nats(reader: Reader) -> Iterator[None]:
    """Run a NATS server on a free port."""
    with TemporaryDirectory(prefix="millstream-") as folder:
        server = NatsServer(Path(folder), "n1")
        try:
            asyncio.run(server.wait())
            reader.places["nats://127.0.0.1:4222"] = f"nats://127.0.0.1:{server.port}"
            yield
        finally:
            server.close()


@contextmanager
def stores(reader: Reader) -> Iterator[None]:
    """Run Redis and NATS."""
    with redis(reader), nats(reader):
        yield


@contextmanager
def certificate(reader: Reader) -> Iterator[None]:
    """Create a self-signed certificate."""
    folder = reader.folder / "tls"
    folder.mkdir()
    for made, name in zip(make(folder, "127.0.0.1"), ("fullchain.pem", "privkey.pem"), strict=True):
        Path(made).rename(folder / name)
    yield


@contextmanager
def nginx(reader: Reader) -> Iterator[None]:
    """Let the page run nginx, and stop it even if the page doesn't get that far."""
    if NGINX is None:
        pytest.skip(f"{MISSING}nginx")
    reader.places["8080"] = str(free_port())
    reader.variables["PATH"] += f":{Path(NGINX).parent}"
    try:
        yield
    finally:
        if (reader.folder / "nginx.pid").exists():
            reader.run("nginx -p . -e nginx.log -c nginx-try.conf -s stop")


@contextmanager
def nothing(_: Reader) -> Iterator[None]:
    """Prepare nothing, as for most pages."""
    yield


NEEDS: dict[str, Callable[[Reader], AbstractContextManager[None]]] = {
    "": nothing,
    "model": model,
    "nginx": nginx,
    "stores": stores,
    "certificate": certificate,
}


def prepare(reader: Reader, page: str, text: str) -> None:
    """Create the files that a page expects: a clone, the tutorial's files, and the reader's."""
    if any(isinstance(step, TypedCommand) and re.match(CLONE, step.command) for step in steps(text)):
        assert "clone" in text, f"{page} doesn't say where the examples come from"
        shutil.copytree(ROOT / "examples", reader.folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    if "(../tutorial.md)" in text:
        own = list(steps(text))
        for step in steps((ROOT / "docs/tutorial.md").read_text("utf-8")):
            if isinstance(step, FileBlock) and step not in own:
                reader.write(step)
    for name, content in PAGES.get(page, Page()).files.items():
        path = reader.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((ROOT / content).read_text("utf-8") if content.startswith("examples/") else content, "utf-8")


def as_typed(reader: Reader, step: TypedCommand, page: Page) -> TypedCommand | None:
    """Return the command to type, which the table may replace or skip."""
    if step.command.startswith("pip install "):
        reader.set_installed(*shlex.split(step.command)[2:])
    if any(re.match(pattern, step.command) for pattern in LEFT_OUT):
        return None
    command = step.command
    for pattern, (other, _) in INSTEAD.items():
        command = re.sub(rf"^(?:{pattern})", other, command)
    answers = next(
        (each for start, each in page.answers.items() if "-m " not in command and command.startswith(start)), ()
    )
    return TypedCommand(command, step.printed, answers)


def read(name: str, folder: Path, environment: Path) -> None:
    """Follow all steps of a page, in order."""
    page, text = PAGES.get(name, Page()), (ROOT / name).read_text("utf-8")
    reader = Reader(folder, environment)
    reader.places |= page.places | {FOLDER: str(folder)}
    prepare(reader, name, text)
    with NEEDS[page.needs](reader), reader:
        typed = "\n".join(do(reader, step, page) for step in steps(text))
        for more in page.also.get("", ()):
            reader.type(more)
            typed += f"\n{more.command}"
    if "pytest" in typed:
        typed += " ".join(path.name for path in folder.glob("test_*.py"))
    unused = {step.name for step in steps(text) if isinstance(step, FileBlock)} - set(page.untyped)
    assert not {each for each in unused if Path(each).suffix == ".py" and Path(each).stem not in typed}


def do(reader: Reader, step: FileBlock | TypedCommand | TextBlock, page: Page) -> str:
    """Do one step, and return the command."""
    if isinstance(step, TextBlock):
        assert any(step.body.startswith(start) for start in page.untyped), f"What becomes of this?\n{step.body}"
    elif isinstance(step, FileBlock):
        reader.write(step)
    elif (here := as_typed(reader, step, page)) is not None:
        reader.type(here)
        for start, more in page.also.items():
            if start and here.command.startswith(start):
                for each in more:
                    reader.type(each)
        return here.command
    return ""


@pytest.fixture(scope="session")
def reading(
    installed: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[dict[str, Future[None]]]:
    """All selected pages, which are being typed: page -> its task."""
    wanted = [
        item.callspec.params["page"]  # type: ignore[attr-defined]
        for item in get_selected_tests(request.session)
        if "reading" in getattr(item, "fixturenames", ())
    ]
    with ThreadPoolExecutor(AT_ONCE) as readers:
        yield {page: readers.submit(read, page, tmp_path_factory.mktemp("reader"), installed) for page in wanted}


@pytest.mark.parametrize("page", TYPED)
def test_files_and_commands_on_pages_work_in_an_empty_folder(reading: dict[str, Future[None]], page: str) -> None:
    reading[page].result()


def test_tables_list_existing_names() -> None:
    texts = {page: (ROOT / page).read_text("utf-8") for page in TYPED}
    assert set(PAGES) <= set(TYPED)
    commands = [step.command for text in texts.values() for step in steps(text) if isinstance(step, TypedCommand)]
    for pattern in (*LEFT_OUT, *INSTEAD):
        assert any(re.match(pattern, each) for each in commands), pattern
    for page, special in PAGES.items():
        for word in (*special.places, *(each for each in special.also if each), *special.answers):
            assert word in texts[page], (page, word)
        there = [
            step.name if isinstance(step, FileBlock) else step.body
            for step in steps(texts[page])
            if not isinstance(step, TypedCommand)
        ]
        for word in special.untyped:
            assert any(each.startswith(word) for each in there), (page, word)


def configurations(value: Any) -> Iterator[dict[str, Any]]:
    """Return every server in the configuration of a client."""
    for each in value.values():
        yield from ([each] if {"command", "url"} & set(each) else configurations(each))


def test_documented_clients_work(installed: Path, tmp_path: Path) -> None:
    name = "docs/guides/connect-a-client.md"
    text = (ROOT / name).read_text("utf-8")
    servers = [each for b in blocks(text) if b.language == "json" for each in configurations(json.loads(b.body))]
    commands = [shlex.join([each["command"], *each["args"]]) for each in servers if "command" in each]
    urls = {each["url"] for each in servers if "url" in each}
    for step in steps(text):
        if isinstance(step, TypedCommand) and step.command.startswith("claude mcp add"):
            _, dashes, behind = step.command.partition(" -- ")
            commands += [behind] if dashes else []
            urls |= set() if dashes else {each for each in step.command.split() if each.startswith("http:")}
    assert len(commands) == 3
    assert urls == {"http://127.0.0.1:8000/mcp"}
    assert commands[0] in {b.body.strip() for b in blocks(text)}
    with Reader(tmp_path, installed) as reader:
        reader.places[FOLDER] = str(tmp_path)
        prepare(reader, name, text)
        for command in set(commands):
            reader.type(TypedCommand(command))
        reader.type(TypedCommand("millstream run bookshop.py"))
        said = json.dumps(INITIALIZE)
        reader.type(
            TypedCommand(
                f"curl -sf http://127.0.0.1:8000/mcp -H content-type:application/json -d '{said}'", "…bookshop…"
            )
        )


def test_new_project_passes_its_test_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    with Reader(tmp_path, installed) as reader:
        reader.type(TypedCommand("millstream init shop"))
        reader.type(TypedCommand("pytest -q -p no:cacheprovider shop", "…1 passed…"))
