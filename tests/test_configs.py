"""A component's config.json: published names, nothing unknown."""

import pytest

from kinema.runtime.errors import UsageError
from kinema.runtime.models.wan.config import WanConfig
from kinema.runtime.models.wan.vace import WanVaceConfig
from kinema.runtime.vaes.audio import SoundConfig
from kinema.runtime.vaes.kinema import KinemaVAEConfig

CONFIGS = {
    WanConfig: ("Wan transformer", {"num_layers": 3}),
    WanVaceConfig: ("Wan transformer", {"vace_layers": [0, 2], "num_layers": 3}),
    KinemaVAEConfig: ("autoencoder", {"z_dim": 4}),
    SoundConfig: ("sound", {"fps": 4}),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_fields_are_those_of_the_file_but_for_what_libraries_add(kind):
    _, values = CONFIGS[kind]
    assert kind.from_dict({"_class_name": "x", **values}) == kind(**values)


@pytest.mark.parametrize("kind", CONFIGS)
def test_unknown_keys_are_named_beside_the_known(kind):
    of, values = CONFIGS[kind]
    words = rf"^{of} config has unknown aardvark, zebra; known: .*\b{next(iter(values))}\b"
    with pytest.raises(UsageError, match=words):
        kind.from_dict({**values, "zebra": 1, "aardvark": 2})
