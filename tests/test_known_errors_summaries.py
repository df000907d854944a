"""Summaries that count a failure, and the states in which builds and units end."""

from __future__ import annotations

import pytest

from labkit.known_errors.match import explain_text

# Forms of programs: wherever they stand.
FAILED = [
    "Build FAILED.",
    "    3 Error(s)",
    '".\\build\\a.axf" - 2 Error(s), 1 Warning(s).',
    "3 file(s) checked: 1 error(s), 0 warning(s)",
    "Fehler beim Buildvorgang.",
    "ÉCHEC de la build.",
    "ビルドに失敗しました。",
    "生成失败。",
    "# fail 2",
    "# fail  2",
    "ℹ fail 2",
    "# FAIL:  1",
    "# ERROR: 2",
    "Result: FAIL",
    "=== RESULT: FAIL ===",
    "Test result: Failed",
    "Failed 4/73 test programs. 13/1346 subtests failed.",
    "test cases: 5 | 3 passed | 2 failed",
    "test cases: 1 | 1 failed",
    "[doctest] test cases: 2 | 1 passed | 1 failed | 0 skipped",
    "[doctest] Status: FAILURE!",
    "Fail:               2",
    "Timeout:            1",
    '*** 2 failures are detected in the test module "Master"',
    "48 tests, 3 failures",
    "5 tests, 1 failure",
    "Executed 12 tests, with 2 failures (0 unexpected) in 0.3 (0.4) seconds",
    "12 successes / 1 failure / 0 errors / 0 pending : 0.012 seconds",
    "12 successes / 0 failures / 1 error / 0 pending : 0.012 seconds",
    "Ran 1 test suite in 3.28s: 0 tests passed, 1 failed, 0 skipped (1 total tests)",
    "FAILED | 3 passed | 1 failed (12ms)",
    "TOTAL: 211   EXECUTED: 129   PASSED: 128   FAILED: 1   SKIPPED: 82",
    "✖ 2 problems (1 error, 1 warning)",
    "FOUND 3 ERRORS AND 1 WARNING AFFECTING 4 LINES",
    "3 scenarios (1 failed, 2 passed)",
    "Chrome 120.0 (Linux x86_64): Executed 3 of 3 (1 FAILED) (0.031 secs / 0.012 secs)",
    "Executed 3 out of 3 tests: 2 tests pass and 1 fails locally.",
    "00:01 +2 -1: Some tests failed.",
    "Test Summary: | Pass  Fail  Total  Time",
    "[ FAIL 1 | WARN 0 | SKIP 0 | PASS 3 ]",
    "# of unexpected failures	2",
    "  1 failed",
    "12 files inspected, 3 offenses detected",
    "66%: Checks: 3, Failures: 1, Errors: 0",
    "Found 1 error. Watching for file changes.",
    "a.c:3:1: 错误：未知的类型名‘foo’",
    "Errors were encountered while processing:",
    "Fehler traten auf beim Bearbeiten von:",
    "dpkg: Fehler beim Bearbeiten des Paketes foo (--configure):",
    " 2 fail",
    " 2 FAILED TESTS",
    "Errors while running CTest",
    "Test suite x-test: FAIL",
    "  py311: FAIL code 1 (3.12=setup[1.2]+cmd[1.9] seconds)",
    "  FAIL   ................................ 12 files, 2 style issues",
    "  3:1       error    wrong indentation: expected 2 but found 1",
    "Failed: 2 failure(s), 0 warning(s) on 3 files.",
    "-- Configuring incomplete, errors occurred!",
    "x.service: Failed with result 'timeout'.",
    "Nov 29 10:00:01 n1 systemd[1]: x.service: Failed with result 'exit-code'.",
    "Unit x.service could not be found.",
]
# Those of the same programs where nothing failed.
PASSED = [
    "Build succeeded.",
    "    0 Error(s)",
    '".\\build\\a.axf" - 0 Error(s), 3 Warning(s).',
    "65 entries, 60 checked, 0 error(s), 1 warning(s)",
    "Der Buildvorgang wurde erfolgreich ausgeführt.",
    "# fail 0",
    "ℹ fail 0",
    "# FAIL:  0",
    "# XFAIL: 2",
    "# fail fast: stop at the first error",
    "Result: PASS",
    "Result: NOTESTS",
    "All tests passed (4 assertions in 2 test cases)",
    "test cases: 12 | 11 passed | 1 failed as expected",
    "[doctest] test cases:  7 |  7 passed | 0 failed | 0 skipped",
    "[doctest] Status: SUCCESS!",
    "Fail:               0",
    "Expected Fail:      2",
    "timeout: 60",
    "226 tests, 0 failures, 2 skipped",
    "Executed 12 tests, with 0 failures (0 unexpected) in 0.3 (0.4) seconds",
    "12 successes / 0 failures / 0 errors / 1 pending : 0.012 seconds",
    "12 tests passed, 0 failed, 0 skipped (12 total tests)",
    "ok | 3 passed | 0 failed (12ms)",
    "TOTAL: 211   EXECUTED: 129   PASSED: 129   FAILED: 0   SKIPPED: 82",
    "✖ 4 problems (0 errors, 4 warnings)",
    "3 scenarios (3 passed)",
    "Executed 3 of 3 SUCCESS (0.031 secs / 0.012 secs)",
    "Executed 3 out of 3 tests: 3 tests pass.",
    "00:01 +3: All tests passed!",
    "Test Summary: | Pass  Total  Time",
    "[ FAIL 0 | WARN 2 | SKIP 1 | PASS 3 ]",
    "# of expected failures		3",
    "12 files inspected, 3 offenses detected, 3 offenses corrected",
    "100%: Checks: 3, Failures: 0, Errors: 0",
    "Found 0 errors. Watching for file changes.",
    "  Expectedly Failed:  1 (8.33%)",
    "Ошибка обучения: 0.31",
    "  py311: OK (3.12=setup[1.2]+cmd[1.9] seconds)",
    "  3:1       warning  missing document start",
    "Passed: 0 failure(s), 0 warning(s) on 3 files.",
    " 0 fail",
    "-- Configuring done (1.2s)",
    "x.service: Deactivated successfully.",
    "one.service: Main process exited, code=killed, status=15/TERM (success)",
    "3 failing examples, all reproduced and fixed",
]
# A count, or a sentence, that ends a log.
ENDED = [
    "Summary: ERRORS: 3",
    "Errors: 3",
    "errors: 2, warnings: 4",
    "3 tests failed",
    "2 of 14 checks did not pass",
    "1 of 2 jobs unsuccessful",
    "1 out of 3 tests failed (0.01s)",
    "3 runs, 4 assertions, 1 failures, 0 errors, 0 skips",
    "x.Tests  Total: 3, Errors: 0, Failed: 1, Skipped: 0, Time: 0.2s",
    "Tested: 3 | Passing: 2 | Failing: 1 | Crashing: 0",
    "# Totals: pass:3 fail:1 xfail:0 xpass:0 skip:0 error:0",
    "0 features passed, 1 failed, 0 skipped",
    "Fehler: 3",
    "2 Fehler",
    "Build finished with 2 errors.",
    "Finished with 3 errors and 1 warning.",
    "Processed 12 files, 2 errors",
    "Verification finished: 2 problems found",
    "❌ Tests failed.",
    "nox > Session tests failed.",
    "❌ Tests échoués: 2",
    "Aprobadas: 10 · Fallidas: 2",
    "Total enviadas: 10 | Total fallidas: 2",
    "Fehlgeschlagene Tests: 2",
    "10 Tests erfolgreich, 2 Tests fehlgeschlagen",
    "FEHLGESCHLAGEN (2)",
    "Тестов пройдено: 10, не пройдено: 2",
    "失败用例: 2",
    "测试失败：2/12",
    "失敗数: 2",
    "3 errores encontrados",
    "trovati 3 errori",
    "Génération : 1 a réussi, 1 a échoué, 0 ignoré",
    "gesamt: 72, fehlgeschlagen: 2, erfolgreich: 70",
    "Fehler!      : Fehler:     1, erfolgreich:    11, gesamt:    12",
    "错误：3",
    "5 个错误",
    "通过 30 个，失败 2 个",
    "12 réussites, 2 échecs",
    "Terminé : 12 converties, 0 ignorées, 3 échecs",
    "Erreurs : 4",
    "4 Erreur(s)",
    "Ошибок: 3",
    "Fallos: 2",
    "1 Errores",
    "結果: 11 件成功 / 1 件失敗",
    "エラー: 2",
    "1 エラー",
    "Errori: 2",
    "Erros: 4",
    "Błędy: 2",
    "Liczba błędów: 1",
    "실패: 2",
    "오류 2개",
    "構築に失敗しました",
    "构建失败",
    "Installation fehlgeschlagen",
    "Instalacja nie powiodła się",
    "La connessione è fallita",
    "Не удалось подключиться к серверу",
]
NOT_ENDED = [
    "Summary: ERRORS: 0, WARNINGS: 12",
    "requests: 1200, errors: 2, p99: 31 ms",
    "WER: 12.3, errors: 120, words: 976",
    "insertions: 3, deletions: 2, substitutions: 4, errors: 9",
    "attempts: 3, failed: 2, succeeded: 1",
    "test errors: 12 of 1000",
    "fixed 3 errors",
    "Found 3 errors (3 fixed, 0 remaining).",
    "RX errors 3  dropped 0  overruns 0  frame 0",
    "gesamt: 72, fehlgeschlagen: 0, erfolgreich: 72",
    "0 Fehler",
    "Retry bei Fehler: 3 Versuche",
    "Top-5-Fehler: 17,0 %",
    "maximaler Fehler: 3",
    "✅ Port : 15 assertions OK, 0 échec",
    "Partie 3 : vous jouez aux échecs contre l'ordinateur",
    "aciertos: 9, fallos: 0",
    "tolerancia a fallos: 2 réplicas",
    "ошибок: 0",
    "失败: 0，通过: 808，已跳过: 0",
    "失败率: 3%",
    "远程保存失败，本地保存成功",
    "結果: 12 件成功 / 0 件失敗",
    "エラー率: 2%",
    "실패: 0, 통과: 12",
    "tsc 0 错误，退出码 0",
    "12 of 14 checks passed",
    "3 runs, 4 assertions, 0 failures, 0 errors, 0 skips",
    "# Totals: pass:4 fail:0 xfail:1 xpass:0 skip:0 error:0",
    "Ran 12 tests with 12 tests passed and 2 expected failures",
    "1 failed, retried, 12 passed",
    "Finished with 0 errors and 1 warning.",
    "Processed 12 files, 0 errors",
    "Tests failed: 0",
    "Checks failed (0 of 12)",
    "3 issues found, 3 fixed",
    "❌ Tests échoués: 0",
    "Aprobadas: 12 · Fallidas: 0",
    "Fehlgeschlagene Tests: 0",
    "失败用例: 0",
    "最大失败次数: 3",
    "最大エラー数: 5",
    "nombre maximal d'échecs : 3",
    "límite de errores: 3",
    "максимум ошибок: 3",
    "max failures: 3",
    "12 errors fixed",
    "已修复 3 个错误",
    "Исправлено ошибок: 3",
]


