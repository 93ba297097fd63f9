"""Which targets are kept."""


def adopted(target: float, base: float, reference: float, threshold: float) -> bool:
    """Eq. 7: R(a) - R(b) >= threshold * (R(r) - R(b)), for scores R of the three images.

    A target that is not adopted is replaced by the reference.
    """
    return target - base >= threshold * (reference - base)
