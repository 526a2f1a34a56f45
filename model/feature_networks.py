"""The networks behind the features of AVE: VGG-19 for pictures, VGGish for sounds, and their published weight files.

VGG-19 (Simonyan and Zisserman, ICLR 2015) has Oxford's weights, in the HDF5 file that Keras published; torchvision's
were trained differently and give other maps. VGGish (Hershey et al., ICASSP 2017) has the weights of torchvggish. Both
compute in the type of their weights.
"""
import hashlib
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import torch
from torch import nn

from utils import UserError


class WeightsFile(NamedTuple):
    what: str          # description for messages
    default: Path      # where it is looked for
    algorithm: str     # of the digest
    digest: str        # hexadecimal; its first digits if no more are published


VGG19_WEIGHTS = WeightsFile(
    "Keras' VGG-19 without its top layers", Path("model/vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5"),
    "md5", "253f8cb515780f3b799900260a226db6")
VGGISH_WEIGHTS = WeightsFile("torchvggish's state dict", Path("model/vggish-10086976.pth"), "sha256", "10086976")

# Width and number of the convolutions in each block.
VGG19_BLOCKS = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))
VGGISH_BLOCKS = ((64, 1), (128, 1), (256, 2), (512, 2))


def convolutions(channels, blocks):
    """3x3 convolutions with ReLU; a 2x2 max pool ends each block."""
    layers = []
    for width, number in blocks:
        for _ in range(number):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


class VGG19(nn.Module):
    """Pictures [B, 224, 224, 3], RGB in 0..255 of any number type -> maps of block5_pool [B, 7, 7, 512], >= 0."""

    def __init__(self):
        super().__init__()
        self.features = convolutions(3, VGG19_BLOCKS)
        self.register_buffer("mean", torch.tensor([103.939, 116.779, 123.68]), persistent=False)

    def forward(self, pictures):
        bgr = pictures.flip(-1).to(self.mean.dtype) - self.mean      # not scaled
        return self.features(bgr.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class VGGish(nn.Module):
    """Log mel patches [B, 96, 64] -> embeddings [B, 128], >= 0, without PCA. Layers are named as in torchvggish."""

    def __init__(self):
        super().__init__()
        self.features = convolutions(1, VGGISH_BLOCKS)
        self.embeddings = nn.Sequential(nn.Linear(6 * 4 * 512, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(),
                                        nn.Linear(4096, 128), nn.ReLU())

    def forward(self, patches):
        maps = self.features(patches.to(self.features[0].weight.dtype).unsqueeze(1))
        return self.embeddings(maps.permute(0, 2, 3, 1).flatten(1))      # in the order height, width, channels


# ------------------------------------------- what VGGish hears (its front end, Hershey et al., ICASSP 2017)

RATE = 16000              # samples a second that the network knows
WINDOW, HOP, FFT = 400, 160, 512
BANDS, LOWEST, HIGHEST = 64, 125, 7500      # mel bands, and their range in Hz
SPECTRA = 96              # of a patch
OFFSET = 0.01             # keeps the logarithm finite


def log_mel(wave):
    """float64 [n >= 400] at 16 kHz -> log mel spectra [spectra, 64], one every 10 ms, no padding."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)      # periodic Hann
    blocks = np.lib.stride_tricks.sliding_window_view(wave, WINDOW)[::HOP]
    return np.log(np.abs(np.fft.rfft(blocks * window, FFT)) @ mel_matrix() + OFFSET)


def mel_matrix():
    """Weights [257, 64] of the magnitudes in each band: triangles on the mel scale; bin 0 counts nowhere."""
    def mel(hertz):
        return 1127 * np.log1p(np.asarray(hertz) / 700)

    edges = np.linspace(mel(LOWEST), mel(HIGHEST), BANDS + 2)
    bins = mel(np.arange(FFT // 2 + 1) * RATE / FFT)[:, np.newaxis]
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    weights = np.maximum(0, np.minimum((bins - lower) / (centre - lower), (upper - bins) / (upper - centre)))
    weights[0] = 0
    return weights


# ------------------------------------------------------------------------------------------- weights

def random_networks():
    """(VGG19, VGGish) with random weights, always the same, that keep the size of what passes through."""
    generator = torch.Generator().manual_seed(0)
    networks = VGG19(), VGGish()
    for parameter in nn.ModuleList(networks).parameters():
        if parameter.dim() > 1:
            nn.init.kaiming_normal_(parameter, nonlinearity="relu", generator=generator)
        else:
            nn.init.zeros_(parameter)
    return networks


def load_vgg19(path):
    """VGG19 with the weights of Keras' file. Raises UserError if it is missing or another file."""
    check_digest(path, VGG19_WEIGHTS)
    network = VGG19()
    layers = [layer for layer in network.features if isinstance(layer, nn.Conv2d)]
    arrays = []      # of all layers by name, which is their order: block1_conv1, block1_conv2, ...
    with h5py.File(path, "r", locking=False) as file:
        file.visititems(lambda _, item: arrays.append(item[()]) if isinstance(item, h5py.Dataset) else None)
    kernels = [array for array in arrays if array.ndim == 4]
    biases = [array for array in arrays if array.ndim == 1]
    with torch.no_grad():
        for layer, kernel, bias in zip(layers, kernels, biases, strict=True):
            layer.weight.copy_(torch.from_numpy(kernel).permute(3, 2, 0, 1))
            layer.bias.copy_(torch.from_numpy(bias))
    return network


def load_vggish(path):
    """VGGish with torchvggish's weights. Raises UserError if it is missing or another file."""
    check_digest(path, VGGISH_WEIGHTS)
    network = VGGish()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network


def check_digest(path, file):
    """Raises UserError unless the content of `path` has the digest of the published file."""
    if not path.is_file():
        raise UserError(f"{path}: not found; data/README.md says where to download {file.what}; to try it without: "
                        "--random_weights (the features mean nothing)")
    with open(path, "rb") as content:
        digest = hashlib.file_digest(content, lambda: hashlib.new(file.algorithm, usedforsecurity=False)).hexdigest()
    if not digest.startswith(file.digest):
        raise UserError(f"{path}: is not {file.what} (by its {file.algorithm}); download it as in data/README.md")
