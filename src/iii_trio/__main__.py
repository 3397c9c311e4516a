"""`python -m iii_trio`."""

from .cli.main import main

main()
