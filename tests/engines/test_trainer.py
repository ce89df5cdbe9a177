"""One iteration of the trainer, its options and its refusals."""

import logging

import pytest
import torch
from builders import names, tiny
from ignite.engine import Events
from monai.engines.utils import IterationEvents
from monai.transforms import Compose, Transform
from tiny_training import assert_equal, build, content, make_loader, rows
from torch import nn

from monai_ssl.data import DataError, position_seed
from monai_ssl.engines import SemiSupervisedTrainer, TrainingDivergedError
from monai_ssl.engines.precision import shield_bfloat16_convolutions
from monai_ssl.losses import IGNORE_LABEL
from monai_ssl.methods import SemiSupervisedMethod

# no random transform, no dropout, instance norm: a gradient is then a mean over images
PLAIN = {"deterministic": True, "network": {"dropout": 0.0, "norm": "instance"}}


def gradients_of_first_step(**options):
    """Gradients by name, taken before clipping and step."""
    trainer = build(**{"max_iterations": 1, **options})
    taken = {}

    def take(engine):
        taken.update({n: p.grad.clone() for n, p in engine.plain_method.named_parameters() if p.grad is not None})

    trainer.add_event_handler(IterationEvents.BACKWARD_COMPLETED, take)
    trainer.run()
    assert taken
    return taken, trainer.state.output[0]


def with_paper(options, method):
    """DTC's released Dice is pooled over the batch, so it is no mean over images; the paper's variant is one."""
    network = options["network"] | ({"variant": "paper"} if method == "dtc" else {})
    return options | {"network": network, "method": method}


# ------------------------------------------------------------------------------------------------- one iteration


@pytest.mark.parametrize("method", ["dtc", "supervised"])
def test_a_step_equals_a_loop_by_hand(method):
    trainer = build(method=method, max_iterations=6, epoch_length=4)
    outputs = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: outputs.append(dict(e.state.output[0])))
    trainer.run()

    learner = tiny(method, max_iterations=6).train()
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    batches = iter(make_loader(seed=0))
    for i in range(6):
        batch = next(batches)
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 - i / 6) ** 0.9
        torch.manual_seed(position_seed(0, 2, i, 0))
        terms = learner(batch["labeled"], batch["unlabeled"])
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        learner.after_step()
        output = outputs[i]
        assert output["terms"].keys() == terms.keys()
        for name, term in terms.items():
            assert output["terms"][name] == pytest.approx(term.item(), rel=1e-4, abs=1e-6)
        assert output["loss"] == pytest.approx(sum(t.item() for t in terms.values()), rel=1e-4)
        assert output["lr"] == pytest.approx(0.05 * (1 - i / 6) ** 0.9)
        norm = torch.stack([p.grad.norm() for p in learner.parameters()]).norm().item()
        assert output["grad_norm"] == pytest.approx(norm, rel=1e-3)
        assert torch.equal(output["image"], batch["labeled"]["image"])
        assert torch.equal(output["label"], batch["labeled"]["label"])
    for (name, a), b in zip(learner.named_parameters(), trainer.plain_method.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=name)
    assert trainer.plain_method.iteration == 6


@pytest.mark.parametrize("method", ["dtc", "supervised"])
def test_two_runs_are_equal_and_another_seed_differs(tmp_path, method):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        build(tmp_path / name, method=method, max_iterations=4, seed=seed).run()
    assert_equal(content(tmp_path / "a"), content(tmp_path / "b"))
    assert rows(tmp_path / "a") != rows(tmp_path / "c")


@pytest.mark.parametrize("n_unlabeled", [0, 1])
@pytest.mark.parametrize("method", ["dtc", "supervised"])
def test_trains_with_one_labeled_case(method, n_unlabeled):
    trainer = build(method=method, n_labeled=1, n_unlabeled=n_unlabeled, max_iterations=3)
    trainer.run()
    assert trainer.state.iteration == 3


@pytest.mark.parametrize("method", ["dtc", "supervised"])
def test_trains_in_three_dimensions(method):
    trainer = build(method=method, dims=3, max_iterations=2)
    trainer.run()
    assert trainer.plain_method.iteration == 2


