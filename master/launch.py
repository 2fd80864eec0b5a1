"""How the launcher of workers is started: its command line and its environment."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from context_worker.lockdown import WORKER_ENVIRONMENT


class Sandbox(StrEnum):
    """How workers are locked in: what they may not do is denied and ends them (ENFORCE), is only logged (AUDIT), or
    they may do what the service may (OFF)."""

    ENFORCE = "enforce"
    AUDIT = "audit"
    OFF = "off"


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSettings:
    """What all workers of a service have in common.

    render_node: the GPU, None for the default one. shader_cache: a directory in which drivers keep compiled shaders
    for all workers, None for one each. share_worker: a worker may serve several contexts. sandbox: how they are locked
    in. memory_limit: bytes that each may use, None for any number. log_level: a level name of the logging module.
    """

    render_node: Path | None = None
    shader_cache: Path | None = None
    share_worker: bool = False
    sandbox: Sandbox = Sandbox.ENFORCE
    memory_limit: int | None = None
    log_level: str = "INFO"

    def command(self, channel_fd: int) -> list[str]:
        """The launcher's command line; `channel_fd` is its end of the channel."""
        command = [sys.executable, "-m", "context_worker.launcher", f"--channel-fd={channel_fd}"]
        command += [f"--log-level={self.log_level}", f"--sandbox={self.sandbox}"]
        if self.render_node is not None:
            command.append(f"--render-node={self.render_node}")
        if self.shader_cache is not None:
            command.append(f"--shader-cache={self.shader_cache}")
        if self.share_worker:
            command.append("--share-worker")
        if self.memory_limit is not None:
            command.append(f"--memory-limit={self.memory_limit}")
        return command

    def environment(self) -> Mapping[str, str]:
        """The launcher's environment, which its workers inherit, without what would make them clients of a service."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("VTEST_")}
        if inherited.get("GALLIUM_DRIVER") == "virpipe":
            del inherited["GALLIUM_DRIVER"]
        return {**inherited, **WORKER_ENVIRONMENT}
