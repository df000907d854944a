"""What the C library, shells, make and git print in other languages is read in English."""

from __future__ import annotations

import pytest

from labkit.known_errors.match import explain_text
from labkit.known_errors.translate import (
    TRANSLATIONS,
    find_translated,
    read_in_english,
    read_messages,
    translate,
)

BY_ENGLISH: dict[str, list[str]] = {}
for _text, _translation in TRANSLATIONS.items():
    BY_ENGLISH.setdefault(_translation.english, []).append(_text)
# How a program, or a shell, says what the table has.
SAID = {
    "system": "zorp: {}",
    "end": "zorp: {}",
    "name": "says “zorp” {}",
    "start": "{}",
    "signal": "./zorp.sh: line 3:  4711 {}",
    "anywhere": "x{}x",
}


@pytest.mark.parametrize("english", BY_ENGLISH)
def test_each_text_is_read_in_english_in_its_place(english):
    for text in BY_ENGLISH[english]:
        form = SAID[TRANSLATIONS[text].place]
        # A word in ASCII is found between blanks.
        form = form.replace("x", " ")
        line = form.format(text)
        found = find_translated(line)
        assert text in found, text
        said = english.replace("NAME", "zorp")
        assert said in translate(line, found), (text, translate(line, found))


@pytest.mark.parametrize(
    ("line", "english"),
    [
        ("make: *** [Makefile:3: all] Fehler 2", "make: *** [Makefile:3: all] Error 2"),
        ("make: *** [makefile:12 : test] Erreur 1", "make: *** [makefile:12 : test] Error 1"),
        ("make: *** [Makefile:1261：modules] 错误 2", "make: *** [Makefile:1261：modules] Error 2"),
        ("Speicherzugriffsfehler (Speicherabzug geschrieben)", "Segmentation fault (core dumped)"),
        ("Abgebrochen(Speicherabzug geschrieben)", "Aborted(core dumped)"),
        ("已放弃（核心已转储）", "Aborted(core dumped)"),
        (
            "./a.sh: Zeile 12: 4711 Getötet    python a.py",
            "./a.sh: line 12: 4711 Killed    python a.py",
        ),
        ("./a.sh : ligne 4 : 33 Tué     python", "./a.sh: line 4: 33 Killed     python"),
        ("./a.sh: 第 3 行：nvcc：指令找不到", "./a.sh: line 3: nvcc: command not found"),
        ("./a.sh: riga 3: X: variabile non assegnata", "./a.sh: line 3: X: unbound variable"),
        ("bash: nvcc : commande introuvable", "bash: nvcc: command not found"),
        ("cat: a: È una directory", "cat: a: Is a directory"),
        ("fatal\xa0: pas un dépôt git", "fatal: pas un dépôt git"),
    ],
)
def test_a_line_is_read_as_the_program_prints_it_in_english(line, english):
    assert read_in_english([line]) == [english]


@pytest.mark.parametrize(
    "line",
    [
        "Убито монстров: 12",
        "Fichier situé dans /tmp, traitement effectué",
        "Capital morto: 12",
        "Это каталог товаров магазина",
        "il a été tué par un bug",
        "wer das Verzeichnis abgebrochen hat, ist unbekannt",
    ],
)
def test_a_sentence_with_the_word_for_a_signal_stays(line):
    assert read_in_english([line]) == [line]


