"""The file of Inception's weights: found in the cache folder, downloaded into it, or given; read and told apart by its hash.

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
    """Whether a file of this SHA-256 is the one that FID is defined by."""
    return digest == SHA256


def reference_weights() -> Path:
    """The reference file in the cache folder, downloaded first where it is not there yet (91 MiB).

    Raises:
        UserError: it cannot be downloaded, or what came is another file; nothing is kept then.
    """
    path, url = files.cache_home() / FILE, f"{RELEASE}/{FILE}"
    if path.is_file():
        return path
    instead = f"put {FILE} into {path.parent}, give its path, or use efficientnet-lite0, which comes with pip"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            content = response.read()
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it is the answer too, with a connection
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"Inception's weights cannot be had from {url} ({reason}); {instead}") from error
    digest = hashlib.sha256(content).hexdigest()
    if not is_reference(digest):
        raise UserError(
            f"{url} gave {len(content)} bytes that are not the reference weights (SHA-256 {digest[:8]}, not {SHA256[:8]}); "
            f"{instead}"
        )
    files.write_file(path, content)
    return path


def read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors in a .pth, read without running code, or a .safetensors, and the file's SHA-256.

    Raises:
        UserError: there is no such file, or it cannot be read, or it holds other things than tensors by name.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"no weights at {path}; give a .pth or .safetensors in the layout of {FILE}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); give a .pth or .safetensors") from error
    digest = hashlib.sha256(content).hexdigest()
    if path == files.cache_home() / FILE and not is_reference(digest):
        raise UserError(
            f"{path} is damaged (SHA-256 {digest[:8]}, not {SHA256[:8]}); delete it, and it is fetched anew"
        )
    tensors = load_tensors(path, content)
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise UserError(f"{path} holds other things than tensors by name; it must have the layout of {FILE}")
    return tensors, digest
