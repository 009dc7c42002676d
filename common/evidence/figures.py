"""What every paper's figures.py shares: one picture per data set and preset, written whole or not at all."""

from pathlib import Path

from facepapers.common import storage
from facepapers.common.evidence import runs


def comparable(records):
    """The records with a preset's own settings: those with a user's answer no cell and stand in no picture."""
    return runs.of_presets(records)


def draw_groups(records, folder, overview):
    """Call `overview(records, path)` for each data set and preset of the comparable records. Returns the paths."""
    groups = {}
    for record in comparable(records):
        groups.setdefault((record["data"]["name"], record["config"]["preset"]), []).append(record)
    paths = {key: Path(folder) / f"{'-'.join(key).replace('+', '-')}.png" for key in sorted(groups)}
    for key, path in paths.items():
        overview(groups[key], path)
    return list(paths.values())


def by_row(records, rows):
    """{row: its records} in the order of `rows`, without rows that were not run."""
    found = {row: [r for r in records if r["config"]["row"] == row] for row in rows}
    return {row: some for row, some in found.items() if some}


def pyplot():
    """matplotlib.pyplot that needs no display; imported late, because it is slow to load."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def save(figure, path):
    """Write a figure as PNG, the same bytes for the same picture, and close it."""
    with storage.atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=90, metadata={"Software": None})
    pyplot().close(figure)
