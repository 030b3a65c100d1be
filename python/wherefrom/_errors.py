"""What can go wrong, by the program's exit codes."""


class WherefromError(Exception):
    """Whatever the program ends with but success. The text is the program's own."""


class Refused(WherefromError, ValueError):
    """Exit code 2: a file, row, knob or argument that the message names, with what to do about it."""


class Failed(WherefromError, RuntimeError):
    """Exit code 1, or a signal: not the fault of what was given."""


class NotInstalled(WherefromError, FileNotFoundError):
    """The program is not where it was looked for."""


class WherefromWarning(UserWarning):
    """A warning of the program."""
