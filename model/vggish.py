"""VGGish (Hershey et al., ICASSP 2017), the network behind the audio features of AVE; named as in torchvggish.

The embedding of AVE is the last dense layer's output after its ReLU: no PCA and no quantisation.
"""
import pickle
from pathlib import Path

import torch
from torch import nn

from data.files import UserError, one_line
from model.weights import WeightsFile, check_digest

WEIGHTS = WeightsFile(
    "torchvggish's state dict", Path("model/vggish-10086976.pth"),
    "https://github.com/harritaylor/torchvggish/releases/download/v0.1/vggish-10086976.pth", 289, "sha256", "10086976")


class VGGish(nn.Module):
    """Log mel examples [B, 96, 64] -> embeddings [B, 128], >= 0. Computes in the type of the weights."""

    def __init__(self):
        super().__init__()
        layers, channels = [], 1
        for width, number in ((64, 1), (128, 1), (256, 2), (512, 2)):
            for _ in range(number):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.embeddings = nn.Sequential(nn.Linear(6 * 4 * 512, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(),
                                        nn.Linear(4096, 128), nn.ReLU())

    def forward(self, examples):
        maps = self.features(examples.to(self.features[0].weight.dtype).unsqueeze(1))
        return self.embeddings(maps.permute(0, 2, 3, 1).flatten(1))      # in the order height, width, channels


def load_vggish(path):
    """VGGish with torchvggish's weights; raises UserError where the file is another one."""
    check_digest(path, WEIGHTS)
    network = VGGish()
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (pickle.UnpicklingError, RuntimeError, TypeError, AttributeError, EOFError) as error:
        raise UserError(f"{path}: does not hold {WEIGHTS.what} ({one_line(error)}); "
                        f"download it again from {WEIGHTS.source}") from error
    return network
