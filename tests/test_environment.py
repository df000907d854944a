"""The .venv: made once, installed from locks, and gone on with where it stopped.

The Python it is made with is a few lines of sh, so no package is installed here.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import zipfile

import pytest

from labkit.errors import EngineError, LabkitError
from labkit.host.distribution import Distribution
from labkit.host.torch_builds import find_build
from labkit.launch import progress
from labkit.launch import venv as environment_module
from labkit.launch.progress import Step, Steps
from labkit.launch.venv import PythonEnvironment, follow_pip
from tests.fakes.host import make_checkout, write_program

# `-m venv ... FOLDER` copies this program there; `-c` counts packages; the rest is pip.
FAKE_PYTHON = """\
echo "$*" >> "{calls}"
case "$*" in
"-m venv"*)
  for folder; do :; done
  test -f "$folder/.labkit-environment" || exit 1
  mkdir -p "$folder/bin" && cp "$0" "$folder/bin/python"
  touch "$folder/bin/pip" ;;
"-c"*) echo 2 ;;
*lab.txt) {lab} ;;
*) echo "Successfully installed" ;;
esac"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCH_INDEX", raising=False)
    return make_checkout(tmp_path / "a lab")


@pytest.fixture
def python(tmp_path, monkeypatch):
    """Plays the Python that makes the .venv; call it with what installing the lab does."""

    def play(lab: str = "echo fine"):
        script = FAKE_PYTHON.format(calls=tmp_path / "calls", lab=lab)
        program = write_program(tmp_path / "bin", "python3", script)
        monkeypatch.setattr(environment_module.sys, "executable", str(program))

    play()
    return play


def read_calls(tmp_path):
    """What that Python was asked for since the last time, without the counting script."""
    path = tmp_path / "calls"
    lines = path.read_text().splitlines() if path.exists() else []
    path.write_text("")
    # What is the same in all is left out.
    always = "--disable-pip-version-check --no-deps --progress-bar off --target= --root=/ --prefix="
    lines = [re.sub(f"{always}(.*?)/.venv ", "", line) for line in lines]
    return [line.removeprefix("-m pip install ") for line in lines if line.startswith("-m ")]


LOCKED = "--require-hashes --only-binary :all:"


def test_a_new_environment_is_installed_from_the_locks(checkout, python, tmp_path, capsys):
    PythonEnvironment(checkout).prepare(Steps())
    locks = checkout.root / "docker" / "locks"
    assert read_calls(tmp_path) == [
        f"-m venv {checkout.root}/.venv",
        f"{LOCKED} --index-url https://download.pytorch.org/whl/cpu --retries 1"
        f" -r {locks}/torch-cpu.txt",
        f"{LOCKED} -r {locks}/lab.txt",
        f"--no-build-isolation --no-index --editable {checkout.root}",
    ]
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert capsys.readouterr().err.splitlines()[::2] == [
        f"making .venv with Python {version} ...",
        "installing torch, the build for the CPU ...",
        "installing JupyterLab and what the labs use ...",
        "installing labkit ...",
    ]


def test_its_kernels_find_the_labs_settings(checkout, python):
    PythonEnvironment(checkout).prepare(Steps())
    PythonEnvironment(checkout).prepare(Steps())
    settings = checkout.environment_folder / "etc" / "ipython" / "ipython_config.py"
    assert settings.readlink() == checkout.root / "docker" / "jupyter" / "ipython_config.py"


