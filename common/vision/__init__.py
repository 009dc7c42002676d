"""Batched image operations, alignment, the face detector, and networks that two papers share.

What turns pictures into pictures, points or embeddings comes in. May import: the ground, training."""
