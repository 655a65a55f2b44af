"""Tests the command line itself: help fits the terminal, examples are valid, and options become a job."""

import ast
import dataclasses
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from pairmill import __main__ as entry_point
from pairmill.jobs.cli import main, status
from pairmill.jobs.cli.command_line import COMMANDS, parse_command
from pairmill.jobs.cluster.job_bundle import bundled
from pairmill.jobs.job_fields import job_fields
from pairmill.pipeline.select.expressions import Expression
from pairmill.schemas.errors import JobError
from pairmill.schemas.version import VERSION

ROOT = Path(__file__).parents[2]
GROUP = get_command(main.app)
assert isinstance(GROUP, TyperGroup)


def names(group: TyperGroup = GROUP, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words after `pairmill` of every command and every group."""
    yield before
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from names(command, (*before, name))
        else:
            yield (*before, name)


def run(*arguments: str, columns: int = 60) -> tuple[int, str]:
    """Exit status and output of a command. Does not use CliRunner, in which every terminal has 80 columns."""
    output, environment = io.StringIO(), {"COLUMNS": str(columns), "RAY_API_SERVER_ADDRESS": "http://head:8265"}
    with patch.dict(os.environ, environment), redirect_stdout(output), redirect_stderr(output):
        try:
            main.app(arguments, prog_name="pairmill")
        except SystemExit as ended:
            return int(ended.code or 0), output.getvalue()
    return 0, output.getvalue()


def examples(command: tuple[str, ...]) -> list[list[str]]:
    """The words after `pairmill` of each example in a command's help."""
    _, text = run(*command, "--help")
    _, found, lines = text.partition("\nExamples:\n")
    assert found, f"{command} has no examples"
    return [shlex.split(line)[1:] for line in re.sub(r"\\\n\s*", "", lines).splitlines()]


@pytest.mark.parametrize("command", list(names()), ids=" ".join)
@pytest.mark.parametrize("columns", [60, 100])
def test_help_fits_the_terminal_and_shows_which_values_options_take(command: tuple[str, ...], columns: int) -> None:
    status, text = run(*command, "-h", columns=columns)
    assert (status, text) == run(*command, "--help", columns=columns)
    assert status == 0
    assert max(map(len, text.splitlines())) <= columns
    assert "..." not in text.partition("\nCommands:\n")[2].partition("\nExamples:")[0]  # no summary is truncated
    assert not re.search(r"<\w+|\b(TEXT|INTEGER|FLOAT|PATHLIB)\b", text)


@pytest.mark.parametrize("command", list(names()), ids=" ".join)
def test_help_ends_with_two_examples_that_parse(command: tuple[str, ...]) -> None:
    found = examples(command)
    assert len(found) == 2
    for words in found:
        assert tuple(words[: len(command)]) == command
        group, *rest = GROUP, *words
        while isinstance(group, TyperGroup):
            group, rest = group.commands[rest[0]], rest[1:]
        address = ["--address", "http://head:8265"] if "jobs" in words and "--address" not in words else []
        group.make_context("example", [*rest, *address])
        if words[0] in COMMANDS and "--compare" not in words:
            parse_command(GROUP, words)  # this checks the job too
        if words[0] == "submit":
            parse_command(GROUP, words[next(i for i, word in enumerate(words) if word in COMMANDS) :])
        for step in (word for word in words if word.startswith("where: ")):
            assert Expression(step.removeprefix("where: ")).columns


@pytest.mark.parametrize(("name", "options"), list(COMMANDS.items()))
def test_every_parameter_of_a_command_is_a_field_of_its_options(name: str, options: type) -> None:
    parameters = {parameter.name for parameter in GROUP.commands[name].params}
    assert parameters - {field.name for field in dataclasses.fields(options)} <= {
        "as_json",
        "explain",
        "compare",
        "no_report",
    }


def test_commands_in_messages_name_the_real_paths_and_quote_them() -> None:
    """Such commands are made by `pairmill_command`, so that they can be pasted into a shell."""
    commands = "|".join(" ".join(name) for name in names() if name and name[0] not in ("jobs", "demo"))
    by_hand = re.compile(rf"pairmill ({commands})(?: [\w-]+)*? (?:\{{|OUT\b|DATASET\b|MIX\b)")
    paths = [path for folder in ("jobs", "pipeline", "schemas") for path in (ROOT / folder).rglob("*")]
    for path in (path for path in paths if path.suffix in (".py", ".j2", ".js")):
        code = re.sub(r'"""[\s\S]*?"""', "", path.read_text())
        assert not by_hand.search(code), path


def test_ctrl_c_during_startup_is_reported() -> None:
    """Heavy imports are slow, so they must be inside `with errors()`, which handles the interruption."""
    for path in Path(status.__file__).parent.glob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            body = [ast.unparse(each) for each in function.body] if isinstance(function, ast.FunctionDef) else []
            begins = next((number for number, text in enumerate(body) if text.startswith("with errors()")), 0)
            early = [text for text in body[:begins] if re.match("from pairmill.(jobs|pipeline)[.](?!common[.])", text)]
            assert early == [], f"{path}, {body[begins]}"


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("moment", ["loading", "parsing"])
def test_ctrl_c_before_a_command_begins_leaves_no_traceback(
    moment: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if moment == "loading":
        monkeypatch.delitem(sys.modules, main.__name__)
        monkeypatch.setattr(sys, "meta_path", [SimpleNamespace(find_spec=interrupt)])
    else:
        monkeypatch.setattr(main, "app", interrupt)
    with pytest.raises(SystemExit) as stop:
        entry_point.main()
    assert (stop.value.code, capsys.readouterr().err) == (130, "Stopped.\n")


def test_the_version_is_printed() -> None:
    assert run("--version") == (0, f"pairmill {VERSION}\n")


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_submit_shows_the_help_of_the_command_that_follows_it(flag: str) -> None:
    assert run("submit", "build", flag) == run("build", "--help")


def test_submit_checks_the_command_before_it_looks_for_a_cluster() -> None:
    status, text = run("submit", "build", "s3://a/in.parquet", "s3://a/out", "--set", "fetch.timout_s=3")
    assert status == 1
    assert "did you mean 'timeout_s'?" in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--add-model tiny --limit 3 --caption-from-name", "leave out --limit, --caption-from-name"),
        ("--add-model tiny --explain", "--explain does not work with --add-model"),
        ("in --alias small", "--alias is for --add-model"),
    ],
)
def test_a_flag_that_would_have_no_effect_is_refused(flags: str, message: str) -> None:
    status, text = run("embed", "out", *flags.split())
    assert (status, len(text.splitlines())) == (1, 1)
    assert message in text


