"""`python -m facepapers.common.data list | get NAME | verify NAME | copies NAME`: the sets and their state."""

from collections.abc import Sequence
from dataclasses import dataclass

from facepapers.common import cli, paths
from facepapers.common.cli import MissingData, UserError
from facepapers.common.data import copies
from facepapers.common.data.obtain import on_disk
from facepapers.common.data.pack import Pack
from facepapers.common.data.registry import DataSet, counts_text, find, mirror_place, registry
from facepapers.common.data.sets import current_pack, ensure, files, get, verify


def _state(entry: DataSet) -> tuple[str, str, str, str]:
    """One line of the table: name, state, counts, fingerprint."""
    if entry.files:
        there = all((paths.data_root() / entry.name / item["file"]).is_file() for item in entry.files)
        state = "present" if there else "files present" if on_disk(entry, mirror_place()) else "absent"
        return entry.name, state, "no images", "-"
    try:
        prepared = current_pack(entry)
    except UserError:
        return entry.name, "damaged", counts_text(entry.counts[0]), "-"
    if prepared is not None:
        return (
            entry.name,
            "prepared",
            counts_text(prepared.meta["counts"]),
            prepared.meta["fingerprint"][:12],
        )
    state = "files present" if on_disk(entry, mirror_place()) else "absent"
    return entry.name, state, counts_text(entry.counts[0]), "-"


def _print_table() -> None:
    rows = [("set", "state", "images", "fingerprint", "title")]
    rows += [(*_state(entry), entry.title) for entry in registry().values()]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]))
    known = copies.read()
    if known:
        print("\nPictures held more than once (data/copies.json):")
    for name, entry in known.items():
        print(f"{name.ljust(widths[0])}  {copies.line(entry)}")


def _count_copies(name: str) -> None:
    """Count a set's copies anew and keep them in the record."""
    prepared = ensure(name)
    record = copies.read()
    record[name] = copies.count(prepared, prepared.decode())
    copies.write(record)
    print(f"{name}: {copies.line(record[name])}")


def _print_pack(prepared: Pack) -> None:
    entry, meta = find(prepared.meta["name"]), prepared.meta
    print(f"{entry.name}: {entry.title}")
    print(f"  images       {counts_text(meta['counts'])}")
    print(f"  fingerprint  {meta['fingerprint']}")
    print(f"  decoded by   {meta['decoder']}")
    for item in meta["origin"]:
        print(f"  from         {item['file']} (sha256 {item['sha256'] or 'of a folder is not taken'})")
    print(f"  file         {prepared.path} ({prepared.path.stat().st_size / 1e6:.1f} MB)")
    print(f"  terms        {entry.terms}")
    print(f"  cite         {entry.citation}")


def _print_files(entry: DataSet, checked: list[dict[str, str | None]]) -> None:
    print(f"{entry.name}: {entry.title}")
    for item in checked:
        print(f"  file         {paths.data_root() / entry.name / str(item['file'])} (sha256 {item['sha256']})")
    print(f"  terms        {entry.terms}")
    print(f"  cite         {entry.citation}")


def _print_steps(entry: DataSet) -> None:
    for part in [*map(find, entry.parts), entry]:
        if part.parts or not on_disk(part, mirror_place()):
            print(f"{part.name}: {part.title}\n{part.homepage}\n{part.terms}\n")
            print(f"{part.steps}\nExpected:\n{part.tree}")


@dataclass(frozen=True)
class List:
    """Show the sets and their state."""


@dataclass(frozen=True)
class Get:
    """Obtain, check and prepare a set."""

    name: str  # of a set
    mirror: str | None = None  # folder or URL that holds the archives; without it DATA_MIRROR or the official address


@dataclass(frozen=True)
class Verify:
    """Decode a prepared set and compare its fingerprint."""

    name: str  # of a set


@dataclass(frozen=True)
class Copies:
    """Count the pictures that a set holds more than once, and their labels; written to data/copies.json."""

    name: str  # of a set


def main(argv: Sequence[str]) -> None:
    """Do what the subcommand says."""
    options = cli.command(List | Get | Verify | Copies, argv, "python -m facepapers.common.data", __doc__)
    if isinstance(options, List):
        _print_table()
    elif isinstance(options, Get):
        try:
            entry = find(options.name)
            if entry.files:
                _print_files(entry, files(entry.name, options.mirror))
            else:
                _print_pack(get(options.name, options.mirror))
        except MissingData:
            _print_steps(find(options.name))
            raise
    elif isinstance(options, Copies):
        _count_copies(options.name)
    elif find(options.name).files:
        _print_files(find(options.name), files(options.name, obtain=False))
    else:
        _print_pack(verify(options.name))
        print("  verified     the decoded content has the recorded fingerprint")


if __name__ == "__main__":
    cli.entry(main)
