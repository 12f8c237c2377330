"""From a payload of 32 bits to the bits of a channel and back: a checksum and error correction.

A CRC of 16 bits is appended; all 48 go through a convolutional code of rate 1/2 that bites its tail
(constraint length 7, generators 133 and 171 in octal, free distance 10), which leaves 96. Decoding
is Viterbi's on soft values: the numbers a detector measured, positive for a one.
"""

from __future__ import annotations

import binascii
import hashlib
import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from ..errors import UsageError
from .payload import PAYLOAD_BITS

CHECK_BITS = 16
MESSAGE_BITS = PAYLOAD_BITS + CHECK_BITS
GENERATORS = 0o133, 0o171
CHANNEL_BITS = MESSAGE_BITS * len(GENERATORS)
MEMORY = 6  # bits that a state holds
STATES = 1 << MEMORY

# A normal tail over the scores of code words decoded from noise: its median, and a spread that the
# quantiles from 0.9 up stay within (0.026 at 0.9, 0.022 at 0.99 and 0.999).
CHANCE_MEAN, CHANCE_SPREAD = 0.667, 0.0265


@dataclass(frozen=True)
class Found:
    """A mark that was read.

    score: agreement, from 0 to 1, of the soft values with the code word; bit_confidence: part of
    the channel's bits that were right before correction; chance: probability that something
    without a mark answers with a score so high and a checksum that fits.
    """

    payload: int
    score: float
    bit_confidence: float
    chance: float


def encode(payload: int) -> np.ndarray:
    """The channel's bits of a payload, int8 (96,) of 0 and 1."""
    if not 0 <= payload < 1 << PAYLOAD_BITS:
        raise UsageError(f"payload is {payload}; a mark carries {PAYLOAD_BITS} bits")
    return _convolve(_message(payload))


def decode(soft: np.ndarray) -> tuple[int | None, float, float]:
    """(payload or None, score, part of bits that were right) of soft values (96,).

    None where the checksum does not fit.
    """
    message = _viterbi(soft)
    word = _convolve(message)
    signs = 2.0 * word - 1
    norm = math.sqrt(CHANNEL_BITS) * float(np.linalg.norm(soft)) or 1.0
    score, right = float(signs @ soft) / norm, float(np.mean((soft > 0) == word))
    number = int("".join(map(str, message)), 2)
    payload = number >> CHECK_BITS
    fits = np.array_equal(_message(payload), message)
    return (payload if fits else None), score, right


def probability_of_chance(score: float, attempts: int = 1) -> float:
    """Of a code word found in noise `attempts` times: the score's fitted tail, and the checksum."""
    tail = 0.5 * math.erfc((score - CHANCE_MEAN) / CHANCE_SPREAD / math.sqrt(2))
    return min(1.0, attempts * tail * 2.0**-CHECK_BITS)


def stream(key: bytes, label: str, count: int) -> np.ndarray:
    """`count` random uint64 that follow from a key: SHAKE-256, the same wherever it runs."""
    source = hashlib.shake_256(label.encode() + b"\0" + key)
    return np.frombuffer(source.digest(8 * count), "<u8")


def _message(payload: int) -> np.ndarray:
    check = binascii.crc_hqx(payload.to_bytes(PAYLOAD_BITS // 8, "big"), 0xFFFF)
    number = payload << CHECK_BITS | check
    return np.array([number >> i & 1 for i in reversed(range(MESSAGE_BITS))], np.int8)


def _convolve(message: np.ndarray) -> np.ndarray:
    """Sums modulo 2 of each bit and the six before it, around the end."""
    before = np.stack([np.roll(message, i) for i in range(MEMORY + 1)])
    taps = np.array([[g >> MEMORY - i & 1 for i in range(MEMORY + 1)] for g in GENERATORS])
    return (taps @ before % 2).T.reshape(-1).astype(np.int8)


@cache
def _trellis() -> tuple[np.ndarray, np.ndarray]:
    """For each state, newest bit on top: its two predecessors, and the signs sent from each."""
    state = np.arange(STATES)
    older = np.stack([(state << 1 & STATES - 1) | lost for lost in (0, 1)], axis=1)
    register = (state >> MEMORY - 1 << MEMORY)[:, None] | older
    sent = [
        [[(r & g).bit_count() & 1 for g in GENERATORS] for r in row] for row in register.tolist()
    ]
    return older, 2.0 * np.array(sent) - 1


def _viterbi(soft: np.ndarray) -> np.ndarray:
    """The most likely message; three turns around, of which the middle one counts."""
    older, signs = _trellis()
    pairs = np.tile(np.asarray(soft, float).reshape(MESSAGE_BITS, 2), (3, 1))
    gains = pairs @ signs.reshape(-1, 2).T
    metric, came = np.zeros(STATES), np.empty((len(pairs), STATES), int)
    for i, gain in enumerate(gains.reshape(-1, STATES, 2)):
        both = metric[older] + gain
        best = both.argmax(axis=1)
        came[i] = older[np.arange(STATES), best]
        metric = both.max(axis=1)
    state, bits = int(metric.argmax()), np.empty(len(pairs), np.int8)
    for i in reversed(range(len(pairs))):
        bits[i], state = state >> MEMORY - 1, came[i, state]
    return bits[MESSAGE_BITS : 2 * MESSAGE_BITS]
