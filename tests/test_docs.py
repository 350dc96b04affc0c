"""Every command, link, path and snippet of the documents: commands parse, their keys load, and those that are cheap are run."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from syn4seg import cli
from syn4seg.config.loading import load
from syn4seg.config.tree import annotated, keys
from syn4seg.options import read_config

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted((ROOT / "docs").glob("*.md"))
HEADED = [
    *(ROOT / "configs").rglob("*.yaml"),
    *(ROOT / "examples").iterdir(),
    ROOT / "docs" / "kuberay.yaml",
    ROOT / "cluster.yaml",
]
APP = get_command(cli.app)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PLACES = ("RUN", "ROOT", "DIR", "PHOTOS", "IMAGES", "FILE", "BUCKET")
"""Words of the documents that stand for a place of the reader's."""


def named(pages) -> list:
    return [pytest.param(page, id=page.relative_to(ROOT).as_posix()) for page in pages]


# ------------------------------------------------------------------------------------------------------- the commands
def shell_lines(text: str) -> list[str]:
    """Lines of the blocks without a language (or a shell's), continued lines joined."""
    blocks = [body for language, body in FENCE.findall(text) if language in ("", "sh", "bash", "console")]
    return [line for body in blocks for line in body.replace("\\\n", " ").splitlines()]


def header_lines(path: Path) -> list[str]:
    """What a file of settings or an example says of commands: comments, an entry point; remarks behind three spaces are cut off."""
    found = [re.sub(r"^#?\s*(command\s+)?", "", line).split("   ")[0] for line in path.read_text().splitlines()]
    return [line for line in found if line.startswith(("syn4seg ", "for ", "python ")) and "#" not in line]


def commands(lines: list[str], name: str) -> list[list[str]]:
    """The arguments of every call of a program in shell lines, whatever calls it (`ray job submit ... --`, a loop)."""
    found = []
    for line in lines:
        shell = shlex.shlex(line, posix=True, punctuation_chars=";&|()<>")
        shell.whitespace_split = True
        try:
            words = list(shell)
        except ValueError:  # not a line of shell
            continue
        for start in (i for i, word in enumerate(words) if word in (name, f".venv/bin/{name}")):
            if start and words[start - 1] not in ("--", "do", ";", "&&", "(", "|"):
                continue
            end = next((i for i in range(start, len(words)) if set(words[i]) <= set(";&|()<>")), len(words))
            found.append(words[start + 1 : end])
    return found


def spans(text: str, name: str = "syn4seg") -> list[str]:
    """What follows the name of a program in `code` of running text."""
    return re.findall(rf"`{name} ([^`]+)`", FENCE.sub("", text).replace("\n", " "))


EVERY = [
    *((page, words) for page in PAGES for words in commands(shell_lines(page.read_text()), "syn4seg")),
    *((path, words) for path in HEADED if path.is_file() for words in commands(header_lines(path), "syn4seg")),
    *(
        (page, shlex.split(span))
        for page in [*PAGES, *HEADED]
        if page.is_file()
        for span in spans(page.read_text())
        if " " in span and not any(sign in span for sign in ("...", "|", "["))
    ),
]


def command_at(words: list[str]):
    """The command that words call, and the words behind its name."""
    found, rest = APP, list(words)
    while hasattr(found, "commands"):
        assert rest and rest[0] in found.commands, f"there is no verb {' '.join(rest[:1])!r}"
        found = found.commands[rest.pop(0)]
    return found, rest


