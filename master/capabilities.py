"""What management software is told about the back end: its capabilities, and the descriptor by which it is found.

Source: QEMU's docs/interop/vhost-user.json and the back-end program conventions of docs/interop/vhost-user.rst.
"""

import json
from importlib.resources import files
from typing import Final

DESCRIPTOR_FILE: Final = "50-isorend-gpu.json"
DESCRIPTOR_DIRECTORY: Final = "/usr/share/qemu/vhost-user"
BINARY: Final = "isorend-vhost-user-gpu"
_BINARY_PLACEHOLDER: Final = "@BINARY@"


def capabilities_json() -> str:
    """VHostUserBackendCapabilities; a feature names the command line option that is supported."""
    return json.dumps({"type": "gpu", "features": ["render-node", "virgl"]}, indent=2)


def descriptor_json(binary: str) -> str:
    """VHostUserBackend for a program at the absolute path `binary`; ValueError for a relative one."""
    if not binary.startswith("/"):
        raise ValueError(f"{binary} is not an absolute path")
    descriptor = json.loads((files("master") / "data" / DESCRIPTOR_FILE).read_text("utf-8"))
    if descriptor["binary"] != _BINARY_PLACEHOLDER:
        raise ValueError(f"{DESCRIPTOR_FILE} has no place for the program's path")
    return json.dumps(descriptor | {"binary": binary}, indent=2)
