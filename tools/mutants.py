"""Mutation test: how many small faults, put into a module one at a time, do its tests notice? Those that live on are printed.

.venv/bin/python tools/mutants.py lit_detect/boxes.py tests/test_boxes.py --sample 120

Faults are other operators, constants, names and conditions, and arguments, calls and limits left out; none in annotations, decorators,
messages and docstrings. Each mutant runs in a fork of a process that has imported what others wrote, so that it costs its tests and not
ten seconds of imports. Doctests are run too, the quickest tests go first, and hypothesis draws the same examples each time. A test that
starts Python afresh sees no fault: leave it out (`-k "not much_memory"`). Not all that live on can be killed: some change nothing.
"""

import argparse
import ast
import difflib
import importlib.machinery
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, settings

# fmt: off
OPERATORS: dict[type[ast.AST], list[type[ast.AST]]] = {
    ast.Lt: [ast.LtE, ast.GtE], ast.LtE: [ast.Lt, ast.Gt], ast.Gt: [ast.GtE, ast.LtE], ast.GtE: [ast.Gt, ast.Lt],
    ast.Eq: [ast.NotEq], ast.NotEq: [ast.Eq], ast.Is: [ast.IsNot], ast.IsNot: [ast.Is], ast.In: [ast.NotIn], ast.NotIn: [ast.In],
    ast.Add: [ast.Sub], ast.Sub: [ast.Add], ast.Mult: [ast.Div], ast.Div: [ast.Mult], ast.FloorDiv: [ast.Mult], ast.Mod: [ast.FloorDiv],
    ast.Pow: [ast.Mult], ast.BitAnd: [ast.BitOr], ast.BitOr: [ast.BitAnd], ast.LShift: [ast.RShift], ast.And: [ast.Or], ast.Or: [ast.And],
}
# fmt: on
PAIRS = ["min max", "minimum maximum", "amin amax", "argmin argmax", "any all", "zeros_like ones_like"]
OPPOSITES = {a: b for pair in PAIRS for a, b in (pair.split(), reversed(pair.split()))}


def changed(node: Any, **fields: Any) -> Any:
    """A node with other fields."""
    return type(node)(**{**dict(ast.iter_fields(node)), **fields})


def without(items: list[Any]) -> list[list[Any]]:
    """The list without each of its items."""
    return [items[:index] + items[index + 1 :] for index in range(len(items))]


def variants(node: Any, modules: set[str]) -> Iterator[ast.AST]:
    """What a node could wrongly be."""
    match node:
        case ast.Compare(ops=ops):
            for index, op in enumerate(ops):
                yield from (changed(node, ops=[*ops[:index], other(), *ops[index + 1 :]]) for other in OPERATORS[type(op)])
        case ast.BinOp(op=op) | ast.BoolOp(op=op) | ast.AugAssign(op=op):
            yield from (changed(node, op=other()) for other in OPERATORS.get(type(op), []))
            yield from (changed(node, values=left) if left[1:] else left[0] for left in without(getattr(node, "values", [])))
            yield from [ast.Pass()] if isinstance(node, ast.AugAssign) else []
        case ast.UnaryOp(operand=operand):
            yield operand
        case ast.Constant(value=bool() | int() | float() as value):
            others = [not value] if isinstance(value, bool) else [2 * value, value / 2] if value % 1 else [value + 1, value - 1]
            yield from map(ast.Constant, others)
        case ast.Constant(value=str(value)) if " " not in value:  # what has one is a message
            yield ast.Constant(value + "x")
        case ast.Call(func=function, args=args, keywords=keywords):
            yield from (changed(node, keywords=fewer) for fewer in without(keywords))
            yield from (one for one in args[:1] if not isinstance(one, ast.Starred | ast.GeneratorExp))
            if isinstance(function, ast.Attribute) and ast.unparse(function.value) not in modules:
                yield function.value
        case ast.Name(id=name) if name in OPPOSITES:
            yield changed(node, id=OPPOSITES[name])
        case ast.Attribute(attr=name) if name in OPPOSITES:
            yield changed(node, attr=OPPOSITES[name])
        case ast.If() | ast.IfExp():
            yield from (changed(node, test=ast.Constant(value)) for value in (True, False))
        case ast.comprehension(ifs=[_, *_]):
            yield changed(node, ifs=[])
        case ast.Return(value=ast.AST()):
            yield changed(node, value=ast.Constant(None))
        case ast.Expr(value=ast.Call()) | ast.Break() | ast.Continue():
            yield ast.Pass()
        case ast.Slice():
            yield from (changed(node, **{name: None}) for name in ("lower", "upper", "step") if getattr(node, name))


