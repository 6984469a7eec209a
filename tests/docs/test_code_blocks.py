"""What the documents show is what the tests run.

A block of code or configuration equals a file or a region of one in `examples/`, all of which are run by tests. A
shell block holds only commands of the lists below, each of which a test runs, or which is `make`; or ``curl``, which
`test_commands.py` runs. ``make docs`` repairs blocks.
"""

import re
from pathlib import Path

import pytest

from scripts.docs import ROOT, blocks, broken_links, documents, region

PAGES = [pytest.param(page, id=str(page.relative_to(ROOT))) for page in documents()]
COPIED = {"python", "nginx", "json", "js", "yaml", "ini"}
FREE = {"", "text"}
COMMANDS = {
    # tests/cli/test_run.py
    "millstream run examples/bookshop.py",
    "millstream run examples/echo_math.py:echo_server",
    "millstream --version",
    # tests/docs/test_typed_pages.py
    "millstream run greet.py",
    "millstream run bookshop.py",
    "millstream run bookshop.py --serve web",
    "millstream run bookshop.py --auth-key correct-horse-battery-staple",
    "millstream run bookshop.py --transport stdio",
    (
        "claude mcp add bookshop -- "
        "/home/you/bookshop/.venv/bin/millstream run /home/you/bookshop/bookshop.py --transport stdio"
    ),
    "claude mcp add --transport http bookshop http://127.0.0.1:8000/mcp",
    "pytest",
    # tests/docs/test_commands.py
    "millstream run examples/hub.py",
    "millstream run examples/rooms.py",
    "python examples/greet.py",
    # tests/examples/test_under_uvicorn.py
    "uvicorn examples.echo_math:app",
    "uvicorn examples.hub:mcp",
    # tests/cli/test_developing.py
    "millstream run shop.py --dev --reload",
    # tests/workers/test_examples.py
    "millstream run examples/hub.py --workers 2",
    "millstream run examples/hub.py --reload",
    # tests/docs/test_application_pages.py
    "millstream install bookshop.py --client cursor --dry-run",
    "millstream install bookshop.py --client cursor",
    "millstream install bookshop.py --client cursor --undo",
    "millstream install bookshop.py --client cursor --yes --name books -v SHOP_KEY=secret --env-file shop.env",
    'millstream install https://example.com/mcp --client vscode --header "Authorization: Bearer KEY" --dry-run',
    "millstream install bookshop.py --client vscode --project --dry-run",
    "millstream install bookshop.py --client json",
    'millstream call "millstream record shop.jsonl bookshop.py" search words=Tolkien',
    'millstream call "millstream replay shop.jsonl" search words=Tolkien',
    "millstream replay shop.jsonl --against bookshop.py",
    # the project's own commands
    "make setup",
    "make run",
    "make test",
    "make check",
    "make docs-site",
    # tests/test_project_files.py
    "make dist",
    # .github/workflows/checks.yml
    "make test-python VERSION=3.14",
}
NOT_RUN = {
    "python3 -m venv .venv": "the tests make one themselves",
    ". .venv/bin/activate": "the tests make one themselves",
    "pip install millstream": "it asks the index; the tests install the wheel",
    "pip install fastapi": "it asks the index",
    "pip install pytest pytest-asyncio": "it asks the index",
    "claude mcp add --transport http hello http://127.0.0.1:8000/mcp": "it needs Claude Code",
    **dict.fromkeys(
        (
            "docker build -f deploy/Dockerfile -t millstream .",
            (
                "docker run -p 8000:8000 --env-file deploy/.env "
                '--mount type=bind,source="$PWD/shop.py",target=/app/server.py millstream'
            ),
            "docker compose -f deploy/compose.yaml up --build",
        ),
        "it needs Docker; tests/deploy reads the files, and runs what they set up",
    ),
    **dict.fromkeys(
        (
            "sudo python3 -m venv /opt/millstream",
            "sudo /opt/millstream/bin/pip install millstream",
            "sudo install -D shop.py /srv/millstream/_server.py",
            "sudo cp deploy/systemd/millstream.socket deploy/systemd/millstream.service /etc/systemd/system/",
            "sudo systemctl enable --now millstream.socket millstream.service",
            "sudo systemctl reload millstream",
        ),
        "it changes the machine; tests/deploy and tests/workers run what the unit runs",
    ),
    **dict.fromkeys(
        (
            (
                "kubectl create secret generic millstream --from-literal=MILLSTREAM_KEY=… "
                "--from-literal=MCP_SERVER_AUTH_KEY=… --from-literal=MILLSTREAM_STORE=redis://…"
            ),
            (
                "helm install shop deploy/chart --set image.repository=registry.example.com/millstream "
                "--set hosts={mcp.example.com} --set-file server=shop.py"
            ),
        ),
        "it needs a cluster; tests/deploy reads the chart",
    ),
}
"""Commands that no test runs as they stand, and why."""
INSTALL = "install.md"
NEEDED = {"pytest", "fastapi"}
"""What examples import besides Millstream and what it brings."""


@pytest.mark.parametrize("page", PAGES)
def test_code_is_copied_from_the_examples(page: Path) -> None:
    """Our choice: every code block is included from a file in examples/, which a test runs."""
    for block in blocks(page.read_text("utf-8")):
        if block.language in COPIED:
            assert block.source.startswith("examples/"), f"name the source of this block:\n{block.body}"
        if block.source:
            assert block.body == region(block.source), f"run `make docs`: {block.source} has changed"


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_ones_that_a_test_runs(page: Path) -> None:
    """A command in a document that nobody runs is wrong sooner or later."""
    for block in blocks(page.read_text("utf-8")):
        assert block.language in COPIED | FREE | {"sh"}
        if block.language == "sh":
            lines = {line for line in block.body.splitlines() if not line.startswith("curl ")}
            assert lines <= COMMANDS | set(NOT_RUN)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: Path) -> None:
    """Links inside the project; addresses on the network are not looked up."""
    assert broken_links(page) == []


@pytest.mark.parametrize("page", PAGES)
def test_a_page_says_how_to_get_what_it_uses(page: Path) -> None:
    """A fixed defect: pages started a `millstream` that was on nobody's path, and imported what nobody had."""
    text = page.read_text("utf-8")
    shell = [line for block in blocks(text) if block.language == "sh" for line in block.body.splitlines()]
    if any(line.startswith(("millstream ", "uvicorn ", "pytest")) for line in shell):
        assert "pip install millstream" in shell or f"{INSTALL})" in text or "(../tutorial.md)" in text
    code = "".join(block.body for block in blocks(text) if block.language == "python")
    imported = {name for name in NEEDED if re.search(rf"^(?:import|from) {name}\b", code, re.MULTILINE)}
    got = {name for line in shell if line.startswith("pip install ") for name in line.split()[2:]}
    assert imported <= got