@pytest.fixture
def places(tmp_path):
    """Puts places of this machine where documents name some of the reader's: `runs/...` and RUN are a run that has begun."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(annotated(load(None)))

    def put(word: str) -> str:
        word = re.sub(rf"\b({'|'.join(PLACES[1:])})\b", str(tmp_path), word).replace("$f", "0")
        return str(run) if re.fullmatch(r"RUN|runs/[\w/-]+", word) else word

    return put


def test_the_documents_have_commands():
    assert len(EVERY) > 40
    verbs = {words[0] for _, words in EVERY}
    assert {"run", "plan", "audit", "sweep", "cache", "prepare", "verify", "evaluate", "config"} <= verbs


def check(words: list[str], put) -> None:
    """Parses a command and loads its settings; runs nothing."""
    found, rest = command_at(words)
    given = found.make_context("syn4seg", [put(word) for word in rest]).params
    if "settings" in given:
        read_config([word for word in given["settings"] or [] if not word.startswith("study.")], given.get("out"))
    if "study" in given:
        assert (ROOT / "configs" / "studies" / f"{given['study']}.yaml").is_file(), f"there is no study {given['study']}"


@pytest.mark.parametrize(("page", "words"), [pytest.param(p, w, id=f"{p.name}: {' '.join(w)}"[:90]) for p, w in EVERY])
def test_every_command_parses_and_its_settings_load(page, words, places, monkeypatch):
    monkeypatch.chdir(ROOT)
    check(words, places)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("rum embedded", "there is no verb 'rum'"),
        ("cache la", "there is no verb 'la'"),
        ("run --oot x", "--oot"),
        ("run labeling.bta=1", "did you mean labeling.beta"),
        ("run protocol=dima", "protocol"),
        ("verify", "RUN"),
        ("plan --measure x", "measure"),
        ("sweep embedded --study lables", "there is no study lables"),
    ],
)
def test_what_does_not_exist_would_be_found(line, said, places):
    with pytest.raises(Exception) as caught:  # the parser's own classes are private
        check(line.split(), places)
    assert said in getattr(caught.value, "format_message", lambda: str(caught.value))()


@pytest.mark.parametrize("page", named(PAGES))
def test_text_names_no_verb_and_no_option_that_does_not_exist(page):
    for span in spans(page.read_text()):
        words = span.replace("\\|", " ").split()
        if not words[0].isupper() and re.fullmatch(r"[a-z]+", words[0]):
            assert words[0] in APP.commands, f"`syn4seg {span}`"
            verb = APP.commands[words[0]]
            of_verb = [verb, *getattr(verb, "commands", {}).values()]
            known = {option for each in of_verb for p in each.params for option in p.opts} | {"--help"}
            assert set(re.findall(r"--[a-z][a-z-]*", span)) <= known, f"`syn4seg {span}`"


def test_the_table_of_verbs_names_every_verb():
    table = (ROOT / "README.md").read_text().partition("## Verbs")[2].partition("\n## ")[0]
    cells = " ".join(line.split(" | ")[0] for line in table.splitlines() if line.startswith("| `"))
    told = {word for span in re.findall(r"`([^`]+)`", cells) for word in span.removeprefix("syn4seg ").split()[:1]}
    assert set(APP.commands) <= told, f"not in the README's table of verbs: {sorted(set(APP.commands) - told)}"


def test_scripts_are_there_with_the_options_that_documents_give_them():
    found = [(page, words) for page in PAGES for words in commands(shell_lines(page.read_text()), "python")]
    found += [(page, shlex.split(span)) for page in PAGES for span in spans(page.read_text(), "python")]
    found += [(path, words) for path in HEADED if path.is_file() for words in commands(header_lines(path), "python")]
    assert len(found) > 5
    for page, (script, *words) in ((page, words) for page, words in found if words[0] not in ("-m", "-c")):
        source = (ROOT / script).read_text()
        assert all(f'"{word}"' in source for word in words if word.startswith("--")), (page.name, script, words)


def test_make_has_every_target_that_documents_name():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    texts = [page.read_text() for page in PAGES]
    told = {words[0] for text in texts for words in commands(shell_lines(text), "make")}
    told |= {span.split()[0] for text in texts for span in spans(text, "make")}
    assert {"run", "test"} <= told <= targets


def test_ray_knows_every_option_that_the_guide_gives_it():
    from ray.scripts.scripts import cli as ray_cli

    found = [words for page in PAGES for words in commands(shell_lines(page.read_text()), "ray")]
    assert {words[0] for words in found} >= {"start", "up", "down", "job"}
    for words in found:
        command, rest = ray_cli, list(words)
        while hasattr(command, "commands"):
            command = command.commands[rest.pop(0)]
        known = {option for p in command.params for option in (*p.opts, *p.secondary_opts)}
        rest = rest[: rest.index("--")] if "--" in rest else rest
        assert {word.partition("=")[0] for word in rest if word.startswith("--")} <= known, words


# -------------------------------------------------------------------------------------------------------- really run
@pytest.fixture
def syn4seg(syn4seg, monkeypatch, tmp_path):
    """The command line in an empty folder: exit code and all that it said."""
    monkeypatch.chdir(tmp_path)

    def call(*words) -> tuple[int, str]:
        code, said, complaint = syn4seg(*words)
        return code, said + complaint

    return call


def test_the_first_two_commands_run_on_a_machine_with_make(small, tmp_path):
    first = FENCE.search((ROOT / "README.md").read_text()).group(2)
    assert [words[:2] for words in map(str.split, first.splitlines())] == [["make", "run"], ["make", "test"]]
    bin_ = Path(sys.executable).parent
    if not (bin_ / "syn4seg").is_file() or shutil.which("make") is None:
        pytest.skip("no make, or this project is not installed beside this Python")
    ones = ("synthesis.images_per_class=1", "prompts.bank_size=1", "novel.steps=1", "joint.steps=1")
    tiny = [*small, *ones, "--out", str(tmp_path / "run")]
    asked = {"run": " ".join(tiny), "test": "-q -p no:cacheprovider tests/data/test_canvas.py"}
    for target, arguments in asked.items():  # the set-up is .ci/run's to test
        make = ["make", target, f"BIN={bin_}", "-o", f"{bin_}/.installed", f"ARGS={arguments}"]
        clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
        done = subprocess.run(make, cwd=ROOT, env=clean, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "run" / "results.json").read_text())["funnel"]["planned"] == 8


BACKEND = """
import zipfile

