"""One file a kind of set: from its official layout to samples (image, row) for `data.pack.gather`."""
