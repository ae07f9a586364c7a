"""The argument parser: published defaults, mistakes in one line, and a quick start."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ldm_inverse.runs.command_line import parse_args
from util.cli import exit_status
from util.errors import Terminated, UserError
from util.processes import heed_interruption

ROOT = Path(__file__).resolve().parents[2]


def test_defaults_are_the_published_ones():
    args = parse_args([])
    assert str(args.ldm_config) == "configs/latent-diffusion/ffhq-ldm-vq-4.yaml"
    assert str(args.diffusion_config) == "models/ldm/model.ckpt"
    assert str(args.task_config) == "configs/tasks/gaussian_deblur_config.yaml"
    assert args.save_dir == Path("./results")
    assert (args.n_samples_per_class, args.gpu, args.model_config, args.seed) == (1, 0, None, 0)


def test_steps_eta_and_scale_are_none_until_given_so_that_a_preset_may_set_them():
    args = parse_args([])
    assert (args.ddim_steps, args.ddim_eta, args.ddim_scale) == (None, None, None)
    args = parse_args(["--ddim_steps", "20", "--ddim_eta=0.5", "--ddim_scale", "3"])
    assert (args.ddim_steps, args.ddim_eta, args.ddim_scale) == (20, 0.5, 3.0)


def test_under_torchrun_each_process_takes_its_own_card(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert parse_args([]).gpu == 3
    assert parse_args(["--gpu", "1"]).gpu == 1


def test_words_may_stand_between_arguments():
    args = parse_args(["a.b=1", "--seed", "3", "c=x=y", "--quiet", "d=-1"])
    assert args.settings == [("a.b", "1"), ("c", "x=y"), ("d", "-1")]
    assert (args.seed, args.quiet) == (3, True)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--ddim_step", "5"], "did you mean '--ddim_steps'"),
        (["--presett=demo"], "did you mean '--preset'"),
        (["--seed", "x"], "--seed: expected a whole number, 0 or more, got 'x'"),
        (["--seed", "-1"], "--seed"),
        (["--limit", "0"], "--limit: expected a whole number, 1 or more"),
        (["--shard", "0/3"], "--shard: expected I/N, from 1/N to N/N, got '0/3'"),
        (["--shard", "4/3"], "--shard"),
        (["--shard", "1/2/3"], "--shard"),
        (["--shard", "x"], "--shard"),
        (["--checkpoint_minutes", "-1"], "--checkpoint_minutes: expected minutes"),
        (["--checkpoint_minutes", "nan"], "--checkpoint_minutes"),
        (["--threads", "0"], "--threads: expected a whole number from 1 to 1024"),
        (["--n_samples_per_class", "1.5"], "--n_samples_per_class"),
        (["--ddim_steps", "many"], "--ddim_steps"),
        (["--device", "tpu"], "'cuda'"),
        (["--resize", "stretch"], "center_crop"),
        (["--verbose", "--quiet"], "--quiet"),
        (["--data"], "--data"),
        (["faces"], "key=value"),
        (["=3"], "key=value"),
    ],
)
def test_a_mistake_is_told_in_one_line(words, told, capsys):
    def command(args):
        raise AssertionError("must not run")

    assert exit_status(command, words, parse_args) == 2
    out, err = capsys.readouterr()
    assert told in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert out == ""


def test_exit_status_of_the_ways_to_end(capsys):
    def stop(error):
        def command(args):
            raise error

        return command

    assert exit_status(lambda args: 0, [], parse_args) == 0
    assert exit_status(lambda args: 1, [], parse_args) == 1
    assert exit_status(stop(UserError("no such thing")), [], parse_args) == 2
    assert capsys.readouterr().err == "error: no such thing\n"
    for error, status in ((KeyboardInterrupt(), 130), (Terminated(), 143)):
        assert exit_status(stop(error), [], parse_args) == status
        assert capsys.readouterr().err == "interrupted\n"
        assert exit_status(stop(error), [], parse_args, interrupted="interrupted: go on so") == status
        assert capsys.readouterr().err == "interrupted: go on so\n"
    assert exit_status(stop(MemoryError()), [], parse_args) == 2
    assert capsys.readouterr().err.startswith("error: out of memory")
    with pytest.raises(ZeroDivisionError):  # a defect of the program keeps its traceback
        exit_status(stop(ZeroDivisionError()), [], parse_args)


def test_what_torch_says_without_memory_is_one_line(capsys):
    def command(args):
        torch.empty(1 << 50)

    assert exit_status(command, [], parse_args) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_sigterm_ends_the_command_and_is_handled_as_before_afterwards():
    before = signal.getsignal(signal.SIGTERM)
    assert exit_status(lambda args: signal.raise_signal(signal.SIGTERM), [], parse_args) == 143
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_whose_exception_is_dropped_ends_the_command_later():
    class Finalised:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    def command(args):
        Finalised()  # where Python only prints what the handler raises
        heed_interruption()

    assert exit_status(command, [], parse_args) == 143
    heed_interruption()  # all that was received is forgotten after the command


def test_a_signal_whose_exception_becomes_another_ends_the_command_all_the_same():
    def command(args):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise AttributeError("module has no attribute") from None  # as imports of C modules do

    assert exit_status(command, [], parse_args) == 130


def test_debug_shows_the_traceback(capsys):
    def command(args):
        raise UserError("no such thing")

    assert exit_status(command, ["--debug"], parse_args) == 2
    assert "Traceback" in capsys.readouterr().err


def test_help_shows_defaults_and_runnable_examples(capsys):
    assert exit_status(lambda args: 0, ["--help"], parse_args) == 0
    out = capsys.readouterr().out
    for text in ("500", "configs/tasks/gaussian_deblur_config.yaml", "examples:", "--preset demo", "./results"):
        assert text in out
    commands = out.partition("examples:")[2].replace("\\\n", " ").splitlines()
    commands = [line.split() for line in commands if line.strip().startswith("python")]
    assert len(commands) == 4
    for command in commands:
        if "--from" not in command:  # that reads the folder of the example before it
            parse_args(command[2:])


def test_the_parser_needs_nothing_heavy():
    code = "import sys, util.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "omegaconf", "yaml", "PIL", "tqdm"} & set(loaded.stdout.split())


PROGRAM = """
import sys
from util.cli import Parser, exit_status
def parse(words):
    parser = Parser(description="x" * 1000)
    parser.add_argument("lines", type=int)
    return parser.parse_args(words)
