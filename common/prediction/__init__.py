"""A user's photos: which they are, the faces in them, their crops, and the files that a prediction writes.

Comes in: what the commands that predict share; what a network says of a crop stays with its paper.
May import: the ground, training, protocols, vision, data, evidence.
"""
