"""Which service a command is about."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from master.arguments import service_name
from master.control.directory import running_services, runtime_directory
from master.control.errors import ControlError


def add_service(parser: argparse.ArgumentParser) -> None:
    """--service and --json, which all these commands have."""
    parser.add_argument(
        "--service",
        metavar="NAME",
        type=service_name,
        help="which service, by the name that `isorend status` shows; needed only if several run",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def chosen_services(name: str | None) -> list[Path]:
    """The directories of the service with that name, or of all that run.

    Raises ControlError if there is none, DirectoryError.
    """
    found = running_services()
    if name is not None:
        found = [path for path in found if path.name == name]
        if not found:
            raise ControlError(f"no service named {name} runs (looked in {runtime_directory()})")
    if not found:
        raise ControlError(f"no service runs (looked in {runtime_directory()})")
    return found


def chosen_service(name: str | None) -> Path:
    """The directory of the service with that name, or of the only one. Raises ControlError, DirectoryError."""
    found = chosen_services(name)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ControlError(f"several services run, choose one with --service: {names}")
    return found[0]


def ask(service: Path, command: str, **arguments: Any) -> Any:
    """The result of one request (master.control.protocol). Raises ControlError."""
    from master.control.client import ControlClient

    with ControlClient(service) as client:
        return client.ask(command, **arguments)


@contextmanager
def understood() -> Iterator[None]:
    """Raises ControlError if what a service has told is not what was expected of it."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as reason:
        raise ControlError(
            "the service is of another version than isorend here; --json shows what it tells"
        ) from reason
