"""The worked numbers in the docstrings are what the code gives."""

import doctest
import importlib
import inspect
import pkgutil
import re

import pytest
import torch

import surefoot.objective

MODULES = [m.name for m in pkgutil.iter_modules(surefoot.objective.__path__, "surefoot.objective.")]


@pytest.mark.parametrize("name", MODULES)
def test_worked_numbers(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert result.failed == 0
    for function in public_functions(module):
        assert ">>>" in (inspect.getdoc(function) or ""), f"{name}.{function.__name__}: no worked number"


def public_functions(module):
    """Those that the module defines and that take or give tensors or numbers."""
    own = [f for f in vars(module).values() if inspect.isfunction(f) and f.__module__ == module.__name__]
    kinds = re.compile("Tensor|Float|Int|Bool|float")
    return [f for f in own if f.__name__[0] != "_" and any(kinds.search(str(a)) for a in f.__annotations__.values())]
