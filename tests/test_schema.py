"""run.json and claims.toml against their schema: whatever is wrong in either is one line, and `make verify` fails."""

import json
import shutil
import tomllib

import pytest
from test_report import PAPER, fresh, put, root  # noqa: F401  (a fixture)

from facepapers.common import cli, storage
from facepapers.common.evidence import claims, environment, integrity, plans, runs, schema
from facepapers.common.tools import report
from tests.conftest import one_line_error


@pytest.fixture
def verified(root):  # noqa: F811
    """The folder of one record in a repository that `make verify` passes."""
    folder = put(root, "cft", 6.3)
    fresh(root)
    report.verify()
    return folder


def fails(*words):
    with pytest.raises(cli.UserError) as error:
        report.verify()
    one_line_error(error, *words)


def change(folder, edit, seal=True):
    path = folder / "run.json"
    record = json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(schema.sealed(record) if seal else record))


RECORDS = {
    "unknown key": (lambda r: r.update(metrcs={}), "unknown key 'metrcs'", "did you mean metrics?"),
    "missing key": (lambda r: r.pop("selection"), "lacks selection"),
    "missing hash": (lambda r: r.pop("history_sha256"), "lacks history_sha256"),
    "text for a number": (lambda r: r.update(seconds="12"), "seconds is '12', not a number"),
    "truth for a number": (lambda r: r.update(seconds=True), "seconds is True, not a number"),
    "list for a table": (lambda r: r.update(config=[]), "config is [], not a table"),
    "no name of the data": (lambda r: r["data"].pop("name"), "data lacks name"),
    "number for a seed": (lambda r: r["config"].update(seed=0.5), "seed is 0.5, not a whole number"),
    "text for a metric": (lambda r: r["metrics"].update(nme_interpupil_pct="6"), "nme_interpupil_pct is '6'"),
    "weights without a hash": (lambda r: r["weights"].pop("sha256"), "weights lacks sha256"),
    "unknown row": (lambda r: r["config"].update(row="cfd"), "row 'cfd'", "did you mean cft?"),
    "unknown preset": (lambda r: r["config"].update(preset="shrt"), "preset 'shrt'", "did you mean short?"),
    "other overrides": (lambda r: r["overrides"].update(lr=0.5), "lr is not the same in config and overrides"),
    "another paper's": (lambda r: r.update(paper="resup"), "records resup/", "another run"),
    "another run's": (lambda r: r.update(run="x"), "records coarse_to_fine/x", "another run"),
    "a later version": (lambda r: r.update(schema=3), "version 3", "update the code"),
    "no version": (lambda r: r.pop("schema"), "lacks schema"),
    "metric that is not given": (lambda r: r["metrics"].update(nme_interpupil_occluded_pct=1.0), "cannot be computed"),
}


@pytest.mark.parametrize("what", RECORDS)
def test_a_record_against_its_schema(verified, what):
    edit, *words = RECORDS[what]
    change(verified, edit)
    fails(verified / "run.json", *words)


@pytest.mark.parametrize("content", [b"[]", b'"x"', b"{}"])
def test_a_record_that_is_no_record(verified, content):
    (verified / "run.json").write_bytes(content)
    fails(verified / "run.json", "lacks" if content == b"{}" else "not a table")


def test_a_record_changed_by_hand_breaks_its_seal(verified):
    """A setting, a date, a hash: even where nothing that is recomputed tells."""
    for key, value in (("started", "2027-01-01T00:00:00Z"), ("selection", "best"), ("history_sha256", "0" * 64)):
        whole = (verified / "run.json").read_bytes()
        change(verified, lambda record, key=key, value=value: record.update({key: value}), seal=False)
        fails(verified / "run.json", "its seal", "git")
        (verified / "run.json").write_bytes(whole)


def test_predictions_and_history_of_another_run(verified, root):  # noqa: F811
    other = put(root, "cft", 6.3, seed=1)
    (other / "history.csv").write_text("step,loss\n1,3.0\n")
    for name, key in (("predictions.npz", "predictions_sha256"), ("history.csv", "history_sha256")):
        whole, record = (verified / name).read_bytes(), (verified / "run.json").read_bytes()
        runs.write_predictions(other / "predictions.npz", {"a": runs.np.zeros(1)})
        shutil.copy(other / name, verified / name)
        fails(verified / name, "not the file that run.json names")
        change(verified, lambda r, key=key, name=name: r.update({key: storage.sha256(verified / name)}), seal=False)
        fails(verified / "run.json", "its seal")
        (verified / name).write_bytes(whole)
        (verified / "run.json").write_bytes(record)


def older(record):
    """As records of version 1 are."""
    for key in ("history_sha256", "seal_sha256", "precision", "margins"):
        del record[key]
    record["schema"] = 1


def listed(root, *files):  # noqa: F811
    """Write the list of unsealed records."""
    lines = [f"{storage.sha256(path)}  {path.relative_to(root / 'results')}\n" for path in files]
    (root / "results" / integrity.LIST).write_text("".join(lines))


