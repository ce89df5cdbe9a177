"""Report page, its Markdown twin and the pictures."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib.image
import nibabel
import numpy as np
import pytest
import torch

from monai_ssl.data.reading import LabelFile
from monai_ssl.metrics import Comparison, case_metrics, compare, read_results, write_results
from monai_ssl.reports import Overlay, ReportRun, comparison_sentence, letters, write_report
from monai_ssl.reports.charts import case_figure, curves_figure, overlay_figures
from monai_ssl.reports.figures import (
    comparison_figure,
    figure_png,
    largest_slice,
    new_figure,
    overlay_figure,
    style_axes,
)
from monai_ssl.reports.run import load_runs

EVIL = "<script>alert('x')</script> | `a` & $\\frac$ [b](javascript:c) __d__"


def make_run(folder, name, noise, cases=8, labels=None, role=None, **options):
    labels = labels or {1: "organ"}
    rng = np.random.default_rng(int(noise * 1000))
    rows, overlays = [], {}
    for index in range(cases):
        reference = np.zeros((16, 16, 8), int)
        for value in labels:
            reference[2 + value : 12 - value, 3:12, 2:6] = value
        prediction = np.where(rng.random(reference.shape) < noise, 0, reference)
        case = EVIL if index == 0 else f"case{index}"
        rows += case_metrics(prediction, reference, labels, (1.0, 1.0, 2.0), case)
        image = reference + rng.normal(size=reference.shape)
        overlays[case] = Overlay(image, reference, prediction, (1.0, 1.0, 2.0))
    write_results(folder, rows, {"command": f"train {EVIL}", "seed": 7, "dataset": "toy"})
    return ReportRun(name, folder, role, overlays=overlays, **options)


@pytest.fixture
def logs(tmp_path):
    training, validation = tmp_path / "train.csv", tmp_path / "validation.csv"
    lines = [f"{i},{1 / (i + 1)},{0.5 / (i + 1)},{'' if i % 2 else 0.1},0.01" for i in range(200)]
    training.write_text("iteration,loss,supervised,consistency,lr\n" + "\n".join(lines))
    validation.write_text("iteration,val_mean_dice\n50,0.5\n100,0.7\n")
    return {"training_log": training, "validation_log": validation}


@pytest.fixture
def runs(tmp_path, logs):
    return [
        make_run(tmp_path / "m", "dtc", 0.10, **logs),
        make_run(tmp_path / "c", "all labels (ceiling)", 0.02),
        make_run(tmp_path / "f", "supervised (floor)", 0.80),
        make_run(tmp_path / "w", "dtc, weight 0 (matched floor)", 0.11),
    ]


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_page_is_well_formed_and_self_contained(tmp_path, runs):
    html, markdown = write_report(tmp_path / "out" / "report.html", "Title", runs, "Intro.")
    page = Page(html.read_text(encoding="utf-8"))
    assert page.open == []
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "object")]
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(images) == 5  # every case, three overlays, training
    assert all(attrs["src"].startswith("data:image/png;base64,") and attrs["alt"] for attrs in images)
    assert not re.search(r"""(?:src|href)="(?!data:)|url\(|@import|https?:""", html.read_text(encoding="utf-8"))
    assert sorted(path.name for path in html.parent.iterdir()) == ["report.html", "report.md"]
    assert markdown == html.with_suffix(".md")


