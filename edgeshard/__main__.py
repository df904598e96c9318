"""`python -m edgeshard` is `esc`."""

from edgeshard.cli import main

main()
