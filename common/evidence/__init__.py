"""Runs, claims, intervals and verdicts, and the tables, page and figures drawn from them.

Comes in: what a number rests on; nothing here trains.
May import: the ground, training, protocols.
"""
