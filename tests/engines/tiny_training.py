"""A complete training that takes a second: networks of two channels on images made from their names, no files.

``build`` puts it together from options; ``train_in_process`` runs it in a process of its own, which can be killed.
"""

import multiprocessing
import os
import signal
from pathlib import Path

import torch
from builders import tiny
from ignite.engine import Events
from monai.engines import Evaluator
from monai.engines.utils import IterationEvents
from monai.transforms import Compose, RandFlipd, RandGaussianNoised, RandSpatialCropd, Transform

from monai_ssl.data import CaseCache, CaseDataset, TwoStreamLoader
from monai_ssl.engines import SemiSupervisedTrainer, lr_schedule
from monai_ssl.handlers import RunCheckpoint, TrainingLog, Validation, ValidationLog
from monai_ssl.transforms import SignedDistanceMapd


class FromName(Transform):
    """Image and label as a function of the case's number."""

    def __init__(self, sides, bad=None):
        self.sides, self.bad = sides, bad

    def __call__(self, item):
        number = int(Path(item["image"]).name.split("_")[1].split(".")[0])
        generator = torch.Generator().manual_seed(number)
        image = torch.randn(1, *self.sides, generator=generator)
        if number == self.bad:
            image.fill_(float("nan"))
        return {"image": image} | ({"label": (image > 0.3).to(torch.uint8)} if "label" in item else {})


def entries(numbers, label):
    return [{"image": f"case_{i}.nii.gz"} | ({"label": f"case_{i}_seg.nii.gz"} if label else {}) for i in numbers]


def make_loader(dims=2, n_labeled=3, n_unlabeled=4, bad=None, deterministic=False, added=None, cache=None, **options):
    def dataset(numbers, label):
        return CaseDataset(entries(numbers, label), Compose([FromName((18,) * dims, bad)]), num_workers=1, cache=cache)

    def transforms(*keys):
        crop = RandSpatialCropd(keys, (16,) * dims, random_size=False)
        return [crop] if deterministic else [crop, RandFlipd(keys, 0.5), RandGaussianNoised("image", 0.5)]

    return TwoStreamLoader(
        dataset(range(n_labeled), True),
        dataset(range(100, 100 + n_unlabeled), False) if n_unlabeled else None,
        [*transforms("image", "label"), *([SignedDistanceMapd("label")] if added is None else added)],
        transforms("image"),
        **options,
    )


