"""How these tests are run: `tests/support/file_queue.py` and `tests/conftest.py`, used by pytest in other folders."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from processes import ROOT, TEST_PATH

pytestmark = pytest.mark.server

PREFACE = "import os, subprocess, pytest\nfrom pathlib import Path\nlog = Path(__file__).parent / 'log'\n"
PREFACE += "def write(word):\n    with log.open('a') as file: file.write(f'{word} ')\n"
IMPORTED = "write(__name__)\n"
PASSES = "def test_a(): pass\ndef test_b(): pass\n"
QUEUE = "import file_queue\ndef pytest_configure(config): file_queue.install(config)\n"
OURS = f"import runpy\nhooks = runpy.run_path({str(ROOT / 'tests/conftest.py')!r})\n"
OURS += "globals().update({name: hook for name, hook in hooks.items() if name.startswith('pytest_')})\n"
SETTINGS = "[pytest]\naddopts = -rs --import-mode=importlib -p no:schemathesis -p no:anyio\nmarkers =\n  server\n"
TWO = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")


def run_pytest(folder: Path, *options: str, hooks: str = QUEUE, **files: str) -> tuple[int, str]:
    """Write `test_NAME.py` files, and run pytest on their folder. Return the exit code and the output."""
    for name, text in files.items():
        (folder / f"test_{name}.py").write_text(PREFACE + text)
    (folder / "conftest.py").write_text(hooks)
    (folder / "pytest.ini").write_text(SETTINGS)
    unused = [word for name in ("asyncio", "cov", "hypothesispytest") for word in ("-p", f"no:{name}")]
    command = [sys.executable, "-m", "pytest", *(unused if hooks is QUEUE else ()), *options]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    done = subprocess.run(
        command, cwd=folder, env={**environment, "PYTHONPATH": TEST_PATH}, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout


def read_log(folder: Path) -> list[str]:
    return (folder / "log").read_text().split()


def test_each_worker_collects_only_its_files(tmp_path: Path) -> None:
    code, output = run_pytest(tmp_path, *TWO, **dict.fromkeys("abcdefg", IMPORTED + PASSES))
    assert (code, " 14 passed in " in output) == (0, True), output
    assert sorted(read_log(tmp_path)) == [f"test_{name}" for name in "abcdefg"]


def test_results_of_all_workers_are_reported(tmp_path: Path) -> None:
    files = {
        "fails": "def test_a(): assert 1 == 2\n",
        "passes": PASSES + "@pytest.mark.skip\ndef test_c(): pass\n@pytest.mark.server\ndef test_d(): pass\n",
        "broken": "1 / 0\n",
        "left_out": "pytest.skip('No Redis', allow_module_level=True)\n",
    }
    code, output = run_pytest(tmp_path, *TWO, "-m", "not server", **files)
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "1 failed, 2 passed, 2 skipped, 1 error in " in output
    assert "assert 1 == 2" in output
    assert "ZeroDivisionError" in output
    assert "No Redis" in output


def test_runs_that_select_no_tests_have_the_usual_exit_code(tmp_path: Path) -> None:
    code, output = run_pytest(tmp_path, *TWO, "-k", "nothing", a=PASSES, b=PASSES, c=PASSES)
    assert code == pytest.ExitCode.NO_TESTS_COLLECTED, output


def test_tests_can_be_selected_by_their_ids(tmp_path: Path) -> None:
    code, output = run_pytest(tmp_path, *TWO, "test_a.py::test_b", "test_b.py", a=PASSES, b=PASSES, c=PASSES)
    assert (code, " 3 passed in " in output) == (0, True), output


def test_file_that_ends_its_worker_fails_and_runs_again_as_a_whole(tmp_path: Path) -> None:
    files = dict.fromkeys(("c", "d", "e", "f"), PASSES)
    files["crash"] = "def test_a(): pass\ndef test_b(): os._exit(1)\ndef test_c(): pass\n"
    files["fails"] = "def test_a(): assert 0\ndef test_b(): pass\n"
    code, output = run_pytest(tmp_path, *TWO, "-o", "cache_dir=kept", **files)
    assert (code, output.count("replacing crashed worker")) == (1, 1), output
    assert "crashed while running 'test_crash.py'" in output
    assert "2 failed, 9 passed in " in output or "2 failed, 10 passed in " in output, (
        output
    )  # test_a's report may be lost

    files = {name: text.replace("os._exit(1)", "pass").replace("assert 0", "pass") for name, text in files.items()}
    code, output = run_pytest(tmp_path, "-n", "0", "-o", "cache_dir=kept", "--last-failed", **files)
    assert (code, " 4 passed" in output) == (0, True), output


def test_failed_tests_of_workers_run_again(tmp_path: Path) -> None:
    tests = dict.fromkeys("abc", "def test_a(): assert log.exists()\ndef test_b(): pass\n")
    run_pytest(tmp_path, *TWO, **tests)
    (tmp_path / "log").touch()
    code, output = run_pytest(tmp_path, *TWO, "--last-failed", **tests)
    assert (code, " 3 passed" in output) == (0, True), output


def test_fixtures_of_a_folder_last_until_its_last_file(tmp_path: Path) -> None:
    pages, rest = tmp_path / "pages", tmp_path / "rest"
    for folder in (pages, rest):
        folder.mkdir()
        (folder / "__init__.py").touch()
    fixture = "@pytest.fixture(scope='package')\ndef shared():\n    write('begin')\n    yield\n    write('end')\n"
    (pages / "conftest.py").write_text(PREFACE + fixture)
    (pages / "test_a.py").write_text("def test_a(shared): pass\n")
    (pages / "test_b.py").write_text("def test_b(shared): pass\n")
    (pages / "test_c.py").write_text("import pytest\n@pytest.mark.server\ndef test_c(): pass\n")
    (rest / "test_d.py").write_text(f"def test_d(): assert open({str(pages / 'log')!r}).read() == 'begin end '\n")
    code, output = run_pytest(tmp_path, "-n", "1", "--dist", "loadfile", "-m", "not server")
    assert (code, " 3 passed in " in output) == (0, True), output
    assert read_log(pages) == ["begin", "end"]


def test_run_stops_at_the_first_failure_if_asked(tmp_path: Path) -> None:
    tests = IMPORTED + "def test_a(): assert 0\ndef test_b(): write('again')\n"
    code, output = run_pytest(tmp_path, *TWO, "-x", **dict.fromkeys("abcdefgh", tests))
    assert (code != 0, "stopping after 1 failures" in output) == (True, True), output
    assert "again" not in read_log(tmp_path)


def test_tests_without_the_mark_cannot_start_processes(tmp_path: Path) -> None:
    starts = {
        "run": "subprocess.run(['true'])",
        "system": "os.system('true')",
        "spawn": "os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)",
        "fork": "os.waitpid(os.fork() or os._exit(0), 0)",
        "asyncio": "import asyncio; asyncio.run(asyncio.create_subprocess_exec('true'))",
    }
    plain = "".join(f"def test_{name}(): {start}\n" for name, start in starts.items())
    hidden = f"def test_b():\n    try: {starts['run']}\n    except BaseException: pass\n"
    marked = f"{starts['run']}\n@pytest.mark.server\ndef test_c(): {starts['run']}\n"
    _, output = run_pytest(tmp_path, "-n", "0", hooks=OURS, plain=plain, hidden=hidden, marked=marked)
    assert "5 failed, 2 passed, 1 error in " in output, output
    assert output.count("  AssertionError: Tests that start processes need the mark `server`.") == 6
