"""python -m limbeck: the command line."""

from limbeck.cli import main

main()
