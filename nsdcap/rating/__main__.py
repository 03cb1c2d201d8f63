"""``python -m nsdcap.rating make|serve|score``: what people say about a run's captions and pictures."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from nsdcap.errors import NsdcapError, UsageError, unread
from nsdcap.paths import config_file, write_json
from nsdcap.rating.make import make
from nsdcap.rating.score import score, told
from nsdcap.rating.serve import serve
from nsdcap.rating.study import KINDS, signatures


def main(arguments: list[str] | None = None) -> int:
    """Make, serve or score a study; returns the exit code."""
    options = parser().parse_args(arguments)
    try:
        if options.command == "make":
            make(
                options.out, options.folder, options.study, options.raters, options.trials, options.seed,
                options.catch, options.arm,
            )  # fmt: skip
        elif options.command == "serve":
            serve(options.folder, options.port, lambda line: print(line, flush=True))
        else:
            _score(options)
    except NsdcapError as error:
        print(f"nsdcap.rating: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        return unread()
    except OSError as error:  # no room, no right to write, a file where a folder should be
        print(
            f"nsdcap.rating: {error.filename or options.folder}: cannot be read or written "
            f"({error.strerror or error}); give another place, or mend this one",
            file=sys.stderr,
        )
        return UsageError.exit_code
    return 0


def _score(options: argparse.Namespace) -> None:
    if options.into is not None and not config_file(options.into).exists():
        raise UsageError(
            f"--into {options.into}: found no config.toml there; give the folder of a run"
        )
    found = score(options.folder, options.files)
    if options.into is not None:
        if signatures(options.into, found["study"], found["made_of"]) != found["made_of"]:
            raise UsageError(
                f"--into {options.into}: its {found['study']} are not those of {options.folder}, which are of "
                "another run or of an earlier state of this one; make and judge a new study"
            )
        if found["interval"] is None:
            raise UsageError(
                f"--into {options.into}: found {found['n_raters']} raters and {found['n_trials']} pictures; "
                "the report's interval needs two of each"
            )
        write_json(options.into / "rating" / f"{found['study']}.json", found)
    print(json.dumps(found, indent=1) if options.json else told(found))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    whole = argparse.ArgumentParser(
        prog="python -m nsdcap.rating",
        description=__doc__,
        epilog="Exit codes: 0, 2 usage, 65 bad data.",
    )
    commands = whole.add_subparsers(dest="command", required=True)
    one = commands.add_parser("make", help="draw a study's pictures, orders and sides from a run")
    one.add_argument("out", type=Path, metavar="OUT", help="the run's folder")
    one.add_argument("folder", type=Path, metavar="FOLDER", help="the study's, new")
    one.add_argument(
        "--study", choices=KINDS, required=True,
        help="captions: a picture's own against another's; pictures: the caption arm against the direct arm",
    )  # fmt: skip
    one.add_argument("--raters", type=int, default=6, help="(6)")
    one.add_argument(
        "--trials", type=int, help="pictures that each rater judges (captions 600, pictures 400)"
    )
    one.add_argument(
        "--catch", type=int, help="trials with a plain answer beside them (one in twenty)"
    )
    one.add_argument("--arm", help="of the caption stage, whose captions (brain)")
    one.add_argument("--seed", type=int, default=0, help="of everything that is drawn (0)")
    one = commands.add_parser("serve", help="the raters' pages, on 127.0.0.1 until Ctrl-C")
    one.add_argument("folder", type=Path, metavar="FOLDER", help="the study's")
    one.add_argument("--port", type=int, default=8765, help="(8765); 0: any that is free")
    one = commands.add_parser("score", help="per cent correct, intervals, agreement")
    one.add_argument("folder", type=Path, metavar="FOLDER", help="the study's")
    one.add_argument(
        "files", type=Path, nargs="*", metavar="FILE", help="raters' files (FOLDER/answers/*)"
    )
    one.add_argument("--json", action="store_true", help="print one JSON object")
    one.add_argument(
        "--into", type=Path, metavar="OUT", help="keep the scores in a run, for its report"
    )
    return whole


if __name__ == "__main__":
    sys.exit(main())
