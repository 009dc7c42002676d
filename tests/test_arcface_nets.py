"""Networks against published parameter and multiply-add counts, weights files, golden outputs."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from facepapers.common.cli import UserError
from facepapers.common.training import checkpoint
from facepapers.common.vision.networks import to_input
from facepapers.papers.arcface.nets import NETS, UNITS, IResNet, load_net, make_net

torch.set_num_threads(1)
SHARED = Path(__file__).resolve().parents[2] / "shared" / "weights"

# parameters, bytes of the float32 state in millions, GMACs at 112 px. Sources: insightface's classes and README for the
# first seven, arXiv 1804.07573 for MobileFaceNet (0.99 M, 221 M multiply-adds), foamliu's class for the last.
PUBLISHED = {
    "iresnet18": (24_025_600, 96.2, 2.610),
    "iresnet34": (34_139_328, 136.7, 4.460),
    "iresnet50": (43_590_848, 174.5, 6.309),
    "iresnet100": (65_156_160, 260.9, 12.090),
    "mbf": (2_059_520, 8.33, 0.4375),
    "mbf_large": (6_314_880, 25.5, 1.817),
    "mobilefacenet": (1_003_136, None, 0.221),
    "mobilefacenet_relu": (999_936, None, None),
}


@pytest.mark.parametrize("name", NETS)
def test_published_sizes(name):
    parameters, megabytes, gmacs = PUBLISHED[name]
    with torch.device("meta"):
        net = make_net(name).eval()
        with FlopCounterMode(display=False) as counter:
            net(torch.zeros(1, 3, 112, 112))
    assert sum(p.numel() for p in net.parameters()) == parameters
    if megabytes:
        size = sum(v.numel() * v.element_size() for v in net.state_dict().values()) / 1e6
        assert size == pytest.approx(megabytes, abs=0.06)
    if gmacs:  # a multiply-add is two floating-point operations
        assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, abs=0.0011)


def test_mobilefacenet_against_both_published_counts():
    """With 512 features it is insightface's scale 1. The paper's 0.99 M is met without the PReLU slopes, truncated."""
    with torch.device("meta"):
        assert sum(p.numel() for p in make_net("mbf", scale=1).parameters()) == 1_200_512
        net = make_net("mobilefacenet")
    slopes = sum(m.weight.numel() for m in net.modules() if isinstance(m, torch.nn.PReLU))
    assert (sum(p.numel() for p in net.parameters()) - slopes) // 10_000 == 99


def test_iresnet_details_that_copies_get_wrong():
    with torch.device("meta"):
        net = make_net("iresnet50", dropout=0.4)
    assert net.conv1.stride == (1, 1)
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        assert (stage[0].conv1.stride, stage[0].conv2.stride) == ((1, 1), (2, 2))
        assert stage[0].downsample[0].stride == (2, 2) and stage[1].downsample is None
    assert [len(s) for s in (net.layer1, net.layer2, net.layer3, net.layer4)] == [3, 4, 14, 3]
    assert net.dropout.p == 0.4 and net.fc.bias is not None
    assert not net.features.weight.requires_grad and net.features.bias.requires_grad


def test_embedding_length_is_the_root_of_the_dimension():
    """The last batch normalisation's scale is fixed at 1, so mean squared length = number of features."""
    torch.manual_seed(0)
    net = IResNet((1, 1, 1, 1), (8, 8, 8, 8), 32, input_px=32).train()
    x = torch.randn(64, 3, 32, 32)
    assert net(x).square().sum(1).mean().item() == pytest.approx(32, rel=1e-3)
    with pytest.raises(UserError, match="multiple of 16"):
        IResNet(UNITS[18], input_px=100)


