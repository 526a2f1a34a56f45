"""Checkpoints: tensors and plain values from which a network is rebuilt, and the authors' files read as such.

A checkpoint is a dict: setting ('fully' or 'weakly'), model_name, network (the arguments of `build_network`), weights,
and what `model/run.py` adds about the run that made it.
"""
import io
import math

import numpy as np
import torch

from data.files import UserError, one_line, write_atomically
from model.ablations import ATTENTIONS, MODALITIES, ablate
from model.avel import AVELNetwork
from model.released import read_file, released_setting, released_weights, state_of
from psp_model import FULLY_SUPERVISED, PAPER_THRESHOLD, WEAKLY_SUPERVISED, PSPNetwork

SETTINGS = {"fully": FULLY_SUPERVISED, "weakly": WEAKLY_SUPERVISED}

# What Python and torch raise where a value is not of the kind, size or name that the code expects.
WRONG_CONTENT = (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError)


def build_network(model_name, config):
    """A new network, 'PSP' or 'AVEL'; config: the arguments of its class, and of `ablate` for PSP."""
    if model_name == "AVEL":
        return AVELNetwork(**config)
    taken_out = {name: config[name] for name in ("attention", "modality") if name in config}
    return ablate(PSPNetwork(**{name: value for name, value in config.items() if name not in taken_out}), **taken_out)


def network_sizes(sizes):
    """The arguments of a network that the data decides."""
    return dict(audio_dim=sizes.audio_dim, visual_dim=sizes.visual_dim, map_size=sizes.map_size,
                num_classes=sizes.num_classes)


def save(path, content):
    """Writes tensors and plain values; at any moment, `path` is either the former file or the whole new one."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getbuffer())


def load(path, setting=None):
    """The checkpoint at `path`; the authors' checkpoints and bare state dicts are made into one.

    setting: 'fully' or 'weakly', if it must be that. Nothing that the file names is run, see model/released.py.
    Raises UserError where the file is broken, no checkpoint of these networks, or not of this setting.
    """
    content = read_file(path)
    try:
        state = state_of(content)
        content = _with_todays_names(content) if state is None else _of_state(state)
        _check(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if setting not in (None, content["setting"]):
        raise UserError(f"{path}: is a {content['setting']} supervised checkpoint; "
                        f"evaluate it with the other script, not the {setting} supervised one")
    return content


def _with_todays_names(content):
    """The first checkpoints of this repo call num_classes labels, and name the propagation that all of them have."""
    config = content.get("network") if isinstance(content, dict) else None
    if isinstance(config, dict):
        if "labels" in config:
            config["num_classes"] = config.pop("labels")
        if config.get("propagation") == "psp":
            del config["propagation"]
    return content


def _check(content):
    """UserError where a plain value of a checkpoint is wrong; `rebuild` finds all else."""
    def expect(right, text):
        if not right:
            raise UserError(f"is not a checkpoint of these networks: {text}")

    expect(isinstance(content, dict) and {"setting", "model_name", "network", "weights"} <= content.keys(),
           "it has no setting, model_name, network or weights")
    expect(content["setting"] in ("fully", "weakly") and content["model_name"] in ("PSP", "AVEL"),
           "its setting or model_name is unknown")
    epoch, config = content.get("epoch", 0), content["network"]
    expect(type(epoch) is int and 0 <= epoch < 10**9, "its epoch is impossible")
    expect(isinstance(config, dict), "its network has no arguments")
    expect(isinstance(config.get("map_size"), (list, tuple)) and len(config["map_size"]) == 2,
           "its network has no map_size of two numbers")
    sizes = [config.get("audio_dim"), config.get("visual_dim"), config.get("num_classes"), *config["map_size"]]
    expect(all(type(size) is int and 1 <= size <= 10**6 for size in sizes), "its network's sizes are impossible")
    if content["model_name"] == "PSP":
        threshold = config.get("threshold")
        expect(type(threshold) in (int, float) and 0 <= threshold <= 1, "its network's threshold is impossible")
        for name in FULLY_SUPERVISED:
            expect(type(config.get(name)) is bool, f"its network's {name} is impossible")
        for name, choices in (("attention", ATTENTIONS), ("modality", MODALITIES)):
            value = config.get(name, choices[0])
            expect(isinstance(value, str) and value in choices, f"its network's {name} is impossible")
        expect("dropout" not in config, "its network has a dropout of its own")


def _of_state(state):
    """A checkpoint from bare tensors with the authors' names or ours; what is not in them has the paper's value."""
    setting = released_setting(state)
    if setting is None:      # our names
        setting, weights = "weakly" if "weighting.weight" in state else "fully", state
    else:
        weights = released_weights(state, setting)
    try:
        num_regions, visual_dim = weights["attention.w_h.weight"].shape[1], weights["attention.U_v.weight"].shape[1]
        num_classes = weights["classifier.2.weight"].shape[0]
        audio_dim = weights["audio_in.0.weight" if setting == "fully" else "attention.U_a.weight"].shape[1]
    except (KeyError, IndexError) as error:
        raise UserError(f"is not a checkpoint of these networks: {error} is missing") from error
    side = math.isqrt(num_regions)
    config = dict(audio_dim=audio_dim, visual_dim=visual_dim, map_size=(side, side), num_classes=num_classes,
                  threshold=PAPER_THRESHOLD[setting], **SETTINGS[setting])
    return {"setting": setting, "model_name": "PSP", "network": config, "weights": weights}


def rebuild(checkpoint, path, sizes=None, threshold=None):
    """The network of a checkpoint, on the CPU and in the default dtype.

    sizes: those of the data that it is meant for; threshold: the pruning threshold, if not the checkpoint's own.
    Raises UserError where the checkpoint's parts do not fit each other, or not these sizes.
    """
    config, weights = dict(checkpoint["network"]), checkpoint["weights"]
    if threshold is not None:
        if checkpoint["model_name"] == "AVEL":
            raise UserError(f"{path}: is a checkpoint of AVEL, which has no --threshold")
        config["threshold"] = threshold
    try:
        network = build_network(checkpoint["model_name"], config)
        for name, needed in (network_sizes(sizes) if sizes else {}).items():
            if needed is not None and config[name] != needed and config[name] != list(np.ravel(needed)):
                raise UserError(f"{path}: was trained with {name} {config[name]}, but the data has {needed}")
        network.load_state_dict(weights, strict=True)
    except WRONG_CONTENT as error:
        raise UserError(f"{path}: does not hold the network that it says it holds ({one_line(error)})") from error
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise UserError(f"{path}: its weight {name} is NaN or infinite; the file is broken, or its training failed")
    return network
