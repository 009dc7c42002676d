"""Weights with a hash, and state that resumes to the same bits."""

import contextlib
import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from facepapers.common.cli import UserError
from facepapers.common.storage import atomic, check_zip, read_json, sha256
from facepapers.common.training import state_dicts

if TYPE_CHECKING:
    import torch

AGAIN = "delete it to start again"
RECORDS = ("run.json", "teacher.json", "released.json")  # beside weights; each names their hash
SCALE, SMALL = ".scale", 4096  # ending of an integer tensor's scales; tensors of fewer numbers keep their type
INTEGERS = {"int8": 127, "int16": 32767}  # forms of a weight that need a scale, and their largest number


def save_weights(path: Path, model: "torch.nn.Module", **metadata: object) -> str:
    """Write `model`'s tensors as safetensors (no pickle) and return the file's sha256."""
    return save_tensors(path, model.state_dict(), **metadata)


def save_tensors(path: Path, tensors: dict[str, "torch.Tensor"], **metadata: object) -> str:
    """As `save_weights`, of tensors by name."""
    from safetensors.torch import save_file

    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    # One entry, because safetensors writes several in random order: equal weights must give equal files.
    about = json.dumps({k: str(v) for k, v in metadata.items()}, sort_keys=True)
    with atomic(path) as temporary:
        save_file(tensors, str(temporary), metadata={"about": about})
    return sha256(path)


def load_weights(path: Path | str, model: "torch.nn.Module") -> dict[str, str]:
    """Load safetensors into `model`, strictly; returns the file's metadata.

    Raises UserError naming the keys that differ when the file belongs to another architecture.
    """
    tensors, metadata = read_weights(path)
    state_dicts.fill(model, state_dicts.unwrapped(tensors, path), path)
    return metadata


def compact(tensors: dict[str, "torch.Tensor"], stored: str = "float16") -> dict[str, "torch.Tensor"]:
    """Weights of fewer bits, for a file: matrices and convolutions as `stored`: float16, int16, int8 or float32.

    A tensor of integers comes with `<name>.scale`, one number an output channel, which `read_weights` multiplies it
    with: int16 is as small as float16 and finer. Vectors (biases, statistics) keep their type, and so do small tensors
    beside integers: depthwise filters and heads, which take little room. Raises UserError where float16 has no such
    number.
    """
    import torch

    if stored == "float32":
        return dict(tensors)
    found = {}
    for name, value in tensors.items():
        found[name] = value
        if not value.is_floating_point() or value.dim() < 2:
            continue
        if stored in INTEGERS and value.numel() < SMALL:
            continue
        if stored in INTEGERS:
            largest = value.abs().flatten(1).amax(1).clamp_min(1e-12).view(-1, *[1] * (value.dim() - 1))
            scale = largest / INTEGERS[stored]
            found |= {name: (value / scale).round().to(getattr(torch, stored)), f"{name}{SCALE}": scale.float()}
        else:
            found[name] = value.half()
            if not found[name].isfinite().all():
                raise UserError(f"{name}: holds numbers beyond float16's; keep these weights in float32")
    return found


def read_weights(path: Path | str) -> tuple[dict[str, "torch.Tensor"], dict[str, str]]:
    """(dict of tensors, dict of metadata) of a safetensors file; tensors that `compact` made integers come as float32.

    Raises UserError when it is missing or damaged, or is not the file that the record beside it names by its hash.
    """
    check_recorded(path)
    with opened(path) as handle:
        names, about = list(handle.keys()), described(handle)
        tensors = {name: handle.get_tensor(name) for name in names}
    for name in names:  # a network may have a parameter of such a name beside one of floats
        if f"{name}{SCALE}" in tensors and not tensors[name].is_floating_point():
            tensors[name] = tensors[name] * tensors.pop(f"{name}{SCALE}")
    return tensors, about


def read_metadata(path: Path | str) -> dict[str, str]:
    """The metadata of a safetensors file alone. UserError when it is missing or damaged; no hash is read."""
    with opened(path) as handle:
        return described(handle)