@pytest.mark.parametrize(("max_iterations", "epoch_length"), [(11, 4), (8, 4), (3, 10), (1, 1)])
def test_stops_after_max_iterations(max_iterations, epoch_length):
    epochs = []
    trainer = build(max_iterations=max_iterations, epoch_length=epoch_length)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda e: epochs.append(e.state.iteration))
    trainer.run()
    assert trainer.state.iteration == trainer.total_iterations == max_iterations
    assert epochs == list(range(epoch_length, max_iterations + 1, epoch_length))


def test_max_epochs_alone():
    trainer = build(max_iterations=8, epoch_length=4, trainer={})
    trainer.max_iterations = None
    assert trainer.total_iterations == 8


def test_training_mode_is_restored_after_a_validation():
    trainer = build(max_iterations=3)
    modes = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: e.plain_method.eval())
    trainer.add_event_handler(IterationEvents.BACKWARD_COMPLETED, lambda e: modes.append(e.plain_method.training))
    trainer.run()
    assert modes == [True] * 3


def test_events_of_a_step_come_in_order():
    trainer, seen = build(max_iterations=1), []
    names = [Events.ITERATION_STARTED, IterationEvents.BACKWARD_COMPLETED, IterationEvents.MODEL_COMPLETED,
             Events.ITERATION_COMPLETED]  # fmt: skip
    for name in names:
        trainer.add_event_handler(name, lambda e, n=name: seen.append((n, e.plain_method.iteration)))
    trainer.run()
    assert seen == list(zip(names, [0, 0, 1, 1], strict=True))


def test_says_what_it_trains_on(caplog):
    with caplog.at_level(logging.INFO, "monai_ssl"):
        build(max_iterations=2, n_labeled=3, n_unlabeled=4).run()
    assert "3 labeled and 4 unlabeled cases, 2 iterations" in caplog.text
    assert "float32, channels-last" in caplog.text


# ------------------------------------------------------------------------------------------------- accumulation


@pytest.mark.parametrize("method", ["dtc", "supervised"])
def test_accumulation_equals_the_full_batch(method):
    options = with_paper(PLAIN, method) | {"labeled_batch_size": 4, "unlabeled_batch_size": 4}
    whole, output = gradients_of_first_step(**options)
    for steps in (2, 4):
        parts, other = gradients_of_first_step(**options, trainer={"accumulation_steps": steps})
        assert parts.keys() == whole.keys()
        for name in whole:
            torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=1e-6, msg=name)
        assert other["loss"] == pytest.approx(output["loss"], rel=1e-5)
        for name, value in output["terms"].items():
            assert other["terms"][name] == pytest.approx(value, rel=1e-4)


def test_accumulation_sees_every_image_once():
    trainer = build(max_iterations=1, labeled_batch_size=4, unlabeled_batch_size=2, trainer={"accumulation_steps": 2})
    seen = {"labeled": [], "unlabeled": []}
    forward = trainer.plain_method.forward

    def note(labeled, unlabeled):
        seen["labeled"] += labeled["name"]
        seen["unlabeled"] += unlabeled["name"]
        assert len(labeled["image"]) == len(labeled["index"]) == len(labeled["label"]) == 2
        assert len(unlabeled["image"]) == 1
        return forward(labeled, unlabeled)

    trainer.plain_method.forward = note
    trainer.run()
    batch = next(iter(make_loader(seed=0, labeled_batch_size=4, unlabeled_batch_size=2)))
    assert seen == {key: batch[key]["name"] for key in seen}
    assert trainer.plain_method.iteration == 1  # one step, not two


# ------------------------------------------------------------------------------------------------- clipping


def test_clipping():
    def step(limit):
        learner_options = {"max_iterations": 1, "schedule": "constant", "learning_rate": 1.0}
        trainer = build(**learner_options, trainer={"clip_gradient_norm": limit})
        trainer.optimizer.param_groups[0].update(momentum=0.0, weight_decay=0.0)
        before = [p.detach().clone() for p in trainer.plain_method.parameters()]
        trainer.run()
        change = [a - b.detach() for a, b in zip(before, trainer.plain_method.parameters(), strict=True)]
        return torch.cat([c.flatten() for c in change]), trainer.state.output[0]["grad_norm"]

    free, norm = step(None)
    assert free.norm().item() == pytest.approx(norm, rel=1e-3)
    clipped, same_norm = step(norm / 4)
    assert same_norm == norm  # logged before clipping
    torch.testing.assert_close(clipped, free / 4, rtol=1e-2, atol=1e-6)
    loose, _ = step(norm * 4)
    torch.testing.assert_close(loose, free)


