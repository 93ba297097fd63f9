"""Bad input: one line that names the flag, what is wrong and what to do, before a model loads."""

import json
from pathlib import Path

import pytest

from dfusion.commands import settings_table
from dfusion.commands.config import get_config
from dfusion.errors import UserError
from dfusion.method.losses import LOSSES
from dfusion.method.pairing import RULES
from dfusion.method.sampling import STORE_DTYPES
from dfusion.settings.check import check, check_names, check_sampling, check_training
from dfusion.settings.plain_values import settings_of
from dfusion.settings.presets import PRESETS
from dfusion.settings.schema import SETTINGS, Settings
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
