"""Runs a proof step by step, keeps each result as it comes, and judges the whole at the end.

The order: the doctor, each device's measurements in a process of its own, the links between GPUs,
the labs' claims. Ctrl-C, a time limit or a crash keeps what is done.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from labkit import __version__
from labkit.devices.detect import TORCH_KINDS, Detection, Device
from labkit.devices.verify import (
    SELF_TEST,
    DeviceVerdict,
    Explain,
    read_events,
    verify_devices,
)
from labkit.doctor.run import Examination
from labkit.errors import DeviceMissingError, LabkitError, UsageError
from labkit.host.torch_builds import read_torch_build
from labkit.notebooks.result import NotebookResult, fit
from labkit.process import CommandResult, run_command, stream_command
from labkit.prove.judge import judge_proof, list_variables
from labkit.prove.measure import CPU_STEPS, GPU_STEPS
from labkit.prove.model import (
    PROOF_NAME,
    BalanceSheet,
    DeviceProof,
    Figure,
    HardwareFacts,
    LabProof,
    LoadReading,
    Proof,
    ProofFact,
    ProofStep,
    Versions,
    hash_uuid,
    read_proof,
)
from labkit.text import first_line, format_seconds, plural, shorten

MEASURE = (sys.executable, "-m", "labkit.prove.measure")
STEP_NAMES = ("doctor", "measure", "sustained", "compile", "links", "verify", "labs")
LONG_SECONDS = 180.0  # with that much, nothing is shortened
CPU_SECONDS = 25.0  # kept for the CPU while a GPU is measured
GRACE_SECONDS = 5.0  # for a step that has begun, over the limit
LEAST_LABS_SECONDS = 15.0
MOST_RESTARTS = 3
SMI_FIELDS = {
    "memory.total": "total_bytes",
    "memory.reserved": "driver_reserved_bytes",
    "memory.used": "used_bytes",
    "memory.free": "free_bytes",
}

Say = Callable[[str], None]


@dataclass(frozen=True)
class ProveOptions:
    """What was asked for: the device (None: each one), the steps to skip, and the time limit."""

    device: str | None = None
    skip: frozenset[str] = frozenset()
    quick: bool = False
    seconds: float = 95.0

    @property
    def hold_seconds(self) -> float:
        """The length of the sustained load on a GPU."""
        if self.quick:
            return 5.0
        return 30.0 if self.seconds >= LONG_SECONDS else 15.0


def run_labs(
    limit_seconds: float, environment: Mapping[str, str], asks_cuda: bool, say: Say
) -> tuple[NotebookResult, ...]:
    """Runs the reference version of every lab within the limit."""
    from labkit.lessons.catalog import find_labs
    from labkit.lessons.notebooks import make_reference_notebook
    from labkit.notebooks.execute import RunOptions
    from labkit.notebooks.schedule import run_notebooks
    from labkit.notebooks.sources import Source

    sources = [
        Source(lab.name, lab.lesson, functools.partial(make_reference_notebook, lab))
        for lab in find_labs()
    ]
    options = RunOptions(
        total_timeout_seconds=limit_seconds,
        keep_going=True,
        environment=environment,
        asks_cuda=asks_cuda,
    )
    shown: set[str] = set()

    def watch(event: Any) -> None:
        if event.notebook not in shown:
            shown.add(event.notebook)
            say(f"labs: {event.notebook} ...")

    return run_notebooks(sources, options, watch=watch)


def run_with_torch(arguments: Sequence[str], *, timeout_seconds: float) -> CommandResult:
    """The command's result; it imports what this process does (PYTHONPATH)."""
    return run_command(arguments, timeout_seconds=timeout_seconds, environment=os.environ)


Stream = Callable[..., CommandResult]
RunLabs = Callable[[float, Mapping[str, str], bool, Say], "tuple[NotebookResult, ...]"]


@dataclass(frozen=True)
class ProveTools:
    """What a proof calls, so that tests can play a machine.

    ``examine`` asks the doctor. ``stream`` runs a program and passes on its lines, ``run`` runs a
    self-test. ``explain`` finds the cause of an error message.
    """

    examine: Callable[[], Examination]
    explain: Explain
    stream: Stream = stream_command
    run: Callable[..., CommandResult] = run_with_torch
    labs: RunLabs = run_labs
    clock: Callable[[], float] = time.monotonic
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))


