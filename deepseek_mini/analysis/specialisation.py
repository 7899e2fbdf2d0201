"""Specialisation by data domain: which expert takes whose text, and what chance alone would show.

Legend: D documents, L layers with experts, E experts, K domains.
"""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np

MOST_DOMAINS = 12
LEAST_SHARE = 0.005
"""Of the tokens; smaller domains are one together."""
SHUFFLES = 200
TOP, REST = "(top level)", "(other folders)"


@dataclass
class Specialisation:
    """Choices by domain, and the information in them beside that of shuffled documents."""

    domains: list[str]
    counts_KLE: np.ndarray
    information_L: np.ndarray
    """Bits that a token's expert tells of its domain, less the bias of the sample."""
    shuffled_L: np.ndarray
    """The same where documents have changed domains at random: mean over shuffles."""
    shuffled_high_L: np.ndarray
    """Above 95% of the shuffles."""

    @property
    def shown_L(self) -> np.ndarray:
        return self.information_L > self.shuffled_high_L


def specialise(names: list[str], documents_DLE: np.ndarray) -> Specialisation | None:
    """Specialisation by domain; None where there are fewer than two domains, or no more than documents.

    Tokens of one document resemble each other whatever its domain. The shuffles leave documents whole, so
    what exceeds them is what a domain's documents share. Domains too small to show are left out.
    """
    tokens_D = documents_DLE.sum((1, 2))
    domains_D = domains_of(names, tokens_D.tolist())
    rest_D = np.array([name == REST for name in domains_D])
    if rest_D.any() and tokens_D[rest_D].sum() < LEAST_SHARE * tokens_D.sum():
        names = [name for name, left_out in zip(names, rest_D, strict=True) if not left_out]
        return specialise(names, documents_DLE[~rest_D])
    domains = sorted(set(domains_D), key=lambda name: -tokens_D[[d == name for d in domains_D]].sum())
    if not 2 <= len(domains) < len(names):
        return None
    member_DK = np.array([[name == domain for domain in domains] for name in domains_D], dtype=float)
    generator = np.random.default_rng(0)
    shuffled = [
        information(_by_domain(generator.permutation(member_DK), documents_DLE)) for _ in range(SHUFFLES)
    ]
    counts_KLE = _by_domain(member_DK, documents_DLE)
    return Specialisation(
        domains,
        counts_KLE,
        information(counts_KLE),
        np.mean(shuffled, axis=0),
        np.quantile(shuffled, 0.95, axis=0),
    )


def domains_of(names: list[str], tokens_D: list[float]) -> list[str]:
    """The domain of each document: the first folder of its path below what all paths share.

    Files outside of folders are domains of their own if they are few, else one together.
    """
    shared = os.path.commonpath([PurePath(name).parent for name in names]) if names else ""
    paths = [list(PurePath(os.path.relpath(name, shared) if shared else name).parts) for name in names]
    flat = len(paths) <= MOST_DOMAINS and all(len(parts) == 1 for parts in paths)
    domains = [parts[0] if len(parts) > 1 or flat else TOP for parts in paths]
    sizes: Counter[str] = Counter()
    for domain, tokens in zip(domains, tokens_D, strict=True):
        sizes[domain] += int(tokens)
    room = MOST_DOMAINS if len(sizes) <= MOST_DOMAINS else MOST_DOMAINS - 1
    large = sizes.most_common(room)
    kept = {domain for domain, tokens in large if tokens >= LEAST_SHARE * sizes.total()}
    return [domain if domain in kept else REST for domain in domains]


def information(counts_KLE: np.ndarray) -> np.ndarray:
    """Bits that a token's expert tells of its class, `[L]`: mutual information, less the bias of the sample.

    The bias is that of Miller and Madow: (classes - 1)(experts - 1) / 2N nats.
    """
    counts_LEK = counts_KLE.transpose(1, 2, 0).astype(float)
    total_L = counts_LEK.sum((1, 2))
    joint = counts_LEK / total_L[:, None, None]
    product = joint.sum(1, keepdims=True) * joint.sum(2, keepdims=True)
    ratio = np.divide(joint, product, where=joint > 0, out=np.ones_like(joint))
    classes, experts = (counts_LEK.sum(axis) > 0 for axis in (1, 2))
    surplus_L = (classes.sum(1) - 1) * (experts.sum(1) - 1) / (2 * total_L * np.log(2))
    return np.maximum((joint * np.log2(ratio)).sum((1, 2)) - surplus_L, 0.0)


def lift(counts_KLE: np.ndarray) -> np.ndarray:
    """Share of a class among an expert's tokens over that among its layer's, `[L, E, K]`: 1 is even."""
    counts_LEK = counts_KLE.transpose(1, 2, 0).astype(float)
    share_L1K = counts_LEK.sum(1, keepdims=True) / counts_LEK.sum((1, 2), keepdims=True)
    own_LEK = counts_LEK / np.maximum(counts_LEK.sum(2, keepdims=True), 1)
    return np.divide(own_LEK, share_L1K, where=share_L1K > 0, out=np.ones_like(own_LEK))


def _by_domain(member_DK: np.ndarray, documents_DLE: np.ndarray) -> np.ndarray:
    return np.einsum("dk,dle->kle", member_DK, documents_DLE)
