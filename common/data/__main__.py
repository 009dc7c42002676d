"""`python -m facepapers.common.data list | get NAME | verify NAME`: the sets and their state."""

from facepapers.common import cli
from facepapers.common.cli import MissingData, UserError
from facepapers.common.data.obtain import on_disk
from facepapers.common.data.pack import Pack
from facepapers.common.data.registry import DataSet, counts_text, find, mirror_place, registry
from facepapers.common.data.sets import current_pack, get, verify


def _state(entry: DataSet) -> tuple[str, str, str, str]:
    """One line of the table: name, state, counts, fingerprint."""
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


def _print_steps(entry: DataSet) -> None:
    for part in [*map(find, entry.parts), entry]:
        if part.parts or not on_disk(part, mirror_place()):
            print(f"{part.name}: {part.title}\n{part.homepage}\n{part.terms}\n")
            print(f"{part.steps}\nExpected:\n{part.tree}")


def main(argv: list[str]) -> None:
    """`list`, `get NAME [--mirror PLACE]`, `verify NAME`."""
    mirror, words = cli.take_option(argv, "mirror")
    if words == ["list"] and mirror is None:
        _print_table()
    elif len(words) == 2 and words[0] == "get" and not words[1].startswith("-"):
        try:
            _print_pack(get(words[1], mirror))
        except MissingData:
            _print_steps(find(words[1]))
            raise
    elif len(words) == 2 and words[0] == "verify" and mirror is None:
        _print_pack(verify(words[1]))
        print("  verified     the decoded content has the recorded fingerprint")
    else:
        raise UserError(
            "usage: python -m facepapers.common.data list | get NAME [--mirror FOLDER_OR_URL] | verify NAME"
        )


if __name__ == "__main__":
    cli.entry(main, about=__doc__)