# ------------------------------------------------------------------------------------------------- divergence


class Failing(SemiSupervisedMethod):
    """Gives a chosen value of a chosen term, or a chosen gradient, at one iteration."""

    def __init__(self, network, at=3, value=float("nan"), where="second"):
        super().__init__(network)
        self.at, self.value, self.where = at, value, where

    def forward(self, labeled, unlabeled):
        output = self.network(labeled["image"])
        now = self.iteration == self.at
        first, second = output.square().mean(), output.abs().mean()
        if now and self.where == "gradient":
            first.register_hook(lambda gradient: gradient * self.value)
        return {"first": first, "second": second * self.value if now and self.where == "second" else second}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["second", "gradient"])
def test_divergence_is_named_and_leaves_the_last_good_checkpoint(tmp_path, where, value):
    network = tiny("supervised", dropout=0.0).network
    method = Failing(network, at=3, value=value, where=where)
    trainer = build(tmp_path, max_iterations=8, interval=1, wrap=lambda _: method)
    trainer.optimizer = torch.optim.SGD(method.parameters(), lr=0.01)
    trainer.parameters = list(method.parameters())
    trainer.lr_scheduler = None
    with pytest.raises(TrainingDivergedError) as error:
        trainer.run()
    message = str(error.value)
    batches = iter(make_loader(seed=0))
    batch = [next(batches) for _ in range(4)][3]
    assert message.startswith("iteration 3: ")
    assert ("the gradient is" if where == "gradient" else "loss term 'second' is") in message
    assert (
        f"labeled: {', '.join(batch['labeled']['name'])}; unlabeled: {', '.join(batch['unlabeled']['name'])}."
        in message
    )
    assert "monai-ssl check" in message
    saved = content(tmp_path)
    assert saved["checkpoint"]["iteration"] == 3
    assert all(torch.isfinite(v).all() for v in saved["model"].values())
    assert [row["iteration"] for row in rows(tmp_path)] == ["1", "2", "3"]
    # the weights in memory are those of the checkpoint: no step was made with the bad gradient
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, saved["model"][name]), name


@pytest.mark.parametrize("method", [name for name in names() if tiny(name).uses_unlabeled])
def test_an_image_with_nan_stops_training(tmp_path, method):
    trainer = build(tmp_path, method, bad=101, max_iterations=20, interval=1)
    with pytest.raises(TrainingDivergedError, match=r"case_101"):
        trainer.run()
    if (tmp_path / "checkpoint.pt").is_file():
        assert all(torch.isfinite(v).all() for v in content(tmp_path)["model"].values())


def test_divergence_in_one_part_names_the_whole_batch():
    trainer = build(bad=1, n_labeled=2, max_iterations=4, trainer={"accumulation_steps": 2})
    with pytest.raises(TrainingDivergedError, match="case_1"):
        trainer.run()


# ------------------------------------------------------------------------------------------------- precision, layout


def test_fp16_is_refused_on_a_cpu():
    with pytest.raises(ValueError, match=r"amp: fp16 is for CUDA devices; use bf16 or off on a CPU"):
        build(amp="fp16")


