"""A counter-based generator of random integers (Philox4x32-10; Salmon et al., SC 2011)."""

from __future__ import annotations

_WORD = 0xFFFFFFFF
_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, ...]:
    """Four 32-bit words that look random and depend on nothing but the 32-bit arguments."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> 32) ^ c1 ^ k0,
            product1 & _WORD,
            (product0 >> 32) ^ c3 ^ k1,
            product0 & _WORD,
        )
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


def check_item(seed: int, index: int) -> None:
    """Refuses what has no random stream of its own.

    Raises:
        ValueError: a seed or an index that is not from 0 to 2**64 - 1.
    """
    for name, value in (("seed", seed), ("index", index)):
        if not 0 <= value < 1 << 64:
            raise ValueError(f"{name} must be from 0 to 2**64 - 1, got {value}")


class Stream:
    """The random integers of item `index` of stream `stream`: a pure function of the arguments.

    Block b of four words is `philox4x32((b, stream, index low, index high), (seed low, seed
    high))`; words are used in order. Only integers are involved, so that any platform and
    language gives the same numbers.

    Args:
        seed, index: from 0 to 2**64 - 1.
        stream: from 0 to 2**32 - 1.

    Raises:
        ValueError: a seed or an index out of range.
    """

    def __init__(self, seed: int, stream: int, index: int) -> None:
        check_item(seed, index)
        self._key = (seed & _WORD, seed >> 32)
        self._item = (stream, index & _WORD, index >> 32)
        self._block = 0
        self._words: list[int] = []

    def below(self, limit: int) -> int:
        """An integer from 0 to limit - 1: the high word of the 64-bit product word * limit.

        The probabilities differ by at most limit / 2**32.
        """
        if not self._words:
            self._words = list(philox4x32((self._block, *self._item), self._key))[::-1]
            self._block += 1
        return (self._words.pop() * limit) >> 32

    def coin(self) -> bool:
        """True or False with equal probability."""
        return self.below(2) == 1

    def chance(self, numerator: int, denominator: int) -> bool:
        """True with probability numerator / denominator."""
        return self.below(denominator) < numerator
