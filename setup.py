"""Which folders make the wheel: common/ and papers/ lie at the top level and are imported as `facepapers.*`."""

from setuptools import find_namespace_packages, setup

FOLDERS = find_namespace_packages(include=["common*", "papers*"], exclude=["*__pycache__*"])
DATA = ["*.toml", "*.npz", "*.csv", "*.html", "*.css", "*.js", "*.smk"]  # what is read beside code
MODELS = ["*.safetensors", "*.json", "README.md", "LICENSE"]  # released models with their cards and terms

setup(
    packages=["facepapers", "facepapers.data", *(f"facepapers.{name}" for name in FOLDERS)],
    package_dir={f"facepapers.{name}": name for name in ("common", "papers", "data")},
    package_data={f"facepapers.{name}": DATA + MODELS * ("weights" in name) for name in FOLDERS}
    | {"facepapers.data": ["registry.toml"]},
)
