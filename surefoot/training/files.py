"""`surefoot.files`, by the name that `surefoot.comparison` imports it under."""

from surefoot.files import write_aside

__all__ = ["write_aside"]
