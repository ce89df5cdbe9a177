"""Seconds and peak memory of one training step: the plain loop, ours in float32, in bfloat16, and with the defaults.

    python benchmarks/step.py [--method dtc] [--sizes 64x64x32,112x112x80] [--threads 2] [--repeats 3] [--device cuda]

Each configuration lives in a process of its own and makes its steps in turn with the others (plain, ours, ours, plain,
...), so that other load on the machine hits all alike; medians after the warm-up, which fills the memory of the methods
that have one (16 labeled cases). Memory is the highest resident
set of that process, everything included; what it held before the first step (libraries, of which MONAI's import is the
largest, weights, batch) stands beside it. Ours is the method of the bundle's ``train.yaml`` inside
``SemiSupervisedTrainer``, and finds the distance maps in the batch, where the loader's workers put them; what waiting
for these costs is in ``loading.py``. The defaults measure number format and layout before their first step, which is a
warm-up here; what they decided stands below the table. float32 and bfloat16 are channels-last. The plain loops are
``plain_<method>.py``; a method that has one is measured by ``make bench``.

With ``--threads 1`` seconds are those of the processor, which other load hardly disturbs, and the results go to
``step_<method>_one_thread.json``.

On a GPU memory is the most that PyTorch had allocated there, batches lie in page-locked memory, and the results go to
``step_<method>_cuda.json``. TF32 and the choice of algorithms are PyTorch's defaults for all.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from monai.bundle import ConfigParser

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "docs" / "results" / "benchmarks"
CONFIGURATIONS = {
    "plain": "plain loop",
    "float32": "ours, float32",
    "bfloat16": "ours, bfloat16",
    "default": "ours, default",
}
OPTIONS = {"float32": ("off", "channels_last"), "bfloat16": ("bf16", "channels_last"), "default": ("auto", "auto")}
N_LABELED_CASES = 16
GB = 1e9


def main(
    method: str = "dtc",
    sizes: str = "64x64x32,112x112x80",
    threads: int = 2,
    repeats: int = 3,
    configurations: str = "plain,float32,bfloat16,default",
    in_turn: bool | str = True,
    device: str = "cpu",
    output: str = str(OUTPUT),
) -> None:
    """Measure and write ``step_<method>.json`` and ``.md`` into ``output``.

    Sizes that these files hold and that are not measured now stay, each with the command that measured it.

    Args:
        method: name of a bundle.
        sizes: patches, comma-separated.
        threads: of PyTorch.
        repeats: timed steps per configuration.
        configurations: which ones, comma-separated.
        in_turn: all configurations live at once and step in turn. False: one lives after the other, for a machine whose
            memory does not hold all, and that has nothing else to do. Sizes, comma-separated: in turn at these alone.
        device: ``cpu`` or ``cuda``.
        output: folder.
    """
    sizes, configurations, in_turn = (
        ",".join(v) if isinstance(v, (tuple, list)) else v for v in (sizes, configurations, in_turn)
    )
    turns = (sizes if in_turn else "") if isinstance(in_turn, bool) else in_turn
    chosen = configurations.split(",")
    results: dict[str, Any] = {}
    for size in sizes.split(","):
        parts = [chosen] if size in turns.split(",") else [[name] for name in chosen]
        results[size] = {}
        for part in parts:
            results[size] |= measure(method, size, part, threads, repeats, device)
        if "plain" in chosen:
            for row in results[size].values():
                row["time_ratio"] = row["seconds"] / results[size]["plain"]["seconds"]
                row["memory_ratio"] = row["gigabytes"] / results[size]["plain"]["gigabytes"]
    on_cpu = device == "cpu"
    kind = ("_one_thread" if threads == 1 else "") if on_cpu else f"_{device.partition(':')[0]}"
    path = Path(output) / f"step_{method}{kind}"
    measured = {size: command() for size in results}
    if path.with_suffix(".json").is_file():
        before = json.loads(path.with_suffix(".json").read_text())
        kept = {size: rows for size, rows in before["results"].items() if size not in results}
        measured = {size: before.get("commands", {}).get(size, before["command"]) for size in kept} | measured
        results = dict(sorted((kept | results).items(), key=lambda item: math.prod(map(int, item[0].split("x")))))
    targets = plain_loop(method).TARGETS if on_cpu else {"time": {}, "memory": {}}
    record = {
        "what": f"one training step of {method}, batch of 2 labeled and 2 unlabeled patches, all in memory",
        "threads": threads,
        "repeats": repeats,
        "in_turn": in_turn,
        "device": device,
        "targets": targets,
        "commands": measured,
        "results": results,
    }
    place = (" on one core" if threads == 1 else "") if on_cpu else " on a GPU"
    others = [f"{size} was measured by `{line}`." for size, line in measured.items() if line != command()]
    lines = [*table(results, targets), *([""] if others else []), *others, *decisions(results)]
    write(path, record, lines, f"Cost of a training step: {method}{place}")


def measure(
    method: str, size: str, configurations: list[str], threads: int, repeats: int, device: str = "cpu"
) -> dict[str, dict[str, Any]]:
    """Steps in turn; per configuration the times, their median and the peak."""
    load = os.getloadavg()[0]
    workers = {name: Worker(method, name, size, threads, device) for name in configurations}
    times: dict[str, list[float]] = {name: [] for name in configurations}
    for round_ in range(-getattr(plain_loop(method), "WARM_UP", 1), repeats):
        for name, worker in workers.items():
            seconds = worker.step()
            print(f"{size} {name:9s} {'warm-up' if round_ < 0 else round_ + 1}: {seconds:.3f} s", flush=True)
            if round_ >= 0:
                times[name].append(seconds)
    rows = {}
    for name, worker in workers.items():
        rows[name] = {
            "seconds": statistics.median(times[name]),
            "gigabytes": worker.close(),
            "gigabytes_before": worker.before,
            "times": times[name],
        }
        if (decision := worker.decision()) is not None:
            rows[name]["decision"] = decision
    for row in rows.values():
        row["load_average_before"] = load
    return rows


def plain_loop(method: str) -> Any:
    """The module with the published loop of a method, read plainly, and what is asked of ours beside it."""
    return importlib.import_module(f"plain_{method}")


class Worker:
    """A process that makes one step per line it reads."""

    def __init__(self, method: str, name: str, size: str, threads: int, device: str) -> None:
        # what is kept of a former measurement would hide the one that a user's first training makes
        self.kept = tempfile.TemporaryDirectory(prefix="monai-ssl-step-")
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", method, name, size, str(threads), device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # large pages, as the command line asks for them
            env={
                "THP_MEM_ALLOC_ENABLE": "1",
                "MONAI_SSL_CACHE": self.kept.name,
                **{key: value for key, value in os.environ.items() if key != "MONAI_SSL_CACHE"},
                "OMP_NUM_THREADS": str(threads),
                "MKL_NUM_THREADS": str(threads),
            },
        )
        self.before = self._ask("memory") / GB

    def _ask(self, command: str) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("RESULT "):
                return float(line.split()[1])
        raise SystemExit(f"the process ended with status {self.process.wait()}")

    def step(self) -> float:
        return self._ask("step")

    def decision(self) -> dict[str, Any] | None:
        """With which precision the defaults step, and by which times; None for what decides nothing."""
        for file in Path(self.kept.name).glob("precision/*.json"):
            found = json.loads(file.read_text())
            return {key: found[key] for key in ("format", "layout", "found", "seconds")}
        return None

    def close(self) -> float:
        peak = self._ask("memory")
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        return peak / GB


def decisions(results: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """What the defaults decided, a line per size."""
    found = {
        size: rows["default"]["decision"] for size, rows in results.items() if rows.get("default", {}).get("decision")
    }
    lines = []
    for size, decision in found.items():
        times = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in decision["seconds"].items())
        why = f"forward and backward: {times}" if times else "not measured: other programs kept the cores busy"
        lines += ["", f"{size}: the defaults took {decision['format']}, {decision['layout']} ({why})."]
    return lines


def peak_memory(device: torch.device) -> int:
    """Highest resident set of this process in bytes; on a GPU the most that its tensors held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource  # the kernel may count what the parent held before exec

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def commands(device: torch.device) -> Iterator[None]:
    """Yields once per step that is asked for, and answers with the seconds that the step took."""
    for line in sys.stdin:
        if line.strip() == "memory":
            print(f"RESULT {peak_memory(device)}", flush=True)
            continue
        finish(device)
        # what one thread computes does not depend on who else is there, as long as only its own time counts
        clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
        start = clock()
        yield
        finish(device)
        print(f"RESULT {clock() - start}", flush=True)