@pytest.mark.parametrize(
    "line",
    [
        "Getötet",
        "Tué",
        "Убито",
        "Terminado (killed)",
        "已杀死",
        "Unicestwiony",
        "Zabity",
        "./run.sh: Zeile 4:  3311 Getötet                 python train.py",
        "./run.sh: 第 4 行： 3311 已杀死                 python train.py",
        "web-1  | Getötet",
    ],
)
def test_a_process_that_was_killed_is_explained_in_every_language(line):
    found = explain_text(f"epoch 3\n{line}\n").first
    assert found and found.error.name == "process-got-sigkill"
    assert found.line == line


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("zorp: Segmentierungsverletzung", "segfault"),
        ("Violación de segmento (`core' generado)", "segfault"),
        ("段错误 (核心已转储)", "segfault"),
        ("Ошибка шины (образ памяти сброшен на диск)", "bus-error"),
        ("zorp: Die Adresse wird bereits verwendet", "port-taken"),
        ("cp: écriture de 'a': Aucun espace disponible sur le périphérique", "disk-full"),
    ],
)
def test_a_known_error_is_known_in_every_language(line, name):
    found = explain_text(f"start\n{line}\n").first
    assert found and found.error.name == name
    assert found.line == line


@pytest.mark.parametrize(
    "line",
    [
        "make[1]: *** Keine Regel, um »distclean« zu erstellen.  Schluss.",
        "make: *** Pas de règle pour fabriquer la cible « a.o ». Arrêt.",
        "make: *** Нет правила для сборки цели «install».  Останов.",
        "make: *** 没有规则可制作目标“a”。 停止。",
        "gmake: *** [Makefile:564: target/a.so] エラー 101",
        "gmake[1]: *** [CMakeFiles/Makefile2:142: all] Ошибка 2",
        "make: *** [Makefile:30: mismatch] Błąd 1",
        "make: *** [all] Erro 2",
        "Отказано в доступе",
        "Connexion refusée",
        "Brak dostępu",
        "cat: dati.txt: File o directory non esistente",
        "Abgebrochen",
        "Automatischer Merge fehlgeschlagen; beheben Sie die Konflikte und committen Sie dann"
        " das Ergebnis.",
        "Schwerwiegend: Kein Git-Repository",
    ],
)
def test_an_unknown_failure_is_quoted_as_it_is_written(line):
    found = explain_text(f"start\n{line}\n")
    assert not found.found
    assert found.failure and found.failure.line == line


def test_the_message_of_a_step_stands_above_the_end_of_make_in_every_language():
    log = (
        "cc -c a.c\na.c:3:1: fatal error: zorp.h is missing\nmake: *** [Makefile:3: a.o] Fehler 1\n"
    )
    assert explain_text(log).message.line.startswith("a.c:3:1")
    log = "gcc -o a a.o\nzorpld: cannot merge a.o\nmake: *** [Makefile:3: a] Erreur 1\n"
    assert explain_text(log).message.line == "zorpld: cannot merge a.o"


@pytest.mark.parametrize(
    "line",
    [
        "make: [clean] Fehler 2 (ignoriert)",
        "make: [Makefile:4 : clean] Erreur 1 (ignorée)",
        "make: [Makefile:4: clean] エラー 1 (無視されました)",
        "make: Für das Ziel „all“ ist nichts zu tun.",
        "make[1]: Verlasse Verzeichnis »/home/m/a«",
        "Terminé",
        "Terminado",
        "Dostęp do pliku: tak",
    ],
)
def test_what_is_said_of_a_success_in_other_languages_is_healthy(line):
    found = explain_text(f"start\n{line}\n")
    assert not found.found
    assert not found.failure


def test_the_table_has_each_text_once(tmp_path):
    rows = [f"{each.english}\t{each.place}" for each in TRANSLATIONS.values()]
    assert len(read_messages()) == len(rows) > 1000
    table = tmp_path / "messages.tsv"
    table.write_text("# a comment\nIs a directory\tend\tIst ein Verzeichnis\n", encoding="utf-8")
    assert read_messages(table) == {"ist ein verzeichnis": ("Is a directory", "end")}