class ProofRun:
    """A proof in progress: its parts so far, and the clock that it must keep to."""

    def __init__(
        self,
        detection: Detection,
        options: ProveOptions,
        tools: ProveTools,
        *,
        say: Say,
        keep: Callable[[Proof], None] = lambda proof: None,
        stored: Sequence[Proof] = (),
    ) -> None:
        self._detection, self._options, self._tools = detection, options, tools
        self._say, self._keep, self._stored = say, keep, stored
        self._started = tools.clock()
        self._targets = choose_devices(detection, options.device)
        self._records: list[DeviceRecord] = []
        self._steps: list[ProofStep] = []
        self._facts: list[ProofFact] = []
        self._links: list[Figure] = []
        self._labs: list[LabProof] = []
        self._began = datetime.now().astimezone().isoformat(timespec="seconds")
        self._torch: Mapping[str, Any] | None = None

    def run(self) -> Proof:
        """Runs every step; returns the judged proof, "interrupted" after a Ctrl-C."""
        try:
            self._run_steps()
        except KeyboardInterrupt:
            self._say("interrupted: keeping what is done")
            if not any(step.status == "interrupted" for step in self._steps):
                self._steps.append(ProofStep("proof", "interrupted"))
        return self._keep_so_far(final=True)

    def describe(self, *, final: bool) -> Proof:
        """The proof from the parts so far; judged, and "running" before the end."""
        proof = Proof(
            started_at=self._began,
            seconds=self._tools.clock() - self._started,
            versions=self._describe_versions(),
            variables=list_variables(self._tools.environment),
            steps=tuple(self._steps),
            devices=tuple(record.describe() for record in self._records),
            links=tuple(self._links),
            facts=(*self._facts, *self._compare_balances()),
            labs=tuple(self._labs),
        )
        judged = judge_proof(proof, self._stored)
        return judged if final else replace(judged, status="running")

    def _compare_balances(self) -> list[ProofFact]:
        found = (record.compare_with_smi() for record in self._records)
        return [fact for fact in found if fact is not None]

    def _keep_so_far(self, *, final: bool = False) -> Proof:
        proof = self.describe(final=final)
        self._keep(proof)
        return proof

    @property
    def _left_seconds(self) -> float:
        return self._options.seconds - (self._tools.clock() - self._started)

    def _run_steps(self) -> None:
        gpus = [target for target in self._targets if target.kind != "cpu"]
        cpus = [target for target in self._targets if target.kind == "cpu"]
        # The doctor mostly waits; it must not disturb the CPU's figures.
        examining = self._start_doctor()
        if not gpus:
            self._finish_doctor(examining)
        if "measure" not in self._options.skip:
            for place, gpu in enumerate(gpus):
                kept = CPU_SECONDS if cpus else 0.0
                share = (self._left_seconds - kept) / (len(gpus) - place)
                self._measure(gpu, GPU_STEPS, share)
        if gpus:
            self._finish_doctor(examining)
        if len(gpus) > 1 and "links" not in self._options.skip:
            self._measure_links(len(gpus))
        if "measure" not in self._options.skip:
            for cpu in cpus:
                self._measure(cpu, CPU_STEPS, self._left_seconds)
        if "verify" not in self._options.skip:
            self._verify()
        if "labs" not in self._options.skip and not self._options.quick:
            self._prove_labs()

    @contextmanager
    def _step(self, name: str, measure: Callable[[], float] | None = None) -> Iterator[list[str]]:
        """A step: its words, put into the list, are shown and kept, whatever ends it.

        ``measure`` gives its seconds, if they are not those of the block.
        """
        words: list[str] = []
        began, status = self._tools.clock(), "done"
        try:
            yield words
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            seconds = measure() if measure else self._tools.clock() - began
            said = "; ".join(words)
            self._steps.append(ProofStep(name, status, seconds, said))
            if status == "done":
                self._say(f"{name}: {said} ({format_seconds(seconds)})")
                self._keep_so_far()

    # The doctor

    def _start_doctor(self) -> Pending | None:
        return None if "doctor" in self._options.skip else Pending(self._tools.examine)

    def _finish_doctor(self, examining: Pending | None) -> None:
        if examining is None:
            return
        with self._step("doctor", lambda: examining.seconds) as words:
            try:
                examination = examining.result()
            except LabkitError as error:  # such as an invalid setting of the lab
                self._facts.append(
                    ProofFact("doctor", "settings", "unknown", error.what, error.cause, error.fix)
                )
                words.append(error.what)
                return
            for finding in examination.shown:
                self._facts.append(
                    ProofFact(
                        "doctor",
                        finding.check,
                        finding.status,
                        finding.found,
                        finding.cause,
                        finding.fix,
                    )
                )
            counts = (f"{count} {status}" for status, count in examination.count().items())
            words.append(", ".join(counts))

    # The measurements

    def _measure(self, target: Device, steps: Sequence[str], limit_seconds: float) -> None:
        record = DeviceRecord(target)
        self._records.append(record)
        name = record.torch_name
        asked = [one for one in steps if one.partition("-")[2] not in self._options.skip]
        left = [one for one in asked if one not in self._options.skip]
        # A first compile on the CPU takes up to a minute: beside a GPU it needs a longer limit.
        beside = target.kind == "cpu" and len(self._targets) > 1
        if self._options.quick or (beside and self._options.seconds < LONG_SECONDS):
            left = [one for one in left if one not in ("compile", "verify-compile")]
        deadline = self._tools.clock() + limit_seconds
        if limit_seconds <= 0:
            record.leave_out(left)
            left = []
        for _ in range(1 + MOST_RESTARTS):
            if not left:
                break
            with self._step(f"measure {name}") as words:
                self._stream_device(record, left, deadline - self._tools.clock())
                words.append(plural(len(record.figures), "figure"))
            if record.ended or record.began is None:  # None: it did not start, and will not
                break
            left = left[left.index(record.began) + 1 :] if record.began in left else []
            if deadline - self._tools.clock() <= 0:
                record.leave_out(left)
                break
        self._torch = self._torch or record.facts

    def _stream_device(
        self, record: DeviceRecord, steps: Sequence[str], limit_seconds: float
    ) -> None:
        limit = max(limit_seconds, 1.0)
        on_cpu = record.device.kind == "cpu"
        hold = self._options.hold_seconds
        plan = {
            "steps": steps,
            "uuid": record.device.parent_uuid or record.device.uuid,
            "hold_seconds": min(hold, 5.0) if on_cpu else hold,
            "limit_seconds": limit,
            "quick": self._options.quick,
        }
        record.begin()
        answer = self._tools.stream(
            [*MEASURE, record.torch_name, json.dumps(plan)],
            timeout_seconds=limit + GRACE_SECONDS,
            on_line=lambda line: record.take(line, self._say),
            environment=self._tools.environment,
        )
        record.finish(answer, self._tools.explain)

    def _measure_links(self, count: int) -> None:
        with self._step("links") as words:
            record = DeviceRecord(self._targets[0])
            plan = json.dumps({"steps": ["peers"], "limit_seconds": 30.0})
            launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            reduce = json.dumps({"steps": ["reduce"], "limit_seconds": 60.0})
            tried = {
                "copies between GPUs": [*MEASURE, "cuda:0", plan],
                "all-reduce": [*launch, f"--nproc-per-node={count}", *MEASURE[1:], "cuda", reduce],
            }
            for name, command in tried.items():
                record.begin()
                answer = self._tools.stream(
                    command,
                    timeout_seconds=90.0,
                    on_line=lambda line: record.take(line, self._say),
                    environment=self._tools.environment,
                )
                record.finish(answer, self._tools.explain)
                if record.trouble:
                    record.figures.append(Figure(name, name, status="failed", why=record.trouble))
                    record.trouble = None
            self._links += record.figures
            words.append(plural(len(self._links), "figure"))

    # The self-test of `labkit devices --verify`, from what the measuring processes did

    def _verify(self) -> None:
        with self._step("verify") as words:
            try:
                verification = verify_devices(
                    self._detection,
                    self._answer_self_test,
                    self._tools.explain,
                    asked=self._options.device,
                    environment=self._tools.environment,
                )
            except DeviceMissingError as error:
                self._facts.append(
                    ProofFact("verify", "device", "failed", error.what, error.cause, error.fix)
                )
                words.append(error.what)
                return
            self._facts += [describe_verdict(one) for one in verification.verdicts]
            works = sum(one.verified for one in verification.verdicts)
            words.append(f"{works} of {plural(len(verification.verdicts), 'device')} verified")

    def _answer_self_test(
        self, arguments: Sequence[str], *, timeout_seconds: float
    ) -> CommandResult:
        """The answer of a self-test, from the events of the measuring where there are any."""
        asked = list(arguments[len(SELF_TEST) :])
        if asked[0] == "list" and self._torch is not None:
            return CommandResult(tuple(arguments), 0, stdout=json.dumps(self._torch))
        for record in self._records:
            if asked[0] == "try" and record.torch_name == asked[2]:
                trouble = record.trouble or ""
                tests = "" if trouble else record.describe_tests()
                return CommandResult(tuple(arguments), 1 if trouble else 0, tests, trouble)
        return self._tools.run(arguments, timeout_seconds=timeout_seconds)

    # The labs

    def _prove_labs(self) -> None:
        if self._left_seconds < LEAST_LABS_SECONDS:
            said = f"no time left: labkit prove --seconds {self._options.seconds + 200:g}"
            self._steps.append(ProofStep("labs", "skipped", None, said))
            self._say(f"labs: {said}")
            return
        with self._step("labs") as words:
            on_cpu = self._options.device == "cpu"
            environment = {"CUDA_VISIBLE_DEVICES": ""} if on_cpu else {}
            asks_cuda = not on_cpu and (self._detection.best or "").startswith("cuda")
            found = self._tools.labs(self._left_seconds, environment, asks_cuda, self._say)
            self._labs += [describe_lab(notebook) for notebook in found]
            held = sum(lab.held for lab in self._labs)
            claims = sum(lab.claims for lab in self._labs)
            words.append(f"{held} of {plural(claims, 'claim')} held")
            if any(notebook.status == "interrupted" for notebook in found):
                raise KeyboardInterrupt

    def _describe_versions(self) -> Versions:
        driver = next((one.driver for one in self._detection.devices if one.driver), None)
        measured = (one.facts for one in self._records if one.facts)
        build = (self._torch or next(measured, {})).get("build", {})
        installed = None if build else read_torch_build()  # nothing was measured, or not to its end
        if installed is not None:
            build = installed._asdict()
        return Versions(
            labkit=__version__,
            python=platform.python_version(),
            platform=platform.platform(),
            torch=build.get("version"),
            cuda=build.get("cuda"),
            driver=driver,
        )


