"""Sound as extra latent rows: a linear codec of log-mel frames, and Griffin-Lim to hear them.

Each video frame's sound is a short vector: the log-mel spectrogram of that frame on its leading
principal components. Four of them make one patch row of four tokens under the picture's latents of
the same four frames, so picture and sound are denoised together and stay together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoints.configs import ComponentConfig
from .audio_sizes import ITERATIONS
from .geometry import GROUP

STRIP_ROWS = 2  # latent rows under the picture: one row of 2x2 patches
PLACES = 9  # latent frames that are told apart: those of the embedded model's clip
FLOOR = 1e-4  # added to mel magnitudes before the logarithm


@dataclass(frozen=True)
class SoundConfig(ComponentConfig):
    """The fields of an audio/config.json of class `KinemaSound`."""

    OF = "sound"

    sample_rate: int = 16_000
    fps: int = 8
    n_fft: int = 1024
    columns: int = 8  # spectrogram columns in a video frame
    bands: int = 40
    components: int = 24
    channels: int = 16  # of the latents the strip belongs to
    scale: float = 1.0

    @property
    def samples_per_frame(self) -> int:
        """Of a video frame."""
        return self.sample_rate // self.fps

    @property
    def hop(self) -> int:
        """Samples from one column of the spectrogram to the next."""
        return self.samples_per_frame // self.columns


class KinemaSound(nn.Module):
    """Waveforms (samples,) to codes (frames, components) to latent rows, and back."""

    mean: Tensor
    basis: Tensor

    def __init__(self, config: SoundConfig) -> None:
        super().__init__()
        self.config = config
        size = config.columns * config.bands
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("basis", torch.zeros(config.components, size))

    def features(self, wave: Tensor, num_frames: int) -> Tensor:
        """Log-mel frames (num_frames, columns * bands) of a waveform (samples,)."""
        config = self.config
        magnitude = _stft(wave, config).abs()[:, : num_frames * config.columns]
        mel = torch.log(_mel_filters(config).to(wave) @ magnitude + FLOOR)
        return mel.T.reshape(num_frames, -1)

    def encode(self, wave: Tensor, num_frames: int) -> Tensor:
        """Codes (num_frames, components)."""
        return (self.features(wave, num_frames) - self.mean) @ self.basis.T / self.config.scale

    def decode(
        self, codes: Tensor, num_samples: int | None = None, iterations: int = ITERATIONS
    ) -> Tensor:
        """Waveform (num_samples,) from codes (num_frames, components), always the same one.

        By default as long as the frames last at the codec's own rate; another length is another
        tempo, not another pitch.
        """
        config = self.config
        length = num_samples or codes.shape[0] * config.samples_per_frame
        mel = (codes.float() * config.scale @ self.basis.float() + self.mean.float()).exp() - FLOOR
        mel = mel.view(-1, config.bands).clamp(min=0).T
        magnitude = (torch.linalg.pinv(_mel_filters(config).to(mel)) @ mel).clamp(min=0)
        # Columns whose window reached over an end saw a reflection, which sounds like a burst: the
        # nearest whole column stands in for them. Beyond, room for the phases to settle is cut off.
        over, room = config.n_fft // 2 // config.hop, config.columns
        magnitude = F.pad(magnitude[:, over:-over], (over, over), mode="replicate")
        columns = max(1, round(length / config.hop))
        if columns != magnitude.shape[1]:
            magnitude = F.interpolate(magnitude[None], size=columns, mode="linear")[0]
        magnitude = F.pad(magnitude, (room, room + 1), mode="replicate")
        wave = griffin_lim(magnitude, config, length + 2 * room * config.hop, iterations)
        return wave[room * config.hop :][:length]

    def to_rows(self, codes: Tensor) -> Tensor:
        """Codes (B, 1+4k, components) to latent rows (B, channels, 1+k, STRIP_ROWS, 2 * GROUP)."""
        tokens = F.pad(codes, (0, self.config.channels * 4 - codes.shape[-1], GROUP - 1, 0))
        rows = _tokens_to_rows(tokens.unflatten(1, (-1, GROUP)))
        mask, values = self.given(rows.shape[2])
        return torch.where(mask.to(rows.device), values.to(rows), rows)

    def given(self, latent_frames: int) -> tuple[Tensor, Tensor]:
        """What rows hold whatever they sound like: mask and values (channels, 1+k, rows, columns).

        Channels that no code needs tell where a token lies: its latent frame and its place in it.
        The transformer knows distances only, by its rotations; here it finds its bearings.
        """
        first = self.config.components
        tokens = torch.zeros(latent_frames, GROUP, self.config.channels * 4)
        for frame in range(latent_frames):
            tokens[frame, :, first + min(frame, PLACES - 1)] = 2.0
            tokens[frame, :, first + PLACES] = frame / ((PLACES - 1) / 2) - 1
        places = first + PLACES + 1
        tokens[:, :, places : places + GROUP] = 2.0 * torch.eye(GROUP)
        tokens[..., -self.config.channels :] = 1.0
        mask = torch.zeros_like(tokens, dtype=torch.bool)
        mask[..., first:] = True
        return _tokens_to_rows(mask[None])[0], _tokens_to_rows(tokens[None])[0]

    def from_rows(self, rows: Tensor) -> Tensor:
        """Codes (B, 1+4k, components) from latent rows."""
        tokens = rows.unflatten(-1, (GROUP, 2)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return tokens[:, GROUP - 1 :, : self.config.components]


def _tokens_to_rows(tokens: Tensor) -> Tensor:
    """(B, G, GROUP, C * 4), one token a video frame, to patches of latent rows (B, C, G, 2, 8)."""
    return tokens.unflatten(-1, (-1, 2, 2)).permute(0, 3, 1, 4, 2, 5).flatten(4)


# ---- spectrograms --------------------------------------------------------------------------------


def griffin_lim(magnitude: Tensor, config: SoundConfig, length: int, iterations: int) -> Tensor:
    """A waveform (length,) whose spectrogram is close to `magnitude` (bins, columns).

    Fast Griffin-Lim (Perraudin et al., 2013) with momentum 0.99, from fixed phases.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    phase = torch.rand(magnitude.shape, generator=generator).to(magnitude) * 2 * math.pi
    angles, previous = torch.polar(torch.ones_like(magnitude), phase), torch.zeros(())
    for _ in range(iterations):
        rebuilt = _stft(_istft(magnitude * angles, config, length), config)
        angles = rebuilt + 0.99 * (rebuilt - previous)
        angles = angles / angles.abs().clamp(min=1e-9)
        previous = rebuilt
    return _istft(magnitude * angles, config, length).clamp(-1, 1)


def _stft(wave: Tensor, config: SoundConfig) -> Tensor:
    window = torch.hann_window(config.n_fft, device=wave.device)
    return torch.stft(wave, config.n_fft, config.hop, window=window, return_complex=True)


def _istft(spectrum: Tensor, config: SoundConfig, length: int) -> Tensor:
    window = torch.hann_window(config.n_fft, device=spectrum.device)
    return torch.istft(spectrum, config.n_fft, config.hop, window=window, length=length)


def _mel_filters(config: SoundConfig) -> Tensor:
    """Triangular filters (bands, bins), equally wide on the mel scale (O'Shaughnessy, 1987)."""

    def mel(hertz: float) -> float:
        return 2595.0 * math.log10(1.0 + hertz / 700.0)

    top = config.sample_rate / 2
    points = torch.linspace(mel(40.0), mel(top), config.bands + 2)
    edges = 700.0 * (10.0 ** (points / 2595.0) - 1.0)
    bins = torch.linspace(0, top, config.n_fft // 2 + 1)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp(min=0)
