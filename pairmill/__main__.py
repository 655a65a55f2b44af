"""The `pairmill` command, also as `python -m pairmill`."""

import sys


def main() -> None:
    """Load the command line, which takes a moment, and run it. Ctrl-C stops both without a traceback."""
    try:
        from pairmill.jobs.cli.main import main as run

        run()
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
