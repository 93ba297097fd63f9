"""Bad input: one line that names the flag, what is wrong and what to do, before a model loads."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dfusion.commands import settings_table
from dfusion.commands.config import get_config
from dfusion.errors import UserError
from dfusion.method.losses import LOSSES
from dfusion.method.pairing import RULES
from dfusion.method.prompts import Item
from dfusion.method.sampling import STORE_DTYPES
from dfusion.models.devices import pick_device
from dfusion.models.loading import load_model
from dfusion.settings.check import check, check_names, check_sampling, check_training
from dfusion.settings.presets import PRESETS
from dfusion.settings.prompt_files import load_prompts
from dfusion.settings.schema import SETTINGS, Pretrained, Settings, flat, settings_of
from diffusers_patched import PARTS

ROOT = Path(__file__).parents[2]
FLAGS = [
    ("device", "gpu", "--config.device 'gpu': choose from auto, cpu"),
    ("mixed_precision", "fp8", "--config.mixed_precision 'fp8'"),
    ("seed", -1, "--config.seed -1: must be at least 0"),
    ("sample.num_steps", 0, "--config.sample.num_steps 0"),
    ("sample.eta", 0.0, "--config.sample.eta 0.0: must be above 0"),
    ("sample.eta", 1.5, "--config.sample.eta 1.5: must be at most 1"),
    ("sample.batch_size", 0, "--config.sample.batch_size 0"),
    ("sample.store_dtype", "int8", "--config.sample.store_dtype 'int8'"),
    ("mask.merge", "and", "--config.mask.merge 'and': choose from xor, or"),
    ("fusion.steps", "25-1", "--config.fusion.steps: '25-1' is out of range"),
    ("fusion.steps", "a", "--config.fusion.steps: 'a' is not a step range"),
    ("fusion.parts", "self_k,self_x", "--config.fusion.parts 'self_x': choose from self_q, self_k"),
    ("fusion.parts", ",", "--config.fusion.parts: name at least one of self_q, self_k"),
    ("fusion.batch_size", 0, "--config.fusion.batch_size 0"),
    ("sample.batch_size", "auto", "--config.sample.batch_size 'auto': must be a whole number"),
    ("sample.images_per_call", -1, "--config.sample.images_per_call -1: must be at least 0"),
    ("pair.rule", "thirds", "--config.pair.rule 'thirds'"),
    ("pair.adoption", "none", "--config.pair.adoption 'none'"),
    ("eval.batch_size", 0, "--config.eval.batch_size 0"),
    ("eval.poll_seconds", 0.0, "--config.eval.poll_seconds 0.0"),
    ("train.num_epochs", 0, "--config.train.num_epochs 0"),
    ("train.begin_epoch", 1, "--config.train.num_epochs 1: must be at least 2"),
    (
        "train.method",
        "ppo",
        "--config.train.method 'ppo': choose from dpo, ddpo, dpok, grpo, diffusion_dpo, ",
    ),
    ("train.pairs", "fused", "--config.train.pairs 'fused': choose from dfusion, naive, inversion"),
    ("train.ratio", "diff", "--config.train.ratio 'diff'"),
    ("train.reference", "base", "--config.train.reference 'base': choose from round, initial"),
    ("train.tune", "unet", "--config.train.tune 'unet': choose from lora, full"),
    ("train.learning_rate", 0.0, "--config.train.learning_rate 0.0: must be above 0"),
    ("train.learning_rate", float("nan"), "--config.train.learning_rate nan: must be above 0"),
    ("train.adam_beta2", 1.0, "--config.train.adam_beta2 1.0: must be below 1"),
    ("train.kl_initial", -1.0, "--config.train.kl_initial -1.0: must be at least 0"),
    ("train.eps", 1.0, "--config.train.eps 1.0: must be below 1"),
    ("train.eps", -0.1, "--config.train.eps -0.1: must be at least 0"),
    ("train.num_inner_epochs", 0, "--config.train.num_inner_epochs 0"),
    ("train.updates_per_inner_epoch", 0, "--config.train.updates_per_inner_epoch 0"),
    ("train.batch_size", 0, "--config.train.batch_size 0"),
    ("train.batch_size", "all", "--config.train.batch_size 'all': must be a whole number or auto"),
    ("train.batch_size", True, "--config.train.batch_size True: must be a whole number or auto"),
    ("train.lora_rank", 0, "--config.train.lora_rank 0"),
    ("train.lora_targets", " , ", "--config.train.lora_targets: name at least one module"),
    ("train.step_weights", "1,2", "--config.train.step_weights '1,2': 2 weights for 20 steps"),
    (
        "train.step_weights",
        "equal:21-5",
        "--config.train.step_weights 'equal:21-5': '21-5' is out of range",
    ),
    ("train.step_weights", "1,a", "--config.train.step_weights '1,a'"),
    ("train.step_weights", "0,0", "--config.train.step_weights '0,0': at least one weight"),
    ("train.compare_images", -1, "--config.train.compare_images -1: must be at least 0"),
    ("train.compare_every", 0, "--config.train.compare_every 0"),
    ("train.num_checkpoint_limit", 0, "--config.train.num_checkpoint_limit 0"),
    ("tracker", "mlflow", "--config.tracker 'mlflow': choose from none, wandb, tensorboard"),
    ("resume_from", "data/nowhere", "--config.resume_from data/nowhere: no checkpoint there"),
    ("resume_from", "x" * 300, "--config.resume_from 'xxx"),
    ("save_path", "a/" + "x" * 300, "--config.save_path 'a/xxx"),
    ("save_path", "a\x00b", r"--config.save_path: 'a\x00b' has the character U+0000"),
    ("prompt", "a\ncat", r"--config.prompt: 'a\ncat' has the character U+000A"),
    ("prompt", "x" * 5000, "--config.prompt: 'xxx"),
    ("seed", 2**63, "--config.seed 9223372036854775808: must be at most"),
    ("seed", "5", "--config.seed '5': must be a whole number"),
    ("seed", 1.5, "--config.seed 1.5: must be a whole number"),
    ("seed", True, "--config.seed True: must be a whole number"),
    ("sample.cfg", 1, "--config.sample.cfg 1: must be True or False"),
    ("sample.eta", "1", "--config.sample.eta '1': must be a number"),
    ("sample.num_steps", 1001, "--config.sample.num_steps 1001: must be at most 1000"),
    ("sample.batch_size", 10**9, "--config.sample.batch_size 1000000000: must be at most"),
    ("sample.guidance_scale", float("inf"), "--config.sample.guidance_scale inf: must be a fin"),
    ("eval.poll_seconds", float("nan"), "--config.eval.poll_seconds nan: must be above 0"),
    ("eval.model", None, "--config.eval.model None: must be text"),
    ("train.num_epochs", 10**9, "--config.train.num_epochs 1000000000: must be at most"),
    ("train.dpok_beta", float("nan"), "--config.train.dpok_beta nan: must be a finite number"),
]


@pytest.mark.parametrize(("flag", "value", "message"), FLAGS, ids=lambda v: str(v)[:30])
def test_flags(flag: str, value: object, message: str) -> None:
    settings = Settings()
    group, _, name = flag.rpartition(".")
    setattr(getattr(settings, group) if group else settings, name, value)
    with pytest.raises(UserError) as caught:
        check(settings)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_pass_and_survive_the_flags(preset: str) -> None:
    settings = PRESETS[preset]()
    check(settings)
    assert settings_of(get_config(preset).to_dict(), "--config") == settings
    assert Settings.of(json.loads(json.dumps(settings.to_dict()))) == settings


@pytest.mark.parametrize(("text", "value"), [("auto", "auto"), ("12", 12), ("1.5", None)])
def test_a_number_that_may_be_auto(text: str, value: int | str | None) -> None:
    """As a flag gives it, and as config.json keeps it."""
    flags = get_config("paper")
    flags.train.batch_size = text
    if value is None:
        with pytest.raises(UserError, match="--config.train.batch_size '1.5': must be a whole num"):
            settings_of(flags.to_dict(), "--config")
        return
    settings = settings_of(flags.to_dict(), "--config")
    check(settings)
    assert settings.train.batch_size == value
    assert settings_of(json.loads(json.dumps(settings.to_dict())), "config.json") == settings


def test_one_image_per_prompt_makes_no_pair() -> None:
    settings = Settings()
    settings.sample.batch_size = settings.sample.num_batches_per_epoch = 1
    with pytest.raises(UserError, match="no pair"):
        check(settings)


def test_sizes_are_known_before_a_model_loads() -> None:
    """Every optimiser step needs a pair, of all processes' pairs of a round."""
    settings = Settings(exp_name="a")
    settings.train.updates_per_inner_epoch = 9
    text = "--config.train.updates_per_inner_epoch 9: 1 prompts of 16 images make 8 pairs a round"
    with pytest.raises(UserError, match=text):
        check_training(settings)
    check_sampling(settings)
    settings.sample.num_batches_per_epoch = 5  # 10 pairs
    check_training(settings)


