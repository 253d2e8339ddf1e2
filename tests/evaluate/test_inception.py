"""FID's Inception-v3 against a float64 network written out by hand, on random weights in the reference's layout."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F

from ditlab.evaluate import inception_weights
from ditlab.evaluate.inception import Inception, InceptionV3, resize
from ditlab.evaluate.inception_weights import FILE, read_weights, reference_weights
from ditlab.evaluate.networks import feature_network
from ditlab.runtime import files

REFERENCE = files.cache_home() / FILE  # asked before any test sets another folder
PICTURES = np.random.default_rng(0).integers(0, 256, (1, 40, 31, 3), np.uint8)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Random tensors under the reference's names, so scaled that every layer's outputs stay near 1."""
    random = torch.Generator().manual_seed(0)
    made = {}
    with torch.device("meta"):
        layout = InceptionV3().state_dict()
    for name, tensor in layout.items():
        shape, end = tensor.shape, name.rpartition(".")[2]
        if tensor.ndim > 1:
            made[name] = torch.randn(shape, generator=random) * (2 / tensor[0].numel()) ** 0.5
        elif end != "num_batches_tracked":
            noise = 0.2 * torch.randn(shape, generator=random)
            made[name] = noise if end in ("bias", "running_mean") else 1 + noise.clamp(-0.5, 0.5)
    return made


