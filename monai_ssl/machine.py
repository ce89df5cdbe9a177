"""The machine: its processor, the memory it has left for this process, under every limit, and room on a disk."""

from __future__ import annotations

import functools
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

# where nothing can be found out
UNKNOWN = 4 * 10**9
# version 1 of control groups says "no limit" by a number near 2^63
NO_LIMIT = 1 << 60


# what tells processors of one name apart, as far as training is concerned; virtual machines often hide the model
FEATURES = {"amx": "amx_bf16", "avx512_bf16": "avx512_bf16", "avx512": "avx512f", "avx2": "avx2", "bf16": "bf16",
            "sve": "sve"}  # fmt: skip


@functools.cache
def cpu_name(root: str | Path = "/") -> str:
    """Model of the processor, and its instruction sets that matter here.

    Args:
        root: where /proc is.

    Example:
        >>> cpu_name()  # doctest: +SKIP
        'Intel(R) Xeon(R) Processor (avx512_bf16, avx512)'
    """
    name = _cpu_lines(root).get("model name") or platform.processor() or platform.machine()
    features = cpu_features(root)
    return f"{name} ({', '.join(features)})" if features else name


@functools.cache
def cpu_features(root: str | Path = "/") -> tuple[str, ...]:
    """Those of ``amx``, ``avx512_bf16``, ``avx512``, ``avx2``, ``bf16`` and ``sve`` that the processor has.

    ``avx2`` is left out beside ``avx512``. Empty where the system does not say.
    """
    lines = _cpu_lines(root)
    flags = set(f"{lines.get('flags', '')} {lines.get('Features', '')}".split())
    found = [name for name, flag in FEATURES.items() if flag in flags]
    return tuple(name for name in found if not (name == "avx2" and "avx512" in found))


@functools.cache
def cpu_vendor(root: str | Path = "/") -> str:
    """``GenuineIntel``, ``AuthenticAMD``, ...; empty where the system does not say."""
    lines = _cpu_lines(root)
    known = ("AuthenticAMD", "GenuineIntel")
    return lines.get("vendor_id") or next((name for name in known if name in platform.processor()), "")


def _cpu_lines(root: str | Path) -> dict[str, str]:
    """``name: value`` lines of the first processor."""
    found: dict[str, str] = {}
    try:
        text = (Path(root) / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return found
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            found.setdefault(name.strip(), value.strip())
    return found


def available_memory(root: str | Path = "/") -> int:
    """Bytes of memory that this process may still take without swapping.

    The smallest of: memory that the system counts as available, what the control groups of the process leave (versions
    1 and 2, all levels; files in the cache count as free, since the system drops them), and its resource limits.

    Args:
        root: where /proc and /sys are.

    Example:
        >>> available_memory() > 0
        True
    """
    found = [*_system(Path(root)), *_control_groups(Path(root)), *_resource_limits(Path(root))]
    return max(min(found, default=UNKNOWN), 0)


def machine_memory() -> int:
    """Bytes of memory that the machine has."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return 1 << 40


def free_space(folder: str | Path) -> int:
    """Bytes free on the disk of a folder that may not exist yet."""
    place = Path(folder).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


def _numbers(path: Path) -> dict[str, int]:
    """``name value`` lines of a file of the kernel; empty where there is none."""
    found = {}
    try:
        for line in path.read_text().splitlines():
            words = line.replace(":", " ").split()
            if len(words) >= 2 and words[1].isdigit():
                found[words[0]] = int(words[1])
    except OSError:
        pass
    return found


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # "max"


def _system(root: Path) -> Iterator[int]:
    available = _numbers(root / "proc/meminfo").get("MemAvailable")
    if available is not None:
        yield 1024 * available
        return
    there = machine_memory()  # macOS knows no more than what is built in, Windows not even that
    yield there // 2 if there < 1 << 40 else UNKNOWN


def _control_groups(root: Path) -> Iterator[int]:
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            base, names = root / "sys/fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        elif number == "0" and not controllers:
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "")
        else:
            continue
        # inside a container the process sees its own group as the root, whatever the path says
        parts = [part for part in path.split("/") if part and part != ".."]
        for depth in range(len(parts), -1, -1):
            group = base.joinpath(*parts[:depth])
            limit, usage = _number(group / names[0]), _number(group / names[1])
            if limit is None or limit >= NO_LIMIT or usage is None:
                continue
            state = _numbers(group / "memory.stat")
            files = sum(state.get(f"{names[2]}{kind}_file", 0) for kind in ("inactive", "active"))
            yield limit - max(usage - files, 0)


def _resource_limits(root: Path) -> Iterator[int]:
    try:
        import resource
    except ImportError:  # Windows
        return
    used = _numbers(root / "proc/self/status")  # kB
    for limit, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        soft, _ = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY:
            yield soft - 1024 * used.get(name, 0)
