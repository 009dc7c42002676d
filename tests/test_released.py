"""Released models: ready modules from weights files, their input and outputs, and what is said of missing ones."""

import dataclasses
import json
import shlex
import shutil
from importlib import import_module

import pytest
import torch

from facepapers.common import paths, storage
from facepapers.common.cli import MissingData, UserError
from facepapers.common.data import markups
from facepapers.common.evidence import claims, model_cards
from facepapers.common.prediction import command as command_line
from facepapers.common.prediction import finding
from facepapers.common.tools import graph, release, report, weights
from facepapers.common.training import checkpoint, released
from facepapers.common.vision import alignment, images, networks
from facepapers.papers.resup import config as resup_config
from tests.conftest import REPOSITORY, TINY, one_line_error, tiny_faces


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
    found["embedding"] = saved(place / "embedding.safetensors", net, row="arcface")
    net = nets.make_net("iresnet_quarter", 16, 32)
    settings = json.dumps({"resolution": 16, "teacher_px": 112, "operator": "pil_bicubic"})
    found["embedding16"] = saved(place / "embedding16.safetensors", net, row="alone", settings=settings)
    cfg = dataclasses.replace(resup.preset("long0", "ce_two"), units=(1, 1), width=8, nets=1)
    from facepapers.papers.resup.nets import PeerNetworks

    peers = PeerNetworks([resup.build_net(cfg, 8)])
    about = dict(row="ce_two", preset="long0", trained_on="ferplus", classes="a b c d e f g h", nets=1, stem=cfg.stem,
                 width=8, units="1 1", input_px=48, rule="majority", precision="bf16", flip_test=True,
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
    coloured, seen = faces(size=48), []
    ready.peers.register_forward_pre_hook(lambda module, given: seen.append(given[0][0]))
    ready(coloured)
    red, green, blue = coloured.float().unbind(1)
    torch.testing.assert_close(seen[1][:, 0], 0.299 * red + 0.587 * green + 0.114 * blue)  # the view at scale 1


def test_attributes_are_those_of_the_prediction(files):
    from facepapers.papers.face_attributes import predict
    from facepapers.papers.face_attributes.released import load

    ready = load(files["attributes"])
    for frame, size in (("aligned", 64), ("utkface", 60)):
        one = faces(1, size)
        whole = torch.tensor([[-0.5, -0.5, size, size]])
        said = predict.attributes(ready, one, whole, frame=frame)
        with torch.no_grad():
            found = ready(ready.preprocess(one, frame))
        assert found["age"].shape == (1, 9) and found["gender"].shape == (1, 2)
        torch.testing.assert_close(found, said, rtol=1e-3, atol=1e-3)
    worded = predict.worded(ready, {name: value[0] for name, value in said.items()})
    assert worded["age"]["years"] == round(float(said["age_years"]), 1)
    assert worded["gender"]["probability"] == pytest.approx(float(said["gender"].max()), abs=1e-4)
    with pytest.raises(UserError) as error:
        ready.preprocess(one, "celeba")
    one_line_error(error, "celeba", "aligned, utkface, ferplus")


def test_crops_of_any_size_and_kind_become_squares():
    large = faces(1, 96)
    assert torch.equal(images.squares(large[0], 96), large.float())
    assert images.squares(large[:, :1], 20).shape == (1, 3, 20, 20)
    ramp = torch.arange(96).expand(1, 3, 96, 96).to(torch.uint8)
    assert images.squares(ramp, 24)[0, 0, 0].tolist() == pytest.approx([1.5 + 4 * k for k in range(24)], abs=1)
    for wrong, word in ((faces()[:, :, :50], "square"), (faces().float(), "uint8"), (faces()[:, :2], "(B, 3, H, H)"),
                        (faces().numpy(), "a ndarray; give a tensor")):  # fmt: skip
        with pytest.raises(UserError) as error:
            images.squares(wrong, 24)
        one_line_error(error, word)


def test_no_two_papers_have_a_row_of_one_name():
    """`released.find` tells another paper's weights by their row."""
    seen = [row for paper in claims.papers() for row in import_module(f"facepapers.papers.{paper}.released").ROWS]
    assert len(seen) > 50 and len(seen) == len(set(seen))


def test_a_damaged_released_file_answers_nothing(tmp_path):
    """One bit of one weight: the hash beside the file tells."""
    folder = shutil.copytree(released.folder_of("resup", "expression"), tmp_path / "expression")
    path = folder / released.FILE
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        import_module("facepapers.papers.resup.released").load(path)
    one_line_error(error, path, "damaged", "released.json")


def test_a_name_without_a_file_and_a_file_that_is_not_there():
    with pytest.raises(UserError) as error:
        released.find("resup", "nowhere.safetensors", ("expression",))
    one_line_error(error, "nowhere.safetensors", "expression")
    with pytest.raises(MissingData) as error:
        released.find("resup", "not-made", ("not-made",))
    one_line_error(error, "not-made", "make reproduce-resup", "PRESET=demo", "--weights FILE")


def test_what_is_not_released_tells_the_command_and_what_is(tmp_path, monkeypatch):
    """The same words from the commands, the hub and `make weights`; the time is that of the records."""
    release_of = lambda paper, name: released.folder_of(paper, name) / released.FILE
    card = tmp_path / "papers/new_paper/weights/cards.toml"
    card.parent.mkdir(parents=True)
    card.write_text('[one]\ncommand = "PRESET=short ROWS=\'a b\'"\nruns = ["a", "b"]\n[two]\n')
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "RECORDED", tmp_path / "results")
    monkeypatch.setattr(paths, "LOCAL", tmp_path / "local")
    command = "`make reproduce-new-paper PRESET=short ROWS='a b'`"
    for run, seconds in (("a", 600), ("b", 1200)):
        assert released.training("new_paper", "one") == command, "no time without all the records"
        with monkeypatch.context() as patch:
            patch.setattr(paths, "INSTALLED", True)
            assert released.training("new_paper", "one") == f"{command} in a clone of the repository"
        (folder := tmp_path / "results/new_paper" / run).mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({"seconds": seconds}))
    said = (f"{command} (30 minutes when recorded)", "--weights FILE")
    with pytest.raises(MissingData) as error:
        command_line.weights(None, "new_paper", "one")
    one_line_error(error, "one: no model of new-paper is released yet", *said, "released so far: none")
    release_of("new_paper", "two").parent.mkdir()
    release_of("new_paper", "two").touch()
    with pytest.raises(MissingData) as error:
        released.find("new_paper", "one", ("one", "two"))
    one_line_error(error, "one: not released yet", *said, "released so far: two (new-paper)")
    monkeypatch.setattr(claims, "papers", lambda: ["new_paper"])
    monkeypatch.setattr(weights, "names", lambda paper: ("one",))
    with pytest.MonkeyPatch.context() as patch:
        shown = []
        patch.setattr("builtins.print", lambda *words, **_: shown.extend(words))
        weights.main([])
    assert said[0] in shown[0] and "not released yet" in shown[0]


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


