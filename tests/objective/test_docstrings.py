"""The worked numbers in the docstrings are what the code gives."""

import doctest
import importlib
import inspect
import pkgutil

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
    """Those that the module defines."""
    return [
        f
        for name, f in vars(module).items()
        if inspect.isfunction(f) and f.__module__ == module.__name__ and not name.startswith("_")
    ]
