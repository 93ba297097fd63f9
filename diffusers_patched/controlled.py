"""What the patched networks share: stock weights, and layers that follow a call's control."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from diffusers import ModelMixin
from torch import nn

from diffusers_patched.control import AttentionControl, ControlOutput, LayerControl, mean_map

Network = TypeVar("Network", bound=ModelMixin)


def sharing_weights(kind: type[Network], network: ModelMixin) -> Network:
    """A network of our kind with the weights of a stock one, shared, not copied.

    Raises ValueError for a network that carries an adapter: attach LoRA afterwards.
    """
    if getattr(network, "peft_config", None):
        raise ValueError(f"attach LoRA after {kind.__name__}.of, not before")
    with torch.device("meta"):
        patched = kind.from_config(network.config)
    patched.load_state_dict(network.state_dict(), assign=True)
    return patched.train(network.training)


def instruct(
    module: nn.Module,
    layer: int,
    argument: str,
    tokens: Callable[[tuple[Any, ...], dict[str, Any]], int],
) -> None:
    """Have a layer's module do what the control of a call says.

    argument: the keyword argument that carries the control to attention processors. tokens: the
    number of image tokens, from the module's arguments.
    """
    hook = functools.partial(_instructed, layer, argument, tokens)
    module.register_forward_pre_hook(hook, with_kwargs=True)


def _instructed(
    layer: int,
    argument: str,
    tokens: Callable[[tuple[Any, ...], dict[str, Any]], int],
    module: object,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The module's arguments with the layer's part of the control, which `used` collects."""
    passed = kwargs.get(argument) or {}
    if "control" not in passed:
        return None
    others = {key: value for key, value in passed.items() if key not in ("control", "used")}
    control = passed["control"].at(layer, tokens(args, kwargs))
    if control:
        passed["used"].append(control)
        others["control"] = control
    return args, {**kwargs, argument: others or None}


def controlled(
    forward: Callable[..., Any],
    control: AttentionControl,
    argument: str,
    given: dict[str, Any] | None,
    latent: torch.Size,
) -> ControlOutput:
    """Call the stock forward under a control.

    argument: see `instruct`; given: what the caller passes in it. latent: (height, width).
    """
    used: list[LayerControl] = []
    passed = {**(given or {}), "control": control, "used": used}
    out = forward(**{argument: passed}, return_dict=True)
    maps = [map_ for layer in used for map_ in layer.maps]
    mean = mean_map(maps, control.record, latent) if control.record else None
    return ControlOutput(sample=out.sample, maps=mean)
