"""``python -m nsdcap.miniature DIR``: write a small Natural Scenes Dataset."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from nsdcap.errors import NsdcapError
from nsdcap.miniature import SETTINGS, places
from nsdcap.miniature.tree import write_tree


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the tree; 0, or the exit code of an error that the user can mend."""
    parser = argparse.ArgumentParser(
        prog="python -m nsdcap.miniature",
        description="Write a miniature of the Natural Scenes Dataset, in NSD's own files:"
        " made-up pictures, captions, cortex and betas. 60 seconds, 200 MB.",
    )
    parser.add_argument("dir", type=Path, help="a new or empty folder; it becomes the NSD root")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--subjects", type=int, nargs="+", default=[1, 2, 5, 7], metavar="N")
    parser.add_argument("--sessions", type=int, default=3, help="sessions of betas a subject")
    parser.add_argument("--nifti", action="store_true", help="write betas as .nii.gz, too")
    options = parser.parse_args(arguments)
    try:
        write_tree(
            options.dir,
            seed=options.seed,
            subjects=options.subjects,
            sessions=options.sessions,
            nifti=options.nifti,
        )
    except NsdcapError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    tree, words = options.dir.absolute(), []
    for place in places(tree):
        words += ["--set", shlex.quote(place)]
    subjects = " ".join(map(str, options.subjects))
    print("to run it, with the miniature's own models and settings:")
    print(f"python -m nsdcap.launch --config {shlex.quote(str(SETTINGS))} {' '.join(words)} "
          f"--subjects {subjects} --out OUT")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
