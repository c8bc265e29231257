"""Runs the Python program on standard input under limits: `python -I -S -B _jail.py SCRATCH SECONDS MEMORY FILE`.

Only `tasks.sandbox` starts it. It imports nothing of ours, gives up its rights one after another, and only then runs
the program in this same process, so that nothing of it ever ran with more:

    rlimits    CPU seconds, address space, size of a file, open files, no core dumps
    Landlock   the file system: reading Python's own library and the system's, files of the scratch folder; no TCP
    seccomp    no process, no socket, no signal, no tracing, no mount, no change of limits, owners or modes: EPERM

Exit status 77: this machine cannot confine (the sandbox then refuses to run anything).
"""

import ctypes
import errno
import os
import platform
import resource
import struct
import sys
import traceback

CANNOT = 77
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446  # the same numbers on every architecture
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_FILTER = 38, 22, 2
_READ = 1 << 0 | 1 << 2 | 1 << 3  # execute (shared libraries), read a file, list a folder
_RUN_OR_FOLDER = 1 << 0 | 1 << 7  # what the scratch folder does not allow: executing, folders in it
_ALL = (1 << 13) - 1  # every right on files that the first Landlock knows

# Audit architecture, number of clone, and the system calls that are refused: fork, vfork, execve(at), socket(pair),
# ptrace, (t)kill and other signals, pidfds, memory of other processes, rlimits, priorities, modes, owners, times and
# attributes of files, mounts, namespaces, bpf, perf, userfaultfd, io_uring, keys, shared memory, modules, clocks.
_X86 = (
    "57 58 59 322 41 53 101 62 200 234 129 297 434 438 424 310 311 160 302 141 144 90 91 268 452 92 93 94 260 132 235 "
    "261 280 188 189 190 197 198 199 133 259 165 166 429 442 428 430 155 161 272 308 304 321 298 323 425 250 248 249 "
    "29 68 64 175 313 176 246 320 169 103 163 179 167 168 135 164 227 159 305 170 171 172 173 112 109"
)
_ARM = (
    "221 281 198 199 117 129 130 131 138 240 434 438 424 270 271 164 261 140 119 52 53 452 55 54 88 5 6 7 14 15 16 33 "
    "40 39 429 442 428 430 41 51 97 268 265 280 241 282 425 219 217 218 194 186 190 105 273 106 104 294 142 116 89 60 "
    "224 225 92 170 112 171 266 161 162 157 154"
)
_MACHINES = {"x86_64": (0xC000003E, 56, _X86), "aarch64": (0xC00000B7, 220, _ARM)}
_CLONE3, _CLONE_THREAD = 435, 0x10000
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000


def limit(seconds, memory, file):
    """The rlimits; the hard limits are the soft ones."""
    for name, value in (("CPU", seconds), ("AS", memory), ("FSIZE", file), ("NOFILE", 32), ("CORE", 0)):
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def restrict_files(libc, scratch):
    """Landlock: everything is refused that is not listed here."""
    version = libc.syscall(_LANDLOCK_CREATE, None, 0, 1)
    if version < 1:
        return False
    handled = _ALL | (1 << 13 if version >= 2 else 0) | (1 << 14 if version >= 3 else 0)
    rules = struct.pack("=QQ", handled, 3 if version >= 4 else 0)  # files, and TCP (bind, connect)
    ruleset = libc.syscall(_LANDLOCK_CREATE, rules, len(rules) if version >= 4 else 8, 0)
    library = [
        os.path.dirname(os.__file__),
        sys.base_prefix + "/lib",
        "/usr/lib",
        "/lib",
        "/lib64",
        "/usr/share/zoneinfo",
    ]
    readable = [*library, "/dev/null", "/dev/zero", "/dev/urandom", "/dev/random"]
    for path, rights in [*((p, _READ) for p in readable), (scratch, handled & ~_RUN_OR_FOLDER)]:
        if os.path.exists(path):
            folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
            rights = rights if os.path.isdir(path) else rights & (1 << 0 | 1 << 1 | 1 << 2)
            rule = struct.pack("=Qi", rights, folder)
            if libc.syscall(_LANDLOCK_ADD, ruleset, 1, rule, 0):
                return False
            os.close(folder)
    done = libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0) == 0
    os.close(ruleset)
    return done


def restrict_calls(libc):
    """seccomp: a filter of system calls by number; threads may be made, processes may not."""
    if platform.machine() not in _MACHINES:
        return False
    architecture, clone, refused = _MACHINES[platform.machine()]
    load, equal, at_least, bits, give = 0x20, 0x15, 0x35, 0x45, 0x06
    program = [
        (load, 0, 0, 4),
        (equal, 1, 0, architecture),
        (give, 0, 0, _KILL),
        (load, 0, 0, 0),
        (at_least, 0, 1, 0x40000000),  # the x32 calls
        (give, 0, 0, _ERRNO | errno.EPERM),
        (equal, 0, 1, _CLONE3),  # its flags are behind a pointer; the C library falls back to clone
        (give, 0, 0, _ERRNO | errno.ENOSYS),
        (equal, 0, 4, clone),
        (load, 0, 0, 16),
        (bits, 0, 1, _CLONE_THREAD),
        (give, 0, 0, _ALLOW),
        (give, 0, 0, _ERRNO | errno.EPERM),
    ]
    for number in map(int, refused.split()):
        program += [(equal, 0, 1, number), (give, 0, 0, _ERRNO | errno.EPERM)]
    program.append((give, 0, 0, _ALLOW))
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    whole = struct.pack("@HP", len(program), ctypes.addressof(code))
    return libc.prctl(_PR_SET_SECCOMP, _SECCOMP_FILTER, whole, 0, 0) == 0


def main():
    scratch, seconds, memory, file = sys.argv[1], *map(int, sys.argv[2:])
    source = sys.stdin.buffer.read().decode("utf-8", "replace")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    sys.argv = ["program"]
    limit(seconds, memory, file)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or not restrict_files(libc, scratch) or not restrict_calls(libc):
        os._exit(CANNOT)
    try:
        exec(compile(source, "<program>", "exec"), {"__name__": "__main__"})
    except Exception as e:  # shown without the frames of this file
        traceback.print_exception(e.with_traceback(e.__traceback__ and e.__traceback__.tb_next))
        sys.exit(1)


if __name__ == "__main__":
    main()