class Pending:
    """A function's result, computed in a thread that does not delay an exit, and its seconds."""

    def __init__(self, function: Callable[[], Examination]) -> None:
        self._function = function
        self._found: Examination | BaseException | None = None
        self.seconds = 0.0
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        began = time.monotonic()
        try:
            self._found = self._function()
        except Exception as error:
            self._found = error
        self.seconds = time.monotonic() - began

    def result(self) -> Examination:
        """Waits for the result; raises what the function raised."""
        while self._thread.is_alive():
            self._thread.join(0.2)  # a limit, so that Ctrl-C is seen
        if isinstance(self._found, BaseException):
            raise self._found
        assert self._found is not None
        return self._found


class DeviceRecord:
    """What the processes that measure one device have reported so far."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.torch_name = device.torch_name or f"{TORCH_KINDS[device.kind]}:0"
        self.figures: list[Figure] = []
        self.facts: Mapping[str, Any] | None = None
        self.tests: list[dict[str, Any]] = []
        self.began: str | None = None
        self.ended = False
        self._hardware: dict[str, Any] = {}
        self._idle: LoadReading | None = None
        self._sustained: list[LoadReading] = []
        self._balance: dict[str, Any] | None = None
        self._smi: dict[str, Any] | None = None
        self._lines: list[str] = []
        self._running: str | None = None
        self._left_out: list[str] = []
        self.trouble: str | None = None

    def begin(self) -> None:
        """Gets ready for the next process."""
        self.began = self._running = None
        self.ended = False
        self._lines = []

    def leave_out(self, steps: Sequence[str]) -> None:
        """Records that there was no time for these steps."""
        self._left_out += steps

    def take(self, line: str, say: Say) -> None:
        """Takes one line of a measuring process; what is not an event is kept as its last words."""
        events = read_events(line)
        if not events:
            self._lines = [*self._lines[-200:], line]
            return
        event = events[0]
        if "step" in event:
            self.ended = event["step"] == "end"
            self.tests += [] if self.ended else [event]
        elif "start" in event:
            self._running = event["start"]
            self.began = None if self._running == "import" else self._running
        elif "done" in event:
            self._running = None
        else:
            self._take_result(event, say)

    def _take_result(self, event: Mapping[str, Any], say: Say) -> None:
        if "figure" in event:
            figure: Figure = fit(event["figure"], Figure)
            self.figures.append(figure)
            value = "" if figure.value is None else f" {figure.value:.4g} {figure.unit}"
            say(f"{self.torch_name}: {figure.title}{value or f' {figure.status}: {figure.why}'}")
        elif "load" in event:
            self._sustained.append(fit(event["load"], LoadReading))
        elif "idle" in event:
            self._idle = fit(event["idle"], LoadReading)
        elif "hardware" in event:
            # A process that is started again sees the first one's marks on the GPU.
            self._hardware = {**event["hardware"], **self._hardware}
        elif "facts" in event:
            self.facts = event["facts"]
        elif "balance" in event:
            self._balance = event["balance"]
        elif "smi" in event:
            self._smi = event["smi"]
        elif "left_out" in event:
            self._left_out.append(event["left_out"])
        elif "failed" in event:
            self._fail(event["failed"], event["why"])
        elif "not_tried" in event:
            name = event["not_tried"]
            self.figures.append(Figure(name, name, status="skipped", why=event["why"]))

    def _fail(self, name: str, why: str) -> None:
        words = shorten(first_line(why), 300)
        self.figures.append(Figure(name, name, status="failed", why=words))

    def finish(self, answer: CommandResult, explain: Explain) -> None:
        """Records why a process ended early; a step that it had begun has failed."""
        if self.ended or self._running is None:
            return
        known = explain("\n".join(self._lines))
        said = next((line for line in reversed(self._lines) if line.strip()), answer.message)
        why = "it did not end in time" if answer.timed_out else known.cause if known else said
        if self._running == "import":
            self.trouble = shorten(why.strip(), 300)
        elif answer.timed_out:
            self._left_out.append(self._running)
        elif not any(one.key == self._running and one.status == "failed" for one in self.figures):
            self._fail(self._running, f"the process ended: {why.strip()}")

    def describe(self) -> DeviceProof:
        """The device's part of the proof."""
        hardware: HardwareFacts = fit(self._hardware, HardwareFacts)
        left = [
            Figure(name, name, status="skipped", why="no time left: --seconds allows more")
            for name in self._left_out
        ]
        return DeviceProof(
            kind=self.device.kind,
            torch_name=self.torch_name,
            name=self.device.name,
            uuid_hash=hash_uuid(self.device.uuid),
            hardware=hardware,
            idle=self._idle,
            sustained=tuple(self._sustained),
            figures=(*self.figures, *left),
            balance=self._describe_balance(),
            trouble=self.trouble,
        )

    def describe_tests(self) -> str:
        """The self-test's events, as a process of its own would have printed them."""
        events = list(self.tests)
        done = {event.get("step") for event in events}
        if not any("error" in event for event in events):
            left = [name for name in ("allocate", "compute", "compile") if name not in done]
            events += [{"step": name, "skipped": "left out of this proof"} for name in left]
        events.append({"step": "end"})
        return "\n".join(json.dumps(event) for event in events)

    def _describe_balance(self) -> BalanceSheet | None:
        if self._balance is None:
            return None
        mine = self._balance.get("this_process") or {}
        own = {"process_bytes": mine.get("used_bytes")}
        own |= {key: mine.get(key) for key in ("allocated_bytes", "cached_bytes", "context_bytes")}
        sheet: BalanceSheet = fit({**self._balance, **own}, BalanceSheet)
        return sheet

    def compare_with_smi(self) -> ProofFact | None:
        """Whether the balance and nvidia-smi agree to the MiB; None if neither was asked."""
        if self._smi is None or self._balance is None:
            return None
        name = f"balance {self.torch_name}"
        if "trouble" in self._smi:
            return ProofFact("balance", name, "unknown", str(self._smi["trouble"]))
        sheet = dict(self._balance)
        total, free = sheet.get("total_bytes"), sheet.get("free_bytes")
        if total is not None and free is not None:
            sheet["used_bytes"] = total - free - (sheet.get("driver_reserved_bytes") or 0)
        apart = []
        for field_name, key in SMI_FIELDS.items():
            theirs, ours = str(self._smi.get(field_name, "")), sheet.get(key)
            if theirs.isdigit() and ours is not None and abs(int(theirs) - ours / 2**20) > 1:
                apart.append(f"{field_name} is {theirs} MiB there and {ours / 2**20:.1f} here")
        if apart:
            fix = "nvidia-smi --query-gpu=memory.total,memory.used,memory.free --format=csv"
            cause = "another process took or freed memory between the two, or a defect of labkit"
            return ProofFact("balance", name, "warning", "; ".join(apart), cause, fix)
        return ProofFact("balance", name, "ok", "agrees with nvidia-smi to the MiB")