def test_more_images_than_a_round_can_have_are_refused() -> None:
    settings = Settings(exp_name="a")
    settings.sample.num_batches_per_epoch = settings.sample.batch_size = 10_000
    with pytest.raises(UserError, match="make 100000000 images a round; at most 10000000"):
        check_sampling(settings)


@pytest.mark.parametrize("name", ["", "a,b", "../x", "a/b", ".hidden", "a b", "é", "a" * 300])
def test_experiment_names(name: str) -> None:
    with pytest.raises(UserError, match="--config.exp_name"):
        check_names(Settings(exp_name=name))


def test_several_experiments_can_be_scored() -> None:
    assert check_names(Settings(exp_name="a, b-2"), several=True) == ["a", "b-2"]
    assert check_names(Settings(), several=True) == []


FILES = [
    ("prompt_file", None, "cannot be read"),
    ("prompt_file", "[", "not valid JSON"),
    ("prompt_file", "{}", "JSON list of prompts"),
    ("prompt_file", "[]", "at least one"),
    ("prompt_file", '["a cat", 3]', "JSON list of prompts"),
    ("prompt_file", '["a cat", "a cat"]', "listed twice"),
    ("item_idx_file", "[1]", "JSON object"),
    ("item_idx_file", "{}", "no items for the prompt 'a cat'"),
    ("item_idx_file", '{"a cat": "cat"}', "one entry for each item"),
    ("item_idx_file", '{"a cat": [true]}', "one entry for each item"),
    ("item_idx_file", '{"a cat": ["dog"]}', "item 'dog' is not in the prompt"),
    ("item_idx_file", '{"a cat": [2]}', "position 2 is outside"),
    ("mask_thr_file", "[0.1]", "JSON object"),
    ("mask_thr_file", "{}", "no thresholds for 'a cat'"),
    ("mask_thr_file", '{"a cat": [0.1, 0.2]}', "2 thresholds for the 1 items"),
    ("mask_thr_file", '{"a cat": ["x"]}', "one entry for each item"),
    ("mask_thr_file", '{"a cat": [NaN]}', "give 0 to 1"),
    ("mask_thr_file", '{"a cat": [-0.1]}', "give 0 to 1"),
    ("mask_thr_file", '{"a cat": [1e400]}', "give 0 to 1"),
    ("mask_thr_file", "{" + '"a":{' * 9999, "not valid JSON"),
    ("prompt_file", "[" * 99999, "nested too deep"),
    ("prompt_file", '["  "]', "none empty"),
    ("prompt_file", '["a \\u001b[2J cat"]', "has the character U.001B"),
    ("prompt_file", '["a \\ud800 cat"]', "has the character U.D800"),
    ("prompt_file", '["a \\u202e cat"]', "has the character U.202E"),
    ("item_idx_file", '{"a cat": [1], "a cat": [0]}', "'a cat' appears twice in one object"),
    ("item_idx_file", '{"a cat": [-1]}', "position -1 is outside"),
    ("item_idx_file", '{"a cat": [1.0]}', "one entry for each item"),
    ("item_idx_file", '{"a cat": [""]}', "item '' is not in the prompt"),
    ("item_idx_file", '{"a cat": ["cat#²"]}', "has 1 of them"),
    ("item_idx_file", '{"a cat": ["cat#2"]}', "has 1 of them"),
]


