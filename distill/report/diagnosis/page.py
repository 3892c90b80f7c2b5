"""The page of a diagnosis: one section per question, with embedded pictures, without scripts or external resources."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure

from dar.diagnostics import DEPTH_MEASURES
from distill.diagnosis.results import Diagnosis, ModelDiagnosis, to_json
from distill.files import write_folder
from distill.report.diagnosis import figures, findings
from distill.report.diagnosis.findings import capitalised
from distill.report.page import Picture, template
from distill.report.style import png

PAGE = "diagnosis.html"
JSON = "diagnosis.json"

Say = Callable[[ModelDiagnosis], str]


@dataclass(frozen=True)
class Section:
    """A question, how it is answered, and what the results say."""

    id: str
    title: str
    text: str
    findings: Sequence[findings.Finding] = ()
    pictures: Sequence[Picture] = field(default_factory=list)


def write_diagnosis(diagnosis: Diagnosis, folder: Path) -> Path:
    """Write `diagnosis.html`, its pictures and `diagnosis.json`; the folder is written atomically.

    Returns: the path of the page.
    """
    sections = sections_of(diagnosis)
    html = template("diagnosis.html.j2").render(
        diagnosis=diagnosis,
        sections=sections,
        rows=findings.table_rows(diagnosis),
        colours=figures.colours_of(diagnosis),
    )

    def fill(partial: Path) -> None:
        for section in sections:
            for picture in section.pictures:
                (partial / picture.file).write_bytes(picture.png)
        (partial / JSON).write_text(to_json(diagnosis), encoding="utf-8")
        (partial / PAGE).write_text(html, encoding="utf-8")

    write_folder(folder, fill)
    return folder / PAGE


def sections_of(diagnosis: Diagnosis) -> list[Section]:
    """All sections, with their pictures drawn."""
    along_depth = [
        _depth_section(
            diagnosis,
            "hidden",
            "Does the hidden state grow?",
            "Forward magnitude: the RMS of the hidden state z_k, what the first sublayer of block k + 1 reads (z_0 is "
            "the embedding, the last is the head's or that of whoever comes after), and of what every sublayer writes.",
            {"hidden_rms": findings.of_hidden, "source_rms": findings.of_sources},
        ),
        _depth_section(
            diagnosis,
            "gradient",
            "Does the gradient reach every block?",
            "The RMS of each sample's own loss gradient with respect to what a block writes last. In a plain residual "
            "stream this is the gradient with respect to the hidden state; taken at what is written, it means the "
            "same for every routing.",
            {"gradient_rms": findings.of_gradient},
        ),
        _depth_section(
            diagnosis,
            "redundancy",
            "Are neighbouring blocks redundant?",
            "The cosine of the hidden states before and after each block, mean over tokens. Near 1, a block hardly "
            "turns what it is given.",
            {"neighbour_cosine": findings.of_cosine},
        ),
    ]
    return [
        *along_depth,
        _chunks(diagnosis),
        _removal(diagnosis),
        _probe(diagnosis),
        *_routing(diagnosis),
        *_others(diagnosis),
    ]


def _depth_section(diagnosis: Diagnosis, name: str, title: str, text: str, measures: dict[str, Say]) -> Section:
    # All sentences about one model stand together.
    said = findings.for_each(diagnosis, lambda model: " ".join(capitalised(say(model)) for say in measures.values()))
    pictures = [_picture(measure, figures.depth_plot(diagnosis, measure), DEPTH_MEASURES[measure].title)
                for measure in measures]  # fmt: skip
    return Section(name, title, text, said, pictures)


def _chunks(diagnosis: Diagnosis) -> Section:
    text = (
        "The cosine of every two sublayers' outputs, mean over images, tokens and t. A chunk is best where its sources "
        "are alike, since one summary stands for all of them. Solid: as many chunks as the rule S* = "
        "sqrt(L (1 - a) / (1 + a)) makes for the measured a, cut for the least scatter of unit sources around the mean "
        "of their chunk; dashed: the same number of equal length."
    )
    said = findings.for_each(diagnosis, findings.of_chunks)
    picture = _picture("similarity", figures.similarity_plot(diagnosis), "Cosines of all sublayers' outputs")
    return Section("chunks", "Which sources are alike?", text, said, [picture])


def _removal(diagnosis: Diagnosis) -> Section:
    text = (
        "Counterfactual importance: a sublayer's output is replaced by zeros, everything else, image and noise "
        "included, stays. Red: the loss rises, so the sublayer is needed at that t; blue: it falls; white: the change "
        f"is within {findings.NUM_ERRORS} standard errors of none. Beyond {findings.percent(figures.LINEAR_COST)} the "
        "scale is logarithmic."
    )
    said = findings.for_each(diagnosis, lambda model: findings.of_removal(model, diagnosis.t_values))
    alt = "Change of the loss without each sublayer, by depth and t"
    return Section("importance", "Which sublayer matters when?", text, said,
                   [_picture("importance", figures.removal_plot(diagnosis), alt)])  # fmt: skip


def _probe(diagnosis: Diagnosis) -> Section:
    probe = diagnosis.models[0].probe
    penalties = sorted({f"{p:g}" for model in diagnosis.models for p in model.probe.penalty}, key=float)
    text = (
        f"A ridge regression reads t off the hidden state, averaged over tokens: {probe.num_rows} rows, t uniform in "
        f"[0, 1]. It is judged on images it has not seen, over {probe.num_splits} random halves; the band is the "
        "standard deviation over them. Penalties, of standardised features, were chosen on other images: "
        f"{', '.join(penalties)}."
    )
    said = findings.for_each(diagnosis, findings.of_probe)
    return Section("probe", "Where is the timestep known?", text, said,
                   [_picture("probe", figures.probe_plot(diagnosis), "R² of t by depth")])  # fmt: skip


def _routing(diagnosis: Diagnosis) -> list[Section]:
    """Which reader reads which source, and what that depends on; no pictures if no model has weights over depth."""
    title = "Who reads what?"
    if not any(model.routing for model in diagnosis.models):
        text = "No weights over depth here: nothing to show of routing."
        return [Section("routing", title, text, findings.for_each(diagnosis, findings.of_choice))]
    text = (
        "Each reader (a sublayer, last the head) mixes the outputs of earlier ones, its sources. Red: it takes more of "
        "a source than an even share; blue: less; grey: not one of its sources. The effective number of sources is "
        "exp(entropy) of the weights: so many with equal weights."
    )
    pictures = [
        *(_weights(diagnosis, stream) for stream in dict.fromkeys(m.stream for m in diagnosis.models if m.routing)),
        _picture("effective-number", figures.depth_plot(diagnosis, "effective_number"), "Effective number of sources"),
        _picture("embedding-share", figures.depth_plot(diagnosis, "embedding_share"), "Share of the embedding"),
        _picture("reach", figures.reach_plot(diagnosis), "Share of the embedding and the halves of depth, by t"),
    ]
    noun, nouns, num_groups = diagnosis.noun, diagnosis.nouns, diagnosis.num_groups
    over, by, each = (
        (f"{nouns}, images", f"{noun}, by image within a {noun}", f"Each {noun} has")
        if num_groups > 1
        else ("images", "image", "There are")
    )
    variance = (
        f"The variance of every weight over t, {over} and token positions, split into main effects: how far "
        f"the means by t differ, those by {by}, by position; the rest is their interplay. "
        f"{each} {diagnosis.num_images // num_groups} images, seen at every t. A timestep that "
        "explains little means that the routing hardly adapts to it."
    )

    def of_variance(model: ModelDiagnosis) -> str:
        return findings.of_variance(model, diagnosis.num_images, num_groups, noun)

    return [
        Section("routing", title, text, findings.for_each(diagnosis, findings.of_choice), pictures),
        Section("variance", "What do the weights depend on?", variance,
                findings.for_each(diagnosis, of_variance),
                [_picture("variance", figures.variance_plot(diagnosis), "Variance of the weights by reader")]),
    ]  # fmt: skip


def _weights(diagnosis: Diagnosis, stream: str) -> Picture:
    figure = figures.weights_plot(diagnosis, stream)
    return _picture(f"weights_{stream}".rstrip("_"), figure, "Weights over depth, reader by source, by t")


DRAWN = {
    *("hidden_rms", "source_rms", "gradient_rms", "neighbour_cosine", "effective_number", "embedding_share"),
    *("first_half_share", "second_half_share"),
    "weight_entropy",  # its logarithm is shown: the effective number
}


def _others(diagnosis: Diagnosis) -> list[Section]:
    """Registered measures that have no other section."""
    names = [name for name in DEPTH_MEASURES if name not in DRAWN]
    present = [name for name in names if any(name in model.profiles for model in diagnosis.models)]
    return [
        Section(name.replace("_", "-"), DEPTH_MEASURES[name].title, DEPTH_MEASURES[name].explanation, [],
                [_picture(name, figures.depth_plot(diagnosis, name), DEPTH_MEASURES[name].title)])
        for name in present
    ]  # fmt: skip


def _picture(name: str, figure: Figure, alt: str) -> Picture:
    return Picture(f"{name.replace('_', '-')}.png", png(figure), alt)
