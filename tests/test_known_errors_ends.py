"""The last line that says in plain words that a program failed, and ends that look like it."""

from __future__ import annotations

import re

import pytest

from labkit.host.distribution import UNKNOWN
from labkit.known_errors.match import explain_text

FAILED_ENDS = [
    "blip: broker unreachable",
    "10:00:02 blip: broker is unreachable",
    "probe: gave up after 60s",
    "zorp: timed out waiting for broker",
    "refusing to start: the data directory is not empty",
    "no quorum after 30s, shutting down",
    "lost the lease on partition 3, stopping",
    "INFO worker: out of retries",
    "[frob] 10:00:02 aborting",
    'key "port" must be a number',
    "config: option 'port' has to be between 1 and 65535",
    "batch: quota used up",
    "license expired on 2024-11-01",
    "bad magic number",
    "zorp: unexpected end of file",
    "zorp: worker 3 died, stopping all",
    "zorp: Verbindung zum Broker fehlgeschlagen",
    "zorp: Zugriff verweigert",
    "zorp: impossible d'ouvrir le fichier",
    "zorp: Permission non accordée",
    "zorp: no se pudo abrir el archivo: No existe el fichero o el directorio",
    "zorp: Conexión rehusada",
    "zorp: não foi possível abrir o arquivo",
    "zorp: Arquivo ou diretório inexistente",
    "zorp: не удалось открыть файл",
    "zorp: 无法打开文件",
    "zorp: 连接失败",
    "zorp: 接続に失敗しました",
    "zorp: /etc/zorp.conf: Datei oder Verzeichnis nicht gefunden",
    "zorp: /data: Aucun fichier ou dossier de ce type",
    "zorp: /data: 没有那个文件或目录",
    "zorp: /data: Aucun fichier ou dossier de ce nom",
    "zorp: /data: No existe el archivo o el directorio",
    "zorp: Relais brisé (pipe)",
    "zorp: No existe ninguna ruta hasta el `host'",
    "zorp: Ficheiro ou pasta inexistente",
    "zorp: 连接被拒绝",
    "zorp: ファイルを開きすぎです",
    "zorp: die Datei konnte nicht geöffnet werden",
    "zorp: falha ao abrir o arquivo",
    "zorp: невозможно открыть файл",
]
HEALTHY_ENDS = [
    "retrying",
    "zorp: timed out waiting for broker, retrying in 5s",
    "broker unreachable, retrying",
    "0 hosts unreachable",
    "no hosts unreachable",
    "unreachable code removed: 12 lines",
    "gave up: 0",
    "timeout: 60s",
    "timeout = 60",
    "request_timeout: 30",
    "retries: 3",
    "max_retries=5",
    "0 errors",
    "0 errors, 0 warnings",
    "no errors found",
    "errors: none",
    "INFO:     Shutting down",
    "INFO:     Finished server process [4121]",
    "INFO:     Application shutdown complete.",
    "[notice] 1#1: exiting",
    "[notice] 1#1: signal 3 (SIGQUIT) received, shutting down",
    "1:M 29 Nov 2024 10:00:00.000 # Redis is now ready to exit, bye bye...",
    "1:M 29 Nov 2024 10:00:00.000 # User requested shutdown...",
    "LOG:  database system is shut down",
    "Received SIGTERM, shutting down",
    "no more jobs, exiting",
    "no work left, shutting down",
    "idle for 30 min, shutting down",
    "no requests for 300s, stopping",
    "validation loss has not improved, stopping",
    "EarlyStopping: no improvement, stopping",
    "all workers stopped",
    "worker 3 stopped",
    "license expires on 2030-01-01",
    "license valid until 2030-01-01",
    "license: MIT",
    "certificate expires in 60 days",
    "quota used: 12%",
    "quota: 5 GB of 10 GB used",
    "magic number: 0xcafebabe",
    "magic number ok",
    "end of file reached, 120 records",
    "unexpected: 0",
    "key port is a number",
    'option "port" may be a number',
    "out of 12 files, 12 were copied",
    "12 out of 12 done",
    "zorp: Daten werden nicht geöffnet",
    "zorp: sem falha ao abrir o arquivo",
    "Fehler: 0",
    "0 Fehler, 0 Warnungen",
    "Keine Fehler gefunden",
    "zorp: 0 fehlgeschlagen",
    "zorp: keine Datei nicht gefunden",
    "erreurs : 0",
    "aucune erreur",
    "errores: 0",
    "sin errores",
    "nenhum erro",
    "ошибок: 0",
    "ошибок нет",
    "错误: 0",
    "没有错误",
    "zorp: 失败 0",
    "エラー: 0",
    "エラーなし",
    "test of the aborting path passed",
    "abort threshold: 3",
]


