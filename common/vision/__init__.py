"""Batched image operations, alignment, the face detector, and networks that two papers share.

Comes in: what turns pictures into pictures, points or embeddings.
May import: the ground, training.
"""