def choose_devices(detection: Detection, asked: str | None) -> tuple[Device, ...]:
    """The devices to measure: those that torch can use, or the one that was asked for by name.

    Raises DeviceMissingError if the device that was asked for is not there.
    """
    usable = [one for one in detection.devices if one.torch_name and not one.trouble]
    if asked is None:
        # A GPU whose number is unknown without CUDA: torch's first one.
        unnamed = [
            one
            for one in detection.devices
            if one.kind != "cpu" and not one.torch_name and not one.trouble
        ]
        gpu = detection.best is not None and detection.best != "cpu"
        if gpu and unnamed and not any(one.kind != "cpu" for one in usable):
            usable.insert(0, unnamed[0])
        return tuple(usable)
    wanted = asked if ":" in asked or asked == "cpu" else f"{asked}:0"
    found = tuple(one for one in usable if one.torch_name in (wanted, asked))
    if not found:
        names = ", ".join(one.torch_name or "" for one in usable)
        raise DeviceMissingError(
            f"--device {asked}: torch can use no such device here",
            cause="; ".join(detection.notes) or f"its devices are {names}",
            fix="labkit devices --verify",
        )
    return found


def describe_verdict(verdict: DeviceVerdict) -> ProofFact:
    """A device's self-test as a fact of the proof."""
    name = verdict.torch_name or verdict.name or verdict.kind
    if verdict.verified:
        skipped = [f"{step.name}: {step.skipped}" for step in verdict.steps if step.skipped]
        done = ", ".join(step.name for step in verdict.steps if not step.skipped)
        return ProofFact("verify", name, "ok", "; ".join([f"works: {done}", *skipped]))
    # A defect of the driver or of torch's build, and not of a device that torch lists.
    group = "driver" if verdict.broken and not verdict.listed else "verify"
    status = "failed" if verdict.listed or verdict.broken else "warning"
    return ProofFact(group, name, status, verdict.cause or "it does not work", None, verdict.fix)


