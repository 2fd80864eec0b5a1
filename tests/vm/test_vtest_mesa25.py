"""A vtest service on the host with clients that have a newer Mesa than the host: the guest's, Mesa 25 or later."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.clients.build import Programs
from tests.conftest import ServiceFactory
from tests.vm.lab import Lab
from tests.vm.vtest_client import VtestClient
from tests.vtest_lab import GEARS, GEARS_FRAMES, OPTIONS, VtestLab
from tests.vtest_pictures import assert_same_picture, read_ppm

_LIMIT_S = 120.0
_PROGRAMS_MOUNT, _OUT_MOUNT = "/run/programs", "/run/out"


@pytest.fixture(scope="module")
def vtest(start_vtest: ServiceFactory) -> Iterator[VtestLab]:
    """The service that the module's clients share."""
    service = start_vtest(OPTIONS)
    yield VtestLab(service)
    assert service.stop() == 0


@pytest.fixture(scope="module")
def client(vm_lab: Lab, vtest: VtestLab) -> VtestClient:
    return VtestClient(vm_lab.userland, vtest.service.socket_path)


def gears(client: VtestClient, programs: Programs, out: Path, *more: str) -> subprocess.Popen[str]:
    """The bench's GL client in the root; its last picture becomes out/gears.ppm."""
    out.mkdir()
    argv = [f"{_PROGRAMS_MOUNT}/{programs.client.name}", *GEARS, f"--dump={_OUT_MOUNT}/gears.ppm", *more]
    return subprocess.Popen(
        client.command(argv, {_PROGRAMS_MOUNT: programs.client.parent, _OUT_MOUNT: out}),
        env=client.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(program: subprocess.Popen[str], text: str | None = None) -> str:
    """Gives it text, waits for its end, which has to be a good one; the renderer that it names."""
    output, errors = program.communicate(text, timeout=_LIMIT_S)
    assert program.returncode == 0, (output, errors)
    report = json.loads(output)
    assert report["frames"] == GEARS_FRAMES
    renderer = report["renderer"]
    assert isinstance(renderer, str)
    return renderer


def test_eglinfo_names_virgl_and_the_newer_mesa(client: VtestClient, vtest: VtestLab) -> None:
    with vtest.nothing_left():
        done = subprocess.run(
            client.command(["eglinfo", "-B", "-p", "surfaceless"]),
            env=client.environment(),
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
        )
    assert done.returncode == 0, (done.stdout, done.stderr)
    renderers = re.findall(r"renderer: (.*)", done.stdout)
    assert renderers and all(renderer.startswith("virgl") for renderer in renderers), done.stdout
    versions = [int(version) for version in re.findall(r"profile version: .*Mesa (\d+)\.", done.stdout)]
    assert versions and min(versions) >= 25, done.stdout


def test_a_picture_is_the_one_that_mesa_draws_by_itself(
    client: VtestClient, vtest: VtestLab, vm_lab: Lab, programs: Programs, tmp_path: Path
) -> None:
    alone = finish(gears(VtestClient(vm_lab.userland, None), programs, tmp_path / "alone"))
    assert alone.startswith("llvmpipe")
    with vtest.nothing_left():
        assert finish(gears(client, programs, tmp_path / "vtest")).startswith("virgl")
    assert_same_picture(read_ppm(tmp_path / "vtest" / "gears.ppm"), read_ppm(tmp_path / "alone" / "gears.ppm"))


def test_two_clients_at_a_time_have_a_worker_each(
    client: VtestClient, vtest: VtestLab, programs: Programs, tmp_path: Path
) -> None:
    outs = [tmp_path / "one", tmp_path / "two"]
    with vtest.nothing_left(), ExitStack() as stack:
        clients = [stack.enter_context(gears(client, programs, out, "--wait")) for out in outs]
        for one in clients:
            stack.callback(one.kill)
            assert one.stdout is not None
            assert one.stdout.readline() == "ready\n"
        workers = vtest.wait_for_workers(2)
        assert len({worker.pid for worker in workers}) == 2
        for one in clients:
            assert finish(one, "g").startswith("virgl")
    assert_same_picture(*(read_ppm(out / "gears.ppm") for out in outs))