# Fewer bits


@pytest.mark.parametrize(("stored", "largest"), [("int8", 127), ("int16", 32767)])
def test_integer_weights_come_back_within_half_a_step(tmp_path, stored, largest):
    torch.manual_seed(0)
    tensors = {"a": torch.randn(8, 600) * torch.logspace(-3, 2, 8)[:, None], "bias": torch.randn(9000),
               "small": torch.randn(4, 4), "count": torch.tensor(3)}  # fmt: skip
    path = tmp_path / "x.safetensors"
    checkpoint.save_tensors(path, checkpoint.compact(tensors, stored), row="x")
    found, about = checkpoint.read_weights(path)
    assert found.keys() == tensors.keys() and about == {"row": "x"} and found["count"] == 3
    step, moved = tensors["a"].abs().amax(1, keepdim=True) / largest, (found["a"] - tensors["a"]).abs()
    assert (moved <= (0.5 + 2e-7 * largest) * step).all() and moved.any()  # float32's rounding comes on top
    assert checkpoint.compact(tensors, stored)["a"].dtype == getattr(torch, stored)
    assert torch.equal(found["bias"], tensors["bias"]) and torch.equal(found["small"], tensors["small"])
    assert checkpoint.compact(tensors)["a"].dtype == torch.float16
    assert all(torch.equal(value, tensors[name]) for name, value in checkpoint.compact(tensors, "float32").items())
    own = {"layer": torch.ones(3, 4), "layer.scale": torch.full((3, 1), 2.0)}  # a network's own parameter
    checkpoint.save_tensors(path, own)
    assert checkpoint.read_weights(path)[0].keys() == own.keys()
    with pytest.raises(UserError) as error:
        checkpoint.compact({"a": torch.full((2, 2), 1e6)})
    one_line_error(error, "a:", "float16")


