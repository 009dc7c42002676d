"""What a preset runs by default. A leaf: settings describe their plans without loading reports or statistics."""

from dataclasses import dataclass

REFERENCE_GFLOPS = 74.0  # float32 matrix products of two AVX2 cores: the machine of `Plan.reference_s`
BF16_GAIN = 2.0  # how much faster whole steps are at most in native bfloat16 (2.3 for coarse-to-fine's: bench.csv)


@dataclass(frozen=True)
class Plan:
    """What a preset runs by default: the first data set of `data` that is here, its rows, its seeds.

    "a+b" needs both sets. `reference_s`: seconds of all rows and seeds in float32 on the machine of REFERENCE_GFLOPS,
    installation and data aside (0: not known, then `takes` says what is).
    """

    data: tuple[str, ...]
    rows: tuple[str, ...]
    seeds: tuple[int, ...]
    takes: str = ""  # expected time in words, for the user
    needs_gpu: bool = False
    reference_s: float = 0.0

    def seconds(self, fp32: float, bf16: float = 0.0) -> float:
        """Expected seconds where matrix products run at these GFLOP/s; bf16 = 0: it is not used."""
        gain = min(max(1.0, bf16 / fp32), BF16_GAIN)
        return self.reference_s * REFERENCE_GFLOPS / (fp32 * gain)


def duration(seconds: float) -> str:
    """`50 seconds`, `3 minutes`, `2.5 hours`."""
    if seconds < 90:
        return f"{max(10, round(seconds, -1)):.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
