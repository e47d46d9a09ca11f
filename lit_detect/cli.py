"""The command line: ``python -m lit_detect VERB``. What a verb needs is imported once it is asked for."""

from __future__ import annotations

import argparse
import errno
import importlib
import inspect
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import lit_detect
from lit_detect.errors import InputError, Stopped, printable_lines

__all__ = ["main"]

PACKAGE = Path(lit_detect.__file__).parent
# in a wheel the configs lie inside the package, in a checkout beside it
CONFIGS = next((folder for folder in (PACKAGE / "configs", PACKAGE.parent / "configs") if folder.is_dir()), None)
OF_FILES = ("--config", "-c", "--data", "--search")  # flags that may name a shipped config

SUMMARIES = {
    "fit": "train a detector, and evaluate its best checkpoint",
    "validate": "evaluate a checkpoint on the validation set",
    "test": "evaluate a checkpoint on the test set",
    "predict": "find objects in images and videos, and write and draw them",
    "export": "write a detector as a file for ONNX Runtime, OpenVINO or TorchScript",
    "compare": "train detectors alike, and compare their accuracy and speed",
    "tune": "search for the hyper-parameters of the highest AP",
    "report": "put all about a trained detector on one page",
    "replay": "see a batch again whose loss was not finite",
    "visualize": "draw training images, anchors, proposals or predictions",
    "audit": "say what is in a data set, and what is wrong with it",
    "convert": "write a data set in VOC's or COCO's format",
}
VERBS = {  # beside Lightning's; each is a function of that module
    "audit": "lit_detect.data.audit",
    "compare": "lit_detect.compare",
    "convert": "lit_detect.data.convert",
    "export": "lit_detect.export",
    "replay": "lit_detect.replay",
    "report": "lit_detect.report",
    "tune": "lit_detect.tune",
    "visualize": "lit_detect.views",
}

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # full, over one's quota, read-only
FORBIDDEN = (errno.EACCES, errno.EPERM)
MACHINE = {  # what torch says when something was ended from outside (a pattern), and what it is
    r"DataLoader worker \(pid": "Expected the processes that read images to go on but one was ended, as at the want of memory "
    "(fewer --data.num_workers take less)",
    "onnection (closed|reset) by peer": "Expected all ranks to go on but one ended; the reason is in its own output",
}

HARMLESS = (
    "(?s).*Dump of a value that does not round-trip",  # albumentations types ranges as tuples; it takes lists too
    ".*module\\(s\\) in eval mode at the start of training",  # frozen stages and norms are meant to be
    "Total length of `list` across ranks is zero",  # no validation set was given
    "It is recommended to use `self.log",  # AP is computed from the images of all ranks, so it is the same on each
    ".*treespec, LeafSpec",  # Lightning's own use of torch
    "(?s).*instantiate_classes`` was deprecated",  # Lightning's own use of jsonargparse
)


def find_configs(args: Sequence[str]) -> list[str]:
    """The arguments, with the path of a shipped config for each flag of `OF_FILES` that names no file here."""
    found = []
    for previous, arg in zip(["", *args], args, strict=False):
        name, equals, rest = arg.partition("=")
        before, value = (f"{name}=", rest) if equals and name in OF_FILES else ("", arg)
        if (before or previous in OF_FILES) and CONFIGS and not Path(value).exists():
            shipped = CONFIGS / value.removeprefix("configs/")
            value = str(shipped) if shipped.is_file() else value
        found.append(f"{before}{value}")
    return found


def main(args: Sequence[str] | None = None) -> None:
    """Run a command; what the user can mend ends it with one sentence and status 1, SIGTERM with status 143."""
    arguments = find_configs(sys.argv[1:] if args is None else args)
    try:
        for message in HARMLESS:
            warnings.filterwarnings("ignore", message)
        if not arguments or arguments[0] in ("-h", "--help", "--version") or not arguments[0].startswith("-"):
            overview().parse_args(arguments[:1])  # ends here unless it is a verb
        if arguments[0] in VERBS:
            run(arguments[0], arguments[1:])
            return
        # sys.argv and not args, which Lightning takes for a call from Python; ranks that it starts run the same command again
        sys.argv[1:] = arguments
        from lit_detect.lightning_cli import DetectionCLI  # takes seconds, which the other verbs and --help need not wait for

        DetectionCLI()
    except Stopped as stopped:
        print(f"lit-detect: stopped by {stopped}", file=sys.stderr)
        sys.exit(143)  # 128 + SIGTERM, as a shell says of a process that it ended
    except Exception as error:
        sentence = mendable(error)
        if sentence is None:
            raise
        sys.exit(printable_lines(f"lit-detect: error: {sentence}"))


def overview() -> argparse.ArgumentParser:
    """What is understood at the command line's beginning: a verb, or a question about it."""
    parser = argparse.ArgumentParser("lit-detect", description=lit_detect.__doc__, epilog="Each verb has a --help of its own.")
    parser.add_argument("--version", action="version", version=lit_detect.__version__)
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb, summary in SUMMARIES.items():
        verbs.add_parser(verb, help=summary)
    return parser


def run(verb: str, args: list[str]) -> None:
    """Run a verb that is not Lightning's; its arguments may also stand in a file, unless it has a --config of its own."""
    from jsonargparse import ArgumentParser

    function = getattr(importlib.import_module(VERBS[verb]), verb)
    parser = ArgumentParser(prog=f"lit-detect {verb}")
    parser.add_function_arguments(function, as_positional=False)
    of_a_file = "config" not in inspect.signature(function).parameters
    if of_a_file:
        parser.add_argument("--config", action="config", help="a YAML file with these arguments")
    found = parser.parse_args(args).as_dict()
    function(**{name: value for name, value in found.items() if not (of_a_file and name == "config")})


def mendable(error: BaseException | None) -> str | None:
    """The message of an error that the user can mend, or of one that caused it; None for any other."""
    while error is not None:  # jsonargparse wraps what a constructor raises
        # Lightning's exception by its name, since to import it is to import Lightning
        if isinstance(error, InputError) or type(error).__name__ == "MisconfigurationException":
            return str(error).rpartition("InputError: ")[2].strip()  # from a worker process it comes inside of a traceback
        if isinstance(error, OSError) and error.errno in DISK:
            return f"Expected to write {file_of(error)} but could not: {error.strerror}; what was saved before is whole."
        if isinstance(error, OSError) and error.errno in FORBIDDEN:
            return f"Expected to be allowed to use {file_of(error)} but was not: {error.strerror}."
        for pattern, sentence in MACHINE.items():
            if re.search(pattern, str(error)):
                return f"{sentence}: {str(error).splitlines()[0].strip()}"
        error = error.__cause__ or error.__context__
    return None


def file_of(error: OSError) -> str:
    """The file of an error; where the error does not say it, that which was open for writing when it came."""
    name, trace = error.filename, error.__traceback__
    while trace is not None:
        for value in list(trace.tb_frame.f_locals.values()):
            path = getattr(value, "name", None) if hasattr(value, "write") else None
            name = path if isinstance(path, str) else name
        trace = trace.tb_next
    return str(name or "a file")
