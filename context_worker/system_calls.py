"""The system calls that a sealed worker needs, in groups by what they are for.

The groups were found by running workers and looking (strace, --sandbox=audit), not by reading what a library might do.
Names are the kernel's. One that this machine lacks is passed over, so what glibc calls on x86_64 and on aarch64 stands
side by side.

What is in no group is denied, and is to stay so: new processes and programs (fork, vfork, clone without CLONE_THREAD,
execve); sockets of any kind (socket, socketpair, connect, bind, listen, accept); other processes (ptrace,
process_vm_readv, kill, pidfd_open, pidfd_getfd, kcmp); namespaces, mounts and credentials (unshare, setns, mount,
chroot, setuid, capset); the filter itself (seccomp, prctl but for a thread's name) and bpf; io_uring, whose operations
no filter sees; perf_event_open, userfaultfd, keyctl; and whatever a newer kernel brings.
"""

import errno
import fcntl
import os

from native.sandbox import Condition, Rule

_INT = (1 << 32) - 1

# include/uapi/linux/sched.h: what pthread_create(3) of glibc asks clone(2) for, and no other bit, the signal number in
# the lowest byte included.
CLONE_THREAD = 0x10000
PTHREAD_CLONE = (
    0x100  # CLONE_VM
    | 0x200  # CLONE_FS
    | 0x400  # CLONE_FILES
    | 0x800  # CLONE_SIGHAND
    | CLONE_THREAD
    | 0x40000  # CLONE_SYSVSEM
    | 0x80000  # CLONE_SETTLS
    | 0x100000  # CLONE_PARENT_SETTID
    | 0x200000  # CLONE_CHILD_CLEARTID
)

# include/uapi/linux/prctl.h
PR_SET_NAME = 15

# include/uapi/linux/fcntl.h, which Python's fcntl has not all of
F_DUPFD_CLOEXEC = 1030
F_ADD_SEALS = 1033
F_GET_SEALS = 1034

PROT_EXEC = 4

# include/uapi/linux/mman.h, include/uapi/asm-generic/mman-common.h and mman.h
_MAP_TYPE, _MAP_SHARED, _MAP_PRIVATE, _MAP_ANONYMOUS, _MAP_GROWSDOWN, _MAP_HUGETLB = 0xF, 1, 2, 0x20, 0x100, 0x40000
_MAP_UNCOUNTED = _MAP_GROWSDOWN | _MAP_HUGETLB
# What says how memory is used, gives it back, or guards it (the last two: glibc's stacks since 2.42). Not what has the
# kernel look for equal pages of others, take pages for broken or write them to a disk.
_ADVICE = (0, 1, 2, 3, 4, 8, 10, 11, 14, 15, 16, 17, 102, 103)

# include/uapi/linux/memfd.h
_MFD_CLOEXEC, _MFD_ALLOW_SEALING = 1, 2


def word(argument: int, value: int, mask: int = _INT) -> Condition:
    """A condition on an argument that the kernel declares as an int: it looks at the lower half and at no more."""
    return Condition(argument, value, mask & _INT)


def anyhow(*names: str) -> tuple[Rule, ...]:
    """These system calls, whatever their arguments."""
    return tuple(Rule(name) for name in names)


def one_of(name: str, argument: int, *values: int) -> tuple[Rule, ...]:
    """A system call of which one argument, an int, has one of these values."""
    return tuple(Rule(name, (word(argument, value),)) for value in values)


# Memory of its own. That code can be made in it is for DATA or CODE, one of which belongs with this.
MEMORY = (*anyhow("munmap", "mremap", "brk"), *one_of("madvise", 2, *_ADVICE))


def mappings(*conditions: Condition) -> tuple[Rule, ...]:
    """mmap of files, and of private memory, which RLIMIT_DATA counts. It does not count memory that is shared and has
    no file, or a stack that grows: who shares memory makes a file for it. Huge pages are others' as well."""
    return (
        Rule("mmap", (*conditions, word(3, _MAP_PRIVATE, _MAP_TYPE | _MAP_UNCOUNTED))),
        Rule("mmap", (*conditions, word(3, _MAP_SHARED, _MAP_TYPE | _MAP_UNCOUNTED | _MAP_ANONYMOUS))),
    )


# Memory that cannot be executed.
DATA = (*mappings(word(2, 0, PROT_EXEC)), Rule("mprotect", (word(2, 0, PROT_EXEC),)))

# Memory that can: llvmpipe compiles shaders into it, and a driver may load a library when it first needs it.
CODE = (*mappings(), *anyhow("mprotect"))

# A buffer that is shared with a vtest client, or an object that the null engine shares: a file of no file system. Its
# pages count for no limit of the process but RLIMIT_FSIZE, each file by itself.
BUFFERS = (Rule("memfd_create", (word(1, _MFD_CLOEXEC | _MFD_ALLOW_SEALING),)), *anyhow("ftruncate"))

