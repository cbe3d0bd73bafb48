"""The classifiers of torchvision and timm by name, as they are, and what a recipe may tell these libraries.

Both take seconds to import, and timm knows the way to a model hub, so they are imported only when a name asks for
them; the hub is asked for nothing unless `pretrained` says so.
"""

import contextlib
import functools
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from offramp import trust
from offramp.backbones.foreign import AUXILIARY, for_grey
from offramp.backbones.layers import sides_of
from offramp.checks import near
from offramp.errors import UsageError, first_line
from offramp.processes import from_environment
from offramp.terminal import say

Side = int | Sequence[int] | None
# What a recipe may tell a library: numbers, true and false, and lists of them, for what a network is made like. Beside
# these the libraries take paths, addresses and files of weights, so the names are written out.
_NUMBERS = frozenset(
    """
    attn_drop_rate attn_mlp_ratio attn_ratio attention_dropout aux_logits avg_down base_dim base_dims base_width bias
    block_channels block_config block_counts block_layers block_reduce_first bn_size bottle_ratio cardinality ch_div
    channels channel_multiplier class_token conv_bias conv_mlp conv_ratio deepen_factor depth depth_mult
    depth_token_only depths dim dim_mul dims distilled distillation down_kernel_size down_patch_size down_stride
    downsamples drop drop_block_rate drop_path_rate drop_rate dropout dropout_aux dynamic_img_pad dynamic_img_size
    embed_dim embed_dims expand_groups expand_ratio expansion_ratio fc_norm final_norm fix_init fix_stem fused_conv
    global_pos_size groups growth_rate growth_rates head_bias head_dim head_hidden_size head_init_scale head_mul
    head_norm head_norm_first head_widths heads hidden_dim hidden_size hidden_sizes image_size img_size in_features
    init_channels init_values init_weights inplanes input_3x3 input_size k_r k_sec kernel_size kernel_sizes key_dim
    last_channel layer_scale layer_scale_init_value layers legacy ls_init_value memory_efficient merge_size mlp_bias
    mlp_dim mlp_dropout mlp_ratio mlp_ratio_token_only mlp_ratios no_embed_class norm_eps num_blocks num_features
    num_heads num_init_features num_kv_heads num_layers num_levels num_reg_tokens num_rnn_layers num_vit
    out_features output_stride parallel_depth partition_size patch_drop_rate patch_kernel patch_norm patch_padding
    patch_size patch_sizes patch_stride pool_include_prefix pool_size pos_drop_rate pre_norm preact proj_bias
    proj_drop_rate q_pool q_stride qk_norm qkv_bias qkv_fused ref_feat_shape reg_tokens replace_stem_pool
    replace_stride_with_dilation representation_size round_nearest scale scale_mlp se_ratio serial_depths
    sr_ratios squeeze_ratio stages stages_out_channels stages_repeats stem_channels stem_chs stem_expand_ratio
    stem_kernel_size stem_size stem_width stochastic_depth_prob stride strict_img_size strides swiglu_mlp
    transform_input use_abs_pos use_abs_pos_emb use_fc_norm use_grn use_pos_embed use_post_norm use_rel_pos
    use_rel_pos_bias use_rope use_shared_rel_pos_bias widen_factor width width_factor width_mult width_per_group
    widths window_ratio window_size window_sizes zero_init_last zero_init_residual
    """.split()
)
# And words, of which the libraries have lists themselves.
_WORDS = frozenset(
    "act_layer aa_layer global_pool norm_layer pad_type pool_type pos_embed stem_type weight_init".split()
)
_WORD = re.compile(r"[A-Za-z0-9_]*")
_MODEL = re.compile(r"[A-Za-z0-9_.-]+")  # no way to a hub or a folder: hf-hub:OWNER/NAME, local-dir:PATH


def named_model(
    model: str,
    *,
    pretrained: bool = False,
    num_classes: int = 1000,
    in_channels: int = 3,
    image_size: Side = None,
    **arguments: Any,
) -> nn.Module:
    """The classifier itself, without exits; arguments as for `zoo.named`.

    Raises:
        UsageError: As for `named`; an argument that is none of the architecture; weights that a run's folder asks for.
    """
    library, _, name = model.partition("/") if isinstance(model, str) else ("", "", "")
    if library not in _LIBRARIES or not _MODEL.fullmatch(name):
        raise UsageError(f"{model!r} is no model: name timm/NAME or torchvision/NAME.")
    _check_arguments(model, pretrained, arguments)
    sides = None if image_size is None else sides_of(image_size)
    if asks_hub(pretrained, arguments) and from_environment("RANK", 0) == 0:
        say(f"Weights of {model}: from the hub, unless they are here; where it cannot be reached this takes a minute.")
    return _LIBRARIES[library](_Wanted(name, pretrained, num_classes, in_channels, sides, arguments))


