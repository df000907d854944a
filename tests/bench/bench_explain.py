"""How fast ``labkit doctor --explain`` reads each kind of text.

Each line names a kind of text that is made here, the MB/s of this machine's cores (at most four
read a log), those of one core, and the memory that reading added, of all processes. What is aimed
at is 10 MB/s and 200 MB; lines that miss it end with "!". ``--size MB`` sets the size of each text
(20), ``--against FOLDER`` reads each also with another checkout's labkit.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from labkit.known_errors import KNOWN_ERRORS  # noqa: E402

READ = """
import resource, sys, time
from labkit.known_errors.match import explain_file, explain_text
from labkit.known_errors.parallel import count_workers
explain_text("warm")
def read_peak():
    return int(next(row for row in open("/proc/self/status") if row.startswith("VmHWM")).split()[1])
before = read_peak()
started = time.perf_counter()
with open(sys.argv[1], "rb") as log:
    explain_file(log)
together = time.perf_counter() - started
added = read_peak() - before
if (workers := count_workers()) > 1:
    of_worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    added += workers * max(0, of_worker - before)
started = time.process_time()
with open(sys.argv[1], "rb") as log:
    explain_file(log, 1)
print(together, time.process_time() - started, added)
"""
MODULES = ["nn/modules/module", "nn/functional", "utils/data/dataloader", "autograd/graph"]
PACKAGES = ["torch", "torchvision", "numpy", "pillow", "sympy", "networkx", "triton", "nvidia-nccl"]
LIBRARIES = ["libssl3", "libcurl4", "linux-image-generic", "nvidia-driver-580", "docker-ce"]
PODS = ["kubelet", "coredns", "cuda-job", "trainer", "nvidia-device-plugin", "dcgm-exporter"]


class Source(random.Random):
    """Random words, numbers and times, the same in each run."""

    def __init__(self) -> None:
        super().__init__(0)
        # Python's own manual: without its code, what is left is prose.
        pages = " ".join(topics.values()).split()
        self.vocabulary = [word for word in pages if word.strip(".,;:()").isalpha()]

    def words(self, count: int) -> str:
        """Consecutive words of a manual."""
        start = self.randrange(len(self.vocabulary) - count)
        return " ".join(self.vocabulary[start : start + count])

    def time(self) -> str:
        """A time of one day, to the microsecond."""
        hours, rest = divmod(self.randrange(86_400), 3600)
        return f"{hours:02}:{rest // 60:02}:{rest % 60:02}.{self.randrange(10**6):06}"

    def hexadecimal(self, digits: int) -> str:
        """A number of so many digits."""
        return f"{self.getrandbits(4 * digits):0{digits}x}"


def write_prose(source: Source) -> str:
    """A line of an article."""
    return source.words(source.randint(9, 16))


def write_apt(source: Source) -> str:
    """A line of ``apt upgrade``."""
    name, version = source.choice(LIBRARIES), f"{source.randint(1, 9)}.{source.randint(0, 99)}"
    return source.choice(
        (
            f"Get:{source.randint(1, 99)} http://archive.ubuntu.com/ubuntu noble-updates/main amd64"
            f" {name} amd64 {version}-0ubuntu{source.randint(1, 9)} [{source.randint(9, 999)} kB]",
            f"Unpacking {name} ({version}-1ubuntu1) over ({version}-0ubuntu9) ...",
            f"Setting up {name} ({version}-1ubuntu1) ...",
            f"Selecting previously unselected package {name}{source.randint(1, 99)}:amd64.",
            f"Preparing to unpack .../{source.randint(1, 99)}-{name}_{version}_amd64.deb ...",
            "(Reading database ... 45%",
            f"Processing triggers for {name} ({version}) ...",
        )
    )


def write_kernel(source: Source) -> str:
    """A line of ``dmesg``."""
    start = f"[{source.randrange(99999):5}.{source.randrange(10**6):06}]"
    return f"{start} " + source.choice(
        (
            f"pci 0000:{source.hexadecimal(2)}:00.0: BAR 0: assigned"
            f" [mem 0x{source.hexadecimal(8)}-0x{source.hexadecimal(8)} 64bit pref]",
            f"usb 1-{source.randint(1, 9)}: new high-speed USB device number"
            f" {source.randint(1, 99)} using xhci_hcd",
            f"audit: type=1400 audit({source.randrange(10**9)}.{source.randrange(999)}:"
            f'{source.randrange(999)}): apparmor="STATUS" operation="profile_load"',
            f"EXT4-fs (nvme0n1p{source.randint(1, 9)}): mounted filesystem {source.hexadecimal(8)}"
            " r/w with ordered data mode. Quota mode: none.",
            f"br-{source.hexadecimal(12)}: port 1(veth{source.hexadecimal(7)}) entered blocking"
            " state",
            f"nvidia-nvlink: Nvlink Core is being initialized, major device number"
            f" {source.randint(200, 600)}",
            f"CPU{source.randint(0, 99)}: Core temperature/speed normal",
        )
    )


def write_event(source: Source) -> str:
    """A line of ``kubectl get events``, or of a kubelet."""
    pod = f"{source.choice(PODS)}-{source.hexadecimal(8)}-{source.hexadecimal(5)}"
    return source.choice(
        (
            f"{source.randint(1, 59)}m         Normal    Scheduled   pod/{pod}   Successfully"
            f" assigned ml/{pod} to node-{source.randint(1, 99)}",
            f"{source.randint(1, 59)}s         Warning   Unhealthy   pod/{pod}   Readiness probe"
            f" slow: {source.randint(1, 9)}s",
            f"I1128 {source.time()} {source.randrange(9999):7} kubelet.go:{source.randrange(3000)}]"
            f' "SyncLoop (PLEG): event for pod" pod="ml/{pod}" event={{"ID":"'
            f'{source.hexadecimal(8)}-{source.hexadecimal(4)}","Type":"ContainerStarted"}}',
            f"W1128 {source.time()} 1 reflector.go:{source.randrange(999)}] watch of *v1.Pod ended"
            " with: an error on the server has prevented the request from succeeding",
            f"{source.randint(1, 59)}m         Normal    Pulled      pod/{pod}   Container image"
            f' "nvcr.io/nvidia/cuda:13.{source.randint(0, 9)}" already present on machine',
        )
    )


def write_docker_build(source: Source) -> str:
    """A line of BuildKit's plain progress."""
    step, seconds = source.randint(1, 30), source.randrange(10**6) / 1000
    return f"#{step} " + source.choice(
        (
            f"{seconds:.3f} Collecting {source.choice(PACKAGES)}=={source.randint(1, 9)}.1",
            f"{seconds:.3f}   Downloading {source.choice(PACKAGES)}-2.{source.randint(1, 99)}-py3-"
            f"none-any.whl ({source.randint(1, 900)} MB)",
            f"sha256:{source.hexadecimal(64)} {source.randint(1, 900)}MB / 901MB {seconds:.1f}s",
            f"extracting sha256:{source.hexadecimal(64)} {seconds:.1f}s done",
            f"{seconds:.3f} gcc -Wall -O2 -fPIC -I/usr/include -c src/{source.hexadecimal(6)}.c",
            "CACHED",
        )
    )