# cmd.exe wraps its message after so many words.
OF_CMD = [
    'Der Befehl "NAME" ist entweder falsch geschrieben oder\nkonnte nicht gefunden werden.',
    "'NAME' n'est pas reconnu en tant que commande interne\nou externe, un programme exécutable",
    '"NAME" no se reconoce como un comando interno o externo,\nprograma o archivo por lotes',
    '"NAME" non è riconosciuto come comando interno o esterno,\n un programma eseguibile',
    "'NAME' não é reconhecido como um comando interno\nou externo, um programa operável",
    '"NAME" не является внутренней или внешней\nкомандой, исполняемой программой',
    '"NAME" не є внутрішньою або зовнішньою\nкомандою',
    "Nazwa 'NAME' nie jest rozpoznawana jako polecenie wewnętrzne lub zewnętrzne,",
    "Název NAME není názvem vnitřního ani vnějšího příkazu,\nspustitelného programu",
    "'NAME' iç ya da dış komut, çalıştırılabilir\nprogram ya da toplu iş dosyası",
    "'NAME' wordt niet herkend als een interne\nof externe opdracht",
    '"NAME" känns inte igen som ett internt kommando,',
    "'NAME' は、内部コマンドまたは外部コマンド、",
    "'NAME'은(는) 내부 또는 외부 명령, 실행할 수 있는 프로그램, 또는\n배치 파일이 아닙니다.",
    "'NAME' 不是内部或外部命令，也不是可运行的程序\n或批处理文件。",
    "“NAME” 不是内部或外部命令，也不是可运行的程序",
    "'NAME' 不是內部或外部命令、可執行的程式或批次檔。",
]
OF_POWERSHELL = [
    'Die Benennung "NAME" wurde nicht als Name eines Cmdlet, einer Funktion erkannt.',
    "NAME : Le terme «NAME» n'est pas reconnu comme nom d'applet de commande, fonction",
    "NAME : Le terme « NAME » n'est pas reconnu comme nom d'applet de commande, fonction",
    "NAME : El término 'NAME' no se reconoce como nombre de un cmdlet, función",
    "NAME : Termine 'NAME' non riconosciuto come nome di cmdlet, funzione",
    "NAME : O termo 'NAME' não é reconhecido como nome de cmdlet, função",
    'NAME : Имя "NAME" не распознано как имя командлета, функции, файла сценария',
    "NAME : Termin „NAME” nie został rozpoznany jako nazwa polecenia cmdlet, funkcji",
    "NAME : Výraz NAME nebyl rozpoznán jako název rutiny, funkce, souboru skriptu",
    "NAME : 'NAME' terimi bir cmdlet, işlev, betik dosyası adı olarak tanınmıyor.",
    "NAME : De term NAME wordt niet herkend als de naam van een cmdlet, functie",
    "NAME : Termen NAME känns inte igen som namnet på en cmdlet",
    "NAME : 用語 'NAME' は、コマンドレット、関数、スクリプト ファイル",
    "NAME : 'NAME' 용어가 cmdlet, 함수, 스크립트 파일",
    "NAME : 无法将“NAME”项识别为 cmdlet、函数、脚本文件或可运行程序的名称。",
    "NAME : 無法辨識 'NAME' 詞彙是否為 Cmdlet、函數、指令檔",
]


@pytest.mark.parametrize("text", [*OF_CMD, *OF_POWERSHELL])
@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("nvcc", "no-cuda-toolkit"),
        ("nvidia-smi", "no-nvidia-smi"),
        ("docker", "docker-missing"),
        ("ollama", "program-missing"),
    ],
)
def test_a_program_that_windows_does_not_find_is_named_in_any_language(text, program, error):
    found = explain_text(f"C:\\Users\\u>{program}\n{text.replace('NAME', program)}\n")
    assert [one.error.name for one in found.found] == [error]


def test_a_name_with_blanks_in_quotes_is_whole():
    text = 'Der Befehl "C:\\Program Files\\a.exe" ist entweder falsch geschrieben oder'
    assert r"'C:\Program Files\a.exe' is not recognized" in read_in_english([text])[0]
    assert explain_text(text).has_failed
