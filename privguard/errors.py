"""The one exception that the command line turns into a line and exit code 2."""

from __future__ import annotations


class BadInput(ValueError):  # noqa: N818 - reads as what it is where it is raised
    """The user asked for something that cannot be; the message is one line that says why."""