def test_names_are_escaped(tmp_path, runs):
    html, markdown = write_report(tmp_path / "r.html", EVIL, runs, EVIL)
    text = html.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;alert(&#39;x&#39;)" in text
    assert EVIL in "".join(Page(text).words)  # and still readable as it was
    twin = markdown.read_text(encoding="utf-8")
    assert "<script" not in twin
    assert not re.search(r"(?<!\\)\]\(javascript", twin)
    assert "__d__" not in twin
    header_columns = None
    for line in twin.splitlines():  # a pipe in a name must not add a column
        columns = len(re.findall(r"(?<!\\)\|", line))
        if line.startswith("|---"):
            header_columns = columns
        elif line.startswith("| ") and header_columns:
            assert columns == header_columns
        elif not line.startswith("|"):
            header_columns = None


def test_numbers_and_order(tmp_path, runs):
    html, markdown = write_report(tmp_path / "r.html", "T", runs)
    twin = markdown.read_text(encoding="utf-8")
    table = twin.split("## Results")[1].split("##")[0]
    names = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")][1:]
    assert names == ["supervised (floor)", "dtc, weight 0 (matched floor)", "dtc", "all labels (ceiling)"]
    block = read_results(tmp_path / "m").summary["mean"]
    dice = block["dice"]
    expected = f"{dice['mean'] * 100:.1f} ± {dice['sd'] * 100:.1f} [{dice['median'] * 100:.1f}]"
    assert expected in table
    assert f"{block['hd95_mm']['mean']:.2f}" in table
    assert "8 of 8" in table  # the floor, at 80 % of voxels dropped, fails everywhere
    sentence = comparison_sentence(
        compare(read_results(tmp_path / "m").rows, read_results(tmp_path / "w").rows),
        "dtc",
        "dtc, weight 0 (matched floor)",
    )
    assert sentence in html.read_text(encoding="utf-8")
    for word in ("toy", "torch ", "seed", "machine"):
        assert word in "".join(Page(html.read_text(encoding="utf-8")).words)


def test_two_classes_and_failures(tmp_path):
    labels = {1: "ring", 2: "core <2>"}
    runs = [make_run(tmp_path / "m", "m", 0.1, labels=labels), make_run(tmp_path / "f", "floor", 0.99, labels=labels)]
    text = write_report(tmp_path / "r.html", "T", runs)[0].read_text(encoding="utf-8")
    assert "Results, mean over classes" in text
    assert "core &lt;2&gt;" in text
    assert "(failed)" in text


def test_one_case_has_no_interval():
    result = Comparison(
        metric="dice", label=None, n=1, n_patients=1, mean_a=0.5, mean_b=0.51, mean_difference=-0.01,
        median_difference=-0.01, ci_low=None, ci_high=None, p_value=1.0, higher_is_better=True, wins=0, losses=1,
        ties=0,
    )  # fmt: skip
    sentence = comparison_sentence(result, "dtc", "floor")
    assert sentence.startswith("dtc minus floor: \u22121.0 points, p = 1.00, better on 0 of 1 case: too few cases")


@pytest.mark.parametrize(
    ("difference", "low", "high", "p", "n", "verdict"),
    [
        (0.02, 0.01, 0.03, 0.01, 20, "a measurable gain"),
        (-0.02, -0.03, -0.01, 0.01, 20, "a measurable loss"),
        (0.003, -0.008, 0.014, 0.5, 20, "no measurable gain"),
        (0.02, 0.01, 0.03, 0.2, 20, "not conclusive"),
        (0.02, -0.001, 0.03, 0.01, 20, "not conclusive"),
        (0.02, 0.01, 0.03, 0.0625, 5, "too few cases"),
        (0.02, None, None, 1.0, 1, "too few cases"),
    ],
)
@pytest.mark.parametrize("higher", [True, False])
def test_verdicts(difference, low, high, p, n, verdict, higher):
    sign = 1 if higher or low is None else -1
    bounds = (low, high) if sign == 1 else (-high, -low)
    result = Comparison(
        metric="dice" if higher else "hd95_mm", label=None, n=n, n_patients=n, mean_a=0.0, mean_b=0.0,
        mean_difference=sign * difference, median_difference=0.0, ci_low=bounds[0], ci_high=bounds[1], p_value=p,
        higher_is_better=higher, wins=11, losses=n - 11, ties=0,
    )  # fmt: skip
    assert verdict in comparison_sentence(result, "a", "b")


def test_roles():
    names = {
        "x (Matched-Floor)": "matched_floor",
        "dtc matched_floor": "matched_floor",
        "floor": "floor",
        "Ceiling, all labels": "ceiling",
        "dtc": "method",
    }
    assert {name: ReportRun(name, "x").role for name in names} == names
    assert ReportRun("anything", "x", role="floor").role == "floor"
    with pytest.raises(ValueError, match="role must be one of"):
        ReportRun("a", "x", role="best")


def test_refusals(tmp_path, runs):
    with pytest.raises(ValueError, match="at least one ReportRun"):
        write_report(tmp_path / "r.html", "T", [])
    with pytest.raises(ValueError, match="names of their own"):
        write_report(tmp_path / "r.html", "T", [runs[0], runs[0]])
    with pytest.raises(ValueError, match="path must be an HTML file"):
        write_report(tmp_path / "r.md", "T", runs)
    short = make_run(tmp_path / "s", "floor", 0.2, cases=5)
    with pytest.raises(ValueError, match=r"same cases and classes, got 'floor' \(a\) and 'dtc' \(b\).*case5"):
        write_report(tmp_path / "r.html", "T", [runs[0], short])
    assert not (tmp_path / "r.html").exists()


def test_bad_logs(tmp_path, logs):
    bad = tmp_path / "bad.csv"
    bad.write_text("step,loss\n1,2\n")
    with pytest.raises(ValueError, match="column 'iteration'"):
        write_report(tmp_path / "r.html", "T", [make_run(tmp_path / "m", "m", 0.1, training_log=bad)])
    bad.write_text("iteration,score\n1,2\n")
    with pytest.raises(ValueError, match="holds 'dice'"):
        write_report(tmp_path / "r.html", "T", [make_run(tmp_path / "m", "m", 0.1, validation_log=bad)])


def test_gradient_norm_is_no_loss_term(tmp_path):
    log = tmp_path / "training.csv"
    log.write_text(
        "iteration,loss,dice,consistency,lr,grad_norm\n" + "".join(f"{i},1,1,0.1,0.01,90\n" for i in range(9))
    )
    (run,) = load_runs([make_run(tmp_path / "m", "dtc", 0.1, cases=2, training_log=log)])
    terms = curves_figure([run]).axes[1]
    assert [line.get_label() for line in terms.lines] == ["dice", "consistency"]
    assert terms.get_ylim()[1] < 2


def test_what_an_adversary_learns_is_drawn_by_itself(tmp_path):
    log = tmp_path / "training.csv"
    log.write_text(
        "iteration,loss,dice,lr,grad_norm,critic/real,critic/fake,critic/grad_norm\n"
        + "".join(f"{i},1,1,0.01,90,0.5,0.6,70\n" for i in range(9))
    )
    (run,) = load_runs([make_run(tmp_path / "m", "dtc", 0.1, cases=2, training_log=log)])
    panels = curves_figure([run]).axes
    shown = {axes.get_title(loc="left"): [line.get_label() for line in axes.lines] for axes in panels if axes.lines}
    assert shown == {
        "Total loss": ["dtc"], "Loss terms, weighted: dtc": ["dice"], "Terms of critic: dtc": ["real", "fake"]
    }  # fmt: skip


def test_what_pseudo_labels_hold_is_drawn(tmp_path):
    log = tmp_path / "training.csv"
    log.write_text("iteration,loss,supervised,lr\n" + "".join(f"{i},1,1,0.01\n" for i in range(9)))
    history = [
        {"iteration": 3, "pseudo_labels": [0.0, 0.0], "left_open": 200.0},
        {"iteration": 6, "pseudo_labels": [90.0, 30.0], "left_open": 80.0},
        {"iteration": 9, "pseudo_labels": None, "left_open": None},
    ]
    (tmp_path / "alarms.json").write_text(json.dumps({"alarms": [], "history": history}))
    (run,) = load_runs([make_run(tmp_path / "m", "online", 0.1, cases=2, training_log=log)])
    panels = {axes.get_title(loc="left"): axes.lines for axes in curves_figure([run]).axes if axes.lines}
    kept, classes = (panels[f"{title}: online"] for title in ("Voxels of the pool that teach",
                                                              "Classes of the pseudo-labels"))  # fmt: skip
    assert (kept[0].get_xdata().tolist(), kept[0].get_ydata().tolist()) == ([3, 6], [0, 60])
    assert (classes[0].get_xdata().tolist(), classes[0].get_ydata().tolist()) == ([6], [25])  # of 120 kept voxels
    (tmp_path / "alarms.json").write_text(json.dumps({"alarms": [], "history": history[:1]}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing was kept: there is no share to draw, and no legend to write
        assert len(curves_figure([run]).axes) == 4
    for broken in ("{", "[]", '{"history": [{"pseudo_labels": [1], "left_open": "x"}]}'):
        (tmp_path / "alarms.json").write_text(broken)
        assert len([axes for axes in curves_figure([run]).axes if axes.lines]) == 2


def overlaps(figure, artists):
    """Pairs of artists whose drawn boxes overlap."""
    figure.canvas.draw()
    boxes = [artist.get_window_extent() for artist in artists]
    return [(a, b) for k, a in enumerate(boxes) for b in boxes[:k] if a.overlaps(b)]


def test_twenty_runs_stay_readable(tmp_path, logs):
    names = [f"a method with a long name, number {i}" for i in range(20)]
    runs = load_runs([make_run(tmp_path / str(i), n, 0.01 * i, 4, role="method", **logs) for i, n in enumerate(names)])
    assert len({run.color for run in runs}) == 20
    figure = case_figure(runs)
    assert overlaps(figure, figure.axes[0].get_yticklabels()) == []
    assert figure.get_size_inches()[0] <= 11  # as wide as the page: nothing is shrunk
    curves = curves_figure(runs)
    assert curves.get_size_inches()[0] <= 13
    assert len([axes for axes in curves.axes if axes.get_visible()]) == 22
    curves.canvas.draw()
    for axes in curves.axes[:2]:  # twenty names: below the panel
        assert axes.get_legend().get_window_extent().y1 <= axes.bbox.y0
    ((_, pictures), *_) = overlay_figures(runs, runs[0])
    assert pictures.get_size_inches()[0] <= 17
    assert len([axes for axes in pictures.axes if axes.get_visible()]) == 21


def test_dice_axis_is_never_negative_and_cuts_no_point(tmp_path):
    rows = []
    for case, (start, stop) in {"missed": (9, 12), "whole": (2, 8)}.items():
        reference, prediction = np.zeros((2, 16, 16), int)
        reference[2:8, 2:8], prediction[start:stop, 2:8] = 1, 1
        rows += case_metrics(prediction, reference, {1: "organ"}, 1.0, case)
    write_results(tmp_path / "m", rows, {})
    axes = case_figure(load_runs([ReportRun("m", tmp_path / "m")])).axes[0]
    assert axes.get_ylim() == (0.0, 100.0)
    empty = [{**row, "dice": 0.0} for row in rows]
    write_results(tmp_path / "e", empty, {})
    assert case_figure(load_runs([ReportRun("e", tmp_path / "e")])).axes[0].get_ylim() == (0.0, 55.0)
    dots = axes.collections[0]
    assert sorted(dots.get_offsets()[:, 1]) == [0.0, 100.0]
    assert not dots.get_clip_on()


def test_several_channels_and_directions_in_pictures(tmp_path):
    run = make_run(tmp_path / "m", "m", 0.1, cases=1)
    own = run.overlays[EVIL]
    affine = np.diag([-1, -1, 2, 1])
    image = np.stack([own.image, own.image * 0], -1)  # NIfTI: channels last
    for name, array in (("image", image.astype(np.float32)), ("label", own.label), ("prediction", own.prediction)):
        nibabel.save(nibabel.Nifti1Image(array.astype(np.float32), affine), tmp_path / f"{name}.nii.gz")
    paths = {name: tmp_path / f"{name}.nii.gz" for name in ("image", "label", "prediction")}
    (loaded,) = load_runs([ReportRun("m", run.results, overlays={EVIL: Overlay(**paths)})])
    ((caption, figure),) = overlay_figures([loaded], loaded)
    assert caption.startswith("Best case of m: ")
    assert [text.get_text() for text in figure.axes[0].texts] == ["L", "R", "P", "A"]
    shown = figure.axes[0].images[0].get_array()
    index = largest_slice([own.label])
    upright = own.image[::-1, ::-1, index].T  # of the first channel, cropped around the label
    windows = np.lib.stride_tricks.sliding_window_view(upright, shown.shape)
    assert np.isclose(windows, shown, rtol=1e-5).all(axis=(2, 3)).sum() == 1


def test_overlays_from_nifti(tmp_path):
    run = make_run(tmp_path / "m", "m", 0.1, cases=1)
    overlay = run.overlays[EVIL]
    paths = {}
    for name in ("image", "label", "prediction"):
        paths[name] = tmp_path / f"{name}.nii.gz"
        data = np.asarray(getattr(overlay, name)).astype(np.float32 if name == "image" else np.uint8)
        nibabel.save(nibabel.Nifti1Image(data, np.diag([1, 1, 2, 1])), paths[name])
    stored = ReportRun("m", run.results, overlays={EVIL: Overlay(**paths)})
    pages = [write_report(tmp_path / f"{i}.html", "T", [r])[0].read_text() for i, r in enumerate((run, stored))]
    pictures = [re.findall(r"base64,([^\"]+)", page) for page in pages]
    assert len(pictures[0]) == len(pictures[1]) == 2


def test_stored_values_of_label_files_are_read_as_classes(tmp_path):
    run = make_run(tmp_path / "m", "m", 0.1, cases=1)
    overlay = run.overlays[EVIL]
    stored = np.where(np.asarray(overlay.label) == 1, 200, 0).astype(np.int16)
    stored[..., -1] = -1
    nibabel.save(nibabel.Nifti1Image(stored, np.diag([1, 1, 2, 1])), tmp_path / "label.nii.gz")
    label = LabelFile(str(tmp_path / "label.nii.gz"), {200: 1}, -1)
    (loaded,) = load_runs([ReportRun("m", run.results, overlays={EVIL: replace(overlay, label=label)})])
    ((_, figure),) = overlay_figures([loaded], loaded)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[:2] == ["reference label", "prediction"]
    assert legend[-1] == "not labeled, ignored"


def colors(path):
    pixels = (matplotlib.image.imread(path)[..., :3] * 255).round().astype(int)
    return lambda code: int((np.abs(pixels - [int(code[i : i + 2], 16) for i in (1, 3, 5)]).max(-1) <= 12).sum())


def test_overlay_draws_label_and_prediction(tmp_path):
    label = np.zeros((32, 32, 6), int)
    label[8:20, 8:20, 3] = 1
    image = np.zeros(label.shape)
    overlay_figure(image, label, np.roll(label, 4, 0), tmp_path / "a" / "both.png")
    overlay_figure(image, label, np.zeros_like(label), tmp_path / "missed.png")
    both, missed = colors(tmp_path / "a" / "both.png"), colors(tmp_path / "missed.png")
    assert both("#F0E442") > 300
    assert both("#56B4E9") > 300
    assert missed("#F0E442") > 300
    assert missed("#56B4E9") < both("#56B4E9") / 3


def test_letters_that_the_usual_font_lacks(monkeypatch, caplog, recwarn):
    """Drawn by another font, or one warning that says what to install; never one per letter."""
    monkeypatch.setattr(letters, "_fonts_for", letters._fonts_for.__wrapped__)
    able = [file for file in letters._files().values() if {*map(ord, "左心房")} <= letters._letters(file)]
    figure = new_figure(2, 1)
    style_axes(figure.add_subplot(), "左心房 (α)")
    assert figure_png(figure).startswith(b"\x89PNG")
    assert ("no font of this machine draws 左心房: " in caplog.text) == (not able)
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
    assert not [record for record in caplog.records if record.name.startswith("matplotlib")]


def test_a_font_that_has_the_letters_is_found(monkeypatch, caplog):
    own = letters.findfont(letters.OWN)
    fonts = {"Greek": {945, 946}, "Both Sans": {945, 20013}, "Both": {945, 20013}, "None": set()}
    monkeypatch.setattr(letters, "_files", lambda: {name: name for name in fonts})
    monkeypatch.setattr(letters, "_letters", lambda file: {65} if file == own else fonts[file])
    find = letters._fonts_for.__wrapped__
    assert find(frozenset("α中")) == ["Both Sans"]
    assert find(frozenset("αβ中")) == ["Both Sans", "Greek"]
    assert caplog.text == ""
    assert "Both Sans" in find(frozenset("α中क"))
    assert "no font of this machine draws क: pictures show boxes" in caplog.text


def test_overlay_takes_batches_2d_classes_and_no_label():
    label = torch.zeros(1, 1, 20, 24, dtype=torch.long)
    label[..., 4:9, 4:9], label[..., 12:16, 10:20] = 1, 2
    figure = overlay_figure(torch.rand(1, 1, 20, 24), label, label, labels={1: "a", 2: "$b"})
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["reference label", "prediction", "a", "\\$b"]
    assert figure_png(figure).startswith(b"\x89PNG")
    assert len(overlay_figure(torch.rand(3, 20, 24), None, label).axes) == 2
    assert len(overlay_figure(np.full((8, 8), np.nan), None, None).axes) == 1
    with pytest.raises(ValueError, match="same shape"):
        overlay_figure(np.zeros((8, 8)), None, np.zeros((8, 9), int))
    with pytest.raises(ValueError, match="prediction must have shape"):
        comparison_figure(np.zeros((8, 8)), None, {"a": np.zeros((2, 8, 8, 8), int)})


def test_slice_choice():
    label = np.zeros((10, 10, 9), int)
    label[2:8, 2:8, 5], label[4, 4, :] = 1, 1
    assert largest_slice([label]) == 5
    assert largest_slice([np.zeros_like(label), label]) == 5
    assert largest_slice([np.zeros_like(label)]) == 4
    assert largest_slice([label], axis=0) == 4


def test_drawing_leaves_pyplot_alone(tmp_path):
    """In a fresh process: pictures register no pyplot figure and need no display."""
    code = (
        "import sys, numpy as np\n"
        "from monai_ssl.reports.figures import overlay_figure\n"
        f"overlay_figure(np.eye(8), None, np.eye(8, dtype=int), {str(tmp_path / 'x.png')!r})\n"
        "pyplot = sys.modules.get('matplotlib.pyplot')\n"
        "assert pyplot is None or not pyplot.get_fignums()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_ignored_voxels_are_hatched_and_no_class():
    label = np.zeros((16, 16, 4), int)
    label[4:9, 4:9, 2] = 1
    label[10:, :, :] = 255
    figure = comparison_figure(np.zeros(label.shape), label, {"a": label == 1}, labels={1: "organ"})
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["reference label", "prediction", "not labeled, ignored"]
    mask = np.where(label == 255, 255, 0)
    legend = comparison_figure(np.zeros(label.shape), mask, {"a": mask}, labels={255: "organ"}).legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["reference label", "prediction"]
