"""NSD's terms: where they stand, and who accepted them for a folder of its files."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import sys
from datetime import datetime, timezone
from pathlib import Path

from nsdcap import __version__
from nsdcap.errors import UsageError
from nsdcap.paths import write_json

ACCEPTED = "nsd-terms-accepted.json"
TERMS = """\
The Natural Scenes Dataset (NSD) is not part of nsdcap. Its authors open it to everyone who agrees to their
terms and conditions and fills in the NSD Data Access Agreement:

    http://naturalscenesdataset.org                               the dataset's page, with the agreement
    https://cvnlab.slite.page/p/IB6BSeW_7o/Terms-and-Conditions   the terms and conditions
    https://cvnlab.slite.page/p/CT9Fwl4_hc/NSD-Data-Manual        the manual

Every use of these files is under those terms. Among other things they ask that the data serve research and
education alone, are neither passed on nor sold, and that nobody tries to find out who the participants are;
what counts is the page itself, not this summary.

By going on you confirm that you have read and agreed to NSD's terms and conditions and have filled in the
NSD Data Access Agreement.
"""


def accepted(folder: Path) -> bool:
    """Whether these terms were accepted for this folder before."""
    try:
        record = json.loads((folder / ACCEPTED).read_bytes())
        return bool(record["sha256"] == _mark())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def agree(given: bool) -> None:
    """Show NSD's terms; returns once they are accepted.

    Raises
    ------
    UsageError
        They are not.
    """
    print(TERMS, flush=True)
    if given:
        return
    if not sys.stdin.isatty():
        raise UsageError(
            "NSD's terms are not accepted: give --accept-terms once you have agreed to them"
        )
    try:
        answer = input("Type yes to confirm: ")
    except EOFError:
        answer = ""
    if answer.strip().lower() != "yes":
        raise UsageError("NSD's terms are not accepted (yes was not typed); nothing was fetched")


def record(folder: Path) -> None:
    """Write down who accepted which terms when, beside the data."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a number without a name, as in containers
        user = f"user {os.getuid()}"
    when = datetime.now(timezone.utc).isoformat(timespec="seconds")
    content = {
        "accepted_by": user,
        "when": when,
        "sha256": _mark(),
        "nsdcap": __version__,
        "terms": TERMS,
    }
    write_json(folder / ACCEPTED, content)


def _mark() -> str:
    return hashlib.sha256(TERMS.encode()).hexdigest()
