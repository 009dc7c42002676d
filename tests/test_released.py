"""Released models: ready modules from weights files, their input and outputs, and what is said of missing ones."""

import dataclasses
import json

import pytest
import torch

from facepapers.common.cli import MissingData, UserError
from facepapers.common.data import markups
from facepapers.common.training import checkpoint, released
from facepapers.common.vision import images, networks
from tests.conftest import one_line_error


def saved(path, model, **metadata):
    torch.manual_seed(0)
    for buffer in model.buffers():  # statistics that are not the identity, so that forgetting them would show
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    checkpoint.save_weights(path, model, **metadata)
    return path


def faces(n=3, size=112, seed=0):
    small = torch.rand(n, 3, 7, 7, generator=torch.Generator().manual_seed(seed)) * 255
    return torch.nn.functional.interpolate(small, size=size, mode="bicubic").clamp(0, 255).to(torch.uint8)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Paper -> a small untrained weights file with the metadata that its training writes."""
    from facepapers.papers.coarse_to_fine import config as landmarks
    from facepapers.papers.hybrid_order_distillation import nets
    from facepapers.papers.resup import config as resup

    place = tmp_path_factory.mktemp("weights")
    view = dict(crop=32, margin=1.1, test_shift=0.05, test_log_size=0.05, points=29)
    found = {}
    for row in ("heatmap", "cft"):
        cfg = dataclasses.replace(landmarks.preset("short", row), crop=32)
        model = landmarks.Model(cfg, markups.COFW29)
        found[row] = saved(place / f"{row}.safetensors", model, row=row, **view)
    net = networks.IResNet((1, 1, 1, 1), (8, 8, 8, 8), 16, input_px=32)
    found["embedding"] = saved(place / "embedding.safetensors", net)
    net = nets.make_net("iresnet_quarter", 16, 32)
    settings = json.dumps({"resolution": 16, "teacher_px": 112, "operator": "pil_bicubic"})
    found["embedding16"] = saved(place / "embedding16.safetensors", net, settings=settings)
    cfg = dataclasses.replace(resup.preset("long0", "ce_two"), units=(1, 1), width=4, nets=1)
    from facepapers.papers.resup.nets import PeerNetworks

    peers = PeerNetworks([resup.build_net(cfg, 8)])
    about = dict(row="ce_two", preset="long0", trained_on="ferplus", classes="a b c d e f g h", nets=1, stem=cfg.stem,
                 width=4, units="1 1", input_px=48, rule="majority", precision="bf16", flip_test=True,
                 test_scales="0.93 1.0")  # fmt: skip
    found["expression"] = saved(place / "expression.safetensors", peers, **about)
    found["attributes"] = attributes_file(place / "attributes.safetensors")
    return found


def attributes_file(path):
    from facepapers.papers.face_attributes import config, data, method, shared

    cfg = config.preset("demo", "chosen")
    net = networks.IResNet((1, 1, 1, 1), (8, 8, 8, 8), 16, input_px=32).eval()
    kinds = {"age": data.Attribute("age", data.AGE_CLASSES, True), "gender": data.Attribute("gender", data.GENDER)}
    stages = method.split(net, cfg.cuts)
    branches = {n: method.Branch(stages, 5, a.scores, 16) for n, a in kinds.items()}
    return saved(
        path, method.SharedNet(stages, branches).eval(), row="chosen", starts=json.dumps({"age": 5, "gender": 5}),
        config=json.dumps(dataclasses.asdict(cfg)), trunk=json.dumps(shared.sizes_of(net)),
        attributes=json.dumps({n: dataclasses.asdict(a) for n, a in kinds.items()}),
        frozen=json.dumps({"age": False, "gender": False}),
    )  # fmt: skip


def test_landmarks_are_those_of_the_evaluation(files):
    from facepapers.papers.coarse_to_fine import evaluate
    from facepapers.papers.coarse_to_fine.released import load

    for row in ("heatmap", "cft"):
        ready = load(files[row])
        x = ready.preprocess(faces(size=32))
        found = ready(x).points
        assert found.shape == (3, 29, 2) and not ready.training
        torch.testing.assert_close(found, evaluate.predict(evaluate.load(files[row], torch.device("cpu"))[0], x))
        torch.testing.assert_close(ready(faces(size=32)).points, found)  # uint8 pixels go in as they are


def test_cft_does_without_what_only_training_reads(files, tmp_path):
    from facepapers.papers.coarse_to_fine.released import load

    whole = load(files["cft"])
    path, about = tmp_path / "small.safetensors", checkpoint.read_weights(files["cft"])[1]
    whole_points = whole(faces(size=32)).points
    whole.model.net.auxiliary = torch.nn.ModuleList()
    checkpoint.save_weights(path, whole.model, **about)
    assert path.stat().st_size < files["cft"].stat().st_size
    torch.testing.assert_close(load(path)(faces(size=32)).points, whole_points)


def test_embeddings_are_those_of_the_evaluation(files):
    from facepapers.papers.arcface import evaluate, nets
    from facepapers.papers.arcface.released import load

    ready = load(files["embedding"])
    expected = evaluate.embed(nets.load_net(files["embedding"]), faces(), torch.device("cpu"))
    torch.testing.assert_close(ready(ready.preprocess(faces())).embedding.double(), torch.from_numpy(expected))


def test_low_embeddings_are_those_of_the_evaluation(files):
    from facepapers.papers.hybrid_order_distillation import config, evaluate
    from facepapers.papers.hybrid_order_distillation.released import load

    ready, cfg = load(files["embedding16"]), config.preset("short")
    view = evaluate.View(cfg, networks.load_identity_net(files["embedding16"]), 32, torch.device("cpu"))
    small = ready.preprocess(faces())
    assert small.shape == (3, 3, 16, 16) and torch.equal(ready.preprocess(small), small)
    torch.testing.assert_close(ready(small).embedding.double(), torch.from_numpy(view.embed(faces(), 16)))
    with pytest.raises(UserError) as error:
        ready.preprocess(faces(size=12))
    one_line_error(error, "12x12", "16 px or more")


def test_expressions_are_those_of_the_evaluation(files):
    from facepapers.papers.resup import evaluate
    from facepapers.papers.resup.released import load

    ready = load(files["expression"])
    grey = faces(size=48)[:, :1]
    peers, cfg, classes = evaluate.load(files["expression"], torch.device("cpu"))
    cfg = dataclasses.replace(cfg, precision="fp32")
    found = ready(ready.preprocess(grey)).probabilities
    torch.testing.assert_close(found, evaluate.probabilities(peers, grey, cfg, torch.device("cpu"))[0])
    assert ready.classes == classes and torch.allclose(found.sum(1), torch.ones(3))
    coloured = faces(size=48).float()
    luma = (coloured * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True).expand(-1, 3, -1, -1)
    torch.testing.assert_close(ready(coloured).probabilities, ready(luma).probabilities)


def test_attributes_are_those_of_the_prediction(files):
    from facepapers.papers.face_attributes import predict
    from facepapers.papers.face_attributes.released import load

    ready = load(files["attributes"])
    for frame, size in (("aligned", 112), ("utkface", 200), ("aligned", 500)):
        one = faces(1, size)
        x = predict.aligned(one[0], ready.input_px, frame, None, "x")
        torch.testing.assert_close(ready.preprocess(one, frame), x)
    said = predict.predict(ready.net, ready.attributes, networks.to_input(x, ready.pixels))
    with torch.no_grad():
        found = ready(x)
    assert found["age"].shape == (1, 9) and found["gender"].shape == (1, 2)
    assert float(found["age_years"]) == pytest.approx(said["age"]["years"], abs=0.06)
    assert float(found["gender"].max()) == pytest.approx(said["gender"]["probability"], abs=1e-4)
    with pytest.raises(UserError) as error:
        ready.preprocess(one, "celeba")
    one_line_error(error, "celeba", "aligned, utkface, ferplus")


def test_crops_of_any_size_and_kind_become_squares():
    large = faces(1, 96)
    assert torch.equal(images.squares(large[0], 96), large.float())
    assert images.squares(large[:, :1], 20).shape == (1, 3, 20, 20)
    ramp = torch.arange(96).expand(1, 3, 96, 96).to(torch.uint8)
    assert images.squares(ramp, 24)[0, 0, 0].tolist() == pytest.approx([1.5 + 4 * k for k in range(24)], abs=1)
    for wrong, word in ((faces()[:, :, :50], "square"), (faces().float(), "uint8"), (faces()[:, :2], "(B, 3, H, H)")):
        with pytest.raises(UserError) as error:
            images.squares(wrong, 24)
        one_line_error(error, word)


def test_a_name_without_a_file_and_a_file_that_is_not_there():
    with pytest.raises(UserError) as error:
        released.find("resup", "nowhere.safetensors", ("expression",))
    one_line_error(error, "nowhere.safetensors", "expression")
    with pytest.raises(MissingData) as error:
        released.find("resup", "not-made", ("not-made",))
    one_line_error(error, "not-made", "make reproduce-resup")


def test_settings_come_from_the_file_or_the_record_beside_it(files, tmp_path):
    assert released.settings(files["embedding16"])["resolution"] == 16
    path = saved(tmp_path / "model.safetensors", torch.nn.Linear(2, 2))
    assert released.settings(path) == {}
    (tmp_path / "run.json").write_text('{"config": {"resolution": 8}}')
    assert released.settings(path) == {"resolution": 8}


def test_half_precision_files_load_as_float32(files, tmp_path):
    from facepapers.papers.arcface.released import load

    ready = load(files["embedding"])
    path = tmp_path / "half.safetensors"
    checkpoint.save_weights(path, load(files["embedding"]).net.half())
    half = load(path)
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    torch.testing.assert_close(half(faces()).embedding, ready(faces()).embedding, atol=5e-3, rtol=0)
