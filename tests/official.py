"""The official MAE of tests/golden (mae.*), which several tests compare with."""

from conftest import GOLDEN
from safetensors.torch import load_file

from mim_bench.config.run import ModelConfig
from mim_bench.model.mae import MaskedAutoencoder
from mim_bench.target import Geometry
from mim_bench.targets.build import build_target

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GEOMETRY = Geometry((32, 32), 4, 3, MEAN, STD)
OFFICIAL = ModelConfig(
    patch_size=4,
    embed_dim=48,
    depth=3,
    num_heads=3,
    decoder_dim=32,
    decoder_depth=2,
    decoder_num_heads=2,
)


def official_model() -> MaskedAutoencoder:
    """The tiny official MAE, its weights loaded under their official names."""
    model = MaskedAutoencoder(OFFICIAL, GEOMETRY, 48, num_visible=16)
    weights = load_file(GOLDEN / "mae_weights.safetensors")
    ours = {
        name if name.startswith(("decoder", "mask_token")) else f"encoder.{name}": tensor
        for name, tensor in weights.items()
    }
    model.load_state_dict(ours)
    return model


def target(name: str):
    return build_target(name, image_size=32, patch_size=4, mean=MEAN, std=STD)
