"""Why something failed."""

from __future__ import annotations

import enum


class Status(enum.IntEnum):
    """dkv_status: why something failed. The numbers are part of the C ABI."""

    OK = 0
    INVALID_ARGUMENT = 1
    NOT_FOUND = 2
    ALREADY_EXISTS = 3
    BAD_STATE = 4
    LIMIT_EXCEEDED = 5
    UNSUPPORTED = 6
    CORRUPT_DATA = 7
    IO = 8
    DEVICE = 9
    UNAVAILABLE = 10
    DEADLINE_EXCEEDED = 11
    VERSION_MISMATCH = 12
    UNKNOWN_INSTANCE = 13
    INTERNAL = 14
    CANCELLED = 15
    PERMISSION_DENIED = 16


class DkvError(Exception):
    """What every function of this package raises: a status for programs, a line for people."""

    def __init__(self, status: Status, message: str):
        super().__init__(message)
        self.status = status
        self.message = message

    @property
    def code(self) -> int:
        return int(self.status)

    @property
    def name(self) -> str:
        """ "deadline_exceeded" and so on: the name that JSON and logs use."""
        return self.status.name.lower()


class UserError(RuntimeError):
    """What a user can mend: the message is one line and says all there is to say."""