def write_pip(source: Source) -> str:
    """A line of ``pip install``."""
    name, number = source.choice(PACKAGES), source.randint(1, 99)
    return source.choice(
        (
            f"Collecting {name}<{number},>=1.{number} (from -r requirements.txt (line {number}))",
            f"  Using cached {name}-{number}.1.0-cp312-cp312-manylinux_2_28_x86_64.whl.metadata"
            f" ({number} kB)",
            f"Requirement already satisfied: {name} in ./venv/lib/python3.12/site-packages"
            f" (from torch>=2.{number}) ({number}.0)",
            f"Installing collected packages: {', '.join(source.choices(PACKAGES, k=9))}",
            f"   ---------------------------------------- {number}.2/99.0 MB {number}.5 MB/s eta"
            f" 0:00:{number:02}",
        )
    )


def write_training(source: Source) -> str:
    """A line of a training loop, or what tqdm writes over one line."""
    step, loss = source.randrange(10**5), source.random()
    if source.random() < 0.5:
        bars = (
            f"Epoch {step % 90}:  {part}%|{'█' * (part // 10)}| {part}/100 [00:{part:02}<00:10,"
            f"  {loss * 9:.2f}it/s, loss={loss:.4f}]"
            for part in range(source.randrange(50), 100, 9)
        )
        return "\r".join(bars)
    return (
        f"2026-11-28 {source.time()} INFO trainer step={step} loss={loss:.6f}"
        f" grad_norm={loss * 3:.4f} lr={loss / 1000:.3e} tokens/s={step * 7} mem=71.2GiB"
        f" no errors, {step % 8} workers"
    )


