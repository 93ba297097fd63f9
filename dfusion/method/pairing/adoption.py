"""Which targets are kept."""


def adopted(target: float, base: float, reference: float, threshold: float) -> bool:
    """Eq. 7: R(a) - R(b) >= threshold * (R(r) - R(b)), for scores R of the three images.

    If the reference is worse than its base (see both_ways.py), the target is the worse image too,
    and both sides change their sign: it has to lose as much. A target that is not adopted is
    replaced by the reference.
    """
    sign = -1 if reference < base else 1
    return sign * (target - base) >= threshold * sign * (reference - base)
