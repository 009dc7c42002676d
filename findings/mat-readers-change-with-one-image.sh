#!/usr/bin/env bash
# MATLAB readers for Python give a cell array of pictures another shape when it holds one.
#
# Versions   mat73 0.65, pymatreader 1.3.2, hdf5storage 0.2.2 with h5py 3.16.0 and numpy 2.4.1 (2026-11-29)
# Guess      A v7.3 file with a column of N cells of pictures (COFW's layout) reads as a list or object array of N
#            pictures with each of them; a row, and N = 1, read like a column of three.
# Behaviour  mat73 gives a list of N one-picture lists for a column, a list of N pictures for a row and for one cell:
#            cells[i][0], right for a data set, is the first line of pixels of a set of one. pymatreader gives a list of
#            pictures, but for one cell the picture itself: len() is its height, iterating goes over its lines.
#            hdf5storage keeps N x 1 always. Nothing is printed.
# Seen       cells[0][0] by mat73: column of three (4, 5, 3), row of three (5, 3), column of one (5, 3);
#            len(cells) by pymatreader: three 3, one 4; cells.shape by hdf5storage: (3, 1), (1, 3), (1, 1)
# Remedy     h5py: file[name][()].ravel() gives N references however the cells lie; or hdf5storage.
# Fails (exit 1) when one reader's answer for a single cell is of the form that it has for three.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet mat73==0.65 pymatreader==1.3.2 hdf5storage==0.2.2 h5py==3.16.0 \
    numpy==2.4.1 2>/dev/null
cat > "$work/cells.py" <<'PY'
import sys

import h5py
import hdf5storage
import mat73
import numpy as np
import pymatreader


def written(path, n, row=False):
    """A file as MATLAB's save -v7.3 writes it: an n x 1 (or 1 x n) cell array of 4 x 5 x 3 uint8 pictures."""
    with h5py.File(path, "w", userblock_size=512) as file:
        references = []
        for i in range(n):
            picture = file.create_dataset(f"#refs#/{chr(97 + i)}", data=np.full((3, 5, 4), 10 * i, np.uint8))
            picture.attrs["MATLAB_class"] = np.bytes_("uint8")
            references.append(picture.ref)
        cells = np.array(references, dtype=object).reshape((n, 1) if row else (1, n))  # HDF5 has the axes reversed
        dataset = file.create_dataset("images", data=cells, dtype=h5py.ref_dtype)
        dataset.attrs["MATLAB_class"] = np.bytes_("cell")
    with open(path, "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")
    return path


found = {}
for what, n, row in (("column of three", 3, False), ("row of three", 3, True), ("column of one", 1, False)):
    path = written(f"{sys.argv[1]}/{n}{row}.mat", n, row)
    found[what] = (
        mat73.loadmat(path)["images"][0][0].shape,
        len(pymatreader.read_mat(path)["images"]),
        hdf5storage.loadmat(path)["images"].shape,
    )
    print(f"{what}: mat73 cells[0][0] {found[what][0]}, pymatreader len {found[what][1]}, hdf5storage {found[what][2]}")
three, one = found["column of three"], found["column of one"]
sys.exit(not (three == ((4, 5, 3), 3, (3, 1)) and one == ((5, 3), 4, (1, 1))))
PY
"$work/venv/bin/python" "$work/cells.py" "$work"
