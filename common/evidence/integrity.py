"""Whether the committed records of a paper are all there, are what was recorded, and are runs of their own.

Since version 2 a record holds a hash over itself. Those from before are bound by one list, `results/unsealed.sha256`,
in the format of `sha256sum`; it never grows, so no new record can do without its seal.
"""

from collections.abc import Sequence
from pathlib import Path

from facepapers.common import paths, storage
from facepapers.common.cli import UserError
from facepapers.common.evidence import environment, schema

LIST = "unsealed.sha256"  # in the folder of records: of each record of version 1 its run.json and history.csv
PARTS = ("run.json", "predictions.npz", "history.csv")  # of a record


def check(paper: str, records: Sequence[dict]) -> None:
    """UserError where a committed file is gone, an old record is not as listed, or a run stands under two names."""
    check_present(paper)
    check_unsealed(paper, records)
    check_copies(records)


def check_present(paper: str) -> None:
    """UserError where git tracks a part of a record that is not there; without git nothing is said."""
    gone = (environment.git("ls-files", "--deleted", "--", f"results/{paper}") or "").splitlines()
    for name in gone:
        if Path(name).name in PARTS:
            raise UserError(f"{paths.ROOT / name}: is committed and gone; restore it from git, or `git rm` its folder")


def check_unsealed(paper: str, records: Sequence[dict]) -> None:
    """UserError where a record without a seal is not among the listed ones, or is not as it was."""
    old = [record for record in records if record["schema"] < schema.SEALED]
    listed = read() if old else {}
    for record in old:
        for name in ("run.json", "history.csv"):
            path = record["folder"] / name
            known = listed.get(f"{paper}/{record['run']}/{name}")
            if known is None:
                why = f"has no seal and is not one of the first records ({LIST})"
                raise UserError(f"{path}: {why}; restore it from git, or run it anew")
            if not path.exists() or storage.sha256(path) != known:
                raise UserError(f"{path}: missing or not what was recorded ({LIST}); {storage.GIT}")


def check_copies(records: Sequence[dict]) -> None:
    """UserError where two trainings predict the very same: one run counted twice, as another seed or row."""
    first: dict[str, dict] = {}
    of = lambda r: (r["data"]["name"], *(r["config"][key] for key in ("preset", "row", "seed")))
    for record in (r for r in records if r["seconds"]):  # what is not trained is the same for each seed
        other = first.setdefault(record["predictions_sha256"], record)
        if of(other) != of(record):
            path = record["folder"] / "run.json"
            raise UserError(f"{path}: has the predictions of {other['run']}; delete the copy, or run it")


def read() -> dict[str, str]:
    """{file below the folder of records: hex sha256}, {} without a list."""
    path = paths.RECORDED / LIST
    lines = storage.read_text(path, storage.GIT).splitlines() if path.exists() else []
    pairs = [line.split(maxsplit=1) for line in lines if line.strip()]
    if any(len(pair) != 2 for pair in pairs):
        raise UserError(f"{path}: not lines of a hash and a name; {storage.GIT}")
    return {name: digest for digest, name in pairs}
