"""What a driver needs of the system: files, devices and system calls, one profile for each family of drivers.

Files and devices are what the root of a worker (`root`) holds besides libraries and the settings of EGL and Mesa, which
all have; system calls are what is left when the driver has started. `tested` is false for a driver that could not be
run where the profile was written: it says what the driver's sources and others' policies make likely, and
`--sandbox=audit` says what is missing.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from context_worker.system_calls import (
    BUFFERS,
    CODE,
    DATA,
    DESCRIPTORS,
    DRIVER_FILES,
    MEMORY,
    MESSAGES,
    RANDOM,
    READ_FILES,
    SIGNALS,
    THREADS,
    TIME,
    anyhow,
    ioctl_commands,
    ioctl_types,
    own_files,
    own_process,
)
from ipc.messages import EngineName
from native.sandbox import Rule

# include/uapi/asm-generic/ioctls.h. What libraries print goes through stdio, which asks this of a terminal.
TCGETS = 0x5401


@dataclass(frozen=True)
class DriverProfile:
    """What workers with one family of drivers get.

    read_only: files and directories, devices: device nodes, each passed over where it does not exist; ioctl_types: the
    type bytes of ioctl commands, as characters; ioctl_commands: single ones besides; compares_files: whether it asks if
    two of its descriptors are one file.
    """

    name: str
    tested: bool
    read_only: tuple[str, ...]
    devices: tuple[str, ...]
    system_calls: tuple[Rule, ...]
    ioctl_types: tuple[str, ...] = ()
    ioctl_commands: tuple[int, ...] = (TCGETS,)
    compares_files: bool = False

    def rules(self, pid: int) -> tuple[Rule, ...]:
        """The filter's rules for a process whose id, as it sees it, is `pid`."""
        return (
            *self.system_calls,
            *own_process(pid),
            *(own_files(pid) if self.compares_files else ()),
            *ioctl_types(*self.ioctl_types),
            *ioctl_commands(*self.ioctl_commands),
        )


_COMMON = (*MEMORY, *THREADS, *SIGNALS, *TIME, *RANDOM, *DESCRIPTORS, *MESSAGES)

_VULKAN = ("/usr/share/vulkan", "/etc/vulkan")
# How many processors there are and of what kind (sysconf(3), Mesa's choice of threads).
_PROCESSORS = ("/sys/devices/system/cpu",)
# Which GPU a node belongs to, its PCI ids and its settings (libdrm); and their names.
_GPU = ("/sys/dev/char", "/sys/devices", "/sys/bus/pci", "/sys/class/drm", "/usr/share/libdrm")

NULL = DriverProfile(
    name="null",
    tested=True,
    read_only=(),
    devices=(),
    system_calls=(*_COMMON, *DATA, *READ_FILES, *BUFFERS, *anyhow("pause")),  # it can be told to hang
)
"""The engine without a driver: nothing of it makes code, and it writes no file but memory that it exports."""

LLVMPIPE = DriverProfile(
    name="llvmpipe",
    tested=True,
    read_only=_PROCESSORS,
    devices=(),
    system_calls=(*_COMMON, *CODE, *DRIVER_FILES),
)
"""Mesa's software renderer for OpenGL. It compiles shaders to machine code, so memory may become code (PROT_EXEC)."""

LAVAPIPE = DriverProfile(
    name="lavapipe",
    tested=False,
    read_only=(*_VULKAN, *_PROCESSORS),
    devices=(),
    system_calls=(*_COMMON, *CODE, *DRIVER_FILES, *anyhow("dup")),
)
"""Mesa's software renderer for Vulkan: llvmpipe underneath. Untested: there is no Vulkan engine to run it yet."""

MESA_DRM = DriverProfile(
    name="mesa-drm",
    tested=False,
    read_only=(*_VULKAN, *_GPU),
    devices=(),
    system_calls=(*_COMMON, *CODE, *DRIVER_FILES, *anyhow("dup", "sysinfo")),
    # DRM, dma-buf and sync_file, whose fences both have.
    ioctl_types=("d", "b", ">"),
    # Drivers that keep one state for each GPU ask this of the descriptors that they are given.
    compares_files=True,
)
"""Mesa's drivers for GPUs by a DRM render node: radeonsi, iris, crocus, nouveau, virgl and others.

Memory may become code: in places Mesa falls back to its compiler for processors, and it loads libraries when it first
needs them. The render node itself is added by `profile_for`. Untested: written without such a GPU.
"""

NVIDIA = DriverProfile(
    name="nvidia",
    tested=False,
    read_only=(*_VULKAN, *_GPU, "/usr/share/nvidia", "/usr/share/egl", "/proc/driver/nvidia"),
    devices=("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset"),
    system_calls=(*_COMMON, *CODE, *DRIVER_FILES, *anyhow("dup", "sysinfo", "uname", "mlock")),
    # DRM for exports, NVIDIA's resource manager.
    ioctl_types=("d", "b", ">", "F"),
)
"""NVIDIA's own driver. It opens its nodes late, when a context is made, so the nodes have to be in the root and openat
finds them there. /dev/nvidia-uvm has ioctl commands without a type, which are not let through: Vulkan and CUDA would
want them. The node of the GPU, /dev/nvidiaN, and the render node are added by `profile_for`. Untested: written without
such a GPU."""

PROFILES = (NULL, LLVMPIPE, LAVAPIPE, MESA_DRM, NVIDIA)


def profile_for(render_node: str | None, engine: EngineName, *, for_vtest: bool) -> DriverProfile:
    """The profile of workers that run this engine, on this GPU or without one, for guest contexts or a vtest client.

    Without a render node the profile has no GPU's device, so that Mesa takes its software renderer. A node that cannot
    be looked at is Mesa's, as most are. A vtest client's worker makes buffers for it.
    """
    profile = _family(render_node, engine)
    if for_vtest:
        return replace(profile, system_calls=(*profile.system_calls, *BUFFERS))
    return profile


def _family(render_node: str | None, engine: EngineName) -> DriverProfile:
    if engine is EngineName.NULL:
        return NULL
    if render_node is None:
        return LLVMPIPE
    if kernel_driver(render_node) == "nvidia":
        nodes = sorted(str(path) for path in Path("/dev").glob("nvidia[0-9]*"))
        return _with_devices(NVIDIA, render_node, *nodes)
    return _with_devices(MESA_DRM, render_node)


def kernel_driver(node: str, devices: Path = Path("/sys/dev/char")) -> str | None:
    """The name of the kernel's driver behind a device node ("amdgpu", "nvidia"); None if sysfs does not say."""
    try:
        number = os.stat(node).st_rdev
        link = os.readlink(devices / f"{os.major(number)}:{os.minor(number)}" / "device" / "driver")
    except OSError:
        return None
    return os.path.basename(link)


def _with_devices(profile: DriverProfile, *nodes: str) -> DriverProfile:
    return replace(profile, devices=(*nodes, *profile.devices))