# Threads come and go with contexts and queues of a driver.
THREADS = (
    Rule("clone", (Condition(0, PTHREAD_CLONE),)),
    # Its flags are in memory, where no filter can look; with this error glibc takes clone instead.
    Rule("clone3", error=errno.ENOSYS),
    *anyhow("set_robust_list", "rseq", "exit", "gettid", "getpid", "futex", "sched_yield"),
    # Where a thread may run, and that it is less urgent: Mesa's queues set it for themselves. Not urgent (SCHED_FIFO),
    # and not for all processes of a user, though the pid namespace has one process.
    *anyhow("sched_getaffinity", "sched_setaffinity"),
    *one_of("sched_setscheduler", 1, os.SCHED_OTHER, os.SCHED_BATCH),
    Rule("setpriority", (word(0, os.PRIO_PROCESS),)),
    Rule("prctl", (word(0, PR_SET_NAME),)),
)

# Signals to itself, and the end.
SIGNALS = anyhow("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "exit_group")

# What the vDSO does without the kernel, if the clock lets it; and waiting, which SIGSTOP and SIGCONT make the kernel
# begin anew by restart_syscall.
TIME = anyhow("clock_gettime", "gettimeofday", "time", "clock_nanosleep", "restart_syscall")

RANDOM = anyhow("getrandom")

# Descriptors it was given or has opened: the doorbells of the ring, the channel, a vtest client and its fences, files.
# writev says what assert(3) has to say.
DESCRIPTORS = (
    *anyhow("read", "write", "writev", "lseek", "close", "fstat"),
    *anyhow("eventfd2", "poll", "ppoll", "epoll_wait", "epoll_pwait"),
    *one_of("fcntl", 1, F_DUPFD_CLOEXEC, fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL, F_ADD_SEALS, F_GET_SEALS),
    # No signals on input.
    Rule("fcntl", (word(1, fcntl.F_SETFL), word(2, 0, os.O_ASYNC))),
)

# Messages on sockets it was given. sendto without an address: to whom the socket is connected. Descriptors go with
# sendmsg (the listener of this filter, to the launcher) and come with recvmsg: a vtest worker's client, and what is
# behind the resources that a context shares. A sealed worker has no socket but its channel, whose other end is the
# master's, and that client's, so nobody else gives it any.
MESSAGES = (*anyhow("sendmsg", "recvmsg", "recvfrom", "shutdown"), Rule("sendto", (Condition(4, 0),)))

# Files to be read: modules and sources of the interpreter, if something goes wrong. Which there are, the root and
# Landlock decide.
READ_FILES = (
    Rule("openat", (word(2, os.O_RDONLY, os.O_ACCMODE | os.O_CREAT | os.O_TRUNC | os.O_APPEND),)),
    *anyhow("newfstatat", "getdents64"),
)

# Files of the driver, and its shader cache. No filter sees the path that openat is given, so writing is not denied
# here: the root has nothing else that can be written to, and Landlock says the same of it. pread64 is the dynamic
# linker's; a full cache is listed and has its oldest entries removed. Mesa locks each file of its cache that it writes,
# its own or a shared one, and keeps nothing if it cannot; newer ones cut off their file of all shaders to begin anew.
DRIVER_FILES = (
    *anyhow("openat", "newfstatat", "pread64", "readlink", "readlinkat", "access", "faccessat", "faccessat2"),
    *anyhow("flock", "ftruncate", "mkdir", "mkdirat", "rename", "renameat", "getdents64", "unlink", "unlinkat"),
)

# What a driver does not do when it is loaded either (found like the groups above): other processes, programs, sockets,
# namespaces, mounts, keys, the kernel's own parts, and what reaches around a filter. A GPU's driver that would start a
# program to load a module goes on without.
NEVER = (
    *anyhow("fork", "vfork", "execve", "execveat", "ptrace", "process_vm_readv", "process_vm_writev"),
    Rule("clone", (Condition(0, 0, CLONE_THREAD),)),
    Rule("clone3", error=errno.ENOSYS),
    *anyhow("pidfd_open", "pidfd_getfd", "pidfd_send_signal", "kill", "tkill"),
    *anyhow("socket", "socketpair", "bind", "connect", "listen", "accept", "accept4"),
    *anyhow("unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree", "mount_setattr"),
    *anyhow("fsopen", "fsconfig", "fsmount", "fspick", "open_by_handle_at", "quotactl", "swapon", "swapoff"),
    *anyhow("bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register"),
    *anyhow("keyctl", "add_key", "request_key", "kexec_load", "kexec_file_load", "reboot"),
    *anyhow("init_module", "finit_module", "delete_module"),
)
"""For native.sandbox.forbid: with an errno they are answered with that."""


def own_process(pid: int) -> tuple[Rule, ...]:
    """What a process may do to itself alone; `pid` is its id as it sees it."""
    return (
        # abort(3), raise(3)
        Rule("tgkill", (word(0, pid),)),
        # Reading its own limits: no new ones are given.
        Rule("prlimit64", (word(0, 0), Condition(2, 0))),
    )


def own_files(pid: int) -> tuple[Rule, ...]:
    """Whether two descriptors of a process are one open file (kcmp(2), KCMP_FILE); `pid` as in `own_process`."""
    return (Rule("kcmp", (word(0, pid), word(1, pid), word(2, 0))),)


def ioctl_types(*types: str) -> tuple[Rule, ...]:
    """ioctl commands whose type, the second byte (asm-generic/ioctl.h), is exactly one of these characters."""
    return tuple(Rule("ioctl", (word(1, ord(kind) << 8, 0xFF00),)) for kind in types)


def ioctl_commands(*commands: int) -> tuple[Rule, ...]:
    """These ioctl commands and no others."""
    return one_of("ioctl", 1, *commands)