def test_records_from_before_the_seal_are_bound_by_one_list(verified, root):  # noqa: F811
    """Else whoever takes the seal away could write what he likes."""
    change(verified, older, seal=False)
    files = verified / "run.json", verified / "history.csv"
    fresh(root)
    fails(files[0], "has no seal", "run it anew")
    listed(root, *files)
    report.verify()
    for path, new in zip(files, ('"seconds": 0.0', "1,3.0"), strict=True):
        whole = path.read_text()
        path.write_text(whole.replace('"seconds": 12.0' if "run" in path.name else "1,2", new))
        assert path.read_text() != whole
        fails(path, integrity.LIST, "git")
        path.write_text(whole)
    (root / "results" / integrity.LIST).write_text("one\n")
    fails(integrity.LIST, "not lines of a hash and a name", "git")


def test_a_run_under_two_names_is_no_second_seed(verified, root):  # noqa: F811
    """A copy with another seed in its settings, sealed anew, would narrow every interval."""
    copy = verified.with_name(verified.name.replace("-s0", "-s1"))
    shutil.copytree(verified, copy)

    def renamed(record):
        record["run"] = copy.name
        record["config"]["seed"] = record["overrides"]["seed"] = 1

    change(copy, renamed)
    fails(copy / "run.json", f"has the predictions of {verified.name}", "delete the copy")
    for folder in (verified, copy):
        change(folder, lambda record: record.update(seconds=0.0))  # what is not trained is the same for every seed
    fresh(root)
    report.verify()


def test_a_committed_record_that_is_gone_is_not_reported_away(verified, root, monkeypatch):  # noqa: F811
    gone = [f"results/{PAPER}/figures/a.png"]
    monkeypatch.setattr(environment, "git", lambda *words: "\n".join(gone) if words[0] == "ls-files" else None)
    report.verify()  # a picture is drawn anew
    gone.append(f"results/{PAPER}/cofw-short-cft-s5/run.json")
    fails(root / gone[1], "is committed and gone", "restore it from git", "git rm")


def test_what_a_run_writes_is_as_the_schema_has_it():
    """Every key of the schema is written, and no other; the committed records are checked by verify."""
    import inspect
    import re

    written = set(re.findall(r'^            "(\w+)": ', inspect.getsource(runs.Run.finish), re.M)) | {"seal_sha256"}
    assert written == schema.RECORD.keys() | schema.NEWER.keys()


# ---- Claims


CLAIMS = {
    "unknown key": ('preset = "short"', 'presett = "short"', "lacks preset"),
    "surplus key": ("headline = true", "headlin = true", "unknown key 'headlin'", "did you mean headline?"),
    "unknown array": ("[[measured]]", "[[measure]]", "unknown key 'measure'", "did you mean measured?"),
    "number for a text": ('published = "', 'published = 5.5 # "', "published is 5.5, not a text"),
    "no number": ('published = "', 'published = "about ', "'about ", "no number"),
    "text for a tolerance": ("tolerance = ", 'tolerance = "0.1" # ', "tolerance is '0.1', not a number"),
    "no tolerance": ("tolerance = ", "tolerance = 0 # ", "tolerance is 0", "above 0"),
    "text for a truth": ("headline = true", 'headline = "yes"', "headline is 'yes', not true or false"),
    "unknown row": ('row = "cft"', 'row = "ctf"', "row 'ctf'", "did you mean cft?"),
    "unknown side": ('than = "direct"', 'than = "dirct"', "than 'dirct'", "did you mean direct?"),
    "unknown preset": ('preset = "short"', 'preset = "shrt"', "preset 'shrt'", "did you mean short?"),
    "unknown metric": ('metric = "nme_interpupil_pct"', 'metric = "nme"', "unknown metric 'nme'"),
    "unknown data": ('data = "lfpw"', 'data = "lfpww"', "no data set 'lfpww'", "did you mean lfpw?"),
    "margin below nothing": ("equivalence_margin = 0.2", "equivalence_margin = -0.2", "is -0.2", "above 0"),
    "margin without a reason": ("equivalence_reason = ", "# ", "lfpw", "belong together"),
    "endless margin": ("equivalence_margin = 0.2", "equivalence_margin = inf", "is inf", "finite"),
    "endless tolerance": ("tolerance = ", "tolerance = inf # ", "tolerance is inf", "finite"),
    "nan published": ('published = "', 'published = "nan" # "', "'nan', no number"),
    "blank reason": ('equivalence_reason = "', 'equivalence_reason = " " # "', "equivalence_reason is ' '", "says"),
    "two questions": ("equivalence_margin = 0.2", "equivalence_margin = 0.2\nwithin = 1.0", "within and equivalence"),
    "one side twice": ('than = "direct"', 'than = "cft"', "better and than are both 'cft'"),
    "no finding": ("findings = [", "findings = [1, ", "finding 1 is 1, not a text"),
    "odd id": ('id = "', 'id = "A ', "an id has small letters"),
    "no title": ("title = ", "titel = ", "paper lacks title"),
}


