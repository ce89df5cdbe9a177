"""From predictions to result files and pictures."""

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor

from monai_ssl.data import DataError
from monai_ssl.data.reading import load_original
from monai_ssl.data.scan import spacing_of
from monai_ssl.handlers import EvaluationResults, Preview
from monai_ssl.metrics import case_metrics, read_results

LABELS = {0: "background", 1: "organ", 2: "lesion"}
AFFINE = torch.diag(torch.tensor([-1.0, 2.0, 0.5, 1.0], dtype=torch.float64))


def item(path, seed):
    """What a MONAI evaluator hands over after the post-processing: prediction and label on the original grid."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 3, (1, 8, 7, 6), generator=generator).to(torch.uint8)
    prediction = torch.where(torch.rand(label.shape, generator=generator) < 0.2, 0, label)
    return {"pred": MetaTensor(prediction, affine=AFFINE, meta={"filename_or_obj": str(path)}), "label": label}


def evaluate(handler, outputs):
    engine = Engine(lambda engine, batch: batch)
    handler.attach(engine)
    engine.run(outputs, max_epochs=1)


def test_spacing_of():
    assert spacing_of(AFFINE.numpy(), 3) == [1.0, 2.0, 0.5]
    turned = np.array([[0, 0, 0.5, 3], [2, 0, 0, 4], [0, -1, 0, 5], [0, 0, 0, 1.0]])
    assert spacing_of(turned, 3) == [2.0, 1.0, 0.5]
    assert spacing_of(turned, 2) == [2.0, 1.0]


def test_results_equal_the_metrics_of_every_case(tmp_path):
    cases = [item("/d/a.nii.gz", 0), item("/d/b.nii.gz", 1)]
    handler = EvaluationResults(tmp_path, LABELS, meta={"bundle": "dtc"})
    for _ in range(2):  # a second run starts again
        evaluate(handler, [[case] for case in cases])
    results = read_results(tmp_path)
    expected = [
        row
        for name, case in zip("ab", cases, strict=True)
        for row in case_metrics(case["pred"][0].numpy(), case["label"][0].numpy(), LABELS, [1.0, 2.0, 0.5], case=name)
    ]
    assert len(results.rows) == len(expected) == 4
    for row, wanted in zip(results.rows, expected, strict=True):
        assert (row["case"], row["class"]) == (wanted["case"], wanted["class"])
        assert row["dice"] == pytest.approx(wanted["dice"])
    assert (tmp_path / "summary.json").read_text().count("dtc") >= 1


def test_equal_file_names_in_several_folders(tmp_path):
    cases = [item("/d/patient1/image.nii.gz", 0), item("/d/patient2/image.nii.gz", 1)]
    evaluate(EvaluationResults(tmp_path, LABELS), [[case] for case in cases])
    assert {row["case"] for row in read_results(tmp_path).rows} == {"patient1_image", "patient2_image"}


def test_nothing_is_written_when_a_case_fails(tmp_path):
    cases = [item("/d/a.nii.gz", 0), {**item("/d/b.nii.gz", 1), "label": None}]
    with pytest.raises(DataError, match="case b: has no label; evaluation needs labeled cases"):
        evaluate(EvaluationResults(tmp_path, LABELS), [[case] for case in cases])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("rank", "pictures"), [(0, ["iteration-000040.png"]), (1, [])])
def test_preview(tmp_path, rank, pictures):
    import nibabel

    path = tmp_path / "a.nii.gz"
    array = np.random.RandomState(0).rand(8, 7, 6).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
    np.testing.assert_array_equal(load_original(path), array)
    evaluator, trainer = Engine(lambda engine, batch: batch), Engine(lambda engine, batch: None)
    trainer.state.rank, trainer.state.iteration = rank, 40
    Preview(tmp_path / "run", evaluator, LABELS).attach(trainer)
    drawn = []
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda e: drawn.append(e.state.iteration))
    evaluator.run([[item(path, 0)], [item("/does/not/exist.nii.gz", 1)]], max_epochs=1)
    assert drawn == [1, 2]
    folder = tmp_path / "run" / "previews"
    assert [p.name for p in sorted(folder.glob("*"))] == pictures
    if pictures:
        assert (folder / pictures[0]).read_bytes().startswith(b"\x89PNG")