def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    files = {
        "stub-0.dist-info/METADATA": "Metadata-Version: 2.1\\nName: stub\\nVersion: 0\\nProvides-Extra: dev\\n",
        "stub-0.dist-info/WHEEL": "Wheel-Version: 1.0\\nGenerator: stub\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
        "stub-0.dist-info/RECORD": "",
    }
    with zipfile.ZipFile(f"{wheel_directory}/stub-0-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
    return "stub-0-py3-none-any.whl"
"""
"""Builds a project without a line in it, so that an installation needs neither network nor time."""


def test_make_install_heals_an_environment_without_pip(tmp_path):
    if shutil.which("make") is None or subprocess.run([sys.executable, "-c", "import ensurepip"], check=False).returncode:
        pytest.skip("no make, or this Python makes no environments")
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "stub_backend.py").write_text(BACKEND)
    (tmp_path / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "stub_backend"\nbackend-path = ["."]\n'
        '[project]\nname = "stub"\nversion = "0"\noptional-dependencies.dev = []\n'
    )
    base = getattr(sys, "_base_executable", sys.executable)
    subprocess.run([base, "-m", "venv", "--without-pip", str(tmp_path / ".venv")], check=True, timeout=120)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "PYTHON", "PIP"))} | {"PIP_NO_INDEX": "1"}
    make = ["make", "install", f"PYTHON={base}"]
    done = subprocess.run(make, cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / ".venv/bin/.installed").is_file()
    found = subprocess.run(
        [tmp_path / ".venv/bin/python", "-m", "pip", "show", "stub"], env=clean, capture_output=True, check=False
    )
    assert found.returncode == 0
    again = subprocess.run(make, cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=60, check=False)
    assert again.returncode == 0 and "pip install" not in again.stdout


@pytest.mark.parametrize(
    "words",
    [
        "--help",
        "config",
        "config embedded labeling.beta=0.3",
        "plan embedded",
        "plan embedded --json",
        "plan pascal5i data.root=ROOT",
        "cache ls",
        "cache prune --max-gib 5",
    ],
)
def test_what_needs_no_run_is_run(syn4seg, words):
    code, said = syn4seg(*words.split())
    assert code == 0 and said.strip() and "Traceback" not in said


@pytest.mark.parametrize("words", ["verify RUN", "verify RUN --quick", "audit RUN", "watch RUN --once", "report RUN"])
def test_what_looks_at_a_run_is_run(syn4seg, finished, tmp_path, words):
    shutil.copytree(finished[0], tmp_path / "run")
    code, said = syn4seg(*(str(tmp_path / "run") if word == "RUN" else word for word in words.split()))
    assert code == 0 and said.strip() and "Traceback" not in said


def test_the_doctor_is_run(syn4seg):
    assert syn4seg("doctor")[0] == 0


# ---------------------------------------------------------------------------------------------------------- snippets
PYTHON = [
    pytest.param(body, id=f"{page.name}-{i}")
    for page in PAGES
    if page.name != "extending.md"  # parts of files, which tests/test_extending.py runs
    for i, (language, body) in enumerate(FENCE.findall(page.read_text()))
    if language == "python"
]


@pytest.mark.parametrize("body", PYTHON)
def test_snippets_are_python_and_those_that_need_no_file_run(body, tmp_path, monkeypatch):
    code = compile(body, "snippet", "exec")
    if len(body.splitlines()) <= 25 and not re.search(r"""["'][^"'\n]*/""", body):
        monkeypatch.chdir(tmp_path)
        exec(code, {})


# ---------------------------------------------------------------------------------------------------- links and paths
def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", head).lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", named(PAGES))
def test_every_local_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path) if path else page
        assert there.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(there.read_text()), f"{page.name}: {target}"


