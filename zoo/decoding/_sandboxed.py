"""What runs inside the sandbox: confines its own process, then runs a program on its inputs.

A file of its own that imports nothing of this package: :mod:`zoo.decoding.sandbox` starts it with
``python -I -S``. It reads a job as JSON from standard input and writes the results to standard
output, which is the only file that it can write.
"""

import contextlib
import ctypes
import io
import json
import os
import platform
import resource
import struct
import sys

#: Calls of x86_64 that answer EPERM, by their numbers.
DENIED = (
    # clone fork vfork clone3 setpgid setsid: the process stays alone, in its group
    *(56, 57, 58, 435, 109, 112),
    # socket socketpair io_uring_setup
    *(41, 53, 425),
    # ptrace process_vm_readv process_vm_writev kill tkill tgkill pidfd_open pidfd_send_signal
    *(101, 310, 311, 62, 200, 234, 434, 424),
    # mount umount2 pivot_root chroot unshare setns open_tree move_mount fsopen bpf
    *(165, 166, 155, 161, 272, 308, 428, 429, 430, 321),
    # reboot kexec_load delete_module init_module finit_module keyctl add_key prlimit64 setrlimit
    *(169, 246, 176, 175, 313, 250, 248, 302, 160),
    # chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat
    *(90, 91, 268, 452, 92, 93, 94, 260),
    # utime utimes futimesat utimensat, and what sets or removes extended attributes
    *(132, 235, 261, 280, 188, 189, 190, 197, 198, 199),
    # shared memory, semaphores, queues; memfd_create; priorities and scheduling; clock and names
    *(29, 30, 31, 68, 64, 240, 319, 141, 142, 144, 203, 227, 164, 170, 171),
)
X86_64, X32 = 0xC000003E, 0x40000000
#: Landlock: its calls, all that may be done with files as each version knows it, and reading.
CREATE, ADD, RESTRICT = 444, 445, 446
ALL_BY_VERSION = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
EXECUTE, READ_FILE, READ_DIR = 1 << 0, 1 << 2, 1 << 3
NETWORK, SCOPES = 0b11, 0b11


class Unconfined(Exception):
    """The system cannot confine a process."""


def confine(readable, seconds, memory, output):
    """Take everything away from this process that a program on numbers and text does not need."""
    libc = ctypes.CDLL(None, use_errno=True)
    for kind, limit in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, output),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (limit, limit))
    if libc.prctl(1, 9, 0, 0, 0) or libc.prctl(38, 1, 0, 0, 0):  # die with the parent; no rights
        raise Unconfined("prctl")
    _landlock(libc, readable)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))  # a call that is denied from now on
    _seccomp(libc)


def _landlock(libc, readable):
    """No file can be written, removed or made, and only some can be read."""
    version = libc.syscall(CREATE, None, 0, 1)
    if version < 3:
        raise Unconfined("Linux has no Landlock of version 3 (5.13 has the first, 6.2 the third)")
    files = ALL_BY_VERSION[max(known for known in ALL_BY_VERSION if known <= version)]
    parts = [files] + [NETWORK] * (version >= 4) + [SCOPES] * (version >= 6)
    rules = struct.pack(f"={len(parts)}Q", *parts)
    ruleset = libc.syscall(CREATE, rules, len(rules), 0)
    if ruleset < 0:
        raise Unconfined("Landlock")
    for folder in readable:
        try:
            place = os.open(folder, os.O_PATH)
        except FileNotFoundError:
            continue
        allowed = EXECUTE | READ_FILE | (READ_DIR if os.path.isdir(folder) else 0)
        rule = ctypes.create_string_buffer(struct.pack("=Qi", allowed, place))
        if libc.syscall(ADD, ruleset, 1, rule, 0):
            raise Unconfined("Landlock")
        os.close(place)
    if libc.syscall(RESTRICT, ruleset, 0):
        raise Unconfined("Landlock")
    os.close(ruleset)


def _seccomp(libc):
    """The denied calls answer that they are not permitted."""
    if platform.machine() != "x86_64":
        raise Unconfined(f"the calls of {platform.machine()} are not known")
    deny, allow, kill = 0x00050001, 0x7FFF0000, 0x80000000

    def step(code, value, yes=0, no=0):
        return struct.pack("HBBI", code, yes, no, value)

    load, equal, above, answer = 0x20, 0x15, 0x35, 0x06
    steps = [step(load, 4), step(equal, X86_64, 1, 0), step(answer, kill), step(load, 0)]
    steps += [step(above, X32, 0, 1), step(answer, kill)]
    for number in DENIED:
        steps += [step(equal, number, 0, 1), step(answer, deny)]
    code = ctypes.create_string_buffer(b"".join([*steps, step(answer, allow)]))
    size = len(steps) + 1
    program = struct.pack("HxxxxxxP", size, ctypes.addressof(code))
    if libc.prctl(22, 2, ctypes.create_string_buffer(program), 0, 0):
        raise Unconfined("seccomp")


def run(job):
    """What the program writes on each input, or the name of what went wrong."""
    try:
        code = compile(job["source"], "<program>", "exec")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return [["compile error", None]] * len(job["inputs"])
    return [one(code, text, job["function"]) for text in job["inputs"]]


def one(code, given, function):
    """Run the program on one input."""
    written = io.StringIO()
    space = {"__name__": "__main__"}
    try:
        if function is None:
            sys.stdin = io.TextIOWrapper(io.BytesIO(given.encode()), encoding="utf-8")
        with contextlib.redirect_stdout(written), contextlib.redirect_stderr(io.StringIO()):
            try:
                exec(code, space)
            except SystemExit:
                if function is not None:
                    raise
            if function is None:
                return ["ran", written.getvalue()]
            owner = space["Solution"]() if "Solution" in space else None
            called = space[function] if owner is None else getattr(owner, function)
            return ["ran", json.loads(json.dumps(called(*given)))]
    except BaseException as error:  # whatever a program raises
        return ["runtime error", type(error).__name__]


def main():
    """Read the job, be confined, run, and answer."""
    job = json.loads(sys.stdin.buffer.read())
    answer = os.fdopen(os.dup(1), "w")
    try:
        confine(job["readable"], job["seconds"], job["memory"], job["output"])
    except Unconfined as error:
        json.dump({"key": job["key"], "unconfined": str(error)}, answer)
        answer.flush()
        os._exit(0)
    results = run(job)
    answer.write(json.dumps({"key": job["key"], "results": results}))
    answer.flush()
    os._exit(0)  # without anything that the program wants to do at the end


if __name__ == "__main__":
    main()
