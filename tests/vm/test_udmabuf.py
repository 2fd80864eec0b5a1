"""The service and the fake VMM inside a real guest, which has a /dev/udmabuf: guest pages and objects are dma-bufs.

The host that runs the tests need not have any: a container, as a rule, has none.
"""

from __future__ import annotations

import json

import pytest

from tests.vm.conftest import VmFactory
from tests.vm.guest_service import SOCKET, GuestTree
from tests.vm.qemu import NO_GPU

_SCENE_LIMIT_S = 240.0


@pytest.fixture(scope="module")
def tree(vm_factory: VmFactory) -> GuestTree:
    """Our sources in a guest whose Mesa has no GPU to try, only its software renderer."""
    vm = vm_factory(gpu=NO_GPU)
    assert vm.run("[ -c /dev/udmabuf ]").code == 0
    return GuestTree(vm, ("udmabuf_scene.py",))


# Mesa's software renderer exports by /dev/udmabuf, which a worker in the sandbox does not see.
@pytest.mark.parametrize("sandbox, exported", [("enforce", 0), ("off", 1)])
def test_guest_pages_and_pictures_are_shared_as_dma_bufs(tree: GuestTree, sandbox: str, exported: int) -> None:
    with tree.service(f"--sandbox={sandbox}", "--hang-timeout=100", "--spares=1") as service:
        code, output = tree.run("tests.vm.udmabuf_scene", SOCKET, str(service.pid), timeout=_SCENE_LIMIT_S)
        assert code == 0, (output, service.output())
        assert service.poll() is None, service.output()
    assert json.loads(output.splitlines()[-1]) == {
        "shared from the start": 0,
        "shared late": exported,
        "guest blob": 1,
        "left behind": 0,
    }
