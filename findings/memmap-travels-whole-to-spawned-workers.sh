#!/usr/bin/env bash
# A memory-mapped array is sent to a spawned worker as a whole, and arrives there as a copy in memory.
#
# Versions   numpy 2.4.1 with Python 3.11 (2026-11-29)
# Guess      numpy.memmap is pickled as what it is, a file's name, offset and shape; a loader's worker maps the file
#            anew and shares its pages, whichever way it was started.
# Behaviour  It is pickled like any array, with all its bytes. A data set that holds one is copied into each worker that
#            is spawned or comes from a fork server: the default of macOS and, from Python 3.14 on, of Linux, so also
#            of torch's DataLoader there. The copy still says numpy.memmap, but has no file and can be written to.
# Seen       of a file of 64 MiB: pickled 64 MiB; the worker holds 64 MiB more of its own than with the name alone;
#            there a memmap, file None, writeable True
# Remedy     Leave the map out in __getstate__ and open it again in __setstate__.
# Fails (exit 1) when a map is pickled without its bytes, so when this has been changed.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy==2.4.1 2>/dev/null
cat > "$work/mapped.py" <<'PY'
import multiprocessing
import os
import pickle
import sys

import numpy as np

MIB = 2**20
FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "faces.bin")


class Faces:
    """Pictures in one large file, of which an item reads a few bytes."""

    def __init__(self):
        self.bytes = np.memmap(FILE, np.uint8, "r")


class Reopened(Faces):
    """The same, without the map in what is sent to a worker."""

    def __getstate__(self):
        return {}

    def __setstate__(self, state):
        self.__init__()


def held(faces):
    """What a worker has of the faces: MiB of memory of its own, and three facts about the map."""
    with open("/proc/self/smaps_rollup") as lines:
        own = next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) // 1024
    return own, type(faces.bytes).__name__, faces.bytes.filename and "faces.bin", faces.bytes.flags.writeable


if __name__ == "__main__":
    with open(FILE, "wb") as file:
        file.truncate(64 * MIB)
    sent = {}
    for faces in (Faces(), Reopened()):
        name = type(faces).__name__
        sent[name] = len(pickle.dumps(faces)) / MIB
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            there = pool.apply(held, (faces,))
        print(f"{name}: pickled {sent[name]:.3f} MiB; in the worker (MiB, type, file, writeable): {there}")
    sys.exit(not (sent["Faces"] > 60 and sent["Reopened"] < 1))
PY
"$work/venv/bin/python" "$work/mapped.py"
