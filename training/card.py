"""The model card: generated from a run's report and configuration, never typed."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from training.config import ProbeRunConfig, RunConfig
from training.epochs import ended
from training.licence import CNMC
from training.tables import InputConfig


def model_card(
    config: RunConfig | ProbeRunConfig,
    report: dict[str, Any],
    version: str,
    licence: Mapping[str, str],
    variants: Mapping[str, dict[str, Any]] = MappingProxyType({}),
) -> str:
    """Write the card of an exported model.

    Args:
        config: The run's configuration.
        report: The run's report.
        version: Of the model.
        licence: What `training.licence.licences` says.
        variants: Reports of the same model in other precisions, by their names.

    Returns:
        Markdown.
    """
    sections = [
        f"# {config.name} {version}",
        "Tells leukemic blasts (ALL) from normal cells (HEM) in pictures of single, segmented white blood cells. "
        "For research use: it is not a medical device, and one cell's label is no diagnosis.",
        "## How it was measured",
        _split(report["split"]),
        _disjoint(config, report["split"]),
        *_recalibrated(report),
        "## What was measured",
        _figures(report),
        _review(report),
        *_novelty(report),
        _hardest(report["test"]["subjects"]),
        _subjects(report["test"]["subjects"], report.get("novelty")),
        "## How it was made",
        _recipe(config),
        *filter(None, [ended(report)]),
        *_variants(report, variants),
        "## Limits",
        _LIMITS if CNMC in licence["data"] else _OWN_LIMITS,
        "## At another site",
        _OTHER_SITE,
        "## Licence",
        f"Weights: {licence['weights']}. Start weights: {licence['start_weights']}. Data: {licence['data']}.",
    ]
    return "\n\n".join(sections) + "\n"


_PRECISIONS = {
    "fp32": "with its weights rounded to float16",
    "int8": "whose convolutions compute with 8 bits, calibrated on training cells",
}

_LIMITS = """\
- One laboratory, one stain (Jenner-Giemsa, normalised), cells cut out on black: pictures made otherwise are outside
  what was measured. Check it on cells of your own before you use it.
- A picture that shows no cell gets ALL or HEM all the same, whether or not it is flagged for a person.
- Labels are one expert's.
- Cell size and brightness differ between the classes of this data set, and are partly habits of its subjects.
- The temperature and the review band come from few subjects; another site needs its own."""


_OWN_LIMITS = """\
- Pictures made otherwise than those that it learnt from, by another camera, stain or way to cut cells out, are outside
  what was measured. Check it on cells of your own before you use it.
- A picture that shows no cell gets ALL or HEM all the same, whether or not it is flagged for a person.
- Labels are as right as those who gave them.
- Size and brightness of cells may be habits of the subjects, and not of the classes.
- The temperature and the review band come from few subjects; another site needs its own."""


_OTHER_SITE = """\
Put at least 50 labelled cells of each class, of several subjects, cut out on black, into `all/` and `hem/` of a folder.
`leukoscope-train index FOLDER --out own.parquet` lists them, and `leukoscope-train recalibrate THIS_FOLDER own.parquet`
writes a version whose temperature, review band and threshold of novelty are those of the site. Do not use a site's
cells for anything else before; and where the AUROC is poor, a temperature does not help: train with them."""


def _disjoint(config: RunConfig | ProbeRunConfig, split: dict[str, Any]) -> str:
    what = "Epoch, temperature" if isinstance(config, RunConfig) and config.fit.keep == "best" else "Temperature"
    chosen = f"{what}, review band and threshold of novelty were chosen on the validation part."
    if isinstance(config, ProbeRunConfig):
        chosen = (
            "The training and validation parts both taught the last layer; its penalty, the temperature and the review "
            "band were chosen by holding their subjects out in turn, the threshold of novelty on the validation part."
        )
    if "judged_by" in split:
        names = "; ".join(f"{other['name']} (sha256 `{other['sha256'][:16]}`)" for other in split["judged_by"])
        return (
            f"This model learnt from all subjects, so its recipe was judged: {len(split['judged_by'])} models of the "
            "same configuration, each on subjects that it had not seen, their answers, with this model's temperature, "
            f"pooled to the test part below: {names}. {chosen}"
        )
    if split.get("leaks", False):
        return f"**This split leaks: cells of one subject stand on several sides**, so the figures flatter. {chosen}"
    return f"Subjects of the test part were not trained on. {chosen}"


def _split(split: dict[str, Any]) -> str:
    rows = ["| part | ALL cells | ALL subjects | HEM cells | HEM subjects |", "|---|---|---|---|---|"]
    for part, counts in split["parts"].items():
        cells = [str(counts[label][key]) for label in ("ALL", "HEM") for key in ("cells", "subjects")]
        rows.append(f"| {part} | {' | '.join(cells)} |")
    return f"Split: {split['name']} (sha256 `{split['sha256'][:16]}`).\n\n" + "\n".join(rows)


def _figures(report: dict[str, Any]) -> str:
    test, interval = report["test"], report["test"]["interval_95"]
    names = {
        "weighted_f1": "weighted F1",
        "auroc": "AUROC",
        "accuracy": "accuracy",
        "sensitivity": "sensitivity (ALL)",
        "specificity": "specificity (HEM)",
        "balanced_accuracy": "balanced accuracy",
        "ece": "calibration error (ECE)",
        "brier": "Brier score",
    }
    rows = ["| test part, single cells | value | 95 % interval over subjects |", "|---|---|---|"]
    for key, name in names.items():
        bounds = interval.get(key)
        rows.append(f"| {name} | {test[key]:.3f} | {f'{bounds[0]:.3f} to {bounds[1]:.3f}' if bounds else ''} |")
    (tp, fn), (fp, tn) = test["confusion"]["counts"]
    return "\n".join(rows) + (
        f"\n\nConfusion: of {tp + fn} ALL cells {tp} were called ALL and {fn} HEM; "
        f"of {fp + tn} HEM cells {tn} were called HEM and {fp} ALL. "
        f"{_exported(report['export'])} Temperature {report['temperature']:.3f} "
        f"(ECE without one {test['ece_without_temperature']:.3f})."
    )


def _recalibrated(report: dict[str, Any]) -> list[str]:
    """What another site's cells changed; most models were not recalibrated."""
    if "recalibration" not in report:
        return []
    done = report["recalibration"]
    return [
        f"**Recalibrated**: temperature, review band and threshold of novelty of {done['of']} were fitted anew to "
        f"{done['cells']} cells of {done['subjects']} subjects of another site. On those very cells the ECE went from "
        f"{done['before']['ece']:.3f} to {done['after']['ece']:.3f}; weighted F1 is "
        f"{done['after']['weighted_f1']:.3f}, AUROC {done['after']['auroc']:.3f}. All figures below are still those of "
        "the model as it was measured before."
    ]