def test_every_field_of_a_job_is_listed_with_type_default_and_meaning() -> None:
    status, text = run("fields")
    assert status == 0
    assert max(map(len, text.splitlines())) <= 60
    heads = [line.split("  ")[0] for line in text.splitlines() if not line.startswith(" ")]
    assert heads == [field.name for field in job_fields()]
    assert "fetch.timeout_s  float > 0, <= 3600, default 30.0\n" in text
    assert run("fields", "fetch.")[1] in text
    assert all(line.startswith(("steps[", " ")) for line in run("fields", "steps[", "--of", "select")[1].splitlines())


def test_fields_can_be_printed_as_json() -> None:
    _, text = run("fields", "images.quality", "--json")
    (field,) = json.loads(text)
    assert (field["name"], field["type"], field["default"]) == ("images.quality", "int 1..100", "95")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fecth"], "no field of build begins with 'fecth'; did you mean 'fetch'?"),
        (["steps", "--of", "build"], "`pairmill fields --of build` lists all"),
        (["--of", "train"], "build, embed, select, mix, score or export"),
    ],
)
def test_an_unknown_field_is_reported_in_one_clear_line(arguments: list[str], message: str) -> None:
    status, text = run("fields", *arguments)
    assert (status, len(text.splitlines())) == (1, 1)
    assert message in text