def mutants(parent: ast.AST, modules: set[str], line: int = 0) -> Iterator[tuple[int, Any, Any, ast.AST]]:
    """Each mutant as a line's number, a list or the fields of a node, the index or field of it, and what to put there."""
    for field, value in ast.iter_fields(parent):
        place: Any = value if isinstance(value, list) else vars(parent)
        for key, child in enumerate(value) if isinstance(value, list) else [(field, value)]:
            text = isinstance(child, ast.JoinedStr) or (isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant))
            names = isinstance(child, ast.Assign) and ast.unparse(child).startswith("__all__")
            if isinstance(child, ast.AST) and not (text or names or field in ("annotation", "returns", "decorator_list")):
                at = getattr(child, "lineno", line)
                yield from ((at, place, key, ast.copy_location(new, child)) for new in variants(child, modules))
                yield from mutants(child, modules, at)


@dataclass(eq=False)  # pytest wants to tell plugins apart
class Quickest:
    """A plugin of pytest: how long each test takes; and the quickest first, once that is known."""

    seconds: dict[str, float]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add a test's set-up, call or end."""
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0) + report.duration

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Sort."""
        items.sort(key=lambda item: self.seconds.get(item.nodeid, 0))


def run(arguments: list[str], limit: float, seconds: dict[str, float], told: Path, name: str, code: Any) -> int:
    """In a fork: pytest's status, with this code as that of the module where it is given; a signal's, negative, after so many seconds."""
    if child := os.fork():
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # what it started
        return status
    status = 1
    try:
        os.setsid()
        signal.setitimer(signal.ITIMER_REAL, limit)
        if code:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1), os.dup2(1, 2)
            real = importlib.machinery.SourceFileLoader.get_code
            importlib.machinery.SourceFileLoader.get_code = lambda self, of: code if of == name else real(self, of)  # type: ignore
            importlib.import_module(name)  # before pytest, which would read the file by a loader of its own
        status = pytest.main(
            ["-x", "-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning", *arguments],
            plugins=[Quickest(seconds)],
        )
        told.write_text(json.dumps([seconds, [module for module in sys.modules if not module.startswith(("lit_detect", "tests"))]]))
    finally:
        sys.stdout.flush()
        os._exit(status)


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(usage="%(prog)s MODULE TEST ... [options, also pytest's]")
    parser.add_argument("module", type=Path)
    parser.add_argument("--sample", type=int, default=120, help="so many mutants, drawn at random")
    parser.add_argument("--only", help="of these only some, by the numbers that they had when they lived on: 3,17")
    parser.add_argument("--seed", type=int, default=0)
    given, arguments = parser.parse_known_args()
    settings.register_profile("mutants", database=None, derandomize=True, deadline=None, phases=[Phase.explicit, Phase.generate])
    settings.load_profile("mutants")
    sys.path.insert(0, os.getcwd())
    arguments, start = [*arguments, str(given.module)], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        if status := run(arguments, 900, {}, told := Path(folder) / "told.json", "", None):
            sys.exit(f"Expected tests that pass without a fault but got {status} from pytest.")
        seconds, foreign = json.loads(told.read_text())
    limit = 2 * (time.monotonic() - start) + 5
    for module in foreign:
        with suppress(Exception):
            importlib.import_module(module)
    tree = ast.parse(given.module.read_text())
    imports = [alias for node in ast.walk(tree) for alias in getattr(node, "names", []) if isinstance(alias, ast.alias)]
    everything = list(mutants(tree, {alias.asname or alias.name for alias in imports}))
    sample = random.Random(given.seed).sample(everything, min(given.sample, len(everything)))
    numbers = [int(number) for number in given.only.split(",")] if given.only else range(len(sample))
    before, name, ends = ast.unparse(tree).splitlines(), ".".join(given.module.with_suffix("").parts), []
    for number in numbers:
        line, place, key, new = sample[number]
        old, place[key] = place[key], new
        code, after = compile(ast.fix_missing_locations(tree), given.module.resolve(), "exec"), ast.unparse(tree).splitlines()
        place[key] = old
        ends.append(run(arguments, limit, dict(seconds), Path(os.devnull), name, code))
        if ends[-1] == pytest.ExitCode.INTERNAL_ERROR:
            sys.exit(f"Expected tests that pass or fail but pytest itself failed with {ast.unparse(new)} at {given.module}:{line}.")
        if ends[-1] == 0:
            diff = [row for row in difflib.unified_diff(before, after, lineterm="", n=0) if not row.startswith(("---", "+++", "@@"))]
            print(f"\n{given.module}:{line} (number {number})", *diff, sep="\n", flush=True)
    killed, late = len(ends) - ends.count(0), ends.count(-signal.SIGALRM)
    print(f"\n{given.module}: {killed} of {len(ends)} mutants killed ({killed / len(ends):.0%}), {late} of them by time;")
    print(f"of {len(everything)}, drawn with seed {given.seed}, in {(time.monotonic() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