def _hardest(subjects: list[dict[str, Any]]) -> str:
    """The subjects that are told worst, in words."""
    worst = sorted(subjects, key=lambda subject: subject["accuracy"])[:4]
    named = "; ".join(f"{s['subject']} ({s['label']}, {s['cells']} cells: {s['accuracy']:.2f} right)" for s in worst)
    all_right = [s["accuracy"] for s in subjects if s["label"] == "ALL"]
    hem_right = [s["accuracy"] for s in subjects if s["label"] == "HEM"]
    return (
        f"Where it fails: errors gather in a few subjects. Worst are {named}. The median "
        f"subject has {np.median(all_right):.2f} of its ALL and {np.median(hem_right):.2f} of its HEM cells right. The "
        "run's `report.html` shows the cells that went most wrong."
    )


def _exported(export: dict[str, Any]) -> str:
    how, test = _PRECISIONS[export.get("precision", "fp32")], export["test"]
    if test is None:
        parity = export["parity"]
        return (
            f"The exported graph, {how}, was compared with the network on {parity['cells']} cells: no label differs, "
            f"the largest relative difference of a logit is {parity['largest_relative_difference']:.1e}."
        )
    return (
        f"The exported graph, {how}, reaches a weighted F1 of {test['weighted_f1']:.3f} and an AUROC of "
        f"{test['auroc']:.3f} on the same cells."
    )


def _review(report: dict[str, Any]) -> str:
    band, review = report["review_band"], report["test"]["review"]

    def share(key: str) -> str:
        return "undefined" if review[key] is None else f"{review[key]:.3f}"

    return (
        f"Review band: P(ALL) from {band['low']} to {band['high']}, chosen for an accuracy of "
        f"{band['wanted_accuracy_outside']}{_and_sensitivity(band)} outside it. On the test part it sends "
        f"{share('share_sent_to_review')} of the cells to a person; outside it accuracy is "
        f"{share('accuracy_outside')}, sensitivity {share('sensitivity_outside')}, "
        f"specificity {share('specificity_outside')}."
    )


def _and_sensitivity(band: dict[str, Any]) -> str:
    wanted = band.get("wanted_sensitivity_outside")
    return "" if wanted is None else f" and a sensitivity of {wanted}"