def describe_lab(notebook: NotebookResult) -> LabProof:
    """A lab's run as a part of the proof; one that ran out of time is not proven, not broken."""
    broken = [claim.statement for claim in notebook.claims if claim.held is False]
    broken += [check.name for check in notebook.checks if check.status != "passed"]
    if notebook.error and not broken and notebook.status != "timed_out":
        broken.append(notebook.error.what)
    out_of_time = notebook.status == "timed_out" and not broken
    return LabProof(
        name=notebook.name,
        status="not_run" if out_of_time else notebook.status,
        seconds=notebook.seconds,
        claims=len(notebook.claims),
        held=sum(claim.held is True for claim in notebook.claims),
        skipped=sum(claim.skipped is not None for claim in notebook.claims),
        checks=len(notebook.checks),
        passed=sum(check.status == "passed" for check in notebook.checks),
        broken=tuple(broken),
    )


def find_stored() -> tuple[Proof, ...]:
    """The proofs that this project has stored: a checkout's docs/results/, else the package's."""
    package = Path(__file__).resolve().parents[1]
    folder = package.parent / "docs" / "results"
    if not folder.is_dir():
        folder = package / "_results"
    found = []
    for path in sorted(folder.glob(f"*/{PROOF_NAME}")):
        try:
            found.append(read_proof(path))
        except UsageError:
            continue  # one of a newer version
    return tuple(found)
