"""Five face papers, re-implemented: `facepapers.papers.<paper>` and what they share, `facepapers.common`.

An installed package holds both folders. In a checkout they lie at the top level, beside this one.
"""

from pathlib import Path

if not Path(__file__).with_name("common").is_dir():
    __path__.append(str(Path(__file__).resolve().parent.parent))