@pytest.mark.parametrize("name", ["iresnet18", "mobilefacenet", "mobilefacenet_relu"])
def test_outputs_are_float32_under_autocast_and_every_parameter_learns(name):
    torch.manual_seed(0)
    net = IResNet((1, 1, 1, 1), (8, 8, 16, 16), 32, input_px=32) if name == "iresnet18" else make_net(name)
    side = 32 if name == "iresnet18" else 112
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = net(torch.randn(2, 3, side, side))
    assert y.dtype == torch.float32 and y.ndim == 2
    (y * torch.randn_like(y)).sum().backward()
    without = [n for n, p in net.named_parameters() if p.requires_grad and (p.grad is None)]
    assert not without


def test_pixel_rules():
    images = torch.tensor([0, 127, 255], dtype=torch.uint8).view(1, 1, 1, 3).expand(1, 3, 1, 3)
    rgb = to_input(images)[0, :, 0]
    torch.testing.assert_close(rgb, ((images[0, :, 0] / 255) - 0.5) / 0.5, atol=1e-6, rtol=0)
    torch.testing.assert_close(to_input(images, "mxnet")[0, 0, 0], torch.tensor([-127.5, -0.5, 127.5]) * 0.0078125)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(to_input(images, "imagenet")[0, :, 0, 2], (1 - mean) / std)


# ---- Weights files


