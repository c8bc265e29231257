"""How pebble, the base model that ships with the package, is made."""

from surefoot.pretraining.pretrain import pretrain

__all__ = ["pretrain"]