@pytest.mark.parametrize("line", FAILED_ENDS)
def test_a_plain_failure_in_the_last_line_is_quoted(line):
    found = explain_text(f"start\nwork\n{line}\n")
    assert not found.found
    assert found.failure and found.failure.line == line


@pytest.mark.parametrize("line", HEALTHY_ENDS)
def test_an_end_that_looks_like_a_failure_is_healthy(line):
    found = explain_text(f"start\nwork\n{line}\n")
    assert not found.found
    assert not found.failure


@pytest.mark.parametrize("line", FAILED_ENDS[:8])
def test_within_a_log_plain_words_are_no_failure(line):
    assert not explain_text(f"start\n{line}\nstep 2\nall done\n").failure


@pytest.mark.parametrize("remark", ["Failed to load user theme", 'GET /x HTTP/1.1" 500 12'])
def test_a_remark_far_above_a_failed_end_is_not_quoted(remark):
    end = "zorp: cannot connect to broker"
    found = explain_text(f"start\n{remark}\nretried\nstep 1\nstep 2\n{end}\n")
    assert found.describe()["unexplained"] == {"line_number": 6, "line": end}


def test_a_failure_right_above_the_end_is_still_quoted():
    found = explain_text("start\nFailed to open /dev/zorp\nzorp: aborting\n")
    assert found.describe()["unexplained"]["line"] == "Failed to open /dev/zorp"


@pytest.mark.parametrize(
    "line",
    [
        "Tests run: 12, Failures: 1",
        "Tests run: 12, Failures: 1, Errors: 0, Skipped: 0",
        "Tests run: 12, Failures: 0, Errors: 1, Skipped: 0",
        "Tests run: 12,  Failures: 1,  Errors: 1",
        "Tests run: 12,  Failures: 1024,  Errors: 0",
        "Tests run: 12, Errors: 0, Failures: 1, Inconclusive: 0",
        "[ERROR] Tests run: 12, Failures: 1, Errors: 0, Skipped: 0",
        "Total tests run: 12, Passes: 11, Failures: 1, Skips: 0",
        "12 tests completed, 1 failed",
        "12 examples, 1 failure",
        "test result: FAILED. 11 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out",
        "--- FAIL: TestZorp (0.00s)",
        "  1 failing",
        "Tests:       1 failed, 11 passed, 12 total",
        "Failed!  - Failed:     1, Passed:    11, Skipped:     0, Total:    12",
        "92% tests passed, 1 tests failed out of 12",
        "Tests: 12, Assertions: 30, Failures: 1.",
        "Tests: 12, Assertions: 30, Errors: 0, Failures: 1.",
    ],
)
def test_a_count_of_failed_tests_is_a_failure(line):
    assert explain_text(f"start\n{line}\n").failure


@pytest.mark.parametrize(
    "line",
    [
        "Tests run: 12, Failures: 0",
        "Tests run: 12,  Failures: 0,  Errors: 0",
        "[INFO] Tests run: 12, Failures: 0, Errors: 0, Skipped: 0",
        "Total tests run: 12, Passes: 12, Failures: 0, Skips: 0",
        "12 tests completed, 0 failed",
        "12 examples, 0 failures",
        "test result: ok. 12 passed; 0 failed; 0 ignored",
        "  12 passing",
        "Tests:       12 passed, 12 total",
        "Passed!  - Failed:     0, Passed:    12, Skipped:     0, Total:    12",
        "100% tests passed, 0 tests failed out of 12",
        "Tests: 12, Assertions: 30, Errors: 0, Failures: 0.",
    ],
)
def test_zero_failed_tests_are_healthy(line):
    assert not explain_text(f"start\n{line}\n").failure


