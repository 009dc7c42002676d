"""Commands that see every paper: reproduce, report, bench, notebooks.

The top floor: may import everything, and nothing imports it."""
