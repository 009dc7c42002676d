"""Five face papers, re-implemented: `facepapers.papers.<paper>` and what they share, `facepapers.common`.

An installed package holds both folders. In a checkout they lie at the top level, beside this one.
"""

from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parent.parent
_INSTALLED = Path(__file__).with_name("common").is_dir()
if not _INSTALLED:
    __path__.append(str(_CHECKOUT))


def __getattr__(name: str) -> str:
    """`__version__`, read when asked for: from the installed metadata, in a checkout from pyproject.toml."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _INSTALLED:
        from importlib.metadata import version

        return version("facepapers")
    import tomllib

    return tomllib.loads((_CHECKOUT / "pyproject.toml").read_text())["project"]["version"]
