"""`dar-distill diagnose`: what it measures of small models, the page, and one line for each mistake."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from dar import RoutingConfig, SiT
from dar.diagnostics import EFFECTS, RunningMarginals, depth, effect_variances
from dar.diagnostics.depth import depth_measure
from dar.diagnostics.profile import Pass, interpolated, source_similarity
from distill.cli import main
from distill.conditions import ClassLabels
from distill.data import load_dataset
from distill.diagnosis.images import DataSource, balanced_examples, dataset_images
from distill.diagnosis.measuring import Design, diagnose_model, num_forwards
from distill.diagnosis.results import (
    LOSS,
    REMOVAL_COST,
    Diagnosis,
    ModelDiagnosis,
    Probe,
    Profile,
    WeightsOverDepth,
    to_json,
)
from distill.diagnosis.summaries import SUMMARIES, Summary, difference, estimate
from distill.errors import UserError
from distill.report.diagnosis import findings, write_diagnosis
from distill.verbs.diagnose import short_names
from tests.conftest import perturbed, tiny_config
from tests.test_cli import refused, write_idx

PLAIN = RoutingConfig(kind="residual")


def tiny(routing: RoutingConfig = PLAIN, **changes: object) -> SiT:
    torch.manual_seed(0)
    model = SiT(tiny_config(routing=routing, **{"num_classes": 2, **changes}))
    perturbed(model, std=0.2)
    return model


def saved(folder: Path, *args: object, **changes: object) -> str:
    tiny(*args, **changes).save_pretrained(folder)  # type: ignore[arg-type]
    return str(folder)


def design(num_images: int = 8, num_classes: int = 2) -> Design:
    labels = balanced_examples(num_images, ClassLabels(num_classes))
    x0 = torch.randn(len(labels), 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return Design.of(x0, labels, torch.tensor([0.1, 0.5, 0.9]), seed=0)


def diagnosed(name: str, model: SiT, inputs: Design | None = None) -> ModelDiagnosis:
    return diagnose_model(name, name, model, inputs or design(), lambda _: None)


def side_by_side(*models: ModelDiagnosis, **changes: object) -> Diagnosis:
    diagnosis = Diagnosis(models, design().t_values.numpy(), 8, [0, 1], "made up", 0)
    return dataclasses.replace(diagnosis, **changes)  # type: ignore[arg-type]


class TestMeasuring:
    @pytest.mark.parametrize("kind", ["dar", "attnres", "densenet"])
    def test_profiles_weights_and_probe(self, kind: str) -> None:
        done = []
        model, inputs = tiny(RoutingConfig(kind=kind, chunk_size=2)), design()
        found = diagnose_model("m", "m", model, inputs, done.append)
        assert sum(done) == num_forwards(model, inputs)
        assert found.profiles["hidden_rms"].values.shape == (3, 3, 8)
        assert found.profiles[REMOVAL_COST].places == ["attn 1", "mlp 1", "attn 2", "mlp 2"]
        assert found.probe.r2.shape == (3,) and found.probe.num_rows == 64
        assert found.routing is not None
        names = found.routing.source_names[-1]
        assert found.routing.weights[-1].shape == (len(names), 3)
        if kind != "densenet":
            np.testing.assert_allclose([w.sum(0) for w in found.routing.weights], 1, rtol=1e-6)

    def test_a_batch_more_or_less_changes_nothing(self) -> None:
        model = tiny(RoutingConfig(chunk_size=2))
        whole = diagnosed("m", model)
        parts = diagnosed("m", model, dataclasses.replace(design(), batch_size=3))
        for name, profile in whole.profiles.items():
            np.testing.assert_allclose(parts.profiles[name].values, profile.values, rtol=2e-4, atol=1e-6)
        assert whole.routing is not None and parts.routing is not None
        np.testing.assert_allclose(parts.routing.variances, whole.routing.variances, rtol=1e-4, atol=1e-8)
        np.testing.assert_allclose(parts.similarity, whole.similarity, atol=1e-5)

    def test_similarity_is_the_mean_over_t(self) -> None:
        model, inputs = tiny(), design()
        by_t = [
            source_similarity(model, interpolated(x0, eps, t), t, y)
            for x0, eps, t, y in (inputs.at(slice(None), t, torch.device("cpu")) for t in inputs.t_values.tolist())
        ]
        found = diagnose_model("m", "m", model, inputs, lambda _: None)
        np.testing.assert_allclose(found.similarity, torch.stack(by_t).mean(0), atol=1e-5)

    def test_weights_of_fixed_scalars_do_not_vary(self) -> None:
        found = diagnosed("m", tiny(RoutingConfig(kind="densenet", chunk_size=1)))
        assert found.routing is not None and (found.routing.variances == 0).all()
        assert findings.explained(found) is None

    def test_static_queries_of_an_embedding_alone_do_not_see_t(self) -> None:
        """Weights of a model whose blocks write nothing depend on x_t alone; without images' x_t on nothing."""
        model = tiny(RoutingConfig(query="static_t", chunk_size=1), depth=1)
        with torch.no_grad():
            for module in (model.x_embedder.proj, model.blocks[0].adaLN_modulation[-1]):  # type: ignore[index, union-attr]
                module.weight.zero_()  # type: ignore[union-attr]
            model.pos_embed.fill_(1.0)
            model.blocks[0].adaLN_modulation[-1].bias.fill_(1.0)  # type: ignore[index, union-attr]
        found = diagnosed("m", model)
        shares = findings.explained(found)
        assert shares is not None  # the same tokens for all images, at each t another query
        np.testing.assert_allclose(shares[EFFECTS.index("t")], 1, atol=1e-6)

    def test_a_model_without_weights_over_depth(self) -> None:
        found = diagnosed("m", tiny())
        assert found.routing is None and "weight_entropy" not in found.profiles

    def test_standard_errors_are_over_samples(self) -> None:
        values = np.arange(4.0).reshape(1, 1, 4) * np.array([1.0, 3.0]).reshape(2, 1, 1)
        profile = Profile("x", "", "", False, "block", ["b"], np.zeros(1), values)
        np.testing.assert_allclose(profile.standard_error[:, 0], np.array([1, 3]) * np.sqrt(5 / 3) / 2)
        mean, error = profile.mean_over_t
        np.testing.assert_allclose([mean[0], error[0]], [3, 2 * np.sqrt(5 / 3) / 2])

    def test_a_registered_measure_is_in_the_result_and_on_the_page(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(depth, "DEPTH_MEASURES", registry := dict(depth.DEPTH_MEASURES))
        monkeypatch.setattr("distill.report.diagnosis.page.DEPTH_MEASURES", registry)

        @depth_measure("Largest write", "sublayer", "of all channels")
        def largest(run: Pass) -> torch.Tensor:
            return torch.stack([v.flatten(1).amax(1) for v in run.record.writes])

        found = diagnosed("m", tiny())
        assert found.profiles["largest"].values.shape == (3, 4, 8)
        page = write_diagnosis(side_by_side(found), tmp_path / "page").read_text()
        assert "<h2>Largest write</h2>" in page and (tmp_path / "page" / "largest.png").is_file()

    def test_a_broken_model_is_refused(self) -> None:
        model = tiny()
        with torch.no_grad():
            model.final_layer.linear.bias.fill_(torch.inf)
        with pytest.raises(UserError, match="m: the loss is not finite"):
            diagnosed("m", model)


class TestImages:
    def test_as_many_of_each_class(self, tmp_path: Path) -> None:
        assert balanced_examples(9, ClassLabels(2)).bincount().tolist() == [4, 4]
        assert balanced_examples(20, ClassLabels(1000)).unique().tolist() == [round(i * 111) for i in range(10)]
        source = DataSource(load_dataset("idx", write_idx(tmp_path / "data")), "data")
        labels = balanced_examples(8, ClassLabels(2))
        images = dataset_images(source, labels, seed=3)
        everything, classes = source.dataset.batch(torch.arange(8), torch.randn)
        rows = [int((everything == image).flatten(1).all(1).nonzero()) for image in images]
        assert sorted(rows) == list(range(8)) and torch.equal(classes[rows], labels)
        with pytest.raises(UserError, match="class 0 has 4 samples; 5 are needed"):
            dataset_images(source, balanced_examples(10, ClassLabels(2)), seed=3)

    @pytest.mark.parametrize(("num_images", "num_classes", "least"), [(3, 2, 4), (19, 10, 20), (3, 1, 4), (0, 5, 10)])
    def test_too_few(self, num_images: int, num_classes: int, least: int) -> None:
        with pytest.raises(UserError, match=f"--num-images must be at least {least}.*got {num_images}"):
            balanced_examples(num_images, ClassLabels(num_classes))


def model_with(**profiles: np.ndarray) -> ModelDiagnosis:
    """A made-up model of 3 blocks; profiles are (n_t, places, N)."""
    made = {
        name: Profile(name, "", "", False, "block", [f"p{i}" for i in range(v.shape[1])], np.arange(v.shape[1]), v)
        for name, v in profiles.items()
    }
    probe = Probe(np.array([0.5, 0.96, 0.9, 0.99]), np.zeros(4), np.ones(4), 64, 5)
    return ModelDiagnosis("made", "made", "", 3, 0, made, probe, None, np.eye(6))


def column(*values: float) -> np.ndarray:
    """(2, places, 4): the same for both t and all samples."""
    return np.broadcast_to(np.array(values)[None, :, None], (2, len(values), 4)).copy()


class TestFindings:
    @pytest.mark.parametrize(
        ("rms", "said"),
        [((9, 1, 2, 8), "grows: RMS 1.00 to 8.00"), ((9, 8, 2, 1), "shrinks"), ((9, 1, 5, 1.5), "less than a factor")],
    )
    def test_hidden_state(self, rms: tuple[float, ...], said: str) -> None:
        assert said in findings.of_hidden(model_with(hidden_rms=column(*rms)))

    def test_cosine_leaves_the_embedding_out(self) -> None:
        said = findings.of_cosine(model_with(neighbour_cosine=column(0.1, 0.95, 0.85)))
        assert "1 of 2 pairs" in said and "mean is 0.900" in said and "from p2: 0.850" in said

    def test_removal(self) -> None:
        cost = column(0.1, 0.4, 0.0)
        cost[1] = np.array([0.8, 0.1, 0.0])[:, None]
        cost[:, 2] = [1, -1, 1, -1]  # as much for as against: no effect
        said = findings.of_removal(model_with(removal_cost=cost, loss=column(2.0)), np.array([0.1, 0.9]))
        assert "what matters most is p0" in said and "rises by 22 %" in said
        assert "1 of 3 sublayers cannot be told from idle" in said and "do harm" not in said
        assert "p1 at t = 0.1, p0 at t = 0.9" in said

    def test_chunks(self) -> None:
        similarity = np.kron(np.eye(2), np.ones((2, 2)))[[0, 0, 0, 0, 2, 2]][:, [0, 0, 0, 0, 2, 2]]
        said = findings.of_chunks(dataclasses.replace(model_with(), similarity=similarity))
        # Neighbours: four pairs alike, one not: a = 0.8, S* = sqrt(6 / 9) = 0.8.
        assert "mean cosine of 0.80" in said and "S* = 1" in said and "6 chunks" in said

    def test_a_share_of_the_class_stands_beside_what_chance_gives(self) -> None:
        generator = torch.Generator().manual_seed(0)
        shares = []
        for _ in range(300):  # images differ, their classes do not
            weights = torch.randn(1, 1, 40, 1, generator=generator).expand(1, 3, 40, 4)
            marginals = RunningMarginals(3, 40)
            for t in range(3):
                marginals.add(weights[:, t], t, slice(0, 40))
            shares.append(effect_variances(marginals.result(), torch.arange(40) % 10))
        routing = WeightsOverDepth(["r"], [["a", "b"]], [], torch.stack(shares).mean(0).numpy())
        said = findings.of_variance(dataclasses.replace(model_with(), routing=routing), num_images=40, num_classes=10)
        found = re.search(r"the class (\d+) % \((\d+) % is what .* of 4 images each\)", said)
        assert found is not None
        assert float(found[1]) == pytest.approx(float(found[2]), abs=1) and float(found[2]) > 20

    def test_probe_that_falls_below_again(self) -> None:
        assert "first reaches 0.95 at z_1, and falls below again" in findings.of_probe(model_with())

    def test_differences_are_taken_sample_by_sample(self) -> None:
        base = np.array([1.0, 2, 3, 4])
        first, second = (
            model_with(loss=np.broadcast_to(v, (2, 1, 4))) for v in (base, base + np.array([0.1, 0.1, 0.1, 0.2]))
        )
        row = next(row for row in SUMMARIES if row.title == "Loss")
        alone, against = estimate(row, second), difference(row, second, first)
        assert alone is not None and against is not None
        assert against.value == pytest.approx(0.125) and against.error == pytest.approx(0.025)
        assert alone.error > 0.6

    def test_factors(self) -> None:
        row = Summary("x", "", lambda model: np.log(model.profiles[LOSS].values[0, 0]), is_log=True)
        found = estimate(row, model_with(loss=np.array([1.0, 4, 1, 4]).reshape(1, 1, 4)))
        assert found is not None and found.value == pytest.approx(2)

    def test_names(self) -> None:
        assert short_names(["embedded", "runs/x/teacher", "runs/y/teacher", "a/m", "b/m"]) == [
            "embedded teacher", "x/teacher", "y/teacher", "a/m", "b/m",
        ]  # fmt: skip


def test_json_holds_every_figure_and_no_nan() -> None:
    model = diagnosed("m", tiny(RoutingConfig(chunk_size=1, anchor=True)))
    read = json.loads(to_json(side_by_side(model)))
    profile = read["models"][0]["profiles"]["neighbour_cosine"]
    np.testing.assert_allclose(profile["mean"], model.profiles["neighbour_cosine"].mean, rtol=1e-5)
    np.testing.assert_allclose(profile["standard_error"], model.profiles["neighbour_cosine"].standard_error, rtol=1e-5)
    assert (
        read["models"][0]["profiles"]["weight_entropy"]["mean"][0][0] is None
    )  # an anchored first reader has no choice


class TestVerb:
    @pytest.mark.usefixtures("rendered")
    def test_plain_and_routed_side_by_side(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        plain = saved(tmp_path / "plain")
        saved(tmp_path / "run" / "teacher", RoutingConfig(chunk_size=2))
        data = f"idx:{write_idx(tmp_path / 'data')}"
        out = tmp_path / "out"
        argv = ["diagnose", str(tmp_path / "run"), "--vs", plain, "--data", data, "--num-images", "8"]
        assert main([*argv, "--output", str(out)]) == 0
        assert f"diagnosis: {out / 'diagnosis.html'}" in capsys.readouterr().out
        page, read = (out / "diagnosis.html").read_text(), json.loads((out / "diagnosis.json").read_text())
        assert [model["name"] for model in read["models"]] == ["plain", "run"]
        assert read["reference"] == "plain" and read["num_images"] == 8 and read["classes"] == [0, 1]
        assert read["images"] == f"{data}, split train" and read["notes"] == []
        for text in ("plain", "run", "(reference)", "No weights over depth", "The timestep explains"):
            assert text in page
        pictures = {path.name for path in out.glob("*.png")}
        assert {"hidden-rms.png", "importance.png", "weights.png", "variance.png", "probe.png"} <= pictures
        assert page.count("data:image/png;base64,") == len(pictures)
        assert not any(text in page for text in ("<script", "http", "stand-in"))
        again = tmp_path / "again"
        assert main([*argv, "--output", str(again)]) == 0
        repeated = json.loads((again / "diagnosis.json").read_text())
        assert repeated | {"elapsed_s": 0} == read | {"elapsed_s": 0}

    def test_without_data_the_model_draws_and_the_page_says_so(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        saved(tmp_path / "plain")
        argv = ["diagnose", str(tmp_path / "plain"), "--num-images", "4", "--output", str(tmp_path / "out")]
        assert main(argv) == 0
        assert "stand-in, drawn by plain itself" in capsys.readouterr().out
        page = (tmp_path / "out" / "diagnosis.html").read_text()
        assert "stand-in, drawn by plain itself" in page and "nothing to show of routing" in page
        assert not (tmp_path / "out" / "weights.png").exists()

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            (["{plain}", "--vs", "{large}"], "plain makes (1, 8, 8)"),
            (["{plain}", "{classes}"], "classes knows 3 classes"),
            (["{plain}", "{tmp}/nowhere"], "nowhere is not a folder"),
            (["{plain}", "{plain}"], "is given twice"),
            (["{plain}", *"abcdef"], "7 models were given; at most 6"),
            (["{plain}", "--num-images", "3"], "--num-images must be at least 4, for 2 classes; got 3"),
            (["{plain}", "--data", "cifar:{tmp}/data"], "data.name must be one of"),
            (["{plain}", "--data", "{tmp}/data"], "--data must be NAME:PATH"),
            (["{plain}", "--data", "idx:{tmp}/nowhere"], "nowhere"),
            (["{large}", "--data", "idx:{tmp}/data"], "has samples (1, 8, 8); the models make (1, 12, 12)"),
            (["{classes}", "--data", "idx:{tmp}/data"], "has 2 classes; the models know 3"),
            (["{plain}", "--data", "idx:{tmp}/data", "--num-images", "20"], "class 0 has 4 samples; 10 are needed"),
            (["{plain}", "--output", "{tmp}/full"], "is not empty"),
        ],
    )
    def test_mistakes(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        def never(*_: object) -> None:
            raise AssertionError("nothing may be measured before all is checked")

        monkeypatch.setattr("distill.verbs.diagnose.diagnose_model", never)
        monkeypatch.setattr("distill.verbs.diagnose.sampled_images", never)
        write_idx(tmp_path / "data")
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "mine.txt").write_text("keep me")
        places = {
            "tmp": tmp_path,
            "plain": saved(tmp_path / "plain"),
            "large": saved(tmp_path / "large", input_size=12),
            "classes": saved(tmp_path / "classes", num_classes=3),
        }
        given = [part.format(**places) for part in argv]
        output = [] if "--output" in given else ["--output", str(tmp_path / "out")]
        assert message in refused(capsys, "diagnose", *given, *output)
        assert not (tmp_path / "out").exists() and [p.name for p in (tmp_path / "full").iterdir()] == ["mine.txt"]