@pytest.fixture(scope="module")
def standin(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file of them as old as the reference's: no zip archive, and no count of batches."""
    path = tmp_path_factory.mktemp("weights") / "standin.pth"
    torch.save(weights, path, _use_new_zipfile_serialization=False)
    yield path
    path.unlink()  # 91 MiB


@pytest.fixture(scope="module")
def network(standin: Path) -> Inception:
    return Inception(standin)


class ByHand:
    """The network in float64, every layer written out; remembers which weights it took."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights, self.taken = weights, set()

    def get(self, name: str) -> Tensor:
        self.taken.add(name)
        return self.weights[name].double()

    def conv(self, x: Tensor, name: str, stride: int = 1, padding: tuple[int, int] = (0, 0)) -> Tensor:
        x = F.conv2d(x, self.get(f"{name}.conv.weight"), stride=stride, padding=padding)
        mean, variance, scale, shift = (
            self.get(f"{name}.bn.{part}")[None, :, None, None]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return ((x - mean) / (variance + 0.001).sqrt() * scale + shift).clamp(min=0)

    def average(self, x: Tensor) -> Tensor:
        def sums(y: Tensor) -> Tensor:
            padded = F.pad(y, (1, 1, 1, 1))
            height, width = y.shape[2:]
            return sum(
                (padded[:, :, i : i + height, j : j + width] for i in range(3) for j in range(3)), torch.zeros_like(y)
            )

        return sums(x) / sums(torch.ones_like(x))

    def a(self, x: Tensor, name: str) -> Tensor:
        five = self.conv(self.conv(x, f"{name}.branch5x5_1"), f"{name}.branch5x5_2", padding=(2, 2))
        three = self.conv(self.conv(x, f"{name}.branch3x3dbl_1"), f"{name}.branch3x3dbl_2", padding=(1, 1))
        three = self.conv(three, f"{name}.branch3x3dbl_3", padding=(1, 1))
        pooled = self.conv(self.average(x), f"{name}.branch_pool")
        return torch.cat([self.conv(x, f"{name}.branch1x1"), five, three, pooled], 1)

    def b(self, x: Tensor, name: str) -> Tensor:
        three = self.conv(self.conv(x, f"{name}.branch3x3dbl_1"), f"{name}.branch3x3dbl_2", padding=(1, 1))
        three = self.conv(three, f"{name}.branch3x3dbl_3", 2)
        return torch.cat([self.conv(x, f"{name}.branch3x3", 2), three, F.max_pool2d(x, 3, 2)], 1)

    def c(self, x: Tensor, name: str) -> Tensor:
        wide, tall = (0, 3), (3, 0)
        seven = self.conv(self.conv(x, f"{name}.branch7x7_1"), f"{name}.branch7x7_2", padding=wide)
        seven = self.conv(seven, f"{name}.branch7x7_3", padding=tall)
        double = self.conv(x, f"{name}.branch7x7dbl_1")
        for number, padding in enumerate((tall, wide, tall, wide), start=2):
            double = self.conv(double, f"{name}.branch7x7dbl_{number}", padding=padding)
        pooled = self.conv(self.average(x), f"{name}.branch_pool")
        return torch.cat([self.conv(x, f"{name}.branch1x1"), seven, double, pooled], 1)

    def d(self, x: Tensor, name: str) -> Tensor:
        three = self.conv(self.conv(x, f"{name}.branch3x3_1"), f"{name}.branch3x3_2", 2)
        seven = self.conv(self.conv(x, f"{name}.branch7x7x3_1"), f"{name}.branch7x7x3_2", padding=(0, 3))
        seven = self.conv(self.conv(seven, f"{name}.branch7x7x3_3", padding=(3, 0)), f"{name}.branch7x7x3_4", 2)
        return torch.cat([three, seven, F.max_pool2d(x, 3, 2)], 1)

    def e(self, x: Tensor, name: str, pool: Callable[[Tensor], Tensor]) -> Tensor:
        three = self.conv(x, f"{name}.branch3x3_1")
        double = self.conv(self.conv(x, f"{name}.branch3x3dbl_1"), f"{name}.branch3x3dbl_2", padding=(1, 1))
        parts = [self.conv(x, f"{name}.branch1x1")]
        for y, unit in ((three, "branch3x3_2"), (double, "branch3x3dbl_3")):
            parts += [self.conv(y, f"{name}.{unit}a", padding=(0, 1)), self.conv(y, f"{name}.{unit}b", padding=(1, 0))]
        return torch.cat([*parts, self.conv(pool(x), f"{name}.branch_pool")], 1)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.conv(self.conv(x, "Conv2d_1a_3x3", 2), "Conv2d_2a_3x3")
        x = F.max_pool2d(self.conv(x, "Conv2d_2b_3x3", padding=(1, 1)), 3, 2)
        x = F.max_pool2d(self.conv(self.conv(x, "Conv2d_3b_1x1"), "Conv2d_4a_3x3"), 3, 2)
        x = self.a(self.a(self.a(x, "Mixed_5b"), "Mixed_5c"), "Mixed_5d")
        x = self.c(self.c(self.b(x, "Mixed_6a"), "Mixed_6b"), "Mixed_6c")
        spatial = self.conv(x, "Mixed_6d.branch1x1")[:, :7]  # the graph's mixed_6/conv
        x = self.d(self.c(self.c(x, "Mixed_6d"), "Mixed_6e"), "Mixed_7a")
        x = self.e(x, "Mixed_7b", self.average)
        x = self.e(x, "Mixed_7c", lambda y: F.max_pool2d(y, 3, 1, 1))
        pooled = x.sum((2, 3)) / 64
        return pooled, spatial, pooled @ self.get("fc.weight").T


def resized_by_hand(image: np.ndarray, side: int = 299) -> np.ndarray:
    """TensorFlow 1's ResizeBilinear, pixel by pixel: (H, W, C) to float64 (side, side, C)."""
    height, width = image.shape[:2]

    def place(index: int, length: int) -> tuple[int, int, float]:
        position = np.float32(index) * (np.float32(length) / np.float32(side))
        low = int(position)
        return low, min(low + 1, length - 1), float(position) - low

    result = np.empty((side, side, image.shape[2]))
    pixels = image.astype(np.float64)
    for i in range(side):
        above, below, down = place(i, height)
        for j in range(side):
            left, right, across = place(j, width)
            top = pixels[above, left] + (pixels[above, right] - pixels[above, left]) * across
            bottom = pixels[below, left] + (pixels[below, right] - pixels[below, left]) * across
            result[i, j] = top + (bottom - top) * down
    return result


@pytest.mark.parametrize("shape", [(8, 8), (40, 31), (299, 64), (512, 300)], ids=str)
def test_images_are_resized_as_tensorflow_1_does(shape: tuple[int, int]):
    image = np.random.default_rng(1).integers(0, 256, (*shape, 2), np.uint8)
    found = resize(torch.from_numpy(image).permute(2, 0, 1)[None].float())[0].permute(1, 2, 0)
    np.testing.assert_allclose(found, resized_by_hand(image), atol=2e-4)


def test_an_image_of_299_pixels_is_not_touched():
    image = torch.randint(0, 256, (1, 3, 299, 299), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(resize(image), image)


def is_by_hand(network: Inception, weights: dict[str, Tensor]) -> None:
    """The features of a fixed input are those of the float64 network with the same weights."""
    by_hand = ByHand(weights)
    found = network.extract(PICTURES)
    assert found.spatial is not None
    assert found.probabilities is not None
    with torch.no_grad():
        x = torch.from_numpy(resized_by_hand(PICTURES[0])).permute(2, 0, 1)[None]
        pooled, spatial, logits = by_hand((x - 128) / 128)
    assert found.pooled.std() > 0.1  # a network whose outputs die out would prove nothing
    np.testing.assert_allclose(found.pooled, pooled, rtol=1e-3, atol=1e-4)
    maps = found.spatial.reshape(1, 17, 17, 7).transpose(
        0, 3, 1, 2
    )  # as ADM's evaluator flattens: row, column, channel
    np.testing.assert_allclose(maps, spatial, rtol=1e-3, atol=1e-3)
    exponentials = np.exp(logits.numpy() - logits.numpy().max())
    np.testing.assert_allclose(found.probabilities, exponentials / exponentials.sum(), rtol=5e-3, atol=1e-7)
    assert set(weights) - by_hand.taken == {"fc.bias"}  # the Inception score is computed without it


def test_the_network_is_the_one_written_out_by_hand(network: Inception, weights: dict[str, Tensor]):
    is_by_hand(network, weights)


@pytest.mark.skipif(not REFERENCE.exists(), reason="the reference weights are not in the cache folder")
def test_with_the_reference_weights_it_is_too():
    is_by_hand(Inception(REFERENCE), read_weights(REFERENCE)[0])


def test_features_have_the_widths_of_the_field(network: Inception):
    found = network.extract(np.concatenate([PICTURES, PICTURES[:, ::-1]])[..., :1])
    assert found.spatial is not None
    assert found.probabilities is not None
    assert [part.shape for part in (found.pooled, found.spatial, found.probabilities)] == [
        (2, 2048),
        (2, 2023),
        (2, 1008),
    ]
    assert {part.dtype for part in (found.pooled, found.spatial, found.probabilities)} == {np.dtype(np.float32)}
    np.testing.assert_allclose(found.probabilities.sum(1), 1, rtol=1e-5)
    assert (network.name, network.width, network.side) == ("inception", 2048, 299)


def test_layers_have_the_published_shapes_and_number_of_parameters():
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda _layer, _inputs, output: shapes.update({name: tuple(output.shape[1:])})

    with torch.device("meta"):
        network = InceptionV3().eval()
        for name, layer in network.named_children():
            layer.register_forward_hook(note(name))
        network(torch.empty(1, 3, 299, 299))
    expected = {
        "Conv2d_1a_3x3": (32, 149), "Conv2d_2a_3x3": (32, 147), "Conv2d_2b_3x3": (64, 147), "Conv2d_3b_1x1": (80, 73),
        "Conv2d_4a_3x3": (192, 71), "Mixed_5b": (256, 35), "Mixed_5c": (288, 35), "Mixed_5d": (288, 35),
        "Mixed_6a": (768, 17), "Mixed_6b": (768, 17), "Mixed_6c": (768, 17), "Mixed_6d": (768, 17), "Mixed_6e": (768, 17),
        "Mixed_7a": (1280, 8), "Mixed_7b": (2048, 8), "Mixed_7c": (2048, 8),
    }  # fmt: skip
    assert shapes == {name: (width, side, side) for name, (width, side) in expected.items()}
    # torchvision's inception_v3 without its auxiliary classifier has 23,834,568 with 1,000 classes; here they are 1,008.
    assert sum(parameter.numel() for parameter in network.parameters()) == 23_834_568 + 8 * (2048 + 1)
    assert sum(name.endswith("conv.weight") for name in network.state_dict()) == 94


def test_only_the_reference_file_gives_a_distance_called_fid(
    network: Inception, standin: Path, monkeypatch: pytest.MonkeyPatch
):
    digest = hashlib.sha256(standin.read_bytes()).hexdigest()
    assert network.distance == f"FD-Inception({digest[:8]})"
    monkeypatch.setattr(inception_weights, "SHA256", digest)
    assert feature_network("inception", (8, 8), weights=str(standin)).distance == "FID"


def test_the_reference_is_the_file_that_its_name_says():
    assert inception_weights.SHA256[:8] in FILE


def test_weights_in_safetensors_with_counts_of_batches_give_the_same_features(
    network: Inception, weights: dict[str, Tensor], tmp_path: Path
):
    counts = {
        name.replace("running_mean", "num_batches_tracked"): torch.tensor(7) for name in weights if "_mean" in name
    }
    path = tmp_path / "standin.safetensors"
    safetensors.torch.save_file(weights | counts, path)
    other = Inception(path)
    path.unlink()
    assert other.distance.startswith("FD-Inception(")
    assert other.distance != network.distance
    assert np.array_equal(other.extract(PICTURES).pooled, network.extract(PICTURES).pooled)


def test_loading_draws_no_random_numbers(standin: Path):
    state = torch.get_rng_state()
    assert not any(parameter.requires_grad for parameter in Inception(standin).parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_of_another_layout_are_refused_by_the_first_difference(
    weights: dict[str, Tensor], tmp_path: Path, refuses: Callable[..., str]
):
    bias = weights["fc.bias"]
    for change, words in (
        ({"fc.bias": bias[:1000]}, ("'fc.bias'", "(1000,)", "(1008,)")),
        ({"AuxLogits.fc.bias": bias}, ("unknown", "'AuxLogits.fc.bias'")),
    ):
        path = tmp_path / "other.safetensors"
        safetensors.torch.save_file(weights | {k: v.clone() for k, v in change.items()}, path)
        refuses(lambda: Inception(path), str(path), *words)  # noqa: B023 - called at once
        path.unlink()
    torch.save({"fc.bias": bias}, tmp_path / "small.pth")
    refuses(lambda: Inception(tmp_path / "small.pth"), "small.pth", "lacks", "Conv2d_1a_3x3")


def test_files_that_hold_no_weights_are_refused_in_one_line(tmp_path: Path, refuses: Callable[..., str]):
    torch.save({"a": torch.zeros(1000)}, tmp_path / "whole.pth")
    torch.save({"a": torch.zeros(1000)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file({"a": torch.zeros(1000)}, tmp_path / "whole.safetensors")
    for name in ("whole.pth", "old.pth", "whole.safetensors"):
        cut = tmp_path / f"cut-{name}"
        cut.write_bytes((tmp_path / name).read_bytes()[:-500])
        refuses(lambda: read_weights(cut), cut.name, "cut off")  # noqa: B023 - called at once
    for name, content in (
        ("empty.pth", b""),
        ("page.pth", b"<!DOCTYPE html>"),
        ("page.safetensors", b"<!DOCTYPE html>"),
    ):
        (tmp_path / name).write_bytes(content)
        refuses(lambda: read_weights(tmp_path / name), name)  # noqa: B023 - called at once
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    refuses(lambda: read_weights(tmp_path / "list.pth"), "list.pth", "tensors by name")
    torch.save({"network": torch.nn.Linear(1, 1)}, tmp_path / "code.pth")
    refuses(lambda: read_weights(tmp_path / "code.pth"), "code.pth", "code or objects")
    refuses(lambda: Inception(tmp_path / "none.pth"), "no weights at", "none.pth", ".safetensors")
    refuses(lambda: read_weights(tmp_path), str(tmp_path), "cannot be read")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the reference file would be kept; the folder is not there yet. Servers on this machine are asked directly."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "cache" / "ditlab" / FILE


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the release's page."""
    (tmp_path / "release").mkdir()
    monkeypatch.setattr(inception_weights, "RELEASE", (tmp_path / "release").as_uri())
    return tmp_path / "release"


def test_the_reference_is_downloaded_once_into_the_cache(
    cache: Path, release: Path, standin: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(inception_weights, "SHA256", hashlib.sha256(standin.read_bytes()).hexdigest())
    (release / FILE).symlink_to(standin)
    assert feature_network("inception", (8, 8)).distance == "FID"
    (release / FILE).unlink()
    assert feature_network("inception", (8, 8)).distance == "FID"
    assert list(cache.parent.iterdir()) == [cache]
    cache.unlink()


def test_the_cache_is_in_the_home_folder_unless_said_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.cache_home() == tmp_path / ".cache" / "ditlab"


def test_another_file_than_the_reference_is_not_kept(cache: Path, release: Path, refuses: Callable[..., str]):
    (release / FILE).write_bytes(b"something else")
    digest = hashlib.sha256(b"something else").hexdigest()
    refuses(reference_weights, "14 bytes", digest[:8], "6726825d", str(cache.parent), "efficientnet-lite0")
    assert not cache.parent.exists()


def test_a_damaged_file_in_the_cache_is_named(cache: Path, refuses: Callable[..., str]):
    cache.parent.mkdir(parents=True)
    cache.write_bytes(b"half of it")
    refuses(lambda: feature_network("inception", (8, 8)), str(cache), "damaged", "delete it")


def test_no_network_is_said_in_one_line_with_the_ways_out(
    cache: Path, monkeypatch: pytest.MonkeyPatch, refuses: Callable[..., str]
):
    ways = (FILE, str(cache.parent), "give its path", "efficientnet-lite0")
    monkeypatch.setattr(inception_weights, "RELEASE", "http://127.0.0.1:9")  # nobody listens
    refuses(lambda: feature_network("inception", (8, 8)), "http://127.0.0.1:9", "refused", *ways)
    monkeypatch.setattr(inception_weights, "RELEASE", (cache.parent / "nowhere").as_uri())
    refuses(reference_weights, "nowhere", *ways)
    assert not cache.parent.exists()


def test_a_download_that_breaks_off_leaves_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch, refuses: Callable[..., str]
):
    class Hasty(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == f"/short/{FILE}" else 404)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"half of it")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the parent's name
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Hasty) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            for place, words in (("short", ("10 bytes read",)), ("gone", ("404",))):
                monkeypatch.setattr(inception_weights, "RELEASE", f"http://127.0.0.1:{server.server_port}/{place}")
                refuses(reference_weights, place, *words)
        finally:
            server.shutdown()
            thread.join()
    assert not cache.parent.exists()
