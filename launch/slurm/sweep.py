#!/usr/bin/env python3
"""`verl-dra sweep`, from a checkout: python launch/slurm/sweep.py [options] OVERRIDES."""

import sys

from verl_dra.cli import main

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]]))
