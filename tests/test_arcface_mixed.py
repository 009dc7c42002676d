"""Class centres stay float32 and move, in whatever the network computes: autocast, cast, two processes, resumed."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from facepapers.common.training import checkpoint, parallel, precision
from facepapers.papers.arcface import method, train
from facepapers.papers.arcface.partial import ShardedHead

torch.set_num_threads(1)
CPU, CLASSES, FEATURES, BATCH = torch.device("cpu"), 20, 16, 8
STEPS, RATE = 20, 1e-3  # small steps: added to a bfloat16 entry of size 1 nearly all of them vanish
HEADS = ("arcface", "subcenter", "softmax", "sharded")
WAYS = ("autocast", "head inside", "cast")  # the network under autocast, both under autocast, the network's own weights


class Training:
    """A network, a head and their optimiser, as train.fit has them; `network` is what is called."""

    def __init__(self, kind: str, way: str) -> None:
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(12, FEATURES), torch.nn.Tanh())
        if way == "cast":
            self.net.to(torch.bfloat16)
        self.head = a_head(kind)
        parts = [self.net] if kind == "sharded" else [self.net, self.head]
        self.both, self.way, self.dtypes = torch.nn.ModuleList(parts), way, set()
        self.optimizer = torch.optim.SGD(self.both.parameters(), RATE, momentum=0.9)
        self.network = parallel.wrap(self.net, CPU)
        self.parts = {"model": self.both, "optimizer": self.optimizer}
        if kind == "sharded":
            self.parts["head"] = self.head
        self.before = self.head.weight.detach().clone()

    def run(self, steps: range, mine: slice = slice(None)) -> float:
        """Train on the rows `mine` of each step's batch; returns the share of W's entries that have moved."""
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            x = torch.randn(BATCH, 12, generator=generator)[mine]
            y = torch.randint(CLASSES, (BATCH,), generator=generator)[mine]
            self.optimizer.zero_grad(set_to_none=True)
            self.loss(x, y).backward()
            train.share_gradients(self.head)
            active = getattr(self.head, "active", None)
            gradient = self.head.weight.grad if active is None else active.grad
            assert torch.isfinite(gradient).all()
            self.optimizer.step()
            if isinstance(self.head, ShardedHead):
                self.head.step(RATE)
            self.dtypes |= {gradient.dtype, *(value.dtype for value in self.kept().values())}
        return float((self.head.weight != self.before).float().mean())

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if self.way == "cast":
            return self.head(self.network(x.bfloat16()), y)
        with precision.autocast(CPU, "bf16"):
            embeddings = self.network(x)
            assert embeddings.dtype == torch.bfloat16
            if self.way == "head inside":
                return self.head(embeddings, y)
        return self.head(embeddings, y)

    def kept(self) -> dict[str, torch.Tensor]:
        """W and its momentum."""
        if isinstance(self.head, ShardedHead):
            return {"weight": self.head.weight, "momentum": self.head.momentum}
        state = self.optimizer.state[self.head.weight]
        return {"weight": self.head.weight, "momentum": state["momentum_buffer"]}


def a_head(kind):
    """A head whose centres have entries of size 1, as after some training."""
    if kind == "sharded":
        head = ShardedHead(CLASSES, FEATURES)
    else:
        options = {"centers": 3} if kind == "subcenter" else {}
        head = method.make_head("arcface" if kind == "subcenter" else kind, CLASSES, FEATURES, **options)
    with torch.no_grad():
        head.weight.mul_(100)
    return head


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", HEADS)
def test_centres_stay_float32_and_move(kind, way):
    training = Training(kind, way)
    assert training.run(range(STEPS)) >= 0.95
    assert training.dtypes == {torch.float32}
    assert {p.dtype for p in training.net.parameters()} == {torch.bfloat16 if way == "cast" else torch.float32}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", HEADS)
def test_a_resumed_training_keeps_them_so(kind, way, tmp_path):
    whole, cut, resumed = (Training(kind, way) for _ in range(3))
    whole.run(range(STEPS))
    cut.run(range(STEPS // 2))
    checkpoint.save_state(tmp_path / "checkpoint.pt", cut.parts)
    checkpoint.load_state(tmp_path / "checkpoint.pt", resumed.parts)
    halfway = resumed.head.weight.detach().clone()
    resumed.run(range(STEPS // 2, STEPS))
    assert resumed.dtypes == {torch.float32} and (resumed.head.weight != halfway).float().mean() >= 0.95
    for key, value in whole.kept().items():
        assert torch.equal(resumed.kept()[key], value), key


def two(rank, folder):
    """One of two processes that train every head in every way on its half of the batches."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {}
    for kind in ("arcface", "sharded"):
        for way in WAYS:
            training = Training(kind, way)
            moved = training.run(range(STEPS), parallel.my_slice(BATCH))
            found[kind, way] = moved, training.dtypes, training.head.weight.detach()
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_keep_them_so(tmp_path):
    mp.spawn(two, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1))
    for key, (moved, dtypes, weight) in first.items():
        assert dtypes == second[key][1] == {torch.float32} and min(moved, second[key][0]) >= 0.95, key
        assert key[0] == "sharded" or torch.equal(weight, second[key][2]), key


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("sign", [1, -1])
def test_an_embedding_on_its_centre_has_finite_gradients(kind, sign):
    head = a_head(kind)
    with torch.no_grad():
        head.weight.copy_(head.weight.bfloat16())
    x = (sign * head.weight.detach()[:CLASSES]).bfloat16().requires_grad_()
    y = torch.arange(CLASSES) // (len(head.weight) // CLASSES)
    with precision.autocast(CPU, "bf16"):
        head(x, y).backward()
    gradient = head.active.grad if kind == "sharded" else head.weight.grad
    for value in (x.grad, gradient):
        assert torch.isfinite(value).all() and value.abs().max() > 0
    assert gradient.dtype == torch.float32 and x.grad.dtype == torch.bfloat16