# Releasing a run


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository without released models, whose one card is of drawn faces; the detector misses the first of them."""
    folder = tmp_path / "papers" / "coarse_to_fine" / "weights"
    folder.mkdir(parents=True)
    text = (REPOSITORY / "papers/coarse_to_fine/weights/cards.toml").read_text()
    (folder / "cards.toml").write_text(text.replace("_eyecentre", "_interpupil"))
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "RECORDED", tmp_path / "results")
    monkeypatch.setattr(finding, "finder", lambda *words, **more: two_faces)
    return tmp_path


def two_faces(photo, name):
    """The face that fills the photo, and one beside it."""
    faces = tiny_faces()
    if torch.equal(photo, faces.images[int((faces.split == 1).nonzero()[0])]):
        raise UserError(f"{name}: no face was found")
    side = float(photo.shape[-1])
    five = (torch.tensor(alignment.ALIGNED) * side).float()
    boxes = torch.tensor([[0.0, 0, side, side], [2 * side, 0, side, side]])
    return finding.Faces(boxes, torch.stack([five, five + torch.tensor([2 * side, 0])]))


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """The folder of a finished run of a few steps, with its weights."""
    from facepapers.papers.coarse_to_fine import data, train
    from tests.conftest import TINY_FACES

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "EMBEDDED", TINY_FACES)
        faces = tiny_faces()
        patch.setattr(data, "load", lambda name: faces)
        patch.setattr(train, "MEAN_FACES", 16)
        place = tmp_path_factory.mktemp("run")
        record = train.main([*TINY.split(), "--steps", "3", "--row", "cft", "--out", str(place)])
    return place / "coarse_to_fine" / record["run"]


def test_a_run_is_released_listed_and_verified(tiny, root, run_folder, monkeypatch, capsys):
    release.main([str(run_folder), "landmarks68_cft", "--device", "cpu"])
    folder = root / "papers/coarse_to_fine/weights/landmarks68_cft"
    record, facts = storage.read_json(run_folder / "run.json"), storage.read_json(folder / "released.json")
    assert facts["weights_sha256"] == record["weights"]["sha256"] and facts["sha256"] == storage.sha256(
        folder / released.FILE
    )
    assert facts["metrics"]["nme_interpupil_pct"] == pytest.approx(record["metrics"]["nme_interpupil_pct"], abs=0.05)
    assert (folder / released.FILE).stat().st_size < 0.5 * (run_folder / "model.safetensors").stat().st_size
    assert 0 < facts["metrics"]["missed_pct"] < 50
    assert 0 < facts["metrics"]["nme_interpupil_detected_pct"] < 100, "the face beside is not the one that is tested"
    card = (folder / "README.md").read_text()
    assert "faces that it finds (%) | " in card and "| – |" in card, "the run's own weights were not tested so"
    assert f"{facts['metrics']['nme_interpupil_pct']:.2f} [" in card and record["source"]["commit"] in card
    assert "matrices in float16:" in card and "in float32:" in model_cards.origin(facts | {"stored": "float32"}, record)
    record["source"]["dirty"] = True
    assert f"{record['source']['commit']}` with uncommitted changes" in model_cards.origin(facts, record)
    about = pytest.importorskip("yaml").safe_load(card.split("---")[1])
    (result,) = about["model-index"][0]["results"]
    assert about["license_name"] == "research-only" and result["dataset"]["type"] == "embedded"
    assert result["metrics"][0]["value"] == pytest.approx(facts["metrics"]["nme_interpupil_pct"], rel=1e-3)
    monkeypatch.setattr(claims, "papers", lambda: ["coarse_to_fine"])
    monkeypatch.setattr(weights, "names", lambda paper: ("landmarks68", "landmarks68_cft"))
    capsys.readouterr()
    weights.main([])
    said = capsys.readouterr().out
    assert "not released" in said and "ok" in said
    assert report.check_released("coarse_to_fine", claims.Evidence()) == len(facts["metrics"]) + len(record["metrics"])


def test_the_record_is_kept_unless_it_is_committed(tiny, root, run_folder):
    committed = root / "results" / "coarse_to_fine" / run_folder.name
    kept = root / "results/coarse_to_fine/released/landmarks68_cft/run"
    release.main([str(run_folder), "landmarks68_cft"])
    assert (kept / "run.json").exists()
    shutil.copytree(run_folder, committed)
    whole = (committed / "run.json").read_bytes()
    edit(committed / "run.json", "weights", {"sha256": "0" * 64})
    shutil.rmtree(kept)
    release.main([str(run_folder), "landmarks68_cft"])
    assert (kept / "run.json").exists(), "the committed record of that name is of other weights"
    (committed / "run.json").write_bytes(whole)
    release.main([str(committed), "landmarks68_cft"])
    assert not kept.exists()
    folder = root / "papers/coarse_to_fine/weights/landmarks68_cft"
    assert model_cards.source_record(folder, storage.read_json(folder / "released.json"))["folder"] == committed


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f, e: (f / "model.safetensors").write_bytes(b"x"), "the file is not the one"),
        (lambda f, e: (e / "predictions.npz").write_bytes(b"x"), "predictions.npz is not the file"),
        (lambda f, e: edit(f / "released.json", "metrics", {"nme_interpupil_pct": 1.0}), "nme_interpupil_pct is 1.0"),
        (lambda f, e: edit(e / "run" / "run.json", "weights", {"sha256": "0"}), "names other weights"),
        (lambda f, e: (f / "README.md").write_text("old"), "its card is stale"),
    ],
)
def test_what_does_not_belong_together_is_found(tiny, root, run_folder, spoil, words):
    release.main([str(run_folder), "landmarks68_cft"])
    folder = root / "papers/coarse_to_fine/weights/landmarks68_cft"
    assert model_cards.problems(folder) == []
    spoil(folder, model_cards.evidence(folder))
    assert len(model_cards.problems(folder)) == 1 and words in model_cards.problems(folder)[0]
    with pytest.raises(UserError) as error:
        report.check_released("coarse_to_fine", claims.Evidence())
    one_line_error(error, words)


def edit(path, key, value):
    storage.write_json(path, storage.read_json(path) | {key: value})


def test_a_file_that_predicts_otherwise_is_refused_and_nothing_is_left(tiny, root, run_folder, monkeypatch):
    real = checkpoint.compact
    monkeypatch.setattr(checkpoint, "compact", lambda tensors, stored: {k: 0.9 * v for k, v in real(tensors).items()})
    with pytest.raises(UserError) as error:
        release.main([str(run_folder), "landmarks68_cft"])
    one_line_error(error, "nme_interpupil_pct is", "more than 0.05 away", "--stored int16")
    assert not (root / "results").exists()
    assert [p.name for p in (root / "papers/coarse_to_fine/weights").iterdir()] == ["cards.toml"]


def test_a_file_above_the_limits_is_refused(tiny, root, run_folder, monkeypatch):
    for limit in ("FILE_BYTES", "ALL_BYTES"):
        with monkeypatch.context() as patch:
            patch.setattr(released, limit, 1000)
            with pytest.raises(UserError) as error:
                release.main([str(run_folder), "landmarks68_cft"])
            one_line_error(error, "MiB, limit 0", "--stored int8")


def test_the_limit_of_all_files_counts_those_that_stay(root, tmp_path, monkeypatch):
    monkeypatch.setattr(released, "ALL_BYTES", 1000)
    for name in ("a", "b"):
        (folder := released.folder_of("resup", name)).mkdir(parents=True)
        (folder / released.FILE).write_bytes(b"x" * 400)
    (tmp_path / "new").write_bytes(b"x" * 500)
    release.check_size(tmp_path / "new", released.folder_of("resup", "a"))  # it replaces one
    with pytest.raises(UserError, match="all files would have"):
        release.check_size(tmp_path / "new", released.folder_of("resup", "c"))


def test_what_cannot_be_released_is_said_in_one_line(tiny, root, run_folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run_folder, other)
    cases = [(["arcface/none", "embedding"], "no record of that name"), ([str(run_folder), "face"], "landmarks68"),
             ([str(run_folder), "landmarks68", "--stored", "int4"], "int8")]  # fmt: skip
    for argv, words in cases:
        with pytest.raises(UserError) as error:
            release.main(argv)
        one_line_error(error, words)
    (other / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UserError) as error:
        release.main([str(other), "landmarks68"])
    one_line_error(error, "not the weights that the record names")
    (other / "model.safetensors").unlink()
    with pytest.raises(MissingData) as error:
        release.main([str(other), "landmarks68"])
    one_line_error(error, "weights are not here")
    with pytest.raises(UserError) as error:
        release.main([str(other), "embedding"])
    one_line_error(error, "no model of coarse_to_fine")  # before the advice to train again


def test_without_run_or_name_the_runs_with_weights_are_listed(root, monkeypatch):
    monkeypatch.setattr(paths, "LOCAL", root / "local")
    for given in (["", ""], ["coarse_to_fine/x", ""], ["", "landmarks68"]):
        with pytest.raises(UserError) as error:
            release.main(given)
        assert error.value.exit_code == 2
        one_line_error(error, "RUN=<paper>/<run> NAME=<model>", "no run here has its weights", "make weights")
    runs = ["coarse_to_fine/embedded-a", *(f"coarse_to_fine/lfpw-{k}" for k in range(5)), "other/lfw-a"]
    for place, name in [*(("local", run) for run in runs), ("results", "coarse_to_fine/lfpw-0")]:
        folder = root / place / name
        folder.mkdir(parents=True)
        for file in ("run.json", "model.safetensors"):
            (folder / file).touch()
    (root / "local/coarse_to_fine/lfpw-2/run.json").unlink()  # without its record nothing is known of it
    with pytest.raises(UserError) as error:
        release.main(["", ""])
    said = "of coarse_to_fine lfpw-0, lfpw-1, lfpw-3, lfpw-4 and 1 more (model: landmarks68 or landmarks68_cft)"
    one_line_error(error, f"weights are here {said}")
    assert "other" not in str(error.value), "a paper without cards releases nothing"


# The committed models and their cards

NAMES = {paper: weights.names(paper) for paper in claims.papers()}
MODELS = [(paper, name) for paper in NAMES for name in NAMES[paper]]


def test_a_papers_models_are_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    for paper, name in (("a", "one"), ("b", "two")):
        file = released.folder_of(paper, name) / released.FILE
        file.parent.mkdir(parents=True)
        file.touch()
    assert [folder.name for folder in released.folders("a")] == ["one"]
    assert [folder.name for folder in released.folders()] == ["one", "two"]


def test_lists_of_a_record_are_tuples_of_the_settings():
    cfg = dataclasses.replace(resup_config.preset("long0", "ce_two"), units=(1, 2))
    written = json.loads(json.dumps(dataclasses.asdict(cfg)))
    assert released.as_config(resup_config.Config, written) == cfg


def test_the_committed_models_are_whole():
    folders = released.folders()
    assert [model_cards.problems(folder) for folder in folders] == [[] for _ in folders]
    assert sum((f / released.FILE).stat().st_size for f in folders) <= released.ALL_BYTES
    for paper in NAMES:
        assert (
            (REPOSITORY / "papers" / paper / "weights" / "LICENSE").read_text().startswith("Weights for research only")
        )


@pytest.mark.parametrize(("paper", "name"), MODELS)
def test_the_command_of_a_card_makes_the_recorded_runs(paper, name):
    text = model_cards.words(paper, name)
    given = dict(word.split("=", 1) for word in shlex.split(text["command"]))
    names = text["runs"]
    records = [storage.read_json(paths.RECORDED / paper / run / "run.json") for run in names]
    assert all(record["seconds"] > 0 for record in records) and records[-1]["weights"]
    config = import_module(f"facepapers.papers.{paper}.config")
    plan, args = config.PLAN[given["PRESET"]], given.get("ARGS", "").split()
    data = args[args.index("--data") + 1] if "--data" in args else plan.data[0]
    jobs = graph.of_plan(paper, given["PRESET"], data, given["ROWS"].split(), [0])
    assert given.get("SEEDS", "0") == "0" and (plan.seeds == (0,) or "SEEDS" in given)
    assert [job.name for job in jobs] == names, "also what the last one needs"
    assert ("COMPILE" in given) == any(record["environment"].get("compiled") for record in records)
    facts = released.folder_of(paper, name) / released.FACTS
    assert not facts.exists() or storage.read_json(facts)["run"] == names[-1]


def test_the_hub_has_every_model_and_no_other():
    import hubconf

    entries = {name for name, value in vars(hubconf).items() if callable(value) and value.__module__ == "hubconf"}
    assert entries - {"_load"} == {name for _, name in MODELS}


@pytest.mark.parametrize(("paper", "name"), MODELS)
def test_the_lines_of_a_card_run(files, monkeypatch, paper, name):
    """Prediction and a step of the reader's own loop, on a small untrained network in the released one's place."""
    small = {"landmarks68": "heatmap", "landmarks68_cft": "cft", "expression_noisy": "expression"}.get(name, name)
    monkeypatch.setattr(released, "find", lambda *_: files[small])
    generator = torch.Generator().manual_seed(0)
    given = torch.randint(8, (2000,), generator=generator)
    names = {
        "faces": faces(4), "labels": given[:4], "points": 32 * torch.rand(4, 29, 2, generator=generator),
        "distance_px": torch.full((4,), 12.0), "people": 9, "given_labels": given,
        "teacher_embeddings": torch.randn(4, 16, generator=generator),
        "logits_of_training_set": torch.randn(2000, 8, generator=generator), "years": torch.tensor([3, 20, 40, 70]),
        "gender": torch.tensor([0, 1, 1, 0]), "ethnicity": torch.tensor([0, 1, 2, 3]),
    }  # fmt: skip
    text = model_cards.words(paper, name)["use"]
    assert f'load("{name}")' in text and len(text.strip().splitlines()) <= 15
    exec(compile(text, name, "exec"), names)
    assert torch.isfinite(names["loss"]) and "found" in names
