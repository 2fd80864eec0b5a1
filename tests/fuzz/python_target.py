"""Runs one Python target under atheris: python -m tests.fuzz.python_target NAME [libFuzzer's arguments]."""

import importlib
import logging
import sys

import atheris

INSTRUMENTED = ["master", "ipc", "resource_table", "context_worker", "tests.fuzz.python.canary"]


def main() -> None:
    name, arguments = sys.argv[1], sys.argv[2:]
    logging.disable(logging.CRITICAL)
    with atheris.instrument_imports(include=INSTRUMENTED):
        target = importlib.import_module(f"tests.fuzz.python.{name}")
    atheris.Setup([sys.argv[0], *arguments], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