def command(args):
    for line in range(args.lines):
        print(line)
sys.exit(exit_status(command, None, parse))
"""


def run_program(words, stdout, unbuffered):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )
    if stdout == subprocess.PIPE:
        process.stdout.close()
    told = process.stderr.read()
    return process.wait(), told


WAYS = [(["1"], ""), (["1"], "1"), (["100000"], ""), (["100000"], "1"), (["--help"], ""), (["--help"], "1")]


@pytest.mark.parametrize(("words", "unbuffered"), WAYS)
def test_a_reader_that_has_enough_ends_a_command_quietly(words, unbuffered):
    assert run_program(words, subprocess.PIPE, unbuffered) == (141, "")


@pytest.mark.parametrize(("words", "unbuffered"), WAYS)
def test_a_full_stdout_is_one_line(words, unbuffered):
    with open("/dev/full", "w") as full:
        assert run_program(words, full, unbuffered) == (2, "error: cannot write: No space left on device\n")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
@pytest.mark.parametrize(("words", "status"), [("1", 0), ("--nothing", 2)])
def test_closed_streams_leave_the_status_as_it_is(closed, words, status):
    command = ["bash", "-c", f'exec "$@" {closed}', "bash", sys.executable, "-c", PROGRAM, words]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == status
    assert "Traceback" not in found.stderr


def test_what_a_terminal_has_no_character_for_is_printed_as_a_question_mark():
    program = PROGRAM.replace("print(line)", "print(line, chr(0xb1))")
    found = subprocess.run(
        [sys.executable, "-c", program, "1"],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout == "0 ?\n"


def test_a_full_stderr_leaves_the_status_as_it_is():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", PROGRAM, "--nothing"]
        assert subprocess.run(command, cwd=ROOT, stderr=full).returncode == 2
