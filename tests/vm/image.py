"""Making the guest's three files out of an unpacked Debian root: kernel, initramfs with its modules, ext4 root image.

Modules go into the initramfs decompressed and in load order, so the guest needs neither modprobe nor xz while it
boots under TCG.
"""

from __future__ import annotations

import lzma
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

MIB = 1 << 20


def make_image(root: Path, out: Path, kernel_modules: Iterable[str], guest_files: dict[str, str]) -> str:
    """Writes vmlinuz, initramfs.cpio and root.ext4 in out; returns the kernel release. Uses up the unpacked root."""
    release = next((root / "usr/lib/modules").iterdir()).name
    shutil.copy(root / f"boot/vmlinuz-{release}", out / "vmlinuz")
    make_initramfs(root, release, out / "initramfs.cpio", kernel_modules, guest_files["initramfs-init"])
    shutil.rmtree(root / "usr/lib/modules")
    shutil.rmtree(root / "boot")
    install_guest_files(root, guest_files)
    subprocess.run(["chroot", str(root), "ldconfig"], check=True)
    # What the packages' scripts would have done: the guest can keep nothing, and would compile it all at every start.
    libraries = [f"/usr/lib/{path.name}" for path in sorted((root / "usr/lib").glob("python3*"))]
    subprocess.run(["chroot", str(root), "python3", "-W", "ignore", "-m", "compileall", "-q", *libraries], check=True)
    make_ext4(root, out / "root.ext4")
    return release


def make_initramfs(root: Path, release: str, out: Path, kernel_modules: Iterable[str], init: str) -> None:
    """Writes an uncompressed newc archive: static busybox, /init and the modules with all they depend on."""
    tree = out.with_suffix(".tree")
    for name in ("bin", "dev", "proc", "sys", "newroot", "modules"):
        (tree / name).mkdir(parents=True)
    busybox = tree / "bin/busybox"
    shutil.copy(root / "usr/bin/busybox", busybox)
    install_script(tree / "init", init)
    subprocess.run(["chroot", str(root), "depmod", release], check=True)
    module_dir = root / "usr/lib/modules" / release
    for number, path in enumerate(load_order(module_dir / "modules.dep", kernel_modules)):
        name = Path(path).name.removesuffix(".xz")
        (tree / f"modules/{number:02}-{name}").write_bytes(lzma.decompress((module_dir / path).read_bytes()))
    with out.open("wb") as archive:
        names = "\n".join(["."] + [str(path.relative_to(tree)) for path in sorted(tree.rglob("*"))])
        subprocess.run(
            [busybox, "cpio", "-o", "-H", "newc"],
            cwd=tree,
            input=names.encode(),
            stdout=archive,
            stderr=subprocess.PIPE,
            check=True,
        )
    shutil.rmtree(tree)


def load_order(modules_dep: Path, wanted: Iterable[str]) -> list[str]:
    """Paths below the modules directory of the wanted modules, each after what it needs. KeyError if one is unknown."""
    # modules.dep (man 5 modules.dep): "path: dependency dependency ...", the last dependency to be loaded first.
    dependencies = {}
    for line in modules_dep.read_text().splitlines():
        path, _, rest = line.partition(":")
        dependencies[path] = rest.split()
    by_name = {Path(path).name.partition(".")[0].replace("-", "_"): path for path in dependencies}
    order: dict[str, None] = {}
    for name in wanted:
        path = by_name[name]
        order.update(dict.fromkeys([*reversed(dependencies[path]), path]))
    return list(order)


def install_guest_files(root: Path, guest_files: dict[str, str]) -> None:
    """Puts the guest's start-up files and a minimal /etc into the unpacked root."""
    (root / "usr/lib/vm-lab").mkdir()
    install_script(root / "usr/lib/vm-lab/rc", guest_files["rc"])
    etc = root / "etc"
    (etc / "inittab").write_text(guest_files["inittab"])
    (etc / "passwd").write_text(
        "root:x:0:0:root:/root:/usr/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    )
    (etc / "group").write_text("root:x:0:\ntty:x:5:\nvideo:x:44:\nrender:x:106:\nnogroup:x:65534:\n")
    (etc / "hosts").write_text("127.0.0.1 localhost guest\n")
    (etc / "hostname").write_text("guest\n")
    (etc / "machine-id").write_text("0" * 31 + "1\n")


def install_script(path: Path, text: str) -> None:
    """Writes an executable file."""
    path.write_text(text)
    path.chmod(0o755)


def make_ext4(root: Path, out: Path) -> None:
    """Writes the directory root as an ext4 file system without a journal (the guest mounts it read-only)."""
    used = int(subprocess.run(["du", "-sm", str(root)], capture_output=True, text=True, check=True).stdout.split()[0])
    with out.open("wb") as image:
        image.truncate((used * 5 // 4 + 32) * MIB)
    subprocess.run(
        ["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d", str(root), str(out)], check=True
    )