def _check_arguments(model: str, pretrained: bool, arguments: Mapping[str, Any]) -> None:
    if not isinstance(pretrained, bool):
        raise UsageError(
            f"pretrained of {model} must be true or false, not {pretrained!r}; weights in a file: --init FILE."
        )
    if trust.is_opened() and asks_hub(pretrained, arguments):
        raise UsageError(
            f"{model} of a run's folder asks for weights of a hub, which no recipe may: a run has its own."
        )
    for name, value in arguments.items():
        if name == "weights" and model.startswith("torchvision/"):
            if value is not None and not isinstance(value, str):
                raise UsageError(f"weights of {model} must be a name, not {value!r}.")
        elif name in _WORDS and isinstance(value, str):
            if not _WORD.fullmatch(value):
                raise UsageError(f"{name} of {model} must be a word such as gelu, not {value!r}.")
        elif name not in _NUMBERS | _WORDS:
            raise UsageError(
                f"{model} takes no argument {name!r} here: only what its architecture is made of."
                f"{near(name, sorted(_NUMBERS | _WORDS))} Weights in a file are given by --init FILE."
            )
        elif not _is_plain(value):
            raise UsageError(f"{name} of {model} must be a number, true or false, or a list of these, not {value!r}.")


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float))


def plain_arguments(model: str, pretrained: bool, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that build the same model without weights: what says which is gone, what they imply written out."""
    library, _, name = model.partition("/")
    plain = {key: value for key, value in arguments.items() if key != "weights"}
    if library == "torchvision" and name in AUXILIARY and asks_hub(pretrained, arguments):
        return {"transform_input": True} | plain  # the weights are for other scales of the colours
    return plain


def asks_hub(pretrained: bool, arguments: Mapping[str, Any]) -> bool:
    """Whether weights of a hub are asked for."""
    return pretrained or arguments.get("weights") is not None


def licence_of(model: str, classifier: nn.Module, pretrained: bool, arguments: Mapping[str, Any]) -> str | None:
    """Of weights that come from the hub, where the library names it: torchvision does so for few."""
    library, _, name = model.partition("/")
    if library == "torchvision":
        known = _hub_weights(name, pretrained, arguments).meta
    else:
        known = getattr(classifier, "pretrained_cfg", {})
    licence: str | None = known.get("license")
    return licence


class _Wanted(NamedTuple):
    """A library's model, by the library's own name for it."""

    name: str
    pretrained: bool
    num_classes: int
    in_channels: int
    sides: tuple[int, int] | None
    arguments: dict[str, Any]


def _of_timm(wanted: _Wanted) -> nn.Module:
    name, pretrained, num_classes, in_channels, sides, arguments = wanted
    try:
        import timm
    except ImportError:
        raise UsageError("timm/NAME needs timm: pip install 'offramp[timm]'.") from None
    if not timm.is_model(name):
        raise UsageError(f"timm has no model {name!r}.{near(name, timm.list_models())}")
    try:
        known = timm.get_pretrained_cfg(name)
    except RuntimeError:
        architecture, _, tag = name.partition(".")
        tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
        hint = near(tag, tags) or f" It has {', '.join(tags) or 'none'}."
        raise UsageError(f"timm has no weights {tag!r} of {architecture}.{hint}") from None
    if sides is not None and known is not None and known.fixed_input_size and tuple(known.input_size[1:]) != sides:
        arguments = {"img_size": sides} | arguments
    build = functools.partial(timm.create_model, name, num_classes=num_classes, in_chans=in_channels, **arguments)
    return _built(f"timm/{name}", lambda: build(pretrained=pretrained))


def _of_torchvision(wanted: _Wanted) -> nn.Module:
    """Another number of channels gets a fresh first convolution (grey: the sum of its weights).

    With weights or without, the model is built alike, for `num_classes`; the weights are taken from a second one.
    """
    import torchvision

    name, pretrained, num_classes, in_channels, sides, arguments = wanted
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise UsageError(f"torchvision has no classifier {name!r}.{near(name, names)}")
    weights = _hub_weights(name, pretrained, arguments)
    own_arguments = plain_arguments(f"torchvision/{name}", pretrained, arguments)
    if sides is None and weights is not None:
        sides = weights.meta.get("min_size")
    if sides is not None:
        if name.startswith("vit_"):
            if sides[0] != sides[1]:
                raise UsageError(f"torchvision/{name} takes square images, not {sides[0]} x {sides[1]}.")
            own_arguments = {"image_size": sides[0]} | own_arguments
        if name.startswith("maxvit"):
            own_arguments = {"input_size": tuple(sides)} | own_arguments
    build = functools.partial(torchvision.models.get_model, name)
    own = {"num_classes": num_classes} | own_arguments
    if name in AUXILIARY:
        if own_arguments.pop("aux_logits", False):
            raise UsageError(
                f"torchvision/{name} has exits where it is cut and no auxiliary ones; leave out aux_logits."
            )
        own_arguments.pop("init_weights", None)
        own = {"init_weights": True} | own | {"aux_logits": False}
    model = _built(f"torchvision/{name}", lambda: build(**own))
    if weights is not None:
        source = _built(f"torchvision/{name}", lambda: build(weights=weights, **own_arguments))
        _take_weights(model, source, AUXILIARY.get(name, ()))
    place, conv = first_conv(model)
    if conv.in_channels != in_channels:
        model.set_submodule(place, _for_channels(conv, in_channels, weights is not None))
    return model


def _hub_weights(name: str, pretrained: bool, arguments: Mapping[str, Any]) -> Any:
    """The weights of torchvision's that are asked for; None where none are."""
    wanted = arguments.get("weights") or ("DEFAULT" if pretrained else None)
    if wanted is None:
        return None
    import torchvision

    known: Any = torchvision.models.get_model_weights(name)
    own_name = str(wanted).removeprefix(f"{known.__name__}.")
    if own_name not in known.__members__:
        raise UsageError(f"torchvision/{name} has no weights {wanted!r}, but {', '.join(known.__members__)}.")
    return known[own_name]


def _take_weights(model: nn.Module, source: nn.Module, auxiliary: tuple[str, ...]) -> None:
    """All weights of `source`, but for a last layer of other classes and what belongs to auxiliary outputs."""
    own, taken = model.state_dict(), source.state_dict()
    for name in list(taken):
        if name.startswith(auxiliary):
            del taken[name]
        elif name in own and own[name].shape != taken[name].shape and own[name].shape[1:] == taken[name].shape[1:]:
            taken[name] = own[name]
    model.load_state_dict(taken)


def _built(name: str, build: Callable[[], nn.Module]) -> nn.Module:
    try:
        with _hub_warns_of_nothing():
            return build()
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:  # of the library, about what it was given
        raise UsageError(f"{name} cannot be built: {first_line(error)}.") from error
    except OSError as error:  # of a hub, or of the file that it keeps
        raise UsageError(
            f"The weights of {name} cannot be fetched ({first_line(error)}); give a file with --init."
        ) from error


@contextlib.contextmanager
def _hub_warns_of_nothing() -> Iterator[None]:
    """A hub's client warns of every attempt that fails, with an address; the error that ends them says it once."""
    client = logging.getLogger("huggingface_hub")
    level = client.level
    client.setLevel(max(level, logging.ERROR))
    try:
        yield
    finally:
        client.setLevel(level)


def first_conv(model: nn.Module) -> tuple[str, nn.Conv2d]:
    """Name and module of the convolution that reads the images."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            return name, module
    raise UsageError(f"{type(model).__name__} has no convolution to read images with.")


def _for_channels(conv: nn.Conv2d, in_channels: int, pretrained: bool) -> nn.Conv2d:
    if pretrained and in_channels != 1:
        raise UsageError(f"Weights for {conv.in_channels} channels cannot be used for images of {in_channels}.")
    settings = {name: getattr(conv, name) for name in ("kernel_size", "stride", "padding", "dilation")}
    fresh = nn.Conv2d(in_channels, conv.out_channels, bias=conv.bias is not None, **settings)
    with torch.no_grad():
        if pretrained:
            fresh.weight.copy_(for_grey(conv.weight))
        if fresh.bias is not None and conv.bias is not None:
            fresh.bias.copy_(conv.bias)
    return fresh


_LIBRARIES: Mapping[str, Callable[[_Wanted], nn.Module]] = {"timm": _of_timm, "torchvision": _of_torchvision}


def is_named(name: str) -> bool:
    """Whether a name such as `timm/resnet18` stands for a model of a library."""
    library, slash, _ = name.partition("/")
    return bool(slash) and library in _LIBRARIES
