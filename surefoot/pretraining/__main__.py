"""`python -m surefoot.pretraining [--out DIR] [--steps N] [--optimizer aro] ...`: the same as `surefoot pretrain`."""

import sys

from surefoot.cli import main

sys.exit(main(["pretrain", *sys.argv[1:]]))
