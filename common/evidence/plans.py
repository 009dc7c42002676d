"""How many seeds a claim gets: decided once, after three gave no verdict, and written down before the others begin.

`results/settle.json`, {claim: seeds a side}, is written by `make settle` and committed with the records. A plan holds
for every claim about the same rows, since their seeds are the same.
"""

import contextlib
import json
from collections.abc import Collection
from pathlib import Path

from facepapers.common import paths, storage
from facepapers.common.cli import UserError
from facepapers.common.evidence import environment, schema, statistics

NAME = "settle.json"  # in the folder of records
MOST = 20  # seeds a side; a claim that would take more counts as out of reach


def read(folder: Path | None = None, known: Collection[str] | None = None, paper: str | None = None) -> dict[str, int]:
    """{claim: seeds a side that it gets} of a folder of records (the committed ones), {} where none was planned.

    UserError for a file that is something else, for a number that no plan can have, and for a claim (`paper`: of that
    one) that is not among the `known`.
    """
    path = (folder or paths.RECORDED) / NAME
    plans = storage.read_json(path) if path.exists() else {}
    remedy = "restore it from git, or move it away"
    if not isinstance(plans, dict) or not all(type(n) is int for n in plans.values()):
        raise UserError(f"{path}: not a number of seeds for each claim; {remedy}")
    if known is not None:
        asked = [name for name in plans if paper is None or name.startswith(f"{paper}.")]
        schema.unknown(asked, known, f"{path}: no claim", remedy)
    for name, seeds in plans.items():
        if not statistics.SEEDS < seeds <= MOST:
            wanted = f"a plan has {statistics.SEEDS + 1} to {MOST}"
            raise UserError(f"{path}: {seeds} seeds a side for {name}; {wanted}; {remedy}")
    return plans


def check_kept(plans: dict[str, int], known: Collection[str]) -> None:
    """UserError where a plan that was once committed, of a claim among the `known`, is another now or is gone.

    A number that may be changed once its seeds are known is none that was fixed before. Without git nothing is said.
    """
    name = f"results/{NAME}"
    for commit in (environment.git("log", "--format=%H", "--", name) or "").split():
        text = environment.git("show", f"{commit}:{name}")  # None: the commit that deleted it
        once = {}
        with contextlib.suppress(ValueError):  # a broken file, mended since
            once = json.loads(text or "{}")
        for claim, seeds in once.items():
            if claim in known and plans.get(claim) != seeds:
                now = f"{plans[claim]} now" if claim in plans else "it is gone"
                raise UserError(
                    f"{paths.RECORDED / NAME}: {claim} was planned with {seeds} seeds a side in {commit[:10]}, {now}; "
                    "restore it from git"
                )
