"""How the launcher of workers is started: its command line and its environment."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from context_worker.environment import WORKER_ENVIRONMENT


class Sandbox(StrEnum):
    """How workers are locked in: what they may not do is denied and ends them (ENFORCE), is only logged (AUDIT), or
    they may do what the service may (OFF)."""

    ENFORCE = "enforce"
    AUDIT = "audit"
    OFF = "off"


_INHERITED: Final = frozenset(
    {
        # Programs, libraries and Python's own.
        *("PATH", "HOME", "TMPDIR", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "GLIBC_TUNABLES", "VIRTUAL_ENV"),
        # Drivers: docs.mesa3d.org/envvars.html, and those that context_worker.root reads.
        *("DRI_PRIME", "DRIRC_CONFIGDIR", "GBM_BACKENDS_PATH", "GBM_BACKEND"),
        *("AMD_DEBUG", "R600_DEBUG", "INTEL_DEBUG", "FD_MESA_DEBUG", "TU_DEBUG", "PAN_MESA_DEBUG", "V3D_DEBUG"),
        *("NIR_DEBUG", "ST_DEBUG", "SOFTPIPE_DEBUG", "DRAW_USE_LLVM"),
        *("ASAN_OPTIONS", "LSAN_OPTIONS", "UBSAN_OPTIONS", "TSAN_OPTIONS", "ASAN_SYMBOLIZER_PATH"),
    }
)
_INHERITED_PREFIXES: Final = (
    *("ISOREND_", "LC_", "PYTHON", "MALLOC_"),
    *("MESA_", "LIBGL_", "GALLIUM_", "EGL_", "VK_", "__GL", "__EGL", "__NV", "__VK", "VIRGL", "VREND_", "EPOXY_"),
    *("LP_", "LVP_", "ZINK_", "RADV_", "ANV_", "NOUVEAU_", "NVK_"),  # single Mesa drivers
)
_UNCONFINED: Final = frozenset({"LD_PRELOAD"})
"""How a sanitizer comes into a process: it cannot be had in a sandbox, where another's library is not wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSettings:
    """What all workers of a service have in common.

    render_node: the GPU, None for the default one. shader_cache: a directory in which drivers keep compiled shaders
    for all workers, None for one each. share_worker: a worker may serve several contexts. sandbox: how they are locked
    in. memory_limit: bytes that each may use, None for any number. max_shader_bytes: the text of one shader, None for
    what the engine takes by itself. log_level: a level name of the logging module.
    module: what is run as launcher.
    """

    render_node: Path | None = None
    shader_cache: Path | None = None
    share_worker: bool = False
    sandbox: Sandbox = Sandbox.ENFORCE
    memory_limit: int | None = None
    max_shader_bytes: int | None = None
    log_level: str = "INFO"
    module: str = "context_worker.launcher"

    def command(self, channel_fd: int) -> list[str]:
        """The launcher's command line; `channel_fd` is its end of the channel."""
        command = [sys.executable, "-m", self.module, f"--channel-fd={channel_fd}"]
        command += [f"--log-level={self.log_level}", f"--sandbox={self.sandbox}"]
        if self.render_node is not None:
            command.append(f"--render-node={self.render_node}")
        if self.shader_cache is not None:
            command.append(f"--shader-cache={self.shader_cache}")
        if self.share_worker:
            command.append("--share-worker")
        if self.memory_limit is not None:
            command.append(f"--memory-limit={self.memory_limit}")
        if self.max_shader_bytes is not None:
            command.append(f"--max-shader-bytes={self.max_shader_bytes}")
        return command

    def environment(self) -> Mapping[str, str]:
        """The launcher's environment, which its workers inherit and whoever takes one over reads: what they need of
        ours and nothing else. It does not make them clients of a service (VTEST_*, virpipe)."""
        inherited = {name: value for name, value in os.environ.items() if self._is_inherited(name)}
        if inherited.get("GALLIUM_DRIVER") == "virpipe":
            del inherited["GALLIUM_DRIVER"]
        return {**inherited, **WORKER_ENVIRONMENT}

    def _is_inherited(self, name: str) -> bool:
        return (
            name in _INHERITED
            or name.startswith(_INHERITED_PREFIXES)
            or (name in _UNCONFINED and self.sandbox is Sandbox.OFF)
        )
