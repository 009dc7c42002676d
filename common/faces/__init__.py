"""The embedded faces: synthetic pictures with exact truth, drawn by `drawing.generate` and `people.draw`.

Comes in: what belongs to the drawing of faces; nothing that reads files.
May import: the ground, protocols, vision, data.
"""
