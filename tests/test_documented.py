"""Every public name says what it is, what it takes and what it raises; types are shipped for other projects' checkers."""

import ast
import inspect
import re
import textwrap
from functools import cached_property
from importlib.resources import files
from types import FunctionType

import pytest

import lit_detect

PUBLIC = {name: getattr(lit_detect, name) for name in lit_detect.HOMES}
METHODS = {
    f"{name}.{attribute}": (cls, attribute)
    for name, cls in PUBLIC.items()
    if inspect.isclass(cls)
    for attribute, value in vars(cls).items()
    if not attribute.startswith("_") and isinstance(value, FunctionType | property | cached_property | classmethod | staticmethod)
}


def function_of(value):
    """What a method, a property or a class method is made of."""
    for inner in ("fget", "func", "__func__"):
        value = getattr(value, inner, value)
    return value


def documented(text):
    """Names in the sections Args and Attributes of a docstring."""
    sections = re.findall(r"^(?:Args|Attributes):\n((?:    .*\n|\n)*)", inspect.cleandoc(text) + "\n", flags=re.M)
    return {name for section in sections for name in re.findall(r"^    \**(\w+):", section, flags=re.M)}


def raised(function):
    """Errors that a function raises itself; a dataclass's constructor has no source."""
    if not isinstance(function, FunctionType) or function.__code__.co_filename == "<string>":
        return set()
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    calls = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    return {call.func.id for call in calls if isinstance(call.func, ast.Name)}


def parameters(function):
    return {name for name in inspect.signature(function).parameters if name not in ("self", "cls")}


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_says_what_it_is_takes_and_raises(name):
    value = PUBLIC[name]
    text = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
    assert text
    takes = value.__init__ if inspect.isclass(value) else value
    if not inspect.isclass(value) or "__init__" in vars(value):
        assert parameters(takes) <= documented(text)
        if "InputError" in raised(takes):
            assert re.search(r"^ *Raises:\n +InputError: ", text, flags=re.M)


@pytest.mark.parametrize("name", METHODS)
def test_a_public_method_says_what_it_does(name):
    cls, attribute = METHODS[name]
    function = function_of(vars(cls)[attribute])
    inherited = [getattr(parent, attribute) for parent in cls.__mro__[1:] if hasattr(parent, attribute)]
    as_attribute = any(attribute in documented(parent.__doc__) for parent in cls.__mro__ if parent.__doc__)
    assert function.__doc__ or as_attribute or any(function_of(one).__doc__ for one in inherited)
    if function.__doc__ and documented(function.__doc__):
        assert parameters(function) <= documented(function.__doc__)
    texts = [one.__doc__ or "" for one in (function, cls, *map(function_of, inherited))]
    if "InputError" in raised(function):
        assert any(re.search(r"^ *Raises:\n", text, flags=re.M) for text in texts)
    assert parameters(function) | {"return"} <= {*function.__annotations__}


def test_types_are_shipped():
    assert (files("lit_detect") / "py.typed").is_file()
