"""The embedded faces: synthetic pictures with exact truth, drawn by `drawing.generate` and `people.draw`.

What belongs to the drawing of faces comes in, and nothing that reads files. May import: storage, seeding, protocols,
vision, data."""
