"""An advisory lock per server, against two sessions that measure it at the same time."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import tempfile
import time
from pathlib import Path
from typing import IO

from pytest_dsr1.servers import ServerError


class ServerLock:
    """Held from `acquire` to `release` or to the end of the process."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._file: IO[str] | None = None

    def acquire(self, purpose: str) -> None:
        """Take the lock.

        :param purpose: Shown to a session that finds the server locked.
        :raises ServerError: Another session holds it, which the message names, or it cannot be taken.
        """
        try:
            file = _open(self._url)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = _holder(file.read())
                file.close()
                raise ServerError(f"{self._url} is being measured by {holder}; wait for its end, or stop it") from None
            file.truncate(0)
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            file.write(json.dumps({"pid": os.getpid(), "since": since, "purpose": purpose}))
            file.flush()
        except OSError as error:
            raise ServerError(f"the server cannot be locked: {error.filename}: {error.strerror}") from None
        self._file = file

    def release(self) -> None:
        """Give the lock back; nothing to do if it is not held."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _open(url: str) -> IO[str]:
    # One folder for all users of the machine, since they share the server. O_NOFOLLOW: any of them may put links there.
    folder = Path(tempfile.gettempdir()) / "pytest-dsr1-locks"
    folder.mkdir(exist_ok=True)
    if folder.is_symlink():
        raise NotADirectoryError(errno.ENOTDIR, "it is a symbolic link; remove it", str(folder))
    if folder.stat().st_uid == os.getuid():
        folder.chmod(0o1777)
    same = url.replace("//localhost", "//127.0.0.1")
    path = folder / f"{hashlib.sha256(same.encode()).hexdigest()[:24]}.lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except PermissionError:
        # Linux forbids O_CREAT on another user's file in a sticky folder (fs.protected_regular).
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    if os.fstat(descriptor).st_uid == os.getuid():
        os.fchmod(descriptor, 0o666)
    return os.fdopen(descriptor, "r+", encoding="utf-8")


def _holder(text: str) -> str:
    try:
        fields = json.loads(text)
        return f"process {fields['pid']} since {fields['since']} ({fields['purpose']})"
    except (ValueError, KeyError, TypeError):
        return "another session"
