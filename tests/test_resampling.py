"""Pillow's resize as a tensor operation and as a module, also through ONNX where its runtime is installed."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from facepapers.common.cli import UserError
from facepapers.common.vision import resampling

CASES = [(16, 112), (112, 16), (48, 40), (33, 64)]


def pictures(size):
    """Noise, and black and white noise, whose overshoot must be clipped between the two passes."""
    gen = torch.Generator().manual_seed(size)
    found = torch.randint(0, 256, (2, 3, size, size), generator=gen, dtype=torch.uint8)
    found[1] = 255 * (found[1] > 127)
    return found


def by_pillow(images, size, code=Image.Resampling.BICUBIC):
    rows = [np.asarray(Image.fromarray(p.permute(1, 2, 0).numpy()).resize((size, size), code)) for p in images]
    return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2)


def through_onnx(net, example, path, dynamo):
    """What ONNX Runtime makes of a network that one of torch's two exporters wrote, and the graph."""
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    if dynamo:
        pytest.importorskip("onnxscript")
    torch.onnx.export(net.eval(), (example,), path, input_names=["x"], dynamo=dynamo, opset_version=18)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": example.numpy()})[0]), onnx.load(path).graph


@pytest.mark.parametrize(("small", "large"), CASES)
@pytest.mark.parametrize(("name", "code"), [("bicubic", 3), ("bilinear", 2)])
def test_the_module_is_pillows_resize(small, large, name, code):
    images, expected = pictures(small), by_pillow(pictures(small), large, code)
    assert torch.equal(resampling.resize(images, large, name), expected)
    found = resampling.PillowResize(small, large, name)(images)
    assert found.dtype == torch.float32 and torch.equal(found.byte(), expected)
    assert torch.equal(resampling.PillowResize(small, large, name)(images.float()), found)


def test_in_float32_the_module_is_a_grey_level_off_at_most():
    images = pictures(16).expand(2, 3, 16, 16)
    found = resampling.PillowResize(16, 112, dtype=torch.float32)(images)
    apart = (found - by_pillow(images, 112)).abs()
    assert apart.max() <= 1 and apart.mean() < 1e-3


def test_what_is_none_of_pillows_is_refused():
    with pytest.raises(UserError, match="uint8"):
        resampling.resize(pictures(30).float(), 24)
    with pytest.raises(UserError, match="images of 20x30 px"):
        resampling.resize(pictures(30)[..., :20], 24)


def test_at_equal_sizes_nothing_is_done():
    images = pictures(20)
    assert resampling.resize(images, 20) is images
    assert torch.equal(resampling.PillowResize(20, 20)(images), images.float())
    assert not resampling.PillowResize(20, 40).state_dict()  # a network's weights stay as they are


@pytest.mark.parametrize("dynamo", [False, True], ids=["traced", "torch.export"])
@pytest.mark.parametrize(("small", "large"), CASES[:2])
def test_an_exported_resize_is_pillows_up_to_the_border(tmp_path, small, large, dynamo):
    images = pictures(small)
    net = resampling.PillowResize(small, large)
    found, graph = through_onnx(net, images.float(), tmp_path / "net.onnx", dynamo)
    assert torch.equal(found, by_pillow(images, large).float())
    assert "Resize" not in {node.op_type for node in graph.node}


@pytest.mark.parametrize("dynamo", [False, True], ids=["traced", "torch.export"])
def test_an_exported_slope_belongs_to_its_channel_where_the_width_equals_their_number(tmp_path, dynamo):
    """ONNX broadcasts a slope of shape (C,) along the width, so it must be (C, 1, 1)."""
    net = nn.PReLU(6)
    net.weight.data = torch.linspace(-1, 1, 6)
    x = torch.randn(2, 6, 5, 6, generator=torch.Generator().manual_seed(1))
    found, graph = through_onnx(net, x, tmp_path / "net.onnx", dynamo)
    torch.testing.assert_close(found, net(x))
    shapes = {tuple(i.dims) for i in graph.initializer}
    assert (6,) not in shapes or "PRelu" not in {n.op_type for n in graph.node}, shapes
