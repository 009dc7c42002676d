"""How a prediction is judged: landmark errors, verification, pairs, angles.

Comes in: what computes on arrays, and the files of protocols; no files of pictures, no networks' names.
May import: the ground.
"""
