"""Who may write into a folder: one process at a time, and only where nothing of someone else lies.

The claim is a lock of the operating system on FOLDER/.lock, which ends with the process however that ends. The file
says who has it, for those who come second. Where a file system has no such locks, the file itself is the claim.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distill.errors import UserError, writing

LOCK_FILE = ".lock"
_LEFT_OVER = re.compile(r"\..+-[0-9a-f]{12}\.partial")
log = logging.getLogger("distill")


def resolved(path: str | Path) -> Path:
    """The folder that is meant: of "new/.." and of links it would be found out too late where they lead."""
    return Path(path).expanduser().resolve()


def contents(folder: Path) -> list[Path]:
    """What lies in a folder, but for a lock and what a process that was killed had begun under a name of its own."""
    if not folder.exists():
        return []
    if not folder.is_dir():
        return [folder]
    return [entry for entry in folder.iterdir() if entry.name != LOCK_FILE and not _LEFT_OVER.fullmatch(entry.name)]


def new_folder(path: str | Path, name: str = "--output", begun: str = "") -> Path:
    """`path` as a folder to be written, in which nothing but `begun`, what a stopped call left there to go on with, may
    lie. Raises: UserError naming the argument where something else is there.
    """
    folder = resolved(path)
    if any(entry.name != begun or entry == folder for entry in contents(folder)):
        raise UserError(f"{name} {folder} is not empty; choose another or remove it")
    return folder


@contextlib.contextmanager
def claimed(path: str | Path, name: str = "--output", begun: str = "") -> Iterator[Path]:
    """`new_folder`, in which no other process writes meanwhile."""
    with locked(new_folder(path, name, begun)) as folder:
        yield new_folder(folder, name, begun)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """Be the one writer of `folder`, which is made if there is none. Raises: UserError, which says who else is it."""
    made = not folder.exists()
    path = folder / LOCK_FILE
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _taken(path)
    try:
        with writing(folder):
            yield folder
    finally:
        path.unlink(missing_ok=True)  # before it is let go: who waits with it open finds it gone
        os.close(descriptor)
        if made:
            with contextlib.suppress(OSError):  # something was written
                folder.rmdir()


def _taken(path: Path) -> int:
    """A descriptor of the lock file, locked, with this process written into it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            before = _read(descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"{path.parent} is being written by {_name(before)}; wait for it, stop it or choose another folder"
                ) from error
            except OSError:  # a file system without locks
                _check_gone(path, before)
            if not path.exists() or not os.path.samestat(os.fstat(descriptor), path.stat()):
                os.close(descriptor)  # whoever had it has ended and removed it
                continue
            if before and before.get("host") != _me()["host"]:
                log.info(f"{path.parent}: going on after {_name(before)}, which did not end by itself")
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(_me()).encode(), 0)
            return descriptor
        except BaseException:
            os.close(descriptor)
            raise


def _check_gone(path: Path, before: dict[str, Any]) -> None:
    """Where locks are not to be had: see that the process in the lock file has ended."""
    me = _me()
    if not before or before.get("pid") == me["pid"]:
        return
    if (before.get("host"), before.get("boot")) != (me["host"], me["boot"]):
        if before.get("host") == me["host"]:
            return  # this machine has started anew since
        raise UserError(
            f"{path.parent} belongs to {_name(before)}, another machine or container, which cannot be asked from here; "
            f"if it has ended, remove {path}"
        )
    with contextlib.suppress(ProcessLookupError):
        with contextlib.suppress(PermissionError):  # someone else's, but there
            os.kill(int(before["pid"]), 0)
        raise UserError(f"{path.parent} is being written by {_name(before)}; wait for it, stop it or choose another")


def _me() -> dict[str, Any]:
    boot = Path("/proc/sys/kernel/random/boot_id")
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "boot": boot.read_text().strip() if boot.is_file() else "",
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _read(descriptor: int) -> dict[str, Any]:
    try:
        read = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:  # empty, or half written
        return {}
    return read if isinstance(read, dict) and isinstance(read.get("pid"), int) else {}


def _name(who: dict[str, Any]) -> str:
    if not who:
        return "another process"
    return f"process {who['pid']} on {who.get('host')} since {who.get('since')}"
