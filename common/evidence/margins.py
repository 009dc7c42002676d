"""Margins of "no difference": how small a gain nobody would care about, fixed before the runs that it judges.

A contrast of `claims.toml` may name an `equivalence_margin` with its reason. A run that begins notes those of its
claims as they stand in the last commit, and only runs that noted today's margin count for the verdict (Schuirmann
1987: two one-sided tests at 5 % each, so the 90 % interval must lie within the margin).
"""

import tomllib
from collections.abc import Sequence
from typing import Any

from facepapers.common import storage
from facepapers.common.cli import UserError
from facepapers.common.evidence import environment


def committed(paper: str, config: dict[str, Any], text: str | None = None) -> dict[str, float]:
    """{claim: margin} of the contrasts that a run with these settings can answer, as the last commit has them.

    `text`: claims.toml of another commit. Empty where git or the commit is missing: a margin that cannot be dated
    judges nothing.
    """
    text = environment.git("show", f"HEAD:papers/{paper}/claims.toml") if text is None else text
    written = tomllib.loads(text).get("contrast", []) if text else []
    return {
        claim["id"]: claim["equivalence_margin"]
        for claim in written
        if "equivalence_margin" in claim
        and all(claim[key] == config[key] for key in ("data", "preset"))
        and config["row"] in (claim["better"], claim["than"])
    }


def judged(claim: dict[str, Any], ours: Sequence[dict], others: Sequence[dict]) -> list[int]:
    """Which pairs of runs (positions) began when today's margin of the claim was already committed.

    A side that is not trained (0 seconds) cannot have been looked at while the margin was chosen.
    """
    if "equivalence_margin" not in claim:
        return []
    noted = lambda r: not r["seconds"] or r.get("margins", {}).get(claim["id"]) == claim["equivalence_margin"]
    return [k for k, pair in enumerate(zip(ours, others, strict=True)) if all(map(noted, pair))]


def check(records: Sequence[dict]) -> None:
    """UserError where a record notes a margin that the commit it began from did not hold.

    Where git does not know that commit (a copy without history) nothing is said: the record's seal still binds it.
    """
    held: dict[tuple[str, str], str | None] = {}  # (commit, paper) -> its claims.toml
    for record in records:
        commit, paper = record["source"]["commit"], record["paper"]
        if not commit or not record.get("margins"):
            continue
        if (commit, paper) not in held:
            held[commit, paper] = environment.git("show", f"{commit}:papers/{paper}/claims.toml")
        text = held[commit, paper]
        if text is not None and record["margins"] != committed(paper, record["config"], text):
            path = record["folder"] / "run.json"
            raise UserError(f"{path}: notes margins that its commit {commit[:10]} did not hold; {storage.GIT}")