def write_json(source: Source) -> str:
    """A line of a structured log."""
    record = {
        "ts": f"2026-11-28T{source.time()}Z",
        "level": source.choice(("info", "debug", "warn")),
        "msg": source.words(8),
        "trace_id": source.hexadecimal(32),
        "duration_ms": source.random() * 100,
        "error": None,
        "path": f"/v1/{source.choice(PODS)}/{source.randrange(10**6)}",
    }
    return json.dumps(record)


def write_journal(source: Source) -> str:
    """A line of ``journalctl``."""
    return f"Nov 28 {source.time()[:8]} gpu-node-{source.randint(1, 9)} " + source.choice(
        (
            f"systemd[1]: Started session-{source.randrange(9999)}.scope - Session of User ubuntu.",
            f"sshd[{source.randrange(99999)}]: Accepted publickey for ubuntu from 10.0."
            f"{source.randint(0, 255)}.{source.randint(0, 255)} port {source.randrange(65535)}",
            f'dockerd[{source.randrange(9999)}]: time="2026-11-28T{source.time()}Z" level=info'
            f' msg="ignoring event" container={source.hexadecimal(64)} module=libcontainerd',
            f"kernel: docker0: port 1(veth{source.hexadecimal(7)}) entered disabled state",
            "CRON[4711]: (root) CMD (cd / && run-parts --report /etc/cron.hourly)",
        )
    )


def write_traceback(source: Source) -> str:
    """A traceback of Python's, each with other frames and another error."""
    frames = [
        f'  File "/opt/venv/lib/python3.12/site-packages/torch/{module}.py", line'
        f" {source.randrange(3000)}, in {name}\n    return {name}(*args, **kwargs)"
        for module in source.choices(MODULES, k=5)
        for name in source.choices(("forward", "_call_impl", "step", "inner"), k=1)
    ]
    last = source.choice(
        (
            f"ValueError: expected {source.randrange(99)} rows, got {source.randrange(99)}",
            f"KeyError: 'layer.{source.randrange(99)}.weight'",
            f"RuntimeError: size mismatch at row {source.randrange(10**6)}",
            f"app.errors.RequestFailed: request {source.hexadecimal(16)} failed",
        )
    )
    return "\n".join(["Traceback (most recent call last):", *frames, last])


def write_server(source: Source) -> str:
    """A line of a vLLM server."""
    start = f"INFO 11-28 {source.time()[:8]}"
    return source.choice(
        (
            f"{start} [loggers.py:127] Engine 000: Avg prompt throughput:"
            f" {source.random() * 999:.1f} tokens/s, Running: {source.randint(1, 99)} reqs,"
            f" Waiting: 0 reqs, GPU KV cache usage: {source.random() * 99:.1f}%",
            f"{start} [logger.py:42] Received request chatcmpl-{source.hexadecimal(32)}: prompt:"
            f" '{source.words(12)}', params: SamplingParams(n=1, temperature=0.7, top_p=1.0)",
            f"(APIServer pid={source.randrange(9999)}) INFO:     10.0.0.{source.randint(1, 255)}:"
            f'{source.randrange(65535)} - "POST /v1/chat/completions HTTP/1.1" 200 OK',
            f"(EngineCore_0 pid={source.randrange(9999)}) DEBUG 11-28 {source.time()[:8]}"
            f" [core.py:{source.randrange(900)}] waiting for requests, {source.random():.3f} s",
        )
    )


def write_errors(source: Source) -> str:
    """A line that says that something failed, unknown each."""
    what = source.choice(("error", "Error", "ERROR", "warning", "failed", "FAILED", "fatal"))
    return source.choice(
        (
            f"{source.time()} {what}: request {source.hexadecimal(8)} {source.words(5)}",
            f"{source.time()} worker {source.randrange(99)} {source.words(3)} {what}"
            f" {source.randrange(999)}",
            f"[{what}] cannot read {source.words(4)}: code {source.randrange(999)}",
        )
    )


def write_known(source: Source) -> str:
    """A known error, as some program prints it."""
    return source.choice(source.choice(KNOWN_ERRORS).samples)


