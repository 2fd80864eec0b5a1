"""The house rules: who may import whom, how long a file may be, what no file may name."""

from __future__ import annotations

import ast
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 600

# Each package and those of ours it may import besides itself.
MAY_IMPORT = {
    "native": set[str](),
    "ipc": {"native"},
    "resource_table": {"native"},
    "context_worker": {"ipc", "native"},
    "master": {"resource_table", "context_worker", "ipc", "native"},
}
PACKAGES = {*MAY_IMPORT, "tests", "bench"}

# What the master may know of context_worker's inside: the rest of it would bring a driver in.
MASTER_MAY_KNOW = {
    ("context_worker.environment", "WORKER_ENVIRONMENT"),
    ("context_worker.exit_code", "ExitCode"),
}

# Beyond the standard library, and nothing else: what set-up installs for the service.
MAY_REQUIRE = {
    "native": {"cffi", "setuptools"},
    "ipc": set[str](),
    "resource_table": set[str](),
    "context_worker": {"OpenGL", "setproctitle"},
    "master": {"rich", "setproctitle", "zmq"},
}


def imports(path: Path) -> Iterator[tuple[int, str, str | None]]:
    """(line, module, name) for every import in a file, wherever it stands; name is None for `import module`."""
    package = ".".join(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(), path.name)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, None
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, module, alias.name


def sources(package: str) -> list[Path]:
    """A package's Python files, stubs too."""
    found = sorted([*(ROOT / package).rglob("*.py"), *(ROOT / package).rglob("*.pyi")])
    assert found
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_go_one_way(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in sources(package)
        for line, module, _ in imports(path)
        if module.partition(".")[0] in PACKAGES - {package} - MAY_IMPORT[package]
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_from_elsewhere_are_known(package: str) -> None:
    known = sys.stdlib_module_names | PACKAGES | MAY_REQUIRE[package]
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in sources(package)
        for line, module, _ in imports(path)
        if module.partition(".")[0] not in known
    ]
    assert not wrong, "\n".join(wrong)


def test_the_master_knows_workers_by_their_messages_alone() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module} {name}"
        for path in sources("master")
        for line, module, name in imports(path)
        if module.partition(".")[0] == "context_worker" and (module, name) not in MASTER_MAY_KNOW
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("native", ["engines", "sandbox"])
def test_only_workers_use_what_is_theirs(native: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module} {name}"
        for package in ("master", "resource_table", "ipc")
        for path in sources(package)
        for line, module, name in imports(path)
        if {native, f"_{native}"} & {*module.split(".")[1:], name}
    ]
    assert not wrong, "\n".join(wrong)


def test_import_walker_sees_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    source = tmp_path / "one" / "two" / "file.py"
    source.parent.mkdir(parents=True)
    source.write_text("import a.b, c\nfrom d import e\ndef f():\n    from . import g\n    from ..h import i\n")
    assert list(imports(source)) == [
        (1, "a.b", None), (1, "c", None), (2, "d", "e"), (4, "one.two", "g"), (5, "one.h", "i")
    ]  # fmt: skip


def project_files() -> list[Path]:
    """Files that git knows or would add; without git (an unpacked archive) what the packages hold."""
    if shutil.which("git") and (ROOT / ".git").exists():
        # The checkout may be somebody else's: git refuses to read such a one unless it is told to.
        git = ["git", "-c", "safe.directory=*", "-C", str(ROOT)]
        command = [*git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, capture_output=True, check=True).stdout
        names = [Path(name.decode()) for name in listed.split(b"\0") if name]
    else:
        names = [path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*")]
        names = [name for name in names if "__pycache__" not in name.parts and name.suffix != ".so"]
    return sorted(ROOT / name for name in names if (ROOT / name).is_file())


def texts() -> Iterator[tuple[Path, str]]:
    for path in project_files():
        try:
            yield path.relative_to(ROOT), path.read_text("utf-8")
        except UnicodeDecodeError:
            continue  # a picture


def test_files_are_short() -> None:
    long = [f"{path}: {len(text.splitlines())} lines" for path, text in texts() if len(text.splitlines()) > MAX_LINES]
    assert not long, "\n".join(long)


_HOME = r"(?<![\w/])/(?:home|Users)/\w"


def test_no_file_names_this_machine() -> None:
    host = socket.gethostname()
    # A host's name may be any word; one with a digit, dot or dash in it is a name and nothing else.
    words = [*([str(ROOT)] if len(ROOT.parts) > 2 else []), *([host] if re.search(r"[\d.-]", host) else [])]
    pattern = re.compile("|".join([rf"(?<![\w.-]){re.escape(word)}(?![\w-])" for word in words] + [_HOME]))
    wrong = [
        f"{path}:{number}: {line.strip()}"
        for path, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]
    assert not wrong, "\n".join(wrong)
