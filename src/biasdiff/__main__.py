"""``python -m biasdiff``."""

from biasdiff.cli.app import main

main()