@pytest.mark.parametrize(("flag", "text", "message"), FILES)
def test_files(tmp_path: Path, flag: str, text: str | None, message: str) -> None:
    good = {
        "prompt_file": '["a cat"]',
        "item_idx_file": '{"a cat": [1]}',
        "mask_thr_file": '{"a cat": [null]}',
    }
    settings = Settings()
    for name, content in {**good, flag: text}.items():
        setattr(settings, name, str(tmp_path / name))
        if content is not None:
            (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        load_prompts(settings)
    line = str(caught.value)
    assert line.startswith(f"--config.{flag}") and line.isprintable()


def test_an_item_named_twice_is_refused(tmp_path: Path) -> None:
    """XOR would cancel it."""
    with pytest.raises(UserError, match="--config.item_idx cat, 1: .* the item '1' twice"):
        load_prompts(Settings(item_idx="cat, 1"))


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "1.01", "0x1", ""])
def test_one_threshold_for_all(text: str) -> None:
    with pytest.raises(UserError, match="--config.mask_thr '"):
        load_prompts(Settings(mask_thr=text))


def test_prompt_file_needs_items(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('["a cat"]')
    with pytest.raises(UserError, match="--config.item_idx_file: needed"):
        load_prompts(Settings(prompt_file=str(tmp_path / "p.json")))


def test_one_prompt_by_flags() -> None:
    (prompt,) = load_prompts(Settings(mask_thr="0.05", item_idx="[1, 3]"))
    assert prompt.items == (Item(1, 0.05), Item(3, 0.05))
    (prompt,) = load_prompts(Settings())
    assert prompt.items == (Item("cat", None), Item("chess", None))
    with pytest.raises(UserError, match="--config.mask_thr 'x'"):
        load_prompts(Settings(mask_thr="x"))


@pytest.mark.parametrize("template", [1, 2, 3])
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_papers_files_load(template: int, split: str) -> None:
    folder = ROOT / "config" / "prompt"
    settings = Settings(
        prompt_file=str(folder / f"template{template}_{split}.json"),
        item_idx_file=str(folder / f"template{template}_item.json"),
        mask_thr_file=str(folder / f"template{template}_mask.json"),
    )
    prompts = load_prompts(settings)
    assert len(prompts) == 40
    # Tables 4 to 6 give thresholds for the training lists; the test lists are left to Otsu.
    expected = split == "train"
    assert all((t is not None) == expected for p in prompts for t in p.thresholds)


def test_table_values() -> None:
    folder = ROOT / "config" / "prompt"
    settings = Settings(
        prompt_file=str(folder / "template3_train.json"),
        item_idx_file=str(folder / "template3_item.json"),
        mask_thr_file=str(folder / "template3_mask.json"),
    )
    by_text = {p.text: p for p in load_prompts(settings)}
    # Table 6: "the dog on the right of the vase", 0.01; 0.03.
    assert by_text["the dog on the right of the vase"].items == (Item(1, 0.01), Item(7, 0.03))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: str(folder / "absent"), "there is no"),
        (lambda folder: str(folder), "no model_index.json"),
        (lambda folder: write(folder / "model.ckpt", "x"), "not a .safetensors file"),
        (lambda folder: write(folder / "model.safetensors", "x"), "is damaged"),
        (
            lambda folder: str(Path(write(folder / "model_index.json", XL)).parent),
            "is a FluxPipeline",
        ),
    ],
)
def test_models_that_do_not_load_say_what_to_do(
    tmp_path: Path, make: Callable[[Path], str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_model(Pretrained(model=make(tmp_path)), "cpu", None)
    text = str(caught.value)
    assert text.startswith("--config.pretrained.model")
    assert "\n" not in text


XL = '{"_class_name": "FluxPipeline"}'


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_missing_gpu_is_named() -> None:
    import torch

    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="--config.device cuda"):
            pick_device("cuda", 0)
        assert pick_device("auto", 0).type in ("cpu", "mps")


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


def test_the_table_of_settings_is_up_to_date() -> None:
    assert (ROOT / settings_table.FILE).read_text() == settings_table.page()


def test_choices_are_those_of_the_modules_that_take_them() -> None:
    assert set(SETTINGS["fusion.parts"].words) == set(PARTS)
    assert set(SETTINGS["sample.store_dtype"].words) == set(STORE_DTYPES)
    assert set(SETTINGS["pair.rule"].words) == set(RULES)
    assert set(SETTINGS["train.method"].words) == set(LOSSES)


def test_a_name_of_your_own_is_imported_before_a_model_loads(settings: Settings) -> None:
    settings.pair.rule = "tests.rules:absent"
    with pytest.raises(
        UserError, match="pair.rule 'tests.rules:absent'.*give halves, quarter, both_ways or"
    ):
        check_sampling(settings)
    settings.pair.rule, settings.train.method = "tests.rules:reddest", "tests.losses:Absent"
    check_sampling(settings)
    with pytest.raises(UserError, match="train.method 'tests.losses:Absent'.*give dpo"):
        check_training(settings)
