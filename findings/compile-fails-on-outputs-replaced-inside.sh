#!/usr/bin/env bash
# A forward that completes its own NamedTuple with _replace cannot be compiled: AssertionError, without a message.
#
# Versions   torch 2.11.0 with numpy 2.4.1 (2026-11-30)
# Guess      torch.compile traces _replace, or breaks the graph there and runs on in Python: without fullgraph=True
#            nothing that eager mode can do is refused. It does trace it where the tuple comes from outside.
# Behaviour  Where the tuple was built in the compiled region and what _replace makes is returned, any backend, also
#            "eager", ends in a bare AssertionError of the code generation. The same tuple built by its class, and one
#            that is replaced but not returned, compile. torch.export takes the very module that compile refuses.
#            A wrapper that adds a hook's maps to a network's outputs thus fails only where it is compiled.
# Seen       given from outside: Outputs; built by its class: Outputs; replaced, a field returned: Tensor
#            replaced and returned: AssertionError: no message; exported: Outputs
# Remedy     Build the tuple anew by its class: Outputs(found.embedding, maps).
# Fails (exit 1) when the replaced tuple is returned, so when this has been mended.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.11.0 numpy==2.4.1 2>/dev/null
cat > "$work/replaced.py" <<'PY'
import sys
from typing import Any, NamedTuple

import torch


class Outputs(NamedTuple):
    embedding: torch.Tensor
    maps: Any = None


def given(found):
    return found._replace(maps=found.embedding * 2)


def by_class(x):
    found = Outputs(x + 1)
    return Outputs(found.embedding, x * 2)


def field(x):
    return Outputs(x + 1)._replace(maps=x * 2).maps


def returned(x):
    return Outputs(x + 1)._replace(maps=x * 2)


class Module(torch.nn.Module):
    def forward(self, x):
        return returned(x)


def compiled(function, x):
    """What comes back from a compiled function: a type's name, or the error's with the first line of its message."""
    torch._dynamo.reset()
    try:
        return type(torch.compile(function, backend="eager")(x)).__name__
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error)[:1].strip() else 'no message'}"


x = torch.ones(2, 3)
found = {
    "given from outside": compiled(given, Outputs(x)),
    "built by its class": compiled(by_class, x),
    "replaced, a field returned": compiled(field, x),
    "replaced and returned": compiled(returned, x),
    "exported": type(torch.export.export(Module(), (x,)).module()(x)).__name__,
}
for what, said in found.items():
    print(f"{what}: {said}")
wanted = ["Outputs", "Outputs", "Tensor", "AssertionError: no message", "Outputs"]
sys.exit(list(found.values()) != wanted)
PY
"$work/venv/bin/python" -W ignore "$work/replaced.py"
