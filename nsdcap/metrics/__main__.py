"""``python -m nsdcap.metrics captions|pictures ...``: score anyone's captions or pictures."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from nsdcap.errors import NsdcapError, unread
from nsdcap.metrics import cli_captions, cli_pictures


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the two; 0, or the exit code of an error that the user can mend."""
    parser = argparse.ArgumentParser(
        prog="python -m nsdcap.metrics",
        description="Score captions or pictures of whatever method, by the metrics of a run's tables.",
        epilog="Exit codes: 0 scored, 2 usage, 65 bad data.",
    )
    subparsers = parser.add_subparsers(dest="what", required=True, metavar="captions|pictures")
    cli_captions.add(subparsers)
    cli_pictures.add(subparsers)
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except NsdcapError as error:
        print(f"nsdcap.metrics: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        return unread()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