@pytest.mark.parametrize("method", ["dtc", "supervised"])
def test_bfloat16_stays_near_float32(method):
    exact = gradients_of_first_step(**with_paper(PLAIN, method))[1]
    near = gradients_of_first_step(**with_paper(PLAIN, method), amp="bf16")[1]
    for name, value in exact["terms"].items():
        assert near["terms"][name] == pytest.approx(value, rel=0.05, abs=0.01)
        assert near["terms"][name] != value or value == 0  # it did run in bfloat16


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("method", ["dtc", "supervised"])
def test_channels_last_is_the_same_mathematics(method, dims):
    options = with_paper(PLAIN, method) | {"dims": dims}
    first, _ = gradients_of_first_step(**options, trainer={"channels_last_weights": False})
    last, _ = gradients_of_first_step(**options, trainer={"channels_last_weights": True})
    for name in first:
        torch.testing.assert_close(last[name], first[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("on", [False, True])
def test_channels_last_reaches_weights_and_images(on):
    trainer = build(max_iterations=1, labeled_batch_size=2, trainer={"channels_last_weights": on})
    weights = [p for p in trainer.plain_method.parameters() if p.dim() == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert all(w.is_contiguous(memory_format=torch.channels_last) == on for w in weights)
    trainer.run()
    # the checkpointed layout is always the plain one
    assert all(w.is_contiguous(memory_format=torch.channels_last) == on for w in weights)


def test_bfloat16_on_a_cpu_is_shielded():
    def shielded(trainer):
        return sum("forward" in vars(m) for m in trainer.plain_method.modules() if isinstance(m, nn.Conv3d))

    assert shielded(build(dims=3, amp="bf16")) > 0
    assert shielded(build(dims=3, amp="off")) == 0
    assert shield_bfloat16_convolutions(nn.Identity())


# ------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulation_steps": 0}, "accumulation_steps must be >= 1, got 0"),
        ({"accumulation_steps": 3}, r"accumulation_steps must divide the batch sizes \[2, 2\], got 3"),
        ({"clip_gradient_norm": 0}, "clip_gradient_norm must be > 0 or None, got 0"),
        ({"clip_gradient_norm": float("nan")}, "clip_gradient_norm must be > 0 or None, got nan"),
    ],
)
def test_rejects_options(options, message):
    with pytest.raises(ValueError, match=message):
        build(trainer=options)


def test_rejects_what_is_no_method():
    with pytest.raises(TypeError, match="method must be a SemiSupervisedMethod, got Conv2d"):
        build(wrap=lambda _: nn.Conv2d(1, 1, 1))


def test_the_trainer_is_a_monai_trainer():
    from monai.engines import Trainer

    assert issubclass(SemiSupervisedTrainer, Trainer)


# ------------------------------------------------------------------------------------------------- the batch


def test_ranks_draw_different_noise():
    def first_step(rank):
        trainer = build(max_iterations=1)
        drawn = []
        trainer.state.rank = rank
        trainer.add_event_handler(IterationEvents.BACKWARD_COMPLETED, lambda e: drawn.append(torch.rand(3).tolist()))
        trainer.run()
        return drawn, trainer.state.output[0]["terms"]

    (noise, terms), (other_noise, other_terms) = first_step(0), first_step(1)
    assert noise != other_noise
    assert terms != other_terms  # the images are the same: dropout is not
    assert first_step(1) == (other_noise, other_terms)


class Ignoring(Transform):
    """A corner of every label is unknown."""

    def __call__(self, item):
        item["label"][..., :4, :4] = IGNORE_LABEL
        return item


@pytest.mark.parametrize("method", names())
def test_labels_to_be_ignored_train(method):
    trainer = build(method=method, max_iterations=2)
    stream = trainer.data_loader.streams["labeled"][0]
    stream.transform = Compose([*stream.transform.transforms[:1], Ignoring(), *stream.transform.transforms[1:]])
    seen = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: seen.append(e.state.output[0]["label"].max()))
    trainer.run()
    assert IGNORE_LABEL in seen


def test_a_method_that_does_not_honor_ignored_labels_refuses_them():
    method = tiny("supervised", loss=nn.CrossEntropyLoss())
    trainer = build(max_iterations=2, wrap=lambda _: method)
    stream = trainer.data_loader.streams["labeled"][0]
    stream.transform = Compose([*stream.transform.transforms[:-1], Ignoring()])
    with pytest.raises(DataError, match=r"iteration 0: case case_\d, case_\d: the label holds 255, .* Supervised does"):
        trainer.run()


class LateTerm(SemiSupervisedMethod):
    """Its second term is there from its third step on, and never without unlabeled images."""

    def forward(self, labeled, unlabeled):
        terms = {"first": self.network(labeled["image"]).square().mean()}
        if unlabeled is not None and self.iteration >= 2:
            terms["second"] = self.network(unlabeled["image"]).abs().mean()
        return terms


def late(folder, **options):
    method = LateTerm(tiny("supervised").network)
    trainer = build(folder, wrap=lambda _: method, **options)
    trainer.optimizer, trainer.lr_scheduler = torch.optim.SGD(method.parameters(), lr=0.01), None
    trainer.parameters = list(method.parameters())
    return trainer


