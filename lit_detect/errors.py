"""What a user can mend, in words that can be printed."""

__all__ = ["InputError", "Stopped", "printable", "printable_lines"]


class InputError(Exception):
    """A file, an annotation or a setting is not what was expected.

    The command line prints its message as one sentence and exits with status 1; every other exception keeps its traceback.
    """


class Stopped(Exception):  # noqa: N818 - it is no error
    """A command was asked to stop, by SIGTERM, and did. The command line prints its message and exits with status 143 (128 + 15)."""


def printable(text: object) -> str:
    """Text that can be printed: what is no character, or steers a terminal, is a question mark.

    >>> printable(f"a{chr(27)}[31mb")
    'a?[31mb'
    """
    return "".join(character if character.isprintable() else "?" for character in str(text))


def printable_lines(text: str) -> str:
    """`printable` text of several lines."""
    return "\n".join(map(printable, text.split("\n")))
