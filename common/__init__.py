"""What at least two papers need, and what must exist once: records, checkpoints, data, metrics, statistics.

`common` imports nothing from `papers`; a test holds it to that.
"""