PATH = re.compile(r"(?<![\w/.*-])((?:benchmarks|docs|tests|examples|configs|syn4seg|actors|tune|tools)/[\w./*-]*\w)(?![\w*])")


@pytest.mark.parametrize("page", named(PAGES))
def test_every_path_of_this_project_that_a_document_names_is_there(page):
    for path in PATH.findall(page.read_text()):
        assert list(ROOT.glob(path)), f"{page.name}: {path}"


def promised_tests(text: str) -> list[str]:
    """Return what the last column of the tables of promises names as a test: files, `FILE::FUNCTION`, and `make` targets."""
    tables = re.findall(r"^\| promise \| how \| test \|\n\|[ -|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    cells = [row.rstrip(" |").rsplit(" | ", 1)[1] for table in tables for row in table.splitlines()]
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def missing_test(name: str) -> bool:
    """Whether a test that is named is not there: no such file, function, script or target."""
    if target := re.fullmatch(r"make (\w+)", name):
        return not re.search(rf"^{target[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    if name.startswith("--"):  # an option of the script that the cell names before it
        return not any(name in path.read_text() for path in (ROOT / "tests").glob("*.py") if path != Path(__file__))
    path, _, function = name.removeprefix("python ").split(" ")[0].partition("::")
    file = ROOT / path
    if not path.startswith("tests/") or not file.is_file():
        return True
    return function not in names_of(file) if function else not any(n.startswith(("test_", "main")) for n in names_of(file))


def test_every_test_that_a_promise_names_is_there():
    named_tests = promised_tests((ROOT / "README.md").read_text())
    assert len(named_tests) >= 16 and sum("::" in name for name in named_tests) >= 6
    assert [name for name in named_tests if missing_test(name)] == []


def test_a_test_that_is_not_there_is_seen():
    names = [
        "tests/test_none.py",
        "tests/test_trust.py::test_none",
        "make nothing",
        "docs/log.md",
        "python tests/none.py --x",
        "--no-such",
    ]
    assert all(map(missing_test, names))


def printed_texts() -> str:
    """Return every text in the code, a line each, with `\x00` where a value is put in: what can be printed."""
    lines = []
    for path in (p for room in ("syn4seg", "actors", "tune") for p in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "\x00" for part in node.values)
                lines.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                lines.append(node.value)
    return "\n".join(line.replace("\n", " ") for line in lines)


def unprinted_messages(page: str) -> list[str]:
    """Return the messages in the headings of a page that no text of the code has; `...` stands for anything in one text."""
    texts, messages = printed_texts(), re.findall(r"^### `(.+)`$", page, re.MULTILINE)
    patterns = {m: ".*?".join(re.escape(part) for part in re.split(r"\s*\.\.\.\s*", m) if part) for m in messages}
    return [message for message, pattern in patterns.items() if not re.search(pattern, texts)]


def test_every_message_of_the_troubleshooting_page_can_be_printed():
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    assert len(re.findall(r"^### `.+`$", page, re.MULTILINE)) >= 12
    assert unprinted_messages(page) == []
    assert "](docs/troubleshooting.md)" in (ROOT / "README.md").read_text()


def test_a_message_that_is_never_printed_is_seen():
    page = "### `...: unknown key`\n### `unknown ... lock`\n### `placement needs ... the cluster lacks`\n"
    assert unprinted_messages(page) == ["unknown ... lock", "placement needs ... the cluster lacks"]


# -------------------------------------------------------------------------------------------------------- the formalities
def test_the_citation_is_a_citation_file():
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert found["cff-version"] == "1.2.0" and found["type"] == "software" and found["message"] and found["title"]
    assert (found["license"], found["version"]) == (project["license"], project["version"])
    people = [*found["authors"], *(person for source in found["references"] for person in source["authors"])]
    assert people and all({"name", "family-names", "given-names"} & set(person) for person in people)
    assert all({"type", "title", "authors"} <= set(source) for source in found["references"])


def test_the_licence_is_apache_2():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text


def test_contributing_fits_on_a_screen_and_the_changelog_has_an_entry_on_top():
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) <= 40
    top = re.search(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE).group(1)
    assert re.search(r"unreleased|\d{4}-\d{2}-\d{2}", top, re.IGNORECASE)


def test_the_documents_that_people_look_for_are_there():
    for name in ("method", "benchmarks", "cluster", "config", "design", "log"):
        assert (ROOT / "docs" / f"{name}.md").read_text().startswith("# ")


HEADING = re.compile(r"^#{2,3} (\d+(?:\.\d+)?) ", re.MULTILINE)
CITATION = re.compile(r"\bmethod\.md (\d+(?:\.\d+)?)")
OLD_CITATION = re.compile(
    r"\bprotocols (?:section )?\d|(?<!full )\bmethod,? \d|\b(?:method|design)\.md section|\b(?:protocols|ray)\.md\b|\bdesign\.md \d"
)


def citing_files() -> list[Path]:
    """The code, documents and tests of this project (but this file, which spells the forms out)."""
    rooms = ("syn4seg", "actors", "tune", "tools", "docs", "tests", "examples", "benchmarks")
    return [path for room in rooms for kind in ("*.py", "*.md") for path in (ROOT / room).rglob(kind) if path != Path(__file__)]


def unresolved_citations(text: str, headings: set[str]) -> list[str]:
    """Return the citations of a text that name no heading of docs/method.md or have another form than `method.md N`."""
    return [number for number in CITATION.findall(text) if number not in headings] + OLD_CITATION.findall(text)


def test_every_citation_names_a_heading_of_the_method():
    headings = set(HEADING.findall((ROOT / "docs" / "method.md").read_text()))
    assert headings >= {"1", "3.2", "5.4", "7.9"}
    wrong = {str(path.relative_to(ROOT)): unresolved_citations(path.read_text(), headings) for path in citing_files()}
    assert not {path: found for path, found in wrong.items() if found}


@pytest.mark.parametrize("text", ["method.md 8", "method.md 7.10", "(method 5)", "protocols 2.8", "method.md section 3", "ray.md"])
def test_a_citation_that_leads_nowhere_is_seen(text):
    assert unresolved_citations(text, {"1", "7.1"})


def names_of(path: Path) -> set[str]:
    """Return what a module defines at its top level, and `Class.name` of what its classes define."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{child.name}" for child in node.body if isinstance(child, ast.FunctionDef)}
    return names


def exists(dotted: str) -> bool:
    """Whether a name is a package, a module, or something that a module defines; rooms of syn4seg may leave out `syn4seg.`."""
    words = dotted.removeprefix("syn4seg.").split(".")
    top = ROOT if words[0] in ("actors", "tune", "tools") else ROOT / "syn4seg"
    for i in range(len(words), 0, -1):
        base = top.joinpath(*words[:i])
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.is_file():
                return i == len(words) or ".".join(words[i:]) in names_of(path)
    return False


def test_every_function_of_the_method_is_where_the_tables_say():
    rows = [line for line in (ROOT / "docs" / "method.md").read_text().splitlines() if line.startswith("| ")]
    cells = [line.rsplit(" | ", 1)[1] for line in rows if not line.startswith(("| what ", "| --- "))]
    assert len(cells) > 50 and all("`" in cell for cell in cells)
    assert not [name for cell in cells for name in re.findall(r"`([^`]+)`", cell) if not exists(name)]
    assert not exists("labeling.filtering.no_such_function") and not exists("labeling.enhance.Enhancer")


KEYS = set(keys())
ROOMS = {path.parent.name for path in (ROOT / "syn4seg").glob("*/__init__.py")} | {"syn4seg", "actors", "tune", "tools"}


def unknown_names(text: str) -> list[str]:
    """Return the names `room.module...` in running text that do not exist; keys of the configuration have the same form."""
    names = re.findall(r"`([a-z]\w*(?:\.\w+)+)`", FENCE.sub("", text))
    names = [name for name in names if not name.endswith((".yaml", ".json", ".jsonl", ".parquet", ".html", ".py"))]
    return [name for name in names if name.split(".")[0] in ROOMS and name not in KEYS and not exists(name)]


@pytest.mark.parametrize("page", named(PAGES))
def test_every_dotted_name_of_code_exists(page):
    assert unknown_names(page.read_text()) == []


def test_a_dotted_name_that_does_not_exist_is_seen():
    text = "`labeling.filtering.no_such`, `actors.training.fit`, `tune.nothing`, `syn4seg.report.reading`, `labeling.beta`"
    assert unknown_names(text) == ["labeling.filtering.no_such", "tune.nothing"]


UNWRAPPED = ("config.md", "log.md", "CHANGELOG.md", "CONTRIBUTING.md")
"""Documents that are generated, or lists of entries."""


def too_wide(text: str) -> list[str]:
    """Return the lines of prose beyond 120 characters; tables, code, headings, pictures and single long words are no prose."""
    lines = FENCE.sub("", text).splitlines()
    return [line for line in lines if len(line) > 120 and " " in line[4:] and not line.startswith(("| ", "#", "!["))]


@pytest.mark.parametrize("page", named(page for page in PAGES if page.name not in UNWRAPPED))
def test_prose_is_wrapped_at_one_width(page):
    assert too_wide(page.read_text().partition("## Where ours stays beside a library")[0]) == []


def test_the_map_names_every_room_and_nothing_else():
    section = (ROOT / "docs" / "architecture.md").read_text().partition("## The rooms")[2].partition("\n## ")[0]
    rooms = re.findall(r"^\| `([\w.]+)` \|", section, re.MULTILINE)
    packages = {f"syn4seg.{path.parent.name}" for path in (ROOT / "syn4seg").glob("*/__init__.py")} | {"actors", "tune", "tools"}
    assert sorted(rooms) == sorted(packages)


def test_every_step_of_the_walk_is_in_the_file_that_the_table_names():
    section = (ROOT / "docs" / "architecture.md").read_text().partition("## The walk")[2].partition("\n## ")[0]
    steps = re.findall(r"`([\w/]+\.py)`, `([\w.]+)`", section)
    assert len(steps) == 13 and all(name in names_of(ROOT / path) for path, name in steps)


def test_the_words_are_in_order_and_each_has_one_line():
    section = (ROOT / "docs" / "architecture.md").read_text().partition("## Words")[2]
    words = re.findall(r"^\| ([\w ]+) \| ", section, re.MULTILINE)[1:]
    assert len(words) > 30 and words == sorted(set(words))
