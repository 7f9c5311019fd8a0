"""A finished run's encoder as files that other libraries open, with a model card.

- `timm`: timm's names and its `config.json`; `timm.create_model("local-dir:DIR", pretrained=True)`, or any ViT of
  the same shape with `checkpoint_path`.
- `hf`: transformers' `ViTModel.from_pretrained(DIR, add_pooling_layer=False)` with its image processor.
- `safetensors`: timm's names and the run's config.

Each gives the run's own features on the same images; the input is normalised with the run's mean and std.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from safetensors.torch import load_file, save_file
from torch import Tensor

from mim_bench.config.run import RunConfig
from mim_bench.errors import UserError
from mim_bench.evaluate.encoders.convert import to_hugging_face
from mim_bench.experiment.model_card import model_card
from mim_bench.files import replacing, write_text
from mim_bench.records.run_folder import check, read_config

Format = Literal["timm", "hf", "safetensors"]
_BICUBIC = 3
"""PIL's number of it, which transformers uses."""


@dataclass(frozen=True)
class _Files:
    """Files of an export format."""

    weights: str
    tensors: Mapping[str, Tensor]
    configs: dict[str, Any]
    """File name -> content, as JSON."""
    usage: str
    """Python that opens it."""


def export_run(folder: Path, export_format: str, out: Path) -> list[Path]:
    """Writes a run's encoder in a format; returns the files, the weights last.

    Args:
        folder: run folder whose pre-training is finished.
        export_format: `timm`, `hf` or `safetensors`.
        out: a new or empty folder.

    Raises:
        UserError: no such run or format, a damaged run, or a folder that holds something.
    """
    if export_format not in get_args(Format):
        raise UserError(f"format '{export_format}'; allowed: {', '.join(get_args(Format))}")
    config, source = read_config(folder), folder / "encoder.safetensors"
    if not source.is_file():
        raise UserError(f"{folder} has no encoder.safetensors: its pre-training is not finished")
    check(folder, source.name)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} exists and is no empty folder; choose another --out")
    files = {"timm": _timm, "hf": _hugging_face, "safetensors": _plain}[export_format](
        config, load_file(source)
    )
    for name, content in files.configs.items():
        write_text(out / name, json.dumps(content, indent=1) + "\n")
    write_text(out / "README.md", model_card(folder, config, export_format, files.usage))
    with replacing(out / files.weights) as temporary:
        contiguous = {name: tensor.contiguous() for name, tensor in files.tensors.items()}
        save_file(contiguous, temporary, {"format": "pt"})  # the entry that transformers asks for
    return [out / name for name in (*files.configs, "README.md", files.weights)]


def _timm(config: RunConfig, tensors: dict[str, Tensor]) -> _Files:
    model, data = config.model, config.data
    assert data.image_size and data.in_chans and data.mean and data.std
    arguments = {
        "img_size": list(data.image_size),
        "patch_size": model.patch_size,
        "in_chans": data.in_chans,
        "embed_dim": model.embed_dim,
        "depth": model.depth,
        "num_heads": model.num_heads,
        "mlp_ratio": model.mlp_ratio,
    }
    content = {
        "architecture": "vit_base_patch16_224",
        "num_classes": 0,
        "num_features": model.embed_dim,
        "global_pool": "token",
        "model_args": arguments,
        "pretrained_cfg": {
            "tag": config.run_id,
            "custom_load": False,
            "input_size": [data.in_chans, *data.image_size],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": data.crop_fraction,
            "mean": list(data.mean),
            "std": list(data.std),
            "num_classes": 0,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    usage = 'import timm\nmodel = timm.create_model("local-dir:DIR", pretrained=True).eval()'
    return _Files("model.safetensors", tensors, {"config.json": content}, usage)


def _hugging_face(config: RunConfig, tensors: dict[str, Tensor]) -> _Files:
    model, data = config.model, config.data
    assert data.image_size and data.in_chans and data.mean and data.std
    height, width = data.image_size
    content = {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        "hidden_size": model.embed_dim,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.num_heads,
        "intermediate_size": int(model.embed_dim * model.mlp_ratio),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": 1e-6,
        "image_size": height if height == width else [height, width],
        "patch_size": model.patch_size,
        "num_channels": data.in_chans,
        "qkv_bias": True,
    }
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": _BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(data.mean),
        "image_std": list(data.std),
    }
    usage = (
        "from transformers import AutoImageProcessor, ViTModel\n"
        'model = ViTModel.from_pretrained("DIR", add_pooling_layer=False)\n'
        'processor = AutoImageProcessor.from_pretrained("DIR")'
    )
    configs = {"config.json": content, "preprocessor_config.json": processor}
    return _Files("model.safetensors", to_hugging_face(tensors), configs, usage)


def _plain(config: RunConfig, tensors: dict[str, Tensor]) -> _Files:
    content = config.model_dump(mode="json")
    usage = 'import mim_bench\nencoder = mim_bench.load_encoder("DIR/encoder.safetensors").eval()'
    return _Files("encoder.safetensors", tensors, {"config.json": content}, usage)
