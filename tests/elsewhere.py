"""Owns runs of the command line on a Linux that is made to lack what other systems lack.

Run as a script: `elsewhere.py darwin|win32 ARGUMENTS`. What Windows refuses to do with files that
are open, and with folders, is refused here as well. Its locks are played by those of Linux.
"""

import errno
import importlib.util
import os
import platform
import shutil
import signal
import sys
import tempfile
import types


def hide(module, *names):
    for name in names:
        delattr(module, name)


def forbid_fsync_of_unwritable():
    import fcntl

    fsync, get = os.fsync, fcntl.fcntl

    def strict(handle):
        if get(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "the file is not open for writing")
        fsync(handle)

    os.fsync = strict


def open_files():
    """All files that this process has open or mapped."""
    found = []
    for handle in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{handle}"))
        except FileNotFoundError:  # it listed the folder
            continue
    with open("/proc/self/maps", encoding="utf-8") as maps:
        found += [line.split(maxsplit=5)[5].rstrip("\n") for line in maps if "/" in line]
    return found


def forbid_what_is_open(name):
    original = getattr(os, name)

    def strict(path, *others, **rest):
        whole = os.path.realpath(path)
        if any(file == whole or file.startswith(whole + os.sep) for file in open_files()):
            raise PermissionError(errno.EACCES, "it is open", str(path))
        if name == "rename" and os.path.lexists(others[0]):
            raise FileExistsError(errno.EEXIST, "it exists", str(others[0]))
        return original(path, *others, **rest)

    setattr(os, name, strict)


def forbid_opening_folders():
    original = os.open

    def strict(path, flags, *others, **rest):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "it is a folder", str(path))
        return original(path, flags, *others, **rest)

    os.open = strict


def locking():
    """The module msvcrt, as far as it locks."""
    import fcntl

    flock, exclusively = fcntl.flock, fcntl.LOCK_EX | fcntl.LOCK_NB

    def locking(handle, mode, size):
        # What is locked nobody can read: it must not be what is written.
        if mode != 2 or size < 1 or os.lseek(handle, 0, os.SEEK_CUR) < os.fstat(handle).st_size:
            raise ValueError(mode, size)
        try:
            flock(handle, exclusively)
        except BlockingIOError:
            raise PermissionError(errno.EACCES, "it is locked") from None

    return types.SimpleNamespace(locking=locking, LK_NBLCK=2)


def like_darwin():
    hide(os, "sched_getaffinity", "sched_setaffinity")


def like_windows():
    like_darwin()
    forbid_fsync_of_unwritable()
    sys.modules["msvcrt"] = locking()
    sys.modules["fcntl"] = sys.modules["resource"] = None
    hide(signal, "pthread_sigmask", "SIG_BLOCK", "SIG_SETMASK", "SIGKILL", "SIGHUP")
    hide(os, "fork", "getuid", "geteuid", "fchmod", "chown", "mkfifo", "statvfs", "uname")
    tempfile._os = types.SimpleNamespace(**vars(os))  # Windows has another way for these
    forbid_opening_folders()
    for name in ("unlink", "remove", "rename", "replace", "rmdir"):
        forbid_what_is_open(name)
    shutil._use_fd_functions = False
    # Only this module asks which system it is on; other packages are those of Linux.
    place = importlib.util.find_spec("turnpack").submodule_search_locations[0]
    code = os.path.join(place, "system.py")
    spec = importlib.util.spec_from_file_location("turnpack.system", code)
    sys.modules["turnpack.system"] = importlib.util.module_from_spec(spec)
    sys.platform = "win32"
    spec.loader.exec_module(sys.modules["turnpack.system"])
    sys.platform = "linux"


if __name__ == "__main__":
    # What turnpack stands on is that of Linux.
    for name in ("multiprocessing.popen_spawn_posix", "uuid", "pyarrow.parquet", "tokenizers"):
        importlib.import_module(name)
    platform.uname()
    {"darwin": like_darwin, "win32": like_windows}[sys.argv[1]]()

    from turnpack.cli import main

    sys.exit(main(sys.argv[2:]))