def build(
    folder=None,
    method="dtc",
    dims=2,
    max_iterations=11,
    epoch_length=4,
    interval=3,
    minutes=None,
    seed=0,
    amp="off",
    schedule="poly",
    learning_rate=0.05,
    resume=True,
    wrap=None,
    before=(),
    handlers=(),
    trainer=None,
    network=None,
    validate=False,
    device="cpu",
    cache_gb=None,
    **data,
):
    learner = tiny(method, dims, max_iterations=max_iterations, **(network or {}))
    added = learner.loader_transforms()
    cache = None if cache_gb is None else CaseCache(cache_gb, run_folder=folder)
    loader = make_loader(dims, epoch_length=epoch_length, seed=seed, added=added, cache=cache, **data)
    optimizer = torch.optim.SGD(learner.parameters(), lr=learning_rate, momentum=0.9, weight_decay=1e-4)
    hooks = []
    if folder is not None:
        evaluator = WeightNorm(learner)
        validation = [Validation(interval=1, validator=evaluator), ValidationLog(folder, evaluator)]
        checkpoint = RunCheckpoint(folder, interval=interval, resume=resume, minutes=minutes)
        # ``before`` stands where a kill hits hardest: behind the checkpoint, in front of the logs
        hooks = [checkpoint, *before, *(validation if validate else []), TrainingLog(folder, tensorboard=False)]
    return SemiSupervisedTrainer(
        device=device,
        max_epochs=-(-max_iterations // epoch_length),
        max_iterations=max_iterations,
        train_data_loader=loader,
        method=learner if wrap is None else wrap(learner),
        optimizer=optimizer,
        lr_scheduler=lr_schedule(optimizer, schedule, max_iterations),
        seed=seed,
        amp=amp,
        handlers=[*hooks, *handlers],
        **(trainer or {}),
    )


class WeightNorm(Evaluator):
    """Stands for a validation: its metric is a number that any difference between two runs changes."""

    def __init__(self, method):
        # it draws from the global generator, as a validation may
        super().__init__("cpu", [0], iteration_update=lambda engine, batch: torch.randn(3), decollate=False)
        self.method = method
        self.add_event_handler(Events.EPOCH_COMPLETED, self.measure)

    def measure(self, engine):
        engine.state.metrics["weight_norm"] = sum(p.detach().double().norm().item() for p in self.method.parameters())


# ------------------------------------------------------------------------------------------------- processes


class Kill:
    """Ends the process with SIGKILL at a chosen moment of a chosen iteration (counted from 1)."""

    def __init__(self, moment, iteration):
        self.moment, self.iteration = moment, iteration

    def now(self, *unused):
        os.kill(os.getpid(), signal.SIGKILL)

    def attach(self, engine):
        at_iteration = {"event_filter": lambda engine, event: engine.state.iteration == self.iteration}
        if self.moment == "in the backward pass":
            engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._if_due)
        elif self.moment == "after the step":
            engine.add_event_handler(Events.ITERATION_COMPLETED(**at_iteration), self.now)
        elif self.moment == "at the next start":  # everything of the iteration is done
            engine.add_event_handler(Events.GET_BATCH_STARTED(**at_iteration), self.now)
        elif self.moment == "in the validation":
            engine.add_event_handler(Events.EPOCH_COMPLETED(**at_iteration), self.now)
            engine.add_event_handler(Events.COMPLETED, self._if_due)
        elif self.moment == "while checkpoint.pt is written":
            self._in_save(engine, 0.5, "checkpoint.pt")
        elif self.moment == "between checkpoint.pt and model.pt":
            self._in_save(engine, 0.0, "model.pt")
        else:
            raise ValueError(self.moment)

    def _if_due(self, engine):  # MONAI's own events take no filter
        if engine.state.iteration == self.iteration:
            self.now()

    def _in_save(self, engine, share, name):
        original = torch.save

        def cut_short(content, path):
            original(content, path)
            if engine.state.iteration >= self.iteration and str(path).endswith(name):
                os.truncate(path, int(os.path.getsize(path) * share))
                self.now()

        torch.save = cut_short


def _run(folder, options, kill):
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of loader processes; the quick one
    build(folder, before=[] if kill is None else [Kill(*kill)], **options).run()


def processes():
    """Starts processes that have imported everything already; none of them inherits threads."""
    context = multiprocessing.get_context("forkserver")
    packages = ["monai_ssl.engines", "monai_ssl.handlers", "monai_ssl.methods", "monai.handlers", "torch._dynamo"]
    context.set_forkserver_preload(packages)
    return context


def train_in_process(folder, options=None, kill=None):
    """Exit code of a training in a process of its own; ``-9`` when it was killed."""
    process = processes().Process(target=_run, args=(folder, options or {}, kill))
    process.start()
    process.join(120)
    assert process.exitcode is not None, "the training hangs"
    return process.exitcode


def content(folder):
    """Everything that a run leaves: text of the logs, checkpoint, model."""
    return {
        "training.csv": (folder / "training.csv").read_text(),
        "checkpoint": torch.load(folder / "checkpoint.pt", weights_only=True),
        "model": torch.load(folder / "model.pt", weights_only=True),
    }


def assert_equal(a, b, where=""):
    """Bit for bit, through any nesting."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}/{i}")
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def rows(folder, name="training.csv"):
    """A log as a list of dictionaries."""
    lines = (folder / name).read_text().splitlines()
    fields = lines[0].split(",")
    return [dict(zip(fields, line.split(","), strict=True)) for line in lines[1:]]
