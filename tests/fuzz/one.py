"""Fuzz one target with atheris in its own process: ``python -m fuzz.one TARGET SECONDS FOLDER``.

libFuzzer ends the process at a crash, at an input that takes more than a second, and when the time is over; the input
is then in the folder.
"""

import sys

import atheris

with atheris.instrument_imports(include=["millstream"]):
    from fuzz import parsers, servers

TARGETS = {**parsers.PARSERS, **servers.SERVERS}
SEEDS = {**parsers.SEEDS, **servers.SEEDS}


def main() -> None:
    """Run the target."""
    from pathlib import Path  # noqa: PLC0415  after the instrumented imports

    name, seconds, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    corpus = folder / f"corpus-{name}"
    corpus.mkdir(exist_ok=True)
    for number, seed in enumerate(SEEDS.get(name, [])):
        (corpus / f"seed-{number}").write_bytes(seed)
    servers.TimeLimit.seconds = 1.0
    options = [
        f"-max_total_time={seconds}", "-timeout=2", "-max_len=2048", "-print_final_stats=1", "-rss_limit_mb=2048",
        f"-artifact_prefix={folder}/{name}-",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, str(corpus)], TARGETS[name]())
    atheris.Fuzz()


main()
