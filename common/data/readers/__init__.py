"""One file a kind of set: from its official layout to samples (image, row) for `data.pack.gather`.

Comes in: what a set's files look like and how they can be wrong; not where they come from (`data.obtain`).
May import: what data may.
"""
