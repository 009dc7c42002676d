"""The sharded head equals the dense one, over one and over two processes, and costs what it samples."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.utils._python_dispatch import TorchDispatchMode

from facepapers.common.cli import UserError
from facepapers.common.training.parallel import gather
from facepapers.papers.arcface.method import MARGINS, MarginHead, margin_loss
from facepapers.papers.arcface.partial import ShardedHead, initial_rows, shard

torch.set_num_threads(1)
CLASSES, FEATURES, BATCH, STEPS = 11, 6, 8, 3  # 11: the two shards differ in size


def batches():
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        yield torch.randn(BATCH, FEATURES, generator=generator), torch.randint(CLASSES, (BATCH,), generator=generator)


def dense_steps():
    """[(loss, gradient of the embeddings)] and final W of the dense head under torch.optim.SGD."""
    head = MarginHead(CLASSES, FEATURES, scale=8.0)
    head.weight.data = initial_rows(0, CLASSES, FEATURES, seed=0)
    optimizer, seen = torch.optim.SGD(head.parameters(), 0.1, momentum=0.9, weight_decay=5e-4), []
    for x, y in batches():
        x.requires_grad_()
        optimizer.zero_grad()
        loss = head(x, y)
        loss.backward()
        optimizer.step()
        seen.append((loss.detach(), x.grad))
    return seen, head.weight.detach()


def sharded_steps(head, mine):
    """The same with a ShardedHead, feeding the slice `mine` of each batch."""
    seen = []
    for x, y in batches():
        x, y = x[mine].clone().requires_grad_(), y[mine]
        loss = head(x, y)
        loss.backward()
        head.step(0.1)
        seen.append((loss.detach(), x.grad))
    return seen


def test_one_process_at_rate_one_is_the_dense_head():
    head = ShardedHead(CLASSES, FEATURES, scale=8.0)
    ours, (theirs, weight) = sharded_steps(head, slice(None)), dense_steps()
    for (loss, gradient), (dense_loss, dense_gradient) in zip(ours, theirs):
        torch.testing.assert_close(loss, dense_loss)
        torch.testing.assert_close(gradient, dense_gradient)
    torch.testing.assert_close(head.weight, weight)


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    head = ShardedHead(CLASSES, FEATURES, scale=8.0)
    seen = sharded_steps(head, slice(rank * BATCH // 2, (rank + 1) * BATCH // 2))
    order = gather(torch.full((1,), float(rank))).tolist()
    sampled = ShardedHead(CLASSES, FEATURES, rate=0.5)
    x, y = next(iter(batches()))
    y = y % shard(CLASSES, 2, 0)[1]  # all classes live on rank 0, more than it may sample
    sampled(x[:4], y[4 * rank : 4 * rank + 4]).backward()
    rows = sampled.sampled + sampled.first
    errors = []
    for bad in (torch.full((4,), CLASSES), torch.full((4,), -1)):  # wrong on rank 1 only, must stop both
        try:
            head(x[:4], bad if rank else y[:4])
        except UserError as error:
            errors.append(str(error))
    try:
        ShardedHead(1, FEATURES)
    except UserError as error:
        errors.append(str(error))
    torch.save([seen, head.weight, order, rows, y, errors], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_at_rate_one_are_the_dense_head(tmp_path):
    mp.spawn(worker, (str(tmp_path),), nprocs=2)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    theirs, weight = dense_steps()
    for step, (dense_loss, dense_gradient) in enumerate(theirs):
        for rank in (0, 1):
            loss, gradient = results[rank][0][step]
            torch.testing.assert_close(loss, dense_loss)
            # DDP will halve the gradients, so each rank carries that of the mean over its own images.
            torch.testing.assert_close(gradient, 2 * dense_gradient.chunk(2)[rank])
    torch.testing.assert_close(torch.cat([results[0][1], results[1][1]]), weight)
    assert [len(r[1]) for r in results] == [6, 5]
    assert results[0][2] == results[1][2] == [0.0, 1.0]
    labels, (first, second) = results[0][4].unique(), (r[3].tolist() for r in results)
    assert set(labels.tolist()) <= set(first) and len(first) == max(3, len(labels))
    assert len(second) == 2 and set(second) <= set(range(6, 11))
    for rank in (0, 1):
        high, low, ranks = results[rank][5]
        assert "labels[4] = 11 is outside 0..10" in high and "labels[4] = -1" in low
        assert "2 ranks for 1 classes" in ranks


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation returned, in numbers."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            # Views and in-place updates of W itself cost nothing; what counts is new memory.
            if isinstance(value, torch.Tensor) and not any(value.data_ptr() == p for p in self.known):
                self.numel = max(self.numel, value.numel())
        return result


def test_a_sampled_step_allocates_in_proportion_to_the_sampled_classes():
    classes, features, batch = 20_000, 32, 16
    x, y = torch.randn(batch, features, requires_grad=True), torch.randint(classes, (batch,))
    largest = {}
    for rate in (0.05, 0.2):
        head = ShardedHead(classes, features, rate=rate)
        with Largest() as mode:
            mode.known = {head.weight.data_ptr(), head.momentum.data_ptr()}
            head(x, y).backward()
            head.step(0.1)
        assert len(head.sampled) == int(rate * classes)
        largest[rate] = mode.numel
    assert largest[0.05] == 0.05 * classes * features
    assert largest[0.2] == 0.2 * classes * features


def test_sampling_keeps_positives_is_sorted_and_draws_anew_each_step():
    torch.manual_seed(0)
    head = ShardedHead(1000, 4, rate=0.1)
    x, y = torch.randn(16, 4), torch.randint(1000, (16,))
    draws = []
    for _ in range(2):
        head(x, y)
        draws.append(head.sampled)
        assert set(y.tolist()) <= set(draws[-1].tolist()) and len(draws[-1]) == 100
        assert (draws[-1].diff() > 0).all()
    assert len(set(draws[0].tolist()) & set(draws[1].tolist())) < 60
    resumed = ShardedHead(1000, 4, rate=0.1)
    resumed.load_state_dict(head.state_dict())
    head(x, y), resumed(x, y)
    assert torch.equal(head.sampled, resumed.sampled)


def test_a_sampled_loss_is_the_dense_loss_over_the_sampled_classes():
    torch.manual_seed(0)
    head = ShardedHead(50, 6, MARGINS["cm1"], scale=8.0, rate=0.3)
    before = head.weight.clone()
    x, y = torch.randn(8, 6), torch.randint(50, (8,))
    loss = head(x, y)
    columns = torch.searchsorted(head.sampled, y)
    torch.testing.assert_close(loss, margin_loss(x, before[head.sampled], columns, MARGINS["cm1"], 8.0))
    loss.backward()
    head.step(0.1)
    changed = (head.weight != before).any(1).nonzero()[:, 0]
    assert torch.equal(changed, head.sampled)
    assert torch.equal((head.momentum != 0).any(1).nonzero()[:, 0], head.sampled)


def test_conflicting_labels_are_left_out():
    """Two classes at one place: with the filter, the other one no longer pushes the image away."""
    x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    head = ShardedHead(3, 2, MARGINS["cosface"], scale=8.0, conflict_cosine=0.4)
    head.weight.copy_(torch.tensor([[0.9, 0.1], [1.0, 0.0], [0.3, 1.0]]))
    cosine = torch.nn.functional.normalize(head.weight)[:, 0]
    logits = 8 * torch.stack([cosine[0] - 0.35, torch.tensor(0.0), cosine[2]])
    torch.testing.assert_close(head(x, y), torch.nn.functional.cross_entropy(logits[None], y))


def test_rows_do_not_depend_on_the_number_of_ranks():
    whole = initial_rows(0, 10_000, 3, seed=5)
    parts = [initial_rows(*shard(10_000, 3, rank), 3, seed=5) for rank in range(3)]
    assert torch.equal(torch.cat(parts), whole)
    assert whole.std().item() == pytest.approx(0.01, rel=0.02)


def test_shards_cover_the_classes_and_more_ranks_than_classes_is_an_error():
    assert [shard(11, 3, rank) for rank in range(3)] == [(0, 4), (4, 8), (8, 11)]
    with pytest.raises(UserError, match=r"4 ranks for 3 classes.*nproc"):
        shard(3, 4, 0)


def test_bad_settings():
    for rate in (0, 1.5, -1):
        with pytest.raises(UserError, match="rate"):
            ShardedHead(5, 2, rate=rate)
    with pytest.raises(UserError, match="past_pi"):
        ShardedHead(5, 2, past_pi="wrap")
    with pytest.raises(UserError, match="all zero"):
        ShardedHead(5, 2)(torch.zeros(1, 2), torch.tensor([0]))
    with pytest.raises(RuntimeError, match="backward"):
        ShardedHead(5, 2).step(0.1)