def write_base64(source: Source) -> str:
    """A line of an encoded file."""
    return base64.b64encode(source.randbytes(57)).decode()


def write_binary(source: Source) -> bytes:
    """Bytes of a file that is no text."""
    return source.randbytes(200)


def write_chinese(source: Source) -> str:
    """A line of a Chinese log with some English."""
    signs = "".join(chr(source.randint(0x4E00, 0x9FA5)) for _ in range(30))
    return f"2026-11-28 {source.time()} 信息 {signs[:20]}，{source.words(2)} {signs[20:]}。"


def write_colored(source: Source) -> str:
    """A line of Compose's with colors."""
    return (
        f"\x1b[36mweb-{source.randint(1, 9)}  |\x1b[0m \x1b[32mINFO\x1b[0m {source.time()}"
        f" \x1b[1m{source.words(6)}\x1b[0m took {source.random():.3f} s\r"
    )


WRITERS: dict[str, Callable[[Source], str | bytes]] = {
    "prose": write_prose,
    "apt": write_apt,
    "kernel": write_kernel,
    "Kubernetes": write_event,
    "docker build": write_docker_build,
    "pip": write_pip,
    "training, tqdm": write_training,
    "JSON": write_json,
    "journal": write_journal,
    "tracebacks": write_traceback,
    "vLLM": write_server,
    "errors": write_errors,
    "known errors": write_known,
    "base64": write_base64,
    "binary": write_binary,
    "Chinese": write_chinese,
    "colors, CR": write_colored,
}
# Other forms of a kind.
FORMS: dict[str, Callable[[bytes], bytes]] = {
    "one line of prose": lambda text: text.replace(b"\n", b" ")[:5_000_000],
    "one line of base64": lambda text: text.replace(b"\n", b"")[:5_000_000],
    "UTF-16 journal": lambda text: text[: len(text) // 2].decode().encode("utf-16"),
    "the same error": lambda text: b"worker 7: error 17 while reading a file\n" * (len(text) // 40),
    "short lines": lambda text: b"ok\nerror\n" * (len(text) // 9),
}


def write_lines(writer: Callable[[Source], str | bytes], size: int) -> bytes:
    """So many bytes of lines, all different."""

    def make() -> Iterator[bytes]:
        source, left = Source(), size
        while left > 0:
            line = writer(source)
            line = (line if isinstance(line, bytes) else line.encode()) + b"\n"
            left -= len(line)
            yield line

    return b"".join(make())


def write_kinds(folder: Path, size: int) -> Iterator[Path]:
    """Writes a file for each kind of text into the folder."""
    made = {name: write_lines(writer, size) for name, writer in WRITERS.items()}
    for name, change in FORMS.items():
        made[name] = change(made[next((kind for kind in made if kind in name), "prose")])
    made["all, mixed"] = b"".join(text[: size // len(made)] for text in list(made.values()))
    for name, text in made.items():
        path = folder / f"{name}.log"
        path.write_bytes(text)
        yield path


def read(path: Path, checkout: Path) -> tuple[float, float, float]:
    """MB/s of all cores and of one, and MB of memory that reading the file added."""
    done = subprocess.run(
        [sys.executable, "-c", READ, str(path)],
        cwd=checkout,
        capture_output=True,
        check=True,
        text=True,
    )
    together, alone, kilobytes = map(float, done.stdout.split())
    megabytes = path.stat().st_size / 1e6
    return megabytes / together, megabytes / alone, kilobytes / 1000


def main() -> int:
    """Measures each kind and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=float, default=20, help="MB of each kind")
    parser.add_argument("--against", type=Path, help="another checkout, read in turn")
    parser.add_argument("--keep", type=Path, help="a folder for the texts")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(
            f"{'kind':<22}{'MB/s':>8}{'one core':>10}{'MB':>8}"
            + ("{:>10}{:>10}{:>8}".format("before", "one core", "MB") * bool(asked.against))
        )
        for path in write_kinds(asked.keep or Path(folder), int(asked.size * 1e6)):
            rate, alone, memory = read(path, ROOT)
            missed = "  !" * (rate < 10 or memory > 200)
            before = (
                "{:10.1f}{:10.1f}{:8.1f}".format(*read(path, asked.against))
                if asked.against
                else ""
            )
            figures = f"{rate:8.1f}{alone:10.1f}{memory:8.1f}"
            print(f"{path.stem:<22}{figures}{before}{missed}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
