"""What a user is told when something cannot be done: one line, and the exit code it ends with."""


class KinemaError(Exception):
    """Work that failed. One line naming the value, the limit and what would work. Exit code 1."""

    exit_code = 1


class UsageError(KinemaError, ValueError):
    """A request that cannot run as it stands, refused before any work. Exit code 2."""

    exit_code = 2


class Cancelled(KinemaError):
    """Work that was asked to stop, and has given back what it held. Exit code 130."""

    exit_code = 130
