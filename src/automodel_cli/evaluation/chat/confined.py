"""Run as a program of its own (``programs`` starts it): confines itself for good, then runs what a model wrote.

Standard input: a secret of 64 characters, then the program. The secret is written to standard output, and the exit
status is 0, only if the program ran to its end. Exit status 3: this machine cannot confine, and nothing was run.

What holds afterwards, for root too:

    system calls    those of ``_CALLS`` alone (seccomp): no network, no other process or thread, no signal, nothing that
                    writes, renames or removes a file; the rest is "not permitted"
    files           readable: Python's own and the system's libraries (Landlock)
    memory, time    address space, CPU time and the size of what standard output gets (rlimits)

Nothing of the package is imported here: ``python -I`` starts in 20 ms.
"""

import ctypes
import os
import platform
import resource
import signal
import stat
import struct
import sys

CANNOT = 3
SECRET_BYTES = 64

# Numbers on x86-64 and aarch64 (asm/unistd.h); None: aarch64 has no such call.
_CALLS = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "fstat": (5, 80), "lseek": (8, 62), "mmap": (9, 222),
    "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214), "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "pread64": (17, 67), "readv": (19, 65),
    "writev": (20, 66), "access": (21, None), "select": (23, None), "sched_yield": (24, 124), "mremap": (25, 216),
    "dup": (32, 23), "nanosleep": (35, 101), "getpid": (39, 172), "exit": (60, 93), "uname": (63, 160),
    "getcwd": (79, 17), "readlink": (89, None), "gettimeofday": (96, 169), "getrusage": (98, 165),
    "sysinfo": (99, 179), "times": (100, 153), "getuid": (102, 174), "getgid": (104, 176), "geteuid": (107, 175),
    "getegid": (108, 177), "getppid": (110, 173), "sigaltstack": (131, 132), "time": (201, None), "futex": (202, 98),
    "sched_getaffinity": (204, 123), "getdents64": (217, 61), "restart_syscall": (219, 128),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "exit_group": (231, 94),
    "stat": (4, None), "lstat": (6, None), "poll": (7, None), "gettid": (186, 178), "newfstatat": (262, 79),
    "readlinkat": (267, 78), "faccessat": (269, 48), "pselect6": (270, 72), "ppoll": (271, 73), "pipe2": (293, 59),
    "getrandom": (318, 278), "statx": (332, 291), "faccessat2": (439, 439),
}  # fmt: skip
_OPENAT, _FCNTL = (257, 56), (72, 25)  # allowed with some arguments only
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_LAST_HARMLESS_FCNTL = 3  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL; F_SETFL and F_SETOWN could make signals
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH

# linux/filter.h, linux/seccomp.h, linux/prctl.h, linux/landlock.h
_LOAD, _EQUAL, _GREATER, _BITS, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000 | 1, 0x80000000  # errno 1: not permitted
_NUMBER, _ARCH, _SECOND, _THIRD = 0, 4, 24, 32  # places in struct seccomp_data; arguments are little-endian
_SET_PDEATHSIG, _SET_NO_NEW_PRIVS, _SET_SECCOMP, _FILTER = 1, 38, 22, 2
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_READ_FILE, _READ_DIR, _PATH_BENEATH = 1 << 2, 1 << 3, 1
_SYSTEM = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache", "/etc/localtime")


def _instruction(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, yes, no, value)


def call_filter(machine: str) -> bytes:
    """The seccomp program: an array of ``struct sock_filter``."""
    column, arch = _MACHINES[machine]
    program = [
        _instruction(_LOAD, _ARCH),
        _instruction(_EQUAL, arch, yes=1),
        _instruction(_RETURN, _KILL),
        _instruction(_LOAD, _NUMBER),
    ]
    for numbers in _CALLS.values():
        if (number := numbers[column]) is not None:
            program += [_instruction(_EQUAL, number, no=1), _instruction(_RETURN, _ALLOW)]
    for numbers, place, test, value in (
        (_OPENAT, _THIRD, _BITS, _WRITING),
        (_FCNTL, _SECOND, _GREATER, _LAST_HARMLESS_FCNTL),
    ):
        program += [
            _instruction(_EQUAL, numbers[column], no=4),
            _instruction(_LOAD, place),
            _instruction(test, value, yes=1),
            _instruction(_RETURN, _ALLOW),
            _instruction(_RETURN, _REFUSE),
        ]
    return b"".join([*program, _instruction(_RETURN, _REFUSE)])


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _limit_reading(libc: ctypes.CDLL) -> None:
    access = struct.pack("=Q", _READ_FILE | _READ_DIR)
    ruleset = _checked(libc.syscall(_CREATE_RULESET, access, len(access), 0))
    for path in {*_SYSTEM, sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}:
        try:
            folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        is_folder = stat.S_ISDIR(os.fstat(folder).st_mode)
        allowed = _READ_FILE | _READ_DIR if is_folder else _READ_FILE
        _checked(libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", allowed, folder), 0))
        os.close(folder)
    _checked(libc.syscall(_RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)


def _limit_calls(libc: ctypes.CDLL) -> None:
    program = call_filter(platform.machine())
    code = ctypes.create_string_buffer(program, len(program))
    described = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    _checked(libc.prctl(_SET_SECCOMP, _FILTER, described, 0, 0))


def confine(memory_bytes: int, cpu_s: int) -> None:
    """Give up everything that the table above does not name; there is no way back.

    Raises:
        OSError: the kernel has no seccomp or no Landlock, or they are not permitted here.
        KeyError: a processor whose system calls are not known.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    _checked(libc.prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    for what, limit in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, SECRET_BYTES),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (limit, limit))
    _checked(libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _limit_reading(libc)
    _limit_calls(libc)


def main(memory_bytes: int, cpu_s: int) -> None:
    """Confine this process, run the program, and tell whether it got to its end."""
    with os.fdopen(0, "rb", closefd=False) as given:
        secret, program = given.read(SECRET_BYTES), given.read()
    result, nothing = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    write, leave = os.write, os._exit
    try:
        confine(memory_bytes, cpu_s)
    except (OSError, KeyError):
        leave(CANNOT)
    try:
        exec(compile(program, "<generated>", "exec"), {"__name__": "generated"})
    except BaseException:  # SystemExit too: whoever leaves early has not passed
        leave(1)
    write(result, secret)
    leave(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
