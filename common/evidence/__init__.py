"""Runs, claims, intervals and verdicts, and the tables, page and figures drawn from them.

What a number rests on comes in; nothing here trains. May import: the ground, training, protocols."""
