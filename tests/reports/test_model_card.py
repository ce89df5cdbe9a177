"""The model card: what it states is what is in record, results and data."""

import pytest

from monai_ssl.data import load_preset
from monai_ssl.metrics import summarize
from monai_ssl.metrics.cases import METRICS
from monai_ssl.reports.model_card import model_card, score_table

META = {
    "name": "Tiny_atrium *",
    "description": "d",
    "label_classes": "0 background, 1 organ",
    "intended_use": "research",
    "references": ["Luo et al., https://arxiv.org/abs/2009.04448v2"],
}
RECORD = {
    "bundle": "/home/me/bundles/dtc",
    "overrides": {"seed": 3},
    "max_iterations": 400,
    "status": "complete",
    "versions": {"monai_ssl": "0.1.0", "monai": "1.6.1", "torch": "2.13"},
}


def card(record=RECORD, results=None, data=None):
    differences = {"model.ts": 1.2e-6, "model.onnx": 3e-6}
    return model_card(META, load_preset("phantom"), record, results or {}, data or {}, differences)


def rows(dice):
    return [
        dict.fromkeys(METRICS, 2.0)
        | {"case": f"c{i}", "class": "left_atrium", "label": 1, "status": "ok", "dice": value}
        for i, value in enumerate(dice)
    ]


def test_content():
    data = {"counts": {"training": 2, "testing": 1}, "spacing": [[1, 1, 1], [1, 1, 2.5], [2, 2, 3]]}
    text = card(data=data)
    assert text.startswith("# Tiny_atrium \\*\n")
    assert "- cases: 2 training, 1 testing. Only the labels of `training` were read.\n" in text
    assert "- spacing of the training images: median 1 x 1 x 2.5 mm (from 1 x 1 x 1 to 2 x 2 x 3)\n" in text
    assert "Bundle `dtc`, 400 iterations, seed 3, patches of " in text
    assert "/home/me" not in text
    assert "logits from it: `model.ts` 1.2e-06, `model.onnx` 3.0e-06.\n" in text
    assert "- Luo et al., https://arxiv.org/abs/2009.04448v2\n" in text
    assert "It draws left atrium and nothing else" in text
    assert "**This model has not been evaluated.**" in text
    assert "not finished" not in text
    assert "unknown (the data were not at hand when packaging)" in card()


def test_an_unfinished_run():
    text = card({**RECORD, "iteration": 100, "status": "started"})
    assert (
        "**This training was not finished when it was packaged: the weights are those of iteration 100 of 400.**"
        in text
    )
    assert "Bundle `dtc`, 100 iterations, " in text
    assert "Status: started." in text
    assert "400 iterations" not in text


def test_scores():
    summary = summarize(rows([0.91, 0.42, 0.88]))
    dice = summary["classes"]["left_atrium"]["dice"]
    interval = f"{dice['mean']:.3f} [{dice['ci_low']:.3f}, {dice['ci_high']:.3f}]"
    line = f"| left_atrium | 3 | 1 | {interval} | 2.00 [2.00, 2.00] | 2.00 [2.00, 2.00] |"
    text = card(results={"testing": {"summary": summary}})
    assert line in text.splitlines()
    assert "[per case](results/testing/per_case.csv)" in text
    assert "has not been evaluated" not in text


@pytest.mark.parametrize(("mean", "expected"), [(None, "not defined"), (0.9, "0.900")])
def test_a_score_without_interval(mean, expected):
    spread = {"n": 1, "mean": mean, "ci_low": None}
    summary = {"classes": {"x": {"n_failed": 0, "dice": spread, "hd95_mm": spread, "assd_mm": spread}}}
    assert score_table(summary).rows[0][3] == expected