def test_absent_terms_leave_empty_cells(tmp_path):
    late(tmp_path / "a", max_iterations=5).run()
    found = rows(tmp_path / "a")
    assert list(found[0]) == ["iteration", "loss", "first", "lr", "grad_norm", "second"]
    assert [bool(row["second"]) for row in found] == [False, False, True, True, True]
    assert all(float(row["loss"]) == pytest.approx(float(row["first"]) + float(row["second"] or 0)) for row in found)
    # the same file for a run that was prolonged across the first appearance
    late(tmp_path / "b", max_iterations=2).run()
    late(tmp_path / "b", max_iterations=5).run()
    assert (tmp_path / "b" / "training.csv").read_bytes() == (tmp_path / "a" / "training.csv").read_bytes()
    late(tmp_path / "c", max_iterations=4, n_unlabeled=0).run()
    assert list(rows(tmp_path / "c")[0]) == ["iteration", "loss", "first", "lr", "grad_norm"]


def test_a_method_without_any_term_is_named():
    class Empty(SemiSupervisedMethod):
        def forward(self, labeled, unlabeled):
            return {}

    with pytest.raises(ValueError, match="forward of Empty must return at least one loss term, got none"):
        build(wrap=lambda _: Empty(tiny("supervised").network)).run()


def test_the_host_waits_once_per_step(monkeypatch):
    waits = []
    original = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: (waits.append(self.shape), original(self))[1])
    build(max_iterations=3, trainer={"accumulation_steps": 2}).run()
    assert waits == [torch.Size([7])] * 3  # three terms of two parts, and the norm


# ------------------------------------------------------------------------------------------------- adversaries

TOY = {"method": "toy_adversary"}


def without_dropout(trainer):
    for module in trainer.plain_method.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    return trainer


def test_an_adversarial_step_equals_a_loop_by_hand():
    # in another layout the critic's dropout draws for the same places in another order
    trainer = build(**TOY, max_iterations=4, network={"decay": 0.9}, trainer={"channels_last_weights": False})
    outputs = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: outputs.append(dict(e.state.output[0])))
    trainer.run()

    learner = tiny("toy_adversary", max_iterations=4)
    critic = learner.adversaries["critic"]
    optimizer = torch.optim.SGD(learner.network.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    other = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.9, 0.99))
    batches = iter(make_loader(seed=0, added=[]))
    for i in range(4):
        batch = next(batches)
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - i / 4) ** 0.9
        other.param_groups[0]["lr"] = 1e-3 * 0.9**i
        torch.manual_seed(position_seed(0, 2, i, 0))
        terms = learner.train()(batch["labeled"], batch["unlabeled"])
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        critic.requires_grad_(True)
        torch.manual_seed(position_seed(0, 3, i, 0, 0))
        loss = learner.train().adversary_terms("critic", batch["labeled"], batch["unlabeled"])["cross_entropy"]
        other.zero_grad()
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in critic.parameters()]).norm().item()
        other.step()
        critic.requires_grad_(False)
        learner.after_step()
        assert outputs[i]["terms"].keys() == {"supervised", "adversarial"}
        assert outputs[i]["terms"]["adversarial"] == pytest.approx(terms["adversarial"].item(), rel=1e-4)
        assert outputs[i]["loss"] == pytest.approx(sum(t.item() for t in terms.values()), rel=1e-4)
        logged = outputs[i]["adversaries"]
        assert logged == pytest.approx({"critic/cross_entropy": loss.item(), "critic/grad_norm": norm}, rel=1e-3)
    for (name, a), b in zip(learner.named_parameters(), trainer.plain_method.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=name)


def test_neither_side_leaves_a_gradient_in_the_other():
    trainer, seen = build(**TOY, max_iterations=3), []

    class Leaky(type(trainer.plain_method)):
        """Its adversary's graph reaches the network."""

        def adversary_terms(self, name, labeled, unlabeled):
            verdict = self.adversaries[name](labeled["image"], self.network(labeled["image"]).softmax(1))
            return {"sum": verdict.sum()}

    trainer.plain_method.__class__ = Leaky

    def after_the_backward_pass(engine):
        critic = engine.plain_method.adversaries["critic"]
        assert all(p.grad is None and not p.requires_grad for p in critic.parameters())
        seen.append([p.grad.clone() for p in engine.plain_method.network.parameters()])

    def at_the_end(engine):
        assert all(p.grad is None and not p.requires_grad for p in engine.plain_method.adversaries.parameters())
        for a, b in zip(seen[-1], engine.plain_method.network.parameters(), strict=True):
            assert torch.equal(a, b.grad)

    trainer.add_event_handler(IterationEvents.BACKWARD_COMPLETED, after_the_backward_pass)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, at_the_end)
    before = [p.clone() for p in trainer.plain_method.adversaries.parameters()]
    trainer.run()
    assert len(seen) == 3
    assert all(
        not torch.equal(a, b) for a, b in zip(before, trainer.plain_method.adversaries.parameters(), strict=True)
    )