UNIT = """Nov 29 10:00:01 n1 systemd[1]: Starting zorpd.service...
Nov 29 10:00:02 n1 zorpd[881]: config: key 'port' must be a number
Nov 29 10:00:02 n1 systemd[1]: zorpd.service: Main process exited, code=exited, status=1/FAILURE
Nov 29 10:00:02 n1 systemd[1]: zorpd.service: Failed with result 'exit-code'.
"""
STATE = """zorpd.service - Zorp
     Active: failed (Result: exit-code) since Fri 2024-11-29 10:00:02 UTC; 1min ago

"""


@pytest.mark.parametrize("log", [UNIT, STATE + UNIT], ids=["journal", "status"])
def test_a_failed_units_own_line_is_quoted(log):
    found = explain_text(log)
    assert found.message.line.endswith("zorpd[881]: config: key 'port' must be a number")


def test_another_units_line_is_not_quoted():
    log = UNIT.replace("zorpd[881]", "sshd[12]")
    assert "systemd[1]" in explain_text(log).message.line


@pytest.mark.parametrize(
    ("system", "install"),
    [
        ("CentOS Linux 7", "(RHEL 7, CentOS 7: docs.nvidia.com/cuda/archive/12.4.1/cuda-inst"),
        (
            "Amazon Linux 2",
            "Amazon Linux 2: docs.aws.amazon.com/AWSEC2/latest/UserGuide/install-nv",
        ),
        (
            "Rocky Linux 9.3",
            "sudo dnf module enable nvidia-driver:open-dkms && sudo dnf install nvidia",
        ),
        ("Fedora Linux 43", "sudo dnf install akmod-nvidia xorg-x11-drv-nvidia-cuda, and wait"),
        ("Arch Linux", "Turing and newer, kernel linux: sudo pacman -Syu nvidia-open"),
        ("openSUSE Leap 15.6", "(openSUSE: en.opensuse.org/SDB:NVIDIA_drivers"),
        (
            "Debian GNU/Linux 13",
            "(sudo apt-get install nvidia-driver, of non-free, serves CUDA up to 12",
        ),
        ("Ubuntu 24.04.3 LTS", "(sudo ubuntu-drivers install)"),
    ],
)
def test_a_missing_driver_is_installed_as_the_distribution_does(system, install):
    written = write_driver_fix(system)
    assert install in written
    assert ("ubuntu-drivers" in written) == ("Ubuntu" in system)


@pytest.mark.parametrize("system", ["CentOS Linux 7", "Amazon Linux 2", "openSUSE Leap 15.6"])
def test_where_no_command_is_certain_a_missing_driver_gets_a_page_alone(system):
    assert not re.search(r"\b(?:sudo|yum|dnf|zypper|rpm) ", write_driver_fix(system))


@pytest.mark.parametrize("system", ["Rocky Linux 9.3", "Fedora Linux 43", "Arch Linux"])
def test_a_driver_for_new_gpus_alone_names_the_page_for_older_ones(system):
    assert re.search(r"GPUs before Turing: \S|an older GPU: \S", write_driver_fix(system))


def write_driver_fix(system: str) -> str:
    """The fix of a missing driver on the system of this name."""
    log = f'PRETTY_NAME="{system}"\nRuntimeError: Found no NVIDIA driver on your system.\n'
    found = explain_text(log)
    return found.first.write_fixes(found.context.choose_distribution(UNKNOWN))[0]


def test_an_archive_that_ends_early_is_still_known():
    for line in ("gzip: stdin: unexpected end of file", "x.tar.gz: unexpected end of file"):
        assert explain_text(line).first.error.name == "unreadable-archive"
