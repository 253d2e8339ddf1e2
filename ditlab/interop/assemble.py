"""Put an imported network, its process and its autoencoder together to a model."""

from __future__ import annotations

from collections.abc import Sequence

from ditlab.encoders import Autoencoder, TextEncoder, load_pretrained
from ditlab.errors import UserError
from ditlab.interop.official import Imported
from ditlab.models import Network
from ditlab.pipelines import Pipeline, SampleConfig

PIXELS = "pixels"  # in place of a VAE: the network denoises pixels in [-1, 1]


def load_vae(network: Network, vae: str, subfolder: str = "") -> Autoencoder:
    """The autoencoder of a network's latents: a folder or hub id of a VAE, or ``pixels`` for none.

    UserError: it cannot be read, or has another number of latent channels than the network.
    """
    channels = network.spec.latent.channels
    autoencoder = Autoencoder(channels, channels, 1) if vae == PIXELS else load_pretrained(vae, subfolder)
    if autoencoder.latent_channels != channels:
        hint = "; give --vae, or --vae pixels for a network of pixels" if channels <= 4 else "; give --vae"
        raise UserError(f"{vae} has {autoencoder.latent_channels} latent channels, the checkpoint {channels}{hint}")
    return autoencoder.eval()


def assemble(
    found: Imported, autoencoder: Autoencoder, names: Sequence[str], defaults: SampleConfig, source: str,
    text: TextEncoder | None = None,
) -> Pipeline:  # fmt: skip
    """A model; without ``names`` classes are named by their numbers."""
    labels = names or [str(label) for label in range(found.network.spec.classes)]
    return Pipeline(found.network, found.diffusion, autoencoder, labels, defaults, {"imported": source}, text=text)
