"""Commands that see every paper: reproduce, report, bench, notebooks, align.

Comes in: what a user types and no paper owns.
May import: everything; nothing imports it.
"""