SMALL = {
    "ir": lambda: IResNet((1, 2, 1, 1), (8, 8, 16, 24), 32, input_px=48),
    "ir-strided": lambda: IResNet((1, 1, 2, 1), (8, 8, 16, 24), 32, input_px=96, strided_stem=True),
    "mobilefacenet": lambda: make_net("mobilefacenet"),
    "mbf": lambda: make_net("mbf", features=64),
    "mbf_large-like": lambda: make_net("mbf_large", blocks=(2, 1, 3, 1), scale=1),
    "mobilefacenet_relu": lambda: make_net("mobilefacenet_relu", features=64),
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_files_tell_their_architecture(name, suffix, tmp_path):
    torch.manual_seed(0)
    net, path = SMALL[name]().eval(), tmp_path / f"net{suffix}"
    if suffix == ".pt":
        torch.save({"module." + k: v for k, v in net.state_dict().items()}, path)
    else:
        save_file(net.state_dict(), path)
    loaded = load_net(path)
    assert not loaded.training and type(loaded) is type(net) and loaded.pixels == net.pixels
    side = getattr(net, "input_px", 112)
    assert getattr(loaded, "input_px", 112) == side
    x = torch.randn(1, 3, side, side)
    torch.testing.assert_close(loaded(x), net(x))


WRAPPED = {  # what trainers save around a network's tensors
    "plain": lambda state: state,
    "DataParallel": lambda state: {f"module.{k}": v for k, v in state.items()},
    "compiled": lambda state: {f"_orig_mod.{k}": v for k, v in state.items()},
    "both": lambda state: {f"_orig_mod.module.{k}": v for k, v in state.items()},
    "a part compiled": lambda state: {k.replace("layer1.", "layer1._orig_mod."): v for k, v in state.items()},
    "without counters": lambda state: {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "insightface": lambda state: {"state_dict_backbone": state, "state_dict_softmax_fc": {"w": torch.ones(1)}},
    "model": lambda state: {"model": state, "optimizer": {"state": {}}},
    "twice": lambda state: {"model": {"state_dict": {f"module.{k}": v for k, v in state.items()}}},
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_weights_load_strictly_out_of_any_wrapper(kind, tmp_path):
    torch.manual_seed(0)
    net, path = SMALL["ir"](), tmp_path / "net.pt"
    state = net.state_dict()
    for i, tensor in enumerate(state.values()):
        tensor.fill_(i)  # counters too
    torch.save(WRAPPED[kind](state), path)
    loaded = load_net(path).state_dict()
    assert loaded.keys() == state.keys()
    for name, tensor in state.items():
        counter = kind == "without counters" and name.endswith("num_batches_tracked")
        assert torch.equal(loaded[name], torch.zeros_like(tensor) if counter else tensor), name


def test_our_own_weights_load_out_of_a_compiled_networks_file(tmp_path):
    torch.manual_seed(0)
    net, other = SMALL["mobilefacenet"](), SMALL["mobilefacenet"]()
    prefixed = {f"_orig_mod.{k}": v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    checkpoint.load_weights(write(tmp_path / "w.safetensors", prefixed), other)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


def test_what_is_no_state_dict_is_named(tmp_path):
    for value, said in (([1], "holds a list"), ({"epoch": 3}, "epoch is a int"), ({}, "it is empty")):
        torch.save(value, tmp_path / "x.pt")
        with pytest.raises(UserError, match=f"x.pt: .*{said}.*save `model.state_dict"):
            load_net(tmp_path / "x.pt")


def write(path, state):
    save_file(state, path)
    return path


def test_weights_of_another_architecture(tmp_path):
    state = SMALL["mobilefacenet"]().state_dict()
    missing = {k: v for k, v in state.items() if k != "layers.3.layers.2.layers.0.layers.1.bias"}
    with pytest.raises(UserError, match=r"another architecture: 1 keys missing \(layers.3.layers.2.layers.0"):
        load_net(write(tmp_path / "a.safetensors", missing))
    with pytest.raises(UserError, match=r"another architecture: 1 keys unknown \(head.weight"):
        load_net(write(tmp_path / "b.safetensors", state | {"head.weight": torch.zeros(2)}))
    wrong = {**state, "conv_sep.layers.1.bias": torch.zeros(3)}
    with pytest.raises(UserError, match=r"1 shapes differ \(conv_sep.layers.1.bias \(3,\) instead of \(512,\)"):
        load_net(write(tmp_path / "c.safetensors", wrong))
    with pytest.raises(UserError, match=r"d.safetensors: weights of another architecture: its keys \(blocks.0.attn"):
        load_net(write(tmp_path / "d.safetensors", {"blocks.0.attn": torch.zeros(2)}))
    half = {"fc.weight": torch.zeros(4, 9), "layer1.0.conv2.weight": torch.zeros(1)}
    with pytest.raises(UserError, match="another architecture"):
        load_net(write(tmp_path / "e.safetensors", half))


class Evil:
    def __reduce__(self):
        return print, ("code ran",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_unreadable_weights_files(tmp_path, capsys):
    with pytest.raises(UserError, match=r"absent.pt: no such weights file"):
        load_net(tmp_path / "absent.pt")
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil()))
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "nested.pt")
    (tmp_path / "x.pt").write_text("Xu]a")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "model.pt").read_bytes()[:700])
    for name in ("text.pt", "evil.pth", "x.pt", "model.pt"):
        with pytest.raises(UserError, match=f"{name}: not tensors alone.*save `model.state_dict"):
            load_net(tmp_path / name)
    for name, said in (("nested.pt", "nested.pt"), ("cut.pt", "cut.pt: unreadable.*fetch it again")):
        with pytest.raises(UserError, match=said):
            load_net(tmp_path / name)
    assert "code ran" not in capsys.readouterr().out
    with pytest.raises(UserError, match=r"'iresnet51' is unknown.*iresnet50"):
        make_net("iresnet51")


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/weights beside the checkout")
def test_golden_outputs_of_the_given_mobilefacenet():
    net = load_net(SHARED / "mobilefacenet-ms1m-128d.safetensors")
    golden = np.load(SHARED / "mobilefacenet-golden.npz")
    images, expected = torch.from_numpy(golden["image"]).permute(0, 3, 1, 2), torch.from_numpy(golden["embedding"])
    with torch.no_grad():
        found = net(to_input(images, net.pixels))
        swapped = net(to_input(images.flip(1), net.pixels))
    error = (found - expected).norm(dim=1) / expected.norm(dim=1)
    assert error.max() < 1e-3
    assert ((swapped - expected).norm(dim=1) / expected.norm(dim=1)).min() > 1e-2  # BGR must not pass
