"""The command line: a wrong flag ends with one line, before anything slow; --help has all flags."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dfusion.settings.plain_values import flat
from dfusion.settings.presets import PRESETS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config.sample.num_step", "3"],
            (
                "--config.sample.num_step: there is no such setting; did you mean "
                "--config.sample.num_steps"
            ),
        ),
        (["--config.num_steps=3"], "did you mean --config.sample.num_steps? --help"),
        (["--config.pair", "3"], "did you mean --config.pair.rule, --config.pair.adoption, "),
        (["--config.train.batch_size=-1"], "--config.train.batch_size -1: must be at least 1"),
        (["--config.train.batch_size=all"], "batch_size 'all': must be a whole number or auto"),
        (["--config.mask.merge", "and"], "--config.mask.merge 'and': choose from xor, or"),
        (["--config.train.eps", "1"], "--config.train.eps 1.0: must be below 1"),
        (["--config.seed", "x"], "--config.seed x: must be a whole number"),
        (["--config.fusion.masked=Fals"], "--config.fusion.masked Fals: must be True or False"),
        (["--config.fusion.masked", "False"], "write --config.fusion.masked=False"),
        (["--config", "config/config.py:papper"], "error: no preset 'papper'; choose from paper"),
        (["--config", "nofile.py"], "--config: [Errno 2] No such file or directory: 'nofile.py'"),
        (["--config", "nofile.py", "--config.seed=3"], "No such file or directory: 'nofile.py'"),
        (["--config.exp_name", "a", "extra"], "'extra' is not a flag"),
        (["--config.exp_name", "a", "--config", "testbed"], "--config NAME: must come before"),
        (["--config.exp_name", "a", "--config.fusion.steps", "99-1"], "--config.fusion.steps"),
        (["--config.exp_name", "a", "--config.prompt_file", "p.json"], "cannot be read"),
    ],
)
def test_the_command_line_ends_with_one_line_and_code_2(arguments: list[str], message: str) -> None:
    done = subprocess.run(
        [sys.executable, "run_sample.py", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert lines[0].count("'") % 2 == 0  # no quote is left over
    assert done.stdout == ""


COMMANDS = [
    *(["run_sample.py"], ["run_train.py"], ["run_eval.py"]),
    *(["-m", "dfusion", verb] for verb in ("sample", "train", "eval", "estimate")),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[-1])
def test_a_wrong_flag_is_refused_before_anything_slow_is_imported(command: list[str]) -> None:
    """Torch and diffusers take ten seconds, for an answer that needs neither."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command, "--config.fusion.steps=99-1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert "error: --config.fusion.steps: '99-1' is out of range" in done.stderr
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "absl.flags" in imported
    assert not imported & {"torch", "diffusers", "transformers", "accelerate", "PIL", "numpy"}


def test_help_has_every_setting_with_its_comment() -> None:
    command = [sys.executable, "run_train.py", "--config", "config/config.py:testbed", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("Train a LoRA by DPO or another loss")
    blocks = [block.splitlines() for block in done.stdout.split("\n\n")]
    about = {
        flag.strip(): " ".join(line.strip() for line in block if not line.startswith("  --"))
        for block in blocks
        for flag in block
        if flag.startswith("  --config.")
    }
    values = flat(PRESETS["testbed"]().to_dict())
    assert list(about) == [f"--config.{k}={shlex.quote(str(v))}" for k, v in values.items()]
    assert all(about.values())
    assert about["--config.fusion.batch_size=8"].startswith("Pairs in one UNet call")
    assert about["--config.eval.pretrained=''"].startswith("Weights of the open_clip model")
    assert about["--config.train.method=dpo"].endswith("diffusion_kto, fdfo, module:name")
    assert about["--config.train.eps=0.1"].endswith("Values: at least 0 and below 1")
    assert about["--config.train.batch_size=8"].endswith("Values: from 1 to 1000000, or auto")