@pytest.mark.parametrize("line", FAILED)
def test_a_form_of_a_summary_is_a_failure_wherever_it_stands(line):
    found = explain_text(f"start\n{line}\nwork\nbye\n")
    assert not found.found
    assert found.failure and found.failure.line == line.strip()


@pytest.mark.parametrize("line", PASSED)
def test_a_summary_without_a_failure_is_healthy(line):
    found = explain_text(f"start\n{line}\n")
    assert not found.found
    assert not found.failure


@pytest.mark.parametrize("line", ENDED)
def test_a_count_of_failures_at_the_end_is_quoted(line):
    found = explain_text(f"start\nwork\n{line}\n")
    assert not found.found
    assert found.failure and found.failure.line == line


@pytest.mark.parametrize("line", ENDED[3:])
def test_a_count_of_failures_within_a_log_is_none(line):
    assert not explain_text(f"start\n{line}\nwork goes on\nall done\n").failure


@pytest.mark.parametrize("line", NOT_ENDED)
def test_a_count_that_tells_of_no_failure_is_healthy(line):
    found = explain_text(f"start\nwork\n{line}\n")
    assert not found.found
    assert not found.failure


@pytest.mark.parametrize(
    "below",
    [
        "Time Elapsed 00:00:05.33",
        "Verstrichene Zeit 00:00:01.90",
        "====\nSkipped: 1",
        "已用时间 3 秒",
    ],
)
def test_a_count_is_found_above_what_a_summary_ends_with(below):
    found = explain_text(f"start\n    2 Fehler\n\n{below}\n")
    assert found.failure and found.failure.line == "2 Fehler"
