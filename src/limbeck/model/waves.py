"""Sound and noise: how loud one is beside the other."""

from jaxtyping import Float
from torch import Tensor


def noise_scale(sound: Float[Tensor, " instant"], noise: Float[Tensor, " instant"], ratio: float) -> float:
    """What a noise is multiplied by, so that a sound is so many dB above it; 0 beside silence, or of it."""
    of_sound, of_noise = (float(x.double().square().mean()) for x in (sound, noise))
    return (of_sound / (of_noise * 10 ** (ratio / 10))) ** 0.5 if of_noise > 0 else 0.0