@pytest.mark.parametrize("what", CLAIMS)
def test_claims_against_their_schema(verified, root, what):  # noqa: F811
    old, new, *words = CLAIMS[what]
    path = root / "papers" / PAPER / "claims.toml"
    text = path.read_text()
    assert old in text, old
    path.write_text(text.replace(old, new, 1))
    fails("claims.toml", *words)


@pytest.mark.parametrize(("edit", "said"), [
    (lambda written: written.update(contrast=[1, 2]), "contrast 1: not a table"),
    (lambda written: written.update(anchor=["x"]), "anchor 'x': not a table"),
    (lambda written: written["contrast"][0].update(finding={"inconclusive": 3}), "inconclusive is 3, not a text"),
])  # fmt: skip
def test_elements_of_claims_that_are_something_else(root, edit, said):  # noqa: F811
    path = root / "papers" / PAPER / "claims.toml"
    written = tomllib.loads(path.read_text())
    edit(written)
    with pytest.raises(cli.UserError) as error:
        schema.check_claims(written, path)
    one_line_error(error, path, said)


def test_a_plan_is_of_a_claim_and_of_a_number_that_plans_have(verified, root):  # noqa: F811
    path = root / "results" / plans.NAME
    for name, seeds, *words in (("lfpw-coarse-to-fin", 8, "did you mean"), ("lfpw-coarse-to-fine", 500, "4 to 20")):
        path.write_text(json.dumps({f"{PAPER}.{name}": seeds}))
        fails("settle.json", name, *words)
    path.write_text(json.dumps({f"{PAPER}.lfpw-nme": 8}))
    fails("settle.json", "no claim", "lfpw-nme")  # measured: it asks for no verdict
    path.write_text(json.dumps({f"{PAPER}.lfpw-coarse-to-fine": 8}))
    fails("stale: results/index.html")  # which shows it
    fresh(root)
    report.verify()


def test_a_plan_that_was_committed_cannot_be_changed(verified, root, monkeypatch):  # noqa: F811
    """A number that is changed once its seeds are known was not fixed before."""
    name, path = f"{PAPER}.lfpw-coarse-to-fine", root / "results" / plans.NAME
    then = json.dumps({name: 8, f"{PAPER}.claim-of-old": 8})
    said = {"log": "a" * 40, "show": then}
    path.write_text(then.replace(f', "{PAPER}.claim-of-old": 8', ""))
    fresh(root)
    monkeypatch.setattr(environment, "git", lambda *words: said.get(words[0]))
    report.verify()
    for plan, word in (({name: 11}, "11 now"), ({}, "it is gone")):
        path.write_text(json.dumps(plan))
        fails("settle.json", f"{name} was planned with 8 seeds a side in aaaaaaaaaa", word, "git")


def test_an_id_that_is_used_twice(verified, root):  # noqa: F811
    path = root / "papers" / PAPER / "claims.toml"
    first, second = (
        tomllib.loads(path.read_text())["level"][0]["id"],
        tomllib.loads(path.read_text())["contrast"][0]["id"],
    )
    path.write_text(path.read_text().replace(f'id = "{second}"', f'id = "{first}"'))
    fails("claims.toml", f"contrast '{first}'", "used twice")


def test_rows_and_presets_are_known_without_importing_settings():
    """Those that are written out, and the patterns of those that are put together."""
    from importlib import import_module

    for paper in claims.papers():
        known, config = schema.declared(paper), import_module(f"facepapers.papers.{paper}.config")
        for key, names in (("row", config.ROWS), ("preset", config.PRESETS)):
            for name in names:
                known.check(key, name, "here")
            with pytest.raises(cli.UserError) as error:
                known.check(key, "nonesuch", "here")
            one_line_error(error, f"here: {key} 'nonesuch'", "config.py")


def test_a_lost_history_and_a_changed_seed_are_noticed_without_a_seal(root):  # noqa: F811
    run = put(root, "cft", 6.3) / "run.json"
    record = json.loads(run.read_text())
    for key in ("history_sha256", "seal_sha256"):
        record.pop(key, None)
    record["schema"] = 1
    run.write_text(json.dumps(record | {"config": record["config"] | {"seed": 7}}))
    with pytest.raises(cli.UserError) as error:
        report.main(["verify"])
    one_line_error(error, run, "seed 7 is not that of cofw-short-cft-s0", "git")
    run.write_text(json.dumps(record))
    listed(root, run, run.parent / "history.csv")
    fresh(root)
    report.main(["verify"])
    (run.parent / "history.csv").unlink()
    with pytest.raises(cli.UserError) as error:
        report.main(["verify"])
    one_line_error(error, run.parent / "history.csv", "missing", "git")
