"""Data sets: what they are, how they are obtained, prepared and read, what their labels and points mean.

Comes in: what concerns a set's content; not what a network does with it.
May import: the ground, protocols, vision.
"""