def finish(device: torch.device) -> None:
    """Wait for what was sent to a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def run_worker(method: str, name: str, size: str, threads: str, on: str) -> None:
    """Body of the processes: steps on random images with a ball as label."""
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    device = torch.device(on)
    patch = tuple(int(side) for side in size.split("x"))
    image = torch.randn(4, 1, *patch)
    grid = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in patch), indexing="ij")
    label = (sum(g.square() for g in grid) < 0.36)[None].repeat(2, *[1] * len(patch)).long()
    if name == "plain":
        loop = plain_loop(method).PlainLoop().to(device)
        image, label = image.to(device), label.to(device)
        for _ in commands(device):
            loop.step(image, label)
        return
    amp, layout = OPTIONS[name]
    config = bundle(method, patch, device)
    config.update(getattr(plain_loop(method), "OPTIONS", {}))
    trainer(
        config,
        InTurn(image, label, config.get_parsed_content("method"), device),
        amp,
        device,
        layout,
    ).run()


def bundle(method: str, patch: tuple[int, ...], device: torch.device | str = "cpu") -> ConfigParser:
    """The training config of a bundle with its defaults, for left-atrium patches of another size."""
    from monai.bundle import ConfigParser

    config = ConfigParser()
    config.read_config(ROOT / "bundles" / method / "configs" / "train.yaml")
    preset = f"monai_ssl.data.load_preset('left_atrium', 'literature').model_copy(update={{'patch_size': {patch}}})"
    config.update({"preset": f"${preset}", "device": f"$torch.device('{device}')"})
    return config


def trainer(
    config: ConfigParser, loader: Any, amp: str, device: torch.device | str = "cpu", layout: str = "auto"
) -> Any:
    """The trainer with the bundle's method, optimizer and schedule, without handlers."""
    from monai_ssl.engines import SemiSupervisedTrainer

    return SemiSupervisedTrainer(
        device=device,
        max_epochs=1,
        train_data_loader=loader,
        amp=amp,
        channels_last_weights=layout,
        **{key: config.get_parsed_content(key) for key in ("method", "optimizer", "lr_scheduler")},
    )