@pytest.mark.parametrize("limit", [None, 0.01])
def test_an_adversary_accumulates_and_is_clipped(limit):
    options = TOY | PLAIN | {"labeled_batch_size": 4, "unlabeled_batch_size": 4, "max_iterations": 1}
    found = []
    for steps in (1, 2):
        trainer = without_dropout(build(**options, trainer={"accumulation_steps": steps, "clip_gradient_norm": limit}))
        adversary = trainer.adversaries["critic"].optimizer
        adversary.register_step_pre_hook(
            lambda o, *_: found.append(torch.cat([p.grad.flatten() for p in o.param_groups[0]["params"]]))
        )
        trainer.run()
        assert trainer.state.output[0]["adversaries"]["critic/grad_norm"] > 0.01  # before clipping
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-6)
    assert limit is None or found[0].norm().item() == pytest.approx(limit, rel=1e-3)


def test_an_adversary_in_bfloat16():
    trainer = build(**TOY, max_iterations=3, amp="bf16")
    trainer.run()
    assert all(p.dtype == torch.float32 for p in trainer.plain_method.adversaries.parameters())
    exact = build(**TOY, max_iterations=3)
    exact.run()
    near, value = (t.state.output[0]["adversaries"]["critic/cross_entropy"] for t in (trainer, exact))
    assert near == pytest.approx(value, rel=0.05)
    assert near != value


def test_an_adversary_without_anything_to_compare_makes_no_step(tmp_path):
    trainer = build(tmp_path, **TOY, max_iterations=2, n_unlabeled=0)
    before = [p.clone() for p in trainer.plain_method.adversaries.parameters()]
    trainer.run()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.plain_method.adversaries.parameters(), strict=True))
    assert list(rows(tmp_path)[0]) == ["iteration", "loss", "supervised", "lr", "grad_norm"]


def test_an_adversary_is_logged(tmp_path):
    build(tmp_path, **TOY, max_iterations=2).run()
    fields = ["iteration", "loss", "supervised", "adversarial", "lr", "grad_norm"]
    assert list(rows(tmp_path)[0]) == [*fields, "critic/cross_entropy", "critic/grad_norm"]


@pytest.mark.parametrize(
    ("where", "named"), [("term", "loss term 'critic/cross_entropy'"), ("gradient", "gradient of")]
)
def test_an_adversary_that_diverges_is_named(tmp_path, where, named):
    trainer = build(tmp_path, **TOY, max_iterations=5, interval=1)
    method = trainer.plain_method
    terms = method.adversary_terms

    def failing(name, labeled, unlabeled):
        found = terms(name, labeled, unlabeled)
        if method.iteration == 2 and where == "gradient":
            found["cross_entropy"].register_hook(lambda gradient: gradient * float("nan"))
        return {
            "cross_entropy": found["cross_entropy"] * (float("inf") if method.iteration == 2 and where == "term" else 1)
        }

    method.adversary_terms = failing
    with pytest.raises(TrainingDivergedError, match=f"iteration 2: .*{named}"):
        trainer.run()
    saved = content(tmp_path)["checkpoint"]
    assert saved["iteration"] == 2
    assert all(torch.isfinite(v).all() for v in saved["method"].values() if isinstance(v, torch.Tensor))


def test_adversaries_need_optimizers_of_their_own():
    method = tiny("toy_adversary")
    method.adversary_optimizers = dict
    with pytest.raises(ValueError, match=r"adversary_optimizers of ToyAdversarial must name .*\['critic'\], got \[\]"):
        build(wrap=lambda _: method)
    method.adversary_optimizers = lambda: {"critic": torch.optim.SGD(method.parameters(), 0.1)}
    with pytest.raises(ValueError, match="the optimizer of the adversary 'critic' must hold parameters of"):
        build(wrap=lambda _: method)


@pytest.mark.parametrize("rate", [float("nan"), float("inf")])
def test_a_learning_rate_without_sense(rate):
    with pytest.raises(ValueError, match="optimizer must have a finite learning rate >= 0, got"):
        build(learning_rate=rate)
