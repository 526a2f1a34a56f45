"""Checkpoints: tensors and plain values from which a network is rebuilt.

A checkpoint is a dict: setting ('fully' or 'weakly'), model_name, network_args (the arguments of the network's class),
weights, and the header and scores of the run that made it, see model/run.py.
"""
import io
import math
import pickle
from pathlib import Path

import numpy as np
import torch

from model.class_names import AVE_CLASSES
from model.released_checkpoint import (
    DOWNLOAD, NOT_OURS, find_weights, read_bytes, read_released, released_weights)
from psp_model import PUBLISHED
from utils import UserError, one_line, write_atomically


def save_tensors(path, content):
    """Writes tensors and plain values. Raises ValueError for anything else, which could not be read again."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    try:
        torch.load(io.BytesIO(buffer.getbuffer()), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path}: only tensors and plain values can be saved: {error}") from error
    write_atomically(path, buffer.getbuffer())


def save_checkpoint(path, network, header, record):
    """Writes a checkpoint, with the weights as CPU tensors; header: of its run, record: the log line of its epoch."""
    weights = {name: weight.cpu() for name, weight in network.state_dict().items()}
    save_tensors(path, {**header, **record, "weights": weights})


def read_content(path, remedy=DOWNLOAD):
    """What torch.save wrote to `path`: tensors on the CPU and plain values; of the authors' files, {name: tensor}.

    remedy: what to do about a broken file. Runs nothing that the file names. Raises UserError for a file that is
    broken or refused.
    """
    data = read_bytes(path, remedy)
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception:      # one of the authors' files, or a broken one
        return read_released(path, data, remedy)


def load_checkpoint(path, setting=None):
    """The checkpoint at `path`; the authors' checkpoints and bare state dicts are made into one.

    setting: 'fully' or 'weakly', if it must be that. Raises UserError, as `read_content` and for other content.
    """
    path = Path(path)
    content = read_content(path)
    entries = content.keys() if isinstance(content, dict) else set()
    weights = find_weights(content)
    if weights is not None:
        content = _checkpoint_from(weights, path)
    elif {"optimizer", "weights"} <= entries:
        raise UserError(f"{path}: is the state of a run, for --resume; its checkpoint is "
                        f"{path.name.replace('_state', '')}")
    elif not {"setting", "model_name", "network_args", "weights"} <= entries or not find_weights(content["weights"]):
        raise UserError(f"{path}: {NOT_OURS}")
    if setting not in (None, content["setting"]):
        raise UserError(f"{path}: is a {content['setting']} supervised checkpoint; evaluate it with the other script")
    return content


def _checkpoint_from(weights, path):
    """A checkpoint from bare tensors with the authors' names or ours; all else has the paper's value ('assumed')."""
    setting, names = "weakly" if {"W3.weight", "weighting.weight"} & weights.keys() else "fully", {}
    if "L1.weight" in weights:      # the authors' names
        weights, names = released_weights(weights, setting, path), {"class_names": list(AVE_CLASSES)}
    try:
        side = math.isqrt(weights["attention.w_h.weight"].shape[1])
        audio_dim = weights["audio_in.0.weight" if setting == "fully" else "attention.U_a.weight"].shape[1]
        network_args = dict(audio_dim=audio_dim, visual_dim=weights["attention.U_v.weight"].shape[1],
                            map_size=(side, side), num_classes=weights["classifier.2.weight"].shape[0],
                            **PUBLISHED[setting])
    except (KeyError, IndexError) as error:
        raise UserError(f"{path}: is not a checkpoint of these networks: {error} is missing") from error
    return {"setting": setting, "model_name": "PSP", "network_args": network_args, "weights": weights, **names,
            "assumed": True}


def rebuild(checkpoint, path, network_class, sizes=None):
    """The network of a checkpoint, on the CPU and in the default dtype.

    sizes: `dataset.Sizes` of the data that it is meant for.
    Raises UserError if the class does not take the arguments, the weights do not fit the network or are not finite, or
    the network does not fit the sizes.
    """
    network_args = checkpoint["network_args"]
    try:
        network = network_class(**network_args)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: this code cannot build its network ({one_line(error)}); use the code that trained "
                        "it") from error
    for name in ("audio_dim", "visual_dim", "map_size", "num_classes") if sizes else ():
        needed = getattr(sizes, name)
        if needed is not None and not np.array_equal(network_args[name], needed):
            raise UserError(f"{path}: was trained with {name} {network_args[name]}, but the data has {needed}")
    try:
        network.load_state_dict(checkpoint["weights"])
    except RuntimeError as error:
        raise UserError(f"{path}: its weights do not fit its network ({one_line(error)})") from error
    for name, weight in network.state_dict().items():
        if not weight.isfinite().all():
            raise UserError(f"{path}: its weight {name} is NaN or infinite; the file is broken, or its training failed")
    return network
