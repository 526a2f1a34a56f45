"""Stand-ins for the authors' classes: same class and parameter names and structure, written by hand for the tests.

The modules `fully_model` and `weakly_model`, and torch 1.2's `thnn`, exist only while `save_module` runs.
"""
import sys
import types
import warnings
from functools import partial
from unittest import mock

import torch
from torch import nn

MODULES = {name: types.ModuleType(name) for name in ("fully_model", "weakly_model", "torch.nn.backends.thnn")}
linear = partial(nn.Linear, bias=False)


def _module(file, name, **parts):
    """A module of a fresh class `file.name` with these parts."""
    kind = type(name, (nn.ModuleDict,), {"__module__": file})
    setattr(MODULES[file], name, kind)
    return kind(parts)


def released_network(setting, weights):
    """psp_net of the setting with the released parameter names; weights: {released name: tensor}; others are unused."""
    file = f"{setting}_model"
    attention = _module(file, "AVGA", affine_audio=nn.Linear(128, 512), affine_video=nn.Linear(512, 512),
                        affine_v=linear(512, 49), affine_g=linear(512, 49), affine_h=linear(49, 1))
    lstms = {name: nn.LSTM(128, 128, batch_first=True, bidirectional=True) for name in ("lstm_audio", "lstm_video")}
    outputs = ("v_fc", "a_fc") if setting == "fully" else ()
    squares = {name: linear(256, 256) for name in ("v_L1", "v_L2", "a_L1", "a_L2", *outputs)}
    psp = _module(file, "PSP", **squares, dropout=nn.Dropout(0.1), layer_norm=nn.LayerNorm(256, eps=1e-6))
    only_here = {
        "fully": dict(
            fa=nn.Sequential(linear(128, 256), linear(256, 128)), fv=nn.Sequential(linear(512, 256), linear(256, 128)),
            v_classify=nn.Sequential(nn.Linear(256, 29)), a_classify=nn.Sequential(nn.Linear(256, 29)),
            L3=linear(256, 64), L4=linear(64, 29)),
        "weakly": dict(W1=linear(256, 128), W2=linear(128, 1), W3=linear(29, 1))}[setting]
    network = _module(file, "psp_net", attention=attention, lstm_a_v=_module(file, "LSTM_A_V", **lstms), psp=psp,
                      L1=linear(256, 64), L2=linear(64, 29), linear_v=nn.Linear(512, 128), **only_here)
    if setting == "weakly":
        network.temperature = nn.Parameter(torch.ones(1))
    network.hidden_dim, network.relu = 128, nn.functional.relu
    network.load_state_dict(weights, strict=False)
    return network


def _get_thnn_function_backend():
    """Made the attribute `_backend` of every module of torch 1.2, which was pickled as a call of it."""


_get_thnn_function_backend.__module__ = "torch.nn.backends.thnn"
MODULES["torch.nn.backends.thnn"]._get_thnn_function_backend = _get_thnn_function_backend


class Backend:
    def __reduce__(self):
        return _get_thnn_function_backend, ()


def save_module(content, path, legacy):
    """torch.save of whole modules, in the stream of torch 1.2 (with the source of torch's classes) or as a zip."""
    if legacy:
        for module in content.modules():
            module._backend = Backend()
    with mock.patch.dict(sys.modules, MODULES), warnings.catch_warnings(action="ignore"):
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