def test_only_torch_knows_an_index_and_another_one_by_name(checkout, python, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_INDEX", "https://mirror.example/cpu")
    PythonEnvironment(checkout).prepare(Steps())
    with_index = [line for line in read_calls(tmp_path) if "--index-url" in line]
    assert len(with_index) == 1
    assert "--index-url https://mirror.example/cpu" in with_index[0]
    assert with_index[0].endswith("torch-cpu.txt")


def test_a_current_environment_needs_nothing(checkout, python, tmp_path, capsys):
    environment = PythonEnvironment(checkout)
    assert not environment.is_current()
    environment.prepare(Steps())
    assert environment.is_current()
    read_calls(tmp_path)
    capsys.readouterr()
    environment.prepare(Steps())
    assert read_calls(tmp_path) == []
    assert capsys.readouterr().err == ""


def test_a_changed_lock_alone_is_installed_anew(checkout, python, tmp_path):
    environment = PythonEnvironment(checkout)
    environment.prepare(Steps())
    read_calls(tmp_path)
    lock = checkout.root / "docker" / "locks" / "lab.txt"
    lock.write_text("numpy==2.4.1\n")
    assert not environment.is_current()
    environment.prepare(Steps())
    assert read_calls(tmp_path) == [f"{LOCKED} -r {lock}"]


def test_the_tests_add_their_own_lock(checkout, python, tmp_path):
    environment = PythonEnvironment(checkout)
    environment.prepare(Steps())
    read_calls(tmp_path)
    lock = checkout.root / "docker" / "locks" / "test.txt"
    lock.write_text("pytest==9.0.0\n")
    environment.prepare(Steps(), ("torch-cpu", "lab", "test"))
    assert read_calls(tmp_path) == [f"{LOCKED} -r {lock}"]


def test_a_failing_pip_is_quoted_and_its_log_named(checkout, python):
    python(
        lab='echo "Collecting numpy==2.4.0"; echo "ERROR: No matching distribution found"; exit 1'
    )
    with pytest.raises(EngineError) as caught:
        PythonEnvironment(checkout).prepare(Steps())
    log = checkout.logs_folder / "install-lab.log"
    assert caught.value.what == (
        "installing lab failed\n"
        "  | Collecting numpy==2.4.0\n"
        "  | ERROR: No matching distribution found\n"
        f"  the whole log: {log}"
    )
    assert "3.10 to 3.14 on x86-64 or ARM64" in caught.value.fix
    assert log.read_text().endswith("ERROR: No matching distribution found\n")


def test_after_a_failure_it_goes_on_where_it_stopped(checkout, python, tmp_path):
    python(lab="exit 1")
    environment = PythonEnvironment(checkout)
    with pytest.raises(EngineError, match="installing lab failed"):
        environment.prepare(Steps())
    assert not environment.is_current()
    read_calls(tmp_path)
    script = FAKE_PYTHON.format(calls=tmp_path / "calls", lab="echo fine")
    write_program(environment.python.parent, "python", script)
    environment.prepare(Steps())
    assert [line.split("/")[-1] for line in read_calls(tmp_path)] == ["lab.txt", "a lab"]
    assert environment.is_current()


def test_what_a_failure_left_half_installed_is_not_taken_for_whole(checkout, python, tmp_path):
    """The lock that was installed before comes back: what is there may not be its packages."""
    environment = PythonEnvironment(checkout)
    environment.prepare(Steps())
    lock = checkout.root / "docker" / "locks" / "lab.txt"
    before = lock.read_text()
    lock.write_text("numpy==2.4.1\n")
    script = FAKE_PYTHON.format(calls=tmp_path / "calls", lab="exit 1")
    write_program(environment.python.parent, "python", script)
    with pytest.raises(EngineError):
        environment.prepare(Steps())
    lock.write_text(before)
    assert not environment.is_current()


def test_a_python_without_venv_is_explained(checkout, tmp_path, monkeypatch):
    program = write_program(
        tmp_path / "bin",
        "python3",
        "echo 'The virtual environment was not created successfully because ensurepip is not "
        "available.'; exit 1",
    )
    monkeypatch.setattr(environment_module.sys, "executable", str(program))
    monkeypatch.setattr(progress, "read_distribution", lambda: Distribution("Debian", "debian"))
    with pytest.raises(EngineError, match="ensurepip") as caught:
        PythonEnvironment(checkout).prepare(Steps())
    assert "venv" in str(caught.value.cause)
    assert caught.value.fix == "sudo apt-get install python3-venv"


def test_a_lock_that_is_missing_is_the_checkouts_fault(checkout, python):
    (checkout.root / "docker" / "locks" / "lab.txt").unlink()
    with pytest.raises(LabkitError) as caught:
        PythonEnvironment(checkout).prepare(Steps())
    assert caught.value.cause == "the checkout is not complete"
    assert caught.value.fix == f"git -C '{checkout.root}' checkout -- docker/locks"
    assert not checkout.environment_folder.exists()


def test_an_environment_whose_python_is_gone_is_made_anew(checkout, python, tmp_path):
    environment = PythonEnvironment(checkout)
    environment.prepare(Steps())
    environment.python.unlink()
    environment.python.symlink_to("/no/such/python3.9")
    assert not environment.is_current()
    read_calls(tmp_path)
    environment.prepare(Steps())
    assert read_calls(tmp_path)[0].startswith("-m venv")


def test_an_environment_of_another_python_is_made_anew(checkout, python, tmp_path):
    environment = PythonEnvironment(checkout)
    environment.prepare(Steps())
    (checkout.environment_folder / "pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.9.2\n")
    read_calls(tmp_path)
    environment.prepare(Steps())
    assert read_calls(tmp_path)[0].startswith("-m venv")


# What stands in the environment's place


def list_tree(folder):
    """Every path below the folder, with what a file holds and a link leads to."""
    found = {}
    for path in sorted(folder.rglob("*")):
        text = str(path.readlink()) if path.is_symlink() else path.is_file() and path.read_bytes()
        found[str(path.relative_to(folder))] = text
    return found


def make_folder(place, other):
    place.mkdir()
    (place / "thesis.tex").write_text("three years of work")


def make_uv_environment(place, other):
    """As `uv venv` makes it: complete, and without pip."""
    (place / "bin").mkdir(parents=True)
    (place / "bin" / "python").symlink_to(sys.executable)
    version = f"{sys.version_info[0]}.{sys.version_info[1]}.1"
    (place / "pyvenv.cfg").write_text(f"home = /usr/bin\nuv = 0.13.9\nversion = {version}\n")


def make_environment_with_pip(place, other):
    make_uv_environment(place, other)
    (place / "bin" / "pip").touch()


def make_link(place, other):
    make_uv_environment(other / ".venv", other)
    (other / ".venv" / ".labkit-environment").touch()  # a neighbor's lab
    place.symlink_to(other / ".venv")


def make_dangling_link(place, other):
    place.symlink_to("/no/such/folder")


def make_file(place, other):
    place.write_text("a note")


@pytest.mark.parametrize(
    "make",
    [
        make_folder,
        make_uv_environment,
        make_environment_with_pip,
        make_link,
        make_dangling_link,
        make_file,
    ],
)
def test_what_labkit_did_not_make_is_left_as_it_is(checkout, python, tmp_path, make):
    other = tmp_path / "other project"
    other.mkdir()
    make(checkout.environment_folder, other)
    before = list_tree(checkout.root), list_tree(other)
    with pytest.raises(EngineError, match="labkit did not make") as caught:
        PythonEnvironment(checkout).prepare(Steps())
    assert "LABKIT_VENV=" in str(caught.value.fix)
    assert (list_tree(checkout.root), list_tree(other)) == before
    assert read_calls(tmp_path) == []


def test_the_way_out_is_another_folder(checkout, python, monkeypatch):
    make_folder(checkout.environment_folder, None)
    monkeypatch.setenv("LABKIT_VENV", ".labkit/venv")
    PythonEnvironment(checkout).prepare(Steps())
    assert (checkout.root / ".labkit" / "venv" / "bin" / "python").exists()
    assert (checkout.environment_folder / "..").exists()


def test_an_empty_folder_is_taken(checkout, python):
    checkout.environment_folder.mkdir()
    environment = PythonEnvironment(checkout)
    environment.prepare(Steps())
    assert environment.is_current()


def test_the_stamp_is_there_from_the_first_moment_on(checkout, python, tmp_path):
    """The played `python -m venv` fails where it is not."""
    python(lab="exit 1")
    environment = PythonEnvironment(checkout)
    with pytest.raises(EngineError):
        environment.prepare(Steps())
    assert environment.is_owned


@pytest.mark.parametrize("left", ["", "pyvenv.cfg", "bin/python", "bin/python3.12", "lib/half.py"])
def test_a_half_made_environment_is_made_again(checkout, python, tmp_path, left):
    folder = checkout.environment_folder
    folder.mkdir()
    (folder / ".labkit-environment").touch()
    if left:
        (folder / left).parent.mkdir(exist_ok=True)
        (folder / left).write_text("version = 3.12.1\n")
    other = tmp_path / "other"
    make_folder(other, None)
    (folder / "link").symlink_to(other)
    environment = PythonEnvironment(checkout)
    environment.prepare(Steps())
    assert environment.is_current()
    assert not (folder / "link").is_symlink()
    assert (other / "thesis.tex").exists()
    assert left in ("", "bin/python") or not (folder / left).exists()


def test_the_environment_of_an_older_labkit_is_used_and_never_cleared(checkout, python, tmp_path):
    environment = PythonEnvironment(checkout)
    environment.prepare(Steps())
    (checkout.environment_folder / ".labkit-environment").unlink()
    read_calls(tmp_path)
    environment.prepare(Steps())
    assert read_calls(tmp_path) == []
    (checkout.environment_folder / "bin" / "pip").unlink()
    with pytest.raises(EngineError, match="labkit did not make"):
        environment.prepare(Steps())


# With a real Python and a real pip

METADATA = "Metadata-Version: 2.1\nName: {}\nVersion: 1.0\n"
WHEEL = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
# The build backend of a checkout that needs none from elsewhere.
BACKEND = f"""
import zipfile

METADATA, WHEEL = {(METADATA, WHEEL)}


def build_editable(folder, settings=None, metadata=None):
    name = "labkit-1.0-py3-none-any.whl"
    with zipfile.ZipFile(f"{{folder}}/{{name}}", "w") as wheel:
        info = "labkit-1.0.dist-info"
        wheel.writestr(f"{{info}}/METADATA", METADATA.format("labkit"))
        wheel.writestr(f"{{info}}/WHEEL", WHEEL)
        wheel.writestr(f"{{info}}/RECORD", "")
    return name
"""
BUILD_SYSTEM = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""


def make_wheel(folder, name):
    """A wheel NAME 1.0 with a program of the same name that prints where Python is."""
    folder.mkdir(exist_ok=True)
    wheel = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr(f"{name}.py", "import sys\ndef main():\n    print(sys.prefix)\n")
        file.writestr(f"{info}/METADATA", METADATA.format(name))
        file.writestr(f"{info}/WHEEL", WHEEL)
        file.writestr(f"{info}/entry_points.txt", f"[console_scripts]\n{name} = {name}:main\n")
        file.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return f"{name}==1.0 --hash=sha256:{digest}\n"


@pytest.fixture
def real_checkout(tmp_path, monkeypatch):
    """Call it with a folder's name: a checkout whose locks a real pip can install, offline."""
    wheels = tmp_path / "wheels"
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))

    def make(name):
        checkout = make_checkout(tmp_path / name)
        locks = checkout.root / "docker" / "locks"
        (locks / "torch-cpu.txt").write_text(make_wheel(wheels, "torch"))
        (locks / "lab.txt").write_text(make_wheel(wheels, "sayhome"))
        (checkout.root / "backend.py").write_text(BACKEND)
        (checkout.root / "pyproject.toml").write_text(BUILD_SYSTEM)
        return checkout

    return make