def _variants(report: dict[str, Any], variants: Mapping[str, dict[str, Any]]) -> list[str]:
    """The same model in other precisions, beside it; most models have none."""
    if not variants:
        return []
    rows = [
        "| precision | weighted F1 | AUROC | sensitivity | specificity | ECE | no cells flagged | temperature |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, other in {report["export"].get("precision", "fp32"): report, **variants}.items():
        figures = [f"{other['test'][key]:.3f}" for key in ("weighted_f1", "auroc", "sensitivity", "specificity", "ece")]
        flagged = f"{other['novelty']['no_cells_flagged']['testing']:.3f}" if "novelty" in other else ""
        temperature = f"{other['temperature']:.3f}"
        rows.append(f"| {' | '.join([name, *figures, flagged, temperature])} |")
    hard = [name for name, other in variants.items() if other.get("activation") == "hard-swish"]
    words = (
        "The folder also holds this model in other precisions, which `LEUKOSCOPE_PRECISION` asks for. Each was rounded "
        "first and its last layer taught on the rounded features, with a temperature, a review band and a threshold of "
        "novelty of its own; all were judged on the same cells, as above. Their reports are beside this card."
        + "".join(f" `{name}` has hard swish in place of SiLU." for name in hard)
    )
    return ["## In other precisions", words, "\n".join(rows)]


def _novelty(report: dict[str, Any]) -> list[str]:
    """What is flagged as no cell; models of earlier times have no such figures."""
    if "novelty" not in report:
        return []
    novelty = report["novelty"]
    rows = ["| kind of picture | a cell | chose the threshold | pictures | flagged |", "|---|---|---|---|---|"]
    rows += [
        f"| {k['kind']} | {'no' if k['no_cell'] else 'yes, but'} | {'yes' if k['use'] == 'choosing' else 'no'} "
        f"| {k['pictures']} | {k['flagged']:.3f} |"
        for k in novelty["kinds"]
    ]
    words = (
        f"Novelty ({novelty['method']}): a picture whose score is over {novelty['threshold']:.3f} is flagged "
        f"`out-of-distribution`. On the test part {novelty['cells_flagged']['test']:.4f} of the cells are flagged "
        f"(validation {novelty['cells_flagged']['validation']:.4f}); of pictures that are no cell, of kinds that chose "
        f"nothing, {novelty['no_cells_flagged']['testing']:.3f}. The last kinds are cells, but not as the model was "
        "taught them; that they are flagged is welcome, and not promised."
    )
    return [words, "\n".join(rows)]


def _subjects(subjects: list[dict[str, Any]], novelty: dict[str, Any] | None) -> str:
    head = ["test subject", "label", "cells", "right", "mean P(ALL)", *(["flagged as no cell"] if novelty else [])]
    rows = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for s in subjects:
        cells = [s["subject"], s["label"], str(s["cells"]), f"{s['accuracy']:.3f}", f"{s['mean_probability_all']:.3f}"]
        flagged = [f"{novelty['subjects'][s['subject']]:.3f}"] if novelty else []
        rows.append(f"| {' | '.join([*cells, *flagged])} |")
    return "\n".join(rows)


def _looked_at(source: InputConfig) -> str:
    if source.windows is None:
        return ""
    sides = ", ".join(str(side) for side in source.windows.sides_px)
    return f", and of that the smallest square of {sides} or {source.size_px} px that holds all that is not black"


def _recipe(config: RunConfig | ProbeRunConfig) -> str:
    source = config.input
    crop = "the whole picture" if source.crop_px is None else f"a centred crop of {source.crop_px} px"
    start = (
        f"Network `{config.model.network}`, started from: {config.model.start.licence}. "
        f"Input: {crop}, resized to {source.size_px} px ({source.resample}){_looked_at(source)}. "
    )
    if isinstance(config, ProbeRunConfig):
        return start + (
            "The network was left as it was; one linear layer on the mean and deviation of each stage's channels over "
            "the cell's own pixels was solved by logistic regression, its penalty chosen by cross-validation over "
            "subjects. The whole configuration is in `manifest.json`."
        )
    return start + f"{_fitting(config)} The whole configuration is in `manifest.json`."


_OPTIMISERS = {"adamw": "AdamW", "adam": "Adam", "adamax": "Adamax", "sgd": "SGD"}
_CHOICES = {
    "last": "the last epoch's weights were kept",
    "notebook": "the epoch was chosen by accuracy on the training part, and from 0.9 on by loss on the validation part",
    "best": "the epoch was chosen by the cross-entropy on the validation part",
}


def _fitting(config: RunConfig) -> str:
    fit, optimiser = config.fit, config.optimiser
    backbone = "left as it came" if config.model.freeze else f"learning rate {optimiser.backbone_lr:g}"
    rule = optimiser.schedule if fit.keep == "best" and optimiser.schedule == "notebook" else fit.keep
    return (
        f"At most {fit.epochs} epochs of {_OPTIMISERS[optimiser.name]} (backbone: {backbone}; head: learning rate "
        f"{optimiser.head_lr:g}), batch {fit.batch_size * fit.devices}, seed {config.seed}; {_CHOICES[rule]}."
    )