class InTurn:
    """A loader that hands out the same two batches, as another two cases each time, whenever a step is asked for."""

    streams = {"labeled": (None, 2), "unlabeled": (None, 2)}  # noqa: RUF012
    n_labeled, n_unlabeled = N_LABELED_CASES, 2

    def __init__(self, image: torch.Tensor, label: torch.Tensor, method: Any, device: torch.device) -> None:
        self.device = device
        rows: list[dict[str, Any]] = [{"image": image[i], "label": label[i, None]} for i in range(2)]
        for transform in method.loader_transforms():
            rows = [transform(row) for row in rows]
        self.labeled = {key: torch.stack([torch.as_tensor(row[key]) for row in rows]) for key in rows[0]}
        self.unlabeled = {"image": image[2:], "name": ["c", "d"]}
        if method.strong_view:
            self.unlabeled["strong"] = image[2:].clone()
        if device.type == "cuda":  # as the loader of a bundle hands them over
            self.labeled = {key: value.pin_memory() for key, value in self.labeled.items()}
            self.unlabeled["image"] = self.unlabeled["image"].pin_memory()

    def prepare(self) -> None:
        """Nothing to load."""

    def __len__(self) -> int:
        return 1_000_000

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for step, _ in enumerate(commands(self.device)):
            index = (torch.arange(2) + 2 * step) % N_LABELED_CASES
            labeled = {**self.labeled, "index": index, "name": [f"case {i}" for i in index.tolist()]}
            yield {"labeled": labeled, "unlabeled": self.unlabeled}
        os._exit(0)  # asked for no more: the trainer would wait for the rest of its epoch


def table(results: dict[str, dict[str, dict[str, Any]]], targets: dict[str, dict[str, float]]) -> list[str]:
    lines = [
        "| patch | loop | s/step | ratio | target | peak GB | ratio | target | GB before the first step |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for size, rows in results.items():
        for name, row in rows.items():
            time_target, memory_target = (targets[kind].get(name) for kind in ("time", "memory"))
            if isinstance(time_target, dict):  # by size
                time_target = time_target.get(size)
            lines.append(
                f"| {size} | {CONFIGURATIONS[name]} | {row['seconds']:.3f} | "
                f"{row.get('time_ratio', float('nan')):.2f} | {f'≤ {time_target}' if time_target else ''} | {row['gigabytes']:.2f} | "  # noqa: E501
                f"{row.get('memory_ratio', float('nan')):.2f} | {f'≤ {memory_target}' if memory_target else ''} | "
                f"{row['gigabytes_before']:.2f} |"
            )
    return lines


def command() -> str:
    """What was typed, without one machine's folders."""
    arguments = [Path(a).name if a.startswith("/") else a for a in sys.argv[1:]]
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *arguments])


def write(path: Path, record: dict[str, Any], lines: list[str], title: str) -> None:
    """``path``.json and ``path``.md, with the command, the versions and the machine."""
    from monai_ssl.files import write_text
    from monai_ssl.metrics import environment

    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    record = {"command": command(), "date": date, **environment(), **record}
    machine, versions = record["machine"], record["versions"]
    unit = " GB = 10^9 bytes." if any("GB" in line for line in lines) else ""
    gpu = "".join(f"{name}, " for name in machine["cuda_devices"] if record.get("device", "cpu") != "cpu")
    text = [
        f"# {title}",
        "",
        f"Written by `{record['command']}` on {date[:10]}: {gpu}{machine['cpu']}, {machine['cores']} cores, "
        f"PyTorch {versions['torch']}, MONAI {versions['monai']}. {record['what'][0].upper()}{record['what'][1:]}.{unit}",  # noqa: E501
        "",
        *lines,
    ]
    write_text(path.with_suffix(".json"), json.dumps(record, indent=1) + "\n")
    write_text(path.with_suffix(".md"), "\n".join(text) + "\n")
    print("\n".join(lines), path.with_suffix(".md"), sep="\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        run_worker(*sys.argv[2:7])  # before anything of ours is imported: the plain loop shall not pay for it
    else:
        import fire

        fire.Fire(main)
