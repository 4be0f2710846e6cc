"""Settings of all networks: unknown names and keys, and values out of range."""

import pytest

from functa.configs import common
from functa.models import classifier, denoiser

CONFIGS = {
    "mlp": (classifier.make_classifier, common.mlp),
    "transformer": (classifier.make_classifier, common.transformer),
    "convnext": (classifier.make_classifier, common.convnext),
    "dit": (denoiser.make_denoiser, common.dit),
    "unet": (denoiser.make_denoiser, common.unet),
    "denoising mlp": (denoiser.make_denoiser, common.denoising_mlp),
}


@pytest.mark.parametrize("network", CONFIGS)
def test_configs_build_and_unknown_or_missing_keys_are_type_errors(network):
    make, settings = CONFIGS[network]
    assert make(num_classes=10, **settings()).num_classes == 10
    with pytest.raises(TypeError, match="dropuot"):
        make(num_classes=10, **settings(), dropuot=0.1)
    incomplete = {key: value for key, value in settings().items() if key[:5] != "width"}
    with pytest.raises(TypeError, match="width"):
        make(num_classes=10, **incomplete)


@pytest.mark.parametrize(
    ("network", "changes", "message"),
    [
        ("mlp", {"depth": 0, "dropout": 1.0}, r"(?s)depth=0.*dropout=1"),
        ("mlp", {"num_classes": 0}, "num_classes=0"),
        ("mlp", {"name": "resnet"}, "resnet"),
        ("transformer", {"heads": 5}, "heads=5"),
        ("transformer", {"heads": 0}, "heads=0"),
        ("transformer", {"patch": 0, "drop_path": 1.0}, r"(?s)patch=0.*drop_path=1"),
        ("transformer", {"dtype": "float16"}, "dtype='float16'"),
        ("convnext", {"widths": (8,)}, r"widths=\(8,\)"),
        ("convnext", {"widths": (), "depths": ()}, "widths"),
        ("convnext", {"depths": (1, 0)}, r"depths=\(1, 0\)"),
        ("convnext", {"widths": (8.5, 12)}, r"widths=\(8.5, 12\)"),
        ("convnext", {"drop_path": -0.1}, "drop_path=-0.1"),
        ("dit", {"width": 18, "heads": 5}, r"(?s)heads=5.*width=18"),
        ("dit", {"mlp_width": 0}, "mlp_width=0"),
        ("unet", {"widths": (16, 20)}, r"widths=\(16, 20\)"),
        ("unet", {"heads": 7}, "heads=7"),
        ("denoising mlp", {"name": "vit"}, "vit"),
    ],
)
def test_all_invalid_settings_are_named(network, changes, message):
    make, settings = CONFIGS[network]
    with pytest.raises(ValueError, match=message):
        make(**{"num_classes": 10, **settings(), **changes})
