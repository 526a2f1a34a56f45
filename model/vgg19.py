"""VGG-19 up to block5_pool, as Keras has it: the maps behind the visual features of AVE.

Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015.

The weights are Oxford's, in the HDF5 file that Keras published; torchvision's were trained anew and give other maps.
"""
from pathlib import Path

import h5py
import torch
from torch import nn

from data.files import UserError, one_line
from model.weights import WeightsFile, check_digest

WEIGHTS = WeightsFile(
    "Keras' VGG-19 without its top layers", Path("model/vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5"),
    "https://storage.googleapis.com/tensorflow/keras-applications/vgg19/"
    "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5",
    80, "md5", "253f8cb515780f3b799900260a226db6")

BLOCKS = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))      # channels and convolutions; a 2x2 max pool ends each


class VGG19(nn.Module):
    """Pictures [B, 224, 224, 3], RGB in 0..255 of any number type -> maps of block5_pool [B, 7, 7, 512], >= 0.

    Other sizes give maps of a 32nd of them. Computes in the type of the weights.
    """

    def __init__(self):
        super().__init__()
        self.convolutions = nn.ModuleDict()      # by the layer names of Keras
        channels = 3
        for block, (width, number) in enumerate(BLOCKS, start=1):
            for layer in range(1, number + 1):
                self.convolutions[f"block{block}_conv{layer}"] = nn.Conv2d(channels, width, 3, padding=1)
                channels = width
        self.register_buffer("mean", torch.tensor([103.939, 116.779, 123.68], dtype=torch.float64), persistent=False)

    def forward(self, pictures):
        dtype = self.convolutions["block1_conv1"].weight.dtype
        maps = (pictures.flip(-1).to(dtype) - self.mean.to(dtype)).permute(0, 3, 1, 2)      # BGR, not scaled
        for block, (_, number) in enumerate(BLOCKS, start=1):
            for layer in range(1, number + 1):
                maps = self.convolutions[f"block{block}_conv{layer}"](maps).relu_()
            maps = nn.functional.max_pool2d(maps, 2)
        return maps.permute(0, 2, 3, 1)


def load_vgg19(path):
    """VGG19 with the weights of Keras' file; raises UserError where the file is another one."""
    check_digest(path, WEIGHTS)
    network = VGG19()
    read_keras_weights(network, path)
    return network


def read_keras_weights(network, path):
    """Copies kernels [3, 3, in, out] and biases [out] from groups named as the layers; UserError where none fit."""
    try:
        with h5py.File(path, "r") as file, torch.no_grad():
            for name, layer in network.convolutions.items():
                arrays = []
                file[name].visititems(lambda _, item, to=arrays: to.append(item[()]) if isinstance(item, h5py.Dataset)
                                      else None)
                bias, kernel = sorted(map(torch.from_numpy, arrays), key=torch.Tensor.dim)
                layer.weight.copy_(kernel.permute(3, 2, 0, 1))
                layer.bias.copy_(bias)
    except (OSError, KeyError, AttributeError, ValueError, RuntimeError, TypeError) as error:
        raise UserError(f"{path}: does not hold the layers of {WEIGHTS.what} ({one_line(error)}); "
                        f"download it again from {WEIGHTS.source}") from error
