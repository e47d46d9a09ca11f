"""What a user can mend, in words that can be printed."""

__all__ = ["InputError", "printable"]


class InputError(Exception):
    """A file, an annotation or a setting is not what was expected.

    The command line prints its message as one sentence and exits with status 1; every other exception keeps its traceback.
    """


def printable(text: object) -> str:
    """Text that can be printed: what is no character, or steers a terminal, is a question mark.

    >>> printable(f"a{chr(27)}[31mb")
    'a?[31mb'
    """
    return "".join(character if character.isprintable() else "?" for character in str(text))
