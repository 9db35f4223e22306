"""`python -m tokenplace` is `tokenplace`."""

from tokenplace.cli import main

main()
