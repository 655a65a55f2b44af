"""`python -m pairmill`: the same as the `pairmill` command."""

from pairmill.jobs.cli.main import main

main()
