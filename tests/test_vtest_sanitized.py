"""The vtest session's C under sanitizers, driven by vtest_driver.c: clients that are mostly right, and rubbish."""

import re
from pathlib import Path

from tests.sanitized import compile_driver, run_driver

SOURCES = (
    *("engine.c", "null_engine.c", "null_fences.c", "null_objects.c", "null_vtest.c", "idmap.c"),
    *("texture.c", "mirror.c", "sealed_memory.c"),
    *("vtest_session.c", "vtest_commands.c", "vtest_commands3.c"),
    *("vtest_stream.c", "vtest_resources.c", "vtest_syncs.c"),
)
CLIENTS = 800


def check(output: str) -> None:
    """Sessions ended in every way there is, and much was done before."""
    found = re.search(
        r"left (\d+), refused (\d+), hung up (\d+); (\d+) commands, (\d+) resources, (\d+) fences", output
    )
    assert found, output
    left, refused, hung_up, commands, resources, fences = map(int, found.groups())
    assert left + refused + hung_up == CLIENTS
    assert min(left, refused) > CLIENTS // 10
    assert hung_up
    assert commands > 10 * CLIENTS
    assert resources > CLIENTS
    assert fences > CLIENTS // 10


def test_memory_and_arithmetic(tmp_path: Path) -> None:
    driver = compile_driver(tmp_path, "vtest_driver", SOURCES, "address", "undefined")
    check(run_driver(driver, str(CLIENTS), "1"))


def test_threads(tmp_path: Path) -> None:
    check(run_driver(compile_driver(tmp_path, "vtest_driver", SOURCES, "thread"), str(CLIENTS), "100000"))