@contextlib.contextmanager
def opened(path: Path | str) -> Iterator[Any]:
    """A safetensors file to read from. UserError when it is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as handle:
            yield handle
    except FileNotFoundError:
        raise UserError(f"{path}: no such weights file") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); fetch or train it again") from None


def described(handle: Any) -> dict[str, str]:
    """What `save_tensors` wrote of an opened file's tensors; {} for a file of other origin."""
    return json.loads((handle.metadata() or {}).get("about", "{}"))


def check_recorded(path: Path | str) -> None:
    """UserError where a record beside a weights file names another hash than the file's."""
    path = Path(path)
    for record in (path.with_name(name) for name in RECORDS):
        if path.is_file() and record.is_file():
            written = read_json(record)
            known = written.get("weights") or {"file": path.name, "sha256": written.get("sha256")}
            if known["file"] == path.name and known["sha256"] not in (None, sha256(path)):
                raise UserError(f"{path}: damaged or not the weights that {record.name} names; fetch or train it again")


def content_sha256(value: Any) -> str:
    """Hex digest of nested dicts, lists and tuples of tensors and plain values."""
    import torch

    digest = hashlib.sha256()

    def add(part):
        if isinstance(part, torch.Tensor):
            digest.update(f"{part.dtype}{tuple(part.shape)}".encode())
            digest.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        elif isinstance(part, dict):
            add([(key, part[key]) for key in part])
        elif isinstance(part, list | tuple):
            digest.update(f"{len(part)}:".encode())
            for one in part:
                add(one)
        else:
            digest.update(f"{part!r};".encode())

    add(value)
    return digest.hexdigest()


def rng_state() -> dict:
    """State of every global generator that a training step could draw from."""
    import torch  # here and below: hashes and JSON are read without it

    state = {"torch": torch.get_rng_state(), "python": repr(random.getstate())}
    numpy_state: Any = np.random.get_state()  # this tuple, though its stub names a dict as well
    kind, keys, position, has_gauss, cached = numpy_state
    state["numpy"] = [kind, keys.tolist(), int(position), int(has_gauss), float(cached)]
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state: dict) -> None:
    """Put back what `rng_state` gave."""
    import ast

    import torch

    torch.set_rng_state(state["torch"].cpu())
    random.setstate(ast.literal_eval(state["python"]))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])


def save_state(path: Path, parts: dict[str, Any], **scalars: Any) -> None:
    """Write everything needed to continue: `parts` maps names to objects with a state_dict.

    The weights of `parts`, plain `scalars` (step, best value, history) and all generator states go into one
    file that `torch.load(weights_only=True)` can read, so no code is ever unpickled; with it a hash of all that.
    """
    import torch

    state = {"parts": {name: part.state_dict() for name, part in parts.items()}, "scalars": scalars, "rng": rng_state()}
    with atomic(path) as temporary:
        torch.save({**state, "sha256": content_sha256(state)}, temporary)


def read_scalars(path: Path) -> dict[str, Any]:
    """The scalars of a file of `save_state`, without reading its tensors. UserError when it is damaged."""
    import torch

    try:
        check_zip(path, AGAIN, end="/data.pkl")  # where the scalars are
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)["scalars"]
    except UserError:
        raise
    except Exception as error:  # torch.load raises many kinds for a truncated file
        raise _no_checkpoint(path, error) from None


def _no_checkpoint(path: Path, error: Exception) -> UserError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(f"{path}: cannot resume from this checkpoint ({reason}); {AGAIN}")


def load_state(path: Path, parts: dict[str, Any]) -> dict[str, Any]:
    """Restore `parts` in place; returns the scalars. UserError when the file is damaged or does not fit.

    A file that was written before there were hashes is taken as it is.
    """
    import torch

    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if saved.pop("sha256", None) not in (None, content_sha256(saved)):
            raise ValueError("damaged: its content is not what was saved")
        if saved["parts"].keys() != parts.keys():
            raise KeyError(f"holds {sorted(saved['parts'])}, this run needs {sorted(parts)}")
        for name, part in parts.items():
            part.load_state_dict(saved["parts"][name])
        set_rng_state(saved["rng"])
    except Exception as error:  # torch.load raises many kinds for a truncated file
        raise _no_checkpoint(path, error) from None
    return saved["scalars"]
