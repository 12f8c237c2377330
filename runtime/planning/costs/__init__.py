"""What each family costs: its forward written in sizes, a function for each class of a checkpoint.

A function mirrors the module that it stands for, with the variables that module has, so that memory
is counted as it is held (`ledger.py`). Configs are read as JSON: neither a weight nor a module is
touched, and torch is not imported. A new family adds one function and its row here.
"""

from __future__ import annotations

from .encoders import kinema_vae_encode, wan_vae_encode
from .sound import kinema_sound
from .text import umt5
from .vaes import kinema_vae, wan_vae
from .wan import wan_transformer, wan_vace_transformer

# (ledger, config, shapes, bytes of an item): counts what is bound; returns what counts a step
TRANSFORMERS = {
    "WanTransformer3DModel": wan_transformer,
    "WanVACETransformer3DModel": wan_vace_transformer,
}
# (ledger, config, latent shape, tile): counts the decoding of a clip, chunk by chunk
VAES = {"AutoencoderKinema": kinema_vae, "AutoencoderKLWan": wan_vae}
# (ledger, config, latent shape): counts the encoding of a clip
ENCODERS = {"AutoencoderKinema": kinema_vae_encode, "AutoencoderKLWan": wan_vae_encode}
# (ledger, config, tokens, bytes of an item): counts the encoding of one prompt
TEXT_ENCODERS = {"UMT5EncoderModel": umt5}
# (ledger, config, video frames, samples): counts the decoding of the sound of a clip
SOUNDS = {"KinemaSound": kinema_sound}
