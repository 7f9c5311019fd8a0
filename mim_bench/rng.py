"""Random numbers as a function of (seed, epoch, sample index), and of nothing else.

A counter-based generator: splitmix64's finaliser (Steele, Lea, Flood, OOPSLA 2014) over an integer
key. It runs on int64 tensors, whose arithmetic is exact, so the same draws come out on every device,
in any batch order, for any number of workers or ranks; nothing has to be saved to resume.

Legend: B samples, K draws a sample.
"""

import zlib

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def _signed(value: int) -> int:
    """The int64 with the same 64 bits."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _mix_int(x: int) -> int:
    x &= _MASK
    x = ((x ^ (x >> 30)) * _MULTIPLIERS[0]) & _MASK
    x = ((x ^ (x >> 27)) * _MULTIPLIERS[1]) & _MASK
    return x ^ (x >> 31)


def _mix(x: Tensor) -> Tensor:
    """`_mix_int` for an int64 tensor; `>>` is arithmetic there, so the sign bits are masked off."""

    def shift(value: Tensor, bits: int) -> Tensor:
        return (value >> bits) & ((1 << (64 - bits)) - 1)

    x = (x ^ shift(x, 30)) * _signed(_MULTIPLIERS[0])
    x = (x ^ shift(x, 27)) * _signed(_MULTIPLIERS[1])
    return x ^ shift(x, 31)


def key(seed: int, epoch: int, stream: str) -> int:
    """64 bits for one use (`stream`: "crop", "mask", ...) of one epoch of one seed."""
    state = _mix_int(seed + _GOLDEN)
    state = _mix_int(state ^ (epoch + _GOLDEN))
    return _mix_int(state ^ (zlib.crc32(stream.encode()) + _GOLDEN))


def _words(index: Tensor, num: int, *, seed: int, epoch: int, stream: str) -> Tensor:
    """(B,) sample indices -> (B, K) int64, 64 random bits each."""
    if index.dtype != torch.int64:
        raise TypeError(f"sample indices are int64, not {index.dtype}")
    sample = _mix(index + _signed(key(seed, epoch, stream)))
    counter = torch.arange(1, num + 1, device=index.device) * _signed(_GOLDEN)
    return _mix(sample[:, None] + counter)


def uniform(index: Tensor, num: int, *, seed: int, epoch: int, stream: str) -> Tensor:
    """(B,) sample indices -> (B, K) float32 in [0, 1), multiples of 2^-24, exact on every device."""
    words = _words(index, num, seed=seed, epoch=epoch, stream=stream)
    return ((words >> 40) & ((1 << 24) - 1)).float() * 2.0**-24


def permutation(num: int, *, seed: int, epoch: int, stream: str = "order") -> Tensor:
    """(num,) int64: 0..num-1 in the epoch's order."""
    words = _words(torch.arange(num), 1, seed=seed, epoch=epoch, stream=stream)
    return torch.argsort(words[:, 0], stable=True)


def integer(*, seed: int, epoch: int = 0, stream: str, index: int = 0) -> int:
    """A seed in [0, 2^32) for a library that keeps its own generator (torch, numpy, random)."""
    return _mix_int(key(seed, epoch, stream) + index * _GOLDEN) >> 32
