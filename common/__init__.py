"""What at least two papers need, and what must exist once, in rooms; each room's docstring says what may come in.

The modules beside the rooms are the ground: cli, paths, storage, seeding, plan, progress. A room imports the ground and
the rooms below it, and nothing here imports a paper; tests/test_repo.py draws the floors.
"""
