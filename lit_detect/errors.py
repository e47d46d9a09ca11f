"""The one exception for what a user can mend."""

__all__ = ["InputError"]


class InputError(Exception):
    """A file, an annotation or a setting is not what was expected.

    The command line prints its message as one sentence and exits with status 1; every other exception keeps its traceback.
    """
