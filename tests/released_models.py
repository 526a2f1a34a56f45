"""Stand-ins for the authors' classes: same class and parameter names and structure, written by hand for the tests.

`fully_model` and `weakly_model` are not in this repository; `save` makes modules of these names while it pickles.
"""
import sys
import types

import torch
from torch import nn


def _module(file, name, parts):
    """An instance of a fresh nn.Module subclass `file.name` with these parts."""
    kind = type(name, (nn.Module,), {"__module__": file})
    sys.modules.setdefault(file, types.ModuleType(file))
    setattr(sys.modules[file], name, kind)
    module = kind()
    for part, value in parts.items():
        setattr(module, part, value)
    return module


def released_network(setting, weights):
    """psp_net of the setting with the released parameter names; weights: {released name: tensor}; others are unused."""
    file = f"{setting}_model"
    fully = setting == "fully"

    def linear(inputs, outputs, bias=False):
        return nn.Linear(inputs, outputs, bias=bias)
    attention = _module(file, "AVGA", {
        "relu": nn.ReLU(), "affine_audio": linear(128, 512, True), "affine_video": linear(512, 512, True),
        "affine_v": linear(512, 49), "affine_g": linear(512, 49), "affine_h": linear(49, 1)})
    lstm = _module(file, "LSTM_A_V", {
        name: nn.LSTM(128, 128, 1, batch_first=True, bidirectional=True, dropout=0.0)
        for name in ("lstm_audio", "lstm_video")})
    psp = _module(file, "PSP", {
        **{name: linear(256, 256) for name in ("v_L1", "v_L2", "a_L1", "a_L2")},
        **({"v_fc": linear(256, 256), "a_fc": linear(256, 256)} if fully else {}),
        "dropout": nn.Dropout(0.1), "layer_norm": nn.LayerNorm(256, eps=1e-6), "activation": nn.ReLU()})
    network = _module(file, "psp_net", {
        "hidden_dim": 128, "attention": attention, "lstm_a_v": lstm, "psp": psp, "L1": linear(256, 64),
        "L2": linear(64, 29),
        "relu": torch.nn.functional.relu,
        **({"fa": nn.Sequential(linear(128, 256), linear(256, 128)),
            "fv": nn.Sequential(linear(512, 256), linear(256, 128)),
            "linear_v": linear(512, 128, True), "v_classify": nn.Sequential(linear(256, 29, True)),
            "a_classify": nn.Sequential(linear(256, 29, True)), "L3": linear(256, 64),
            "L4": linear(64, 29)} if fully else
           {"linear_v": linear(512, 128, True), "W1": linear(256, 128), "W2": linear(128, 1), "W3": linear(29, 1),
            "temperature": nn.Parameter(torch.ones(1))})})
    network.load_state_dict(weights, strict=False)
    return network


def save(network, path, legacy):
    """torch.save of the whole module, in the stream of torch 1.2 (with the source of each class) or today's zip."""
    import inspect
    import warnings
    real = inspect.getsource
    inspect.getsource = lambda kind: f"class {kind.__name__}: pass\n"     # the stand-ins have no source file
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.save(network, path, _use_new_zipfile_serialization=not legacy)
    finally:
        inspect.getsource = real
        for file in ("fully_model", "weakly_model"):
            sys.modules.pop(file, None)
