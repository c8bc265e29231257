"""The worked numbers in the docstrings are what the code gives."""

import doctest
import importlib
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
    assert result.attempted or name.rsplit(".", 1)[1] == "selection", "no worked number"
