"""Data sets: what they are, how they are obtained, prepared and read, what their labels and points mean.

What concerns a set's content comes in; what a network does with it does not. May import: the ground, protocols,
vision."""