PRINTING = [("fields fetch", ""), ("--version", "1"), ("build --help", ""), ("OWN", ""), ("OWN", "1")]
"""(arguments, PYTHONUNBUFFERED). `OWN` prints inside `errors()`, as `build` does."""
_MAIN = """
import sys
from pairmill.jobs.cli import main, terminal
@main.app.command("OWN")
def own():
    with terminal.errors():
        print("x" * 100_000, flush=True)
main.main()
"""


@pytest.mark.parametrize(("arguments", "unbuffered"), PRINTING)
def test_a_full_disk_under_stdout_is_reported_in_one_clear_line(arguments: str, unbuffered: str) -> None:
    """Linux's /dev/full refuses every write. Python must not try to flush the remaining output when it exits."""
    with open("/dev/full", "w") as full:
        ended = _main(arguments, full.fileno(), unbuffered)
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert re.fullmatch("pairmill: .*No space left on device\n", ended.stderr)


@pytest.mark.parametrize(("arguments", "unbuffered"), PRINTING)
def test_a_closed_pipe_is_quiet(arguments: str, unbuffered: str) -> None:
    reader, pipe = os.pipe()
    os.close(reader)
    try:
        ended = _main(arguments, pipe, unbuffered)
    finally:
        os.close(pipe)
    assert (ended.returncode, ended.stderr) == (1, "")


def _main(arguments: str, stdout: int, unbuffered: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-c", _MAIN, *arguments.split()]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment, check=False)


def test_a_submitted_job_must_be_able_to_reach_the_files_that_its_steps_read() -> None:
    steps = ["balance: {by: concept, entries: words.txt, curve: 3}", "balance: {by: host, curve: 3}", "uids: f.parquet"]
    command = parse_command(GROUP, ["select", "out", "name", *(word for step in steps for word in ("--step", step))])
    assert command.uris == ["out", "words.txt", "f.parquet"]


def test_weights_below_the_home_folder_of_this_machine_cannot_be_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "w.pt").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    build = ["build", "s3://b/in.parquet", "s3://b/out", "--model", "ViT-B-32:~/w.pt"]
    added = ["embed", "s3://b/out", "--add-model", "ViT-B-32:~/w.pt"]
    score = ["score", "s3://b/out", "a", "--score", "head: ~/w.pt"]
    caption = ["score", "s3://b/out", "a", "--score", "caption_model: {model: coca_ViT-B-32, pretrained: ~/w.pt}"]
    for arguments in (build, added, score, caption):
        command = parse_command(GROUP, arguments)
        assert command.uris[-1] == "~/w.pt"
        with (
            pytest.raises(JobError, match=r"~/w\.pt: is relative to the home folder"),
            bundled(command),
        ):
            pass


def test_a_model_that_cannot_be_added_is_refused_before_it_is_submitted() -> None:
    with pytest.raises(JobError, match="dtype"):
        parse_command(GROUP, ["embed", "s3://b/out", "--add-model", "tiny", "--dtype", "float8"])


def test_a_folder_named_like_a_model_or_a_tag_of_weights_is_not_taken_for_it_by_submit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ViT-B-32", "openai", "coca_ViT-B-32"):
        (tmp_path / name).mkdir()
    for arguments in (
        ["build", "s3://b/in.parquet", "s3://b/out", "--model", "ViT-B-32:openai"],
        ["embed", "s3://b/out", "--add-model", "ViT-B-32:openai"],
        ["score", "s3://b/out", "a", "--score", "caption_model: coca_ViT-B-32"],
    ):
        assert all(uri.startswith("s3://") for uri in parse_command(GROUP, arguments).uris)


def test_the_only_path_after_the_dataset_is_the_output_of_an_export() -> None:
    """A mixture has no subsets."""
    assert parse_command(GROUP, ["export", "mix", "tars"]).uris == ["mix", "tars"]
    assert parse_command(GROUP, ["export", "out", "clean", "tars"]).uris == ["out", "tars"]
