"""``python -m nsdcap.metrics``: score anyone's results."""

import argparse
import sys

from nsdcap.errors import NsdcapError
from nsdcap.metrics import cli_pictures


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="nsdcap.metrics", description="Score anyone's results.")
    cli_pictures.add(parser.add_subparsers(required=True))
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except NsdcapError as error:
        print(f"nsdcap.metrics: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
