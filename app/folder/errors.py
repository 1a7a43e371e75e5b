"""What can end `leukoscope predict` early. Bad pictures do not: each becomes a row with its error.

FolderError
├── UsageError      the command is asked for something that it can't do; exit code 2
└── StoppedError    model, service or disk fail on the way; what was answered is kept; exit code 3
"""


class FolderError(Exception):
    """Base of both; its text is fit to show."""


class UsageError(FolderError):
    """The command's arguments, or the output that is there already, can't be used."""


class StoppedError(FolderError):
    """The work can't go on now; the same command resumes it."""