@pytest.mark.slow
def test_a_callers_settings_of_pip_and_python_change_nothing(real_checkout, tmp_path, monkeypatch):
    checkout = real_checkout("lab")
    elsewhere = tmp_path / "elsewhere"
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    for name in ("pip", "venv", "encodings"):
        (hostile / f"{name}.py").write_text("raise SystemExit('the hostile module ran')")
    settings = tmp_path / "pip.conf"
    settings.write_text(
        f"[install]\ntarget = {elsewhere}\nprefix = {elsewhere}\nroot = {elsewhere}\n"
        "user = true\ndry-run = true\nrequire-virtualenv = true\n"
    )
    for name, value in {
        "PIP_CONFIG_FILE": str(settings),
        **{name: str(elsewhere) for name in ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT")},
        **dict.fromkeys(("PIP_USER", "PIP_DRY_RUN", "PIP_REQUIRE_VIRTUALENV"), "1"),
        "PIP_NO_BINARY": ":all:",
        "PIP_PYTHON": "/no/such/python",
        "PIP_CONSTRAINT": "/no/such/file",
        "PYTHONPATH": str(hostile),
        "PYTHONHOME": str(hostile),
        "PYTHONSTARTUP": str(hostile / "pip.py"),
        "VIRTUAL_ENV": str(hostile),
    }.items():
        monkeypatch.setenv(name, value)
    environment = PythonEnvironment(checkout)
    environment.prepare(Steps())
    assert not elsewhere.exists()
    program = checkout.environment_folder / "bin" / "sayhome"
    said = subprocess.run([program], env={}, capture_output=True, text=True, check=True).stdout
    assert said.strip() == str(checkout.environment_folder)


@pytest.mark.slow
def test_no_folders_name_runs_anything_in_the_environments_programs(
    real_checkout, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    checkout = real_checkout("a $(touch pwned) `touch pwned` \"$HOME' #;&\\ b")
    PythonEnvironment(checkout).prepare(Steps())
    binaries = checkout.environment_folder / "bin"
    path = {"PATH": f"{binaries}:{os.environ['PATH']}"}
    for words in (["sayhome"], [str(binaries / "sayhome")], ["pip", "--version"]):
        done = subprocess.run(words, env=path, capture_output=True, text=True, check=True)
        assert str(checkout.environment_folder) in done.stdout
    assert not list(tmp_path.rglob("pwned"))


# From one build of torch to another


CUDA_LOCKS = {
    "cuda-cu130": "nvidia-cublas==13.1.1.3\ntriton==3.7.1 ; sys_platform == 'linux' \\\n",
    "torch-cu130": "torch===2.13.0 \\\n    --hash=sha256:aa\n",
    "cuda-cu126": "nvidia-cublas-cu12==12.6.4.1\ntriton==3.7.1\n",
    "torch-cu126": "torch==2.13.0+cu126\n",
}
CU130, CU126 = find_build("cu130").locks, find_build("cu126").locks
REMOVE = "-m pip uninstall --disable-pip-version-check --yes"


@pytest.fixture
def environment(checkout, python, tmp_path):
    """A .venv with the build for the CPU, in a checkout with all locks."""
    for name, text in CUDA_LOCKS.items():
        (checkout.root / "docker" / "locks" / f"{name}.txt").write_text(text)
    environment = PythonEnvironment(checkout)
    environment.prepare(Steps())
    read_calls(tmp_path)
    return environment


def tell(calls):
    """The calls in short: what was removed, and the locks that were installed."""
    return [line.removeprefix(f"{REMOVE} ").split("/")[-1] for line in calls]


def test_a_cuda_build_takes_the_place_of_the_cpus(environment, tmp_path, capsys):
    capsys.readouterr()
    environment.prepare(Steps(), CU130)
    locks = environment.checkout.root / "docker" / "locks"
    assert read_calls(tmp_path) == [
        f"{REMOVE} torch",
        f"{LOCKED} -r {locks}/cuda-cu130.txt",
        f"{LOCKED} -r {locks}/torch-cu130.txt",
    ]
    assert capsys.readouterr().err.splitlines()[::2] == [
        "removing the other build of torch ...",
        "installing CUDA 13.0's libraries ...",
        "installing torch, the build for CUDA 13.0 ...",
    ]
    assert environment.is_current(CU130)
    assert not environment.is_current()


def test_the_other_cudas_libraries_go_with_it(environment, tmp_path):
    environment.prepare(Steps(), CU130)
    read_calls(tmp_path)
    environment.prepare(Steps(), CU126)
    assert tell(read_calls(tmp_path)) == [
        "nvidia-cublas torch",  # triton is in both
        "cuda-cu126.txt",
        "torch-cu126.txt",
    ]
    environment.prepare(Steps())
    assert tell(read_calls(tmp_path)) == ["nvidia-cublas-cu12 torch triton", "torch-cpu.txt"]


def test_a_build_that_is_there_is_left_as_it_is(environment, tmp_path):
    environment.prepare(Steps(), CU130)
    read_calls(tmp_path)
    environment.prepare(Steps(), CU130)
    assert read_calls(tmp_path) == []


def test_torch_alone_comes_from_pytorchs_index_and_its_libraries_do_not(environment, tmp_path):
    environment.prepare(Steps(), CU126)
    [torch] = [line for line in read_calls(tmp_path) if "--index-url" in line]
    assert "--index-url https://download.pytorch.org/whl/cu126 --retries 1" in torch
    assert torch.endswith("torch-cu126.txt")


@pytest.mark.parametrize(("locks", "asks"), [(CU126, True), (CU130, False)], ids=["cu126", "cu130"])
def test_an_index_by_name_is_for_the_builds_that_have_one(
    environment, tmp_path, monkeypatch, locks, asks
):
    monkeypatch.setenv("TORCH_INDEX", "https://mirror.example/whl")
    environment.prepare(Steps(), locks)
    asked = [line for line in read_calls(tmp_path) if "https://mirror.example/whl" in line]
    assert bool(asked) is asks


def test_a_removal_that_fails_is_made_again(environment, tmp_path):
    program = environment.python
    fine = program.read_text()
    write_program(program.parent, "python", "echo 'Permission denied'; exit 1")
    with pytest.raises(EngineError, match="removing torch failed"):
        environment.prepare(Steps(), CU130)
    program.write_text(fine)
    environment.prepare(Steps(), CU130)
    assert tell(read_calls(tmp_path)) == ["torch", "cuda-cu130.txt", "torch-cu130.txt"]


@pytest.fixture
def unchecked(monkeypatch):
    """Has a lock that goes while others are installed fail in the middle, as a network may."""
    monkeypatch.setattr(environment_module, "check_locks", lambda checkout, locks: None)


def test_an_installation_that_fails_between_two_builds_goes_on(environment, tmp_path, unchecked):
    """Neither build is there then, and pip must not be asked to remove it twice."""
    lock = environment.checkout.root / "docker" / "locks" / "torch-cu130.txt"
    text = lock.read_text()
    lock.unlink()
    with pytest.raises(LabkitError, match="cannot read"):
        environment.prepare(Steps(), CU130)
    assert not environment.is_current()
    lock.write_text(text)
    read_calls(tmp_path)
    environment.prepare(Steps(), CU130)
    assert tell(read_calls(tmp_path)) == ["torch-cu130.txt"]
    environment.prepare(Steps())
    assert tell(read_calls(tmp_path)) == ["nvidia-cublas torch triton", "torch-cpu.txt"]


def test_half_of_a_cuda_build_is_removed_too(environment, tmp_path, unchecked):
    lock = environment.checkout.root / "docker" / "locks" / "torch-cu130.txt"
    lock.unlink()
    with pytest.raises(LabkitError):
        environment.prepare(Steps(), CU130)
    read_calls(tmp_path)
    environment.prepare(Steps())
    assert tell(read_calls(tmp_path)) == ["nvidia-cublas torch triton", "torch-cpu.txt"]


LOCK = """\
# a comment
numpy==2.4.0 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
colorama==0.4.6 ; sys_platform == "win32" \\
    --hash=sha256:cc
matplotlib==3.11.0 ; python_full_version >= "3.10" \\
    --hash=sha256:dd
"""


def test_counting_the_packages_that_this_machine_needs(checkout, tmp_path):
    """With the real Python: two of the three are for Linux and macOS."""
    write_program(checkout.environment_folder / "bin", "python", f'exec "{sys.executable}" "$@"')
    lock = tmp_path / "lab.txt"
    lock.write_text(LOCK)
    assert PythonEnvironment(checkout)._count(lock) == 2


def test_what_cannot_be_counted_is_unknown(checkout, tmp_path):
    write_program(checkout.environment_folder / "bin", "python", "exit 1")
    assert PythonEnvironment(checkout)._count(tmp_path / "lab.txt") is None


PIP_SAYS = """\
Looking in indexes: https://mirror.example
Collecting jupyterlab==4.6.3 (from -r lab.txt (line 7))
  Downloading jupyterlab-4.6.3-py3-none-any.whl (12.4 MB)
Collecting numpy
Installing collected packages: numpy, jupyterlab
"""


@pytest.mark.parametrize(
    ("total", "notes"),
    [
        (
            118,
            ["package 1 of 118, jupyterlab", "package 2 of 118, numpy", "unpacking 118 packages"],
        ),
        (None, ["package 1, jupyterlab", "package 2, numpy", "unpacking 2 packages"]),
    ],
    ids=["counted", "not counted"],
)
def test_how_far_pip_is(total, notes):
    step = Step("installing lab", lambda: 0.0)
    read_line = follow_pip(step, total)
    seen = []
    for line in PIP_SAYS.splitlines():
        read_line(line)
        if step.detail not in ("", *seen):
            seen.append(step.detail)
    assert seen == notes


def test_one_that_was_stopped_while_it_was_made_is_made_anew(checkout, python, tmp_path):
    environment = PythonEnvironment(checkout)
    environment.prepare(Steps())
    read_calls(tmp_path)
    (checkout.environment_folder / "bin" / "pip").unlink()  # the last that comes into it
    environment.prepare(Steps())
    assert read_calls(tmp_path)[0] == f"-m venv {checkout.environment_folder}"
    assert environment.is_current()
