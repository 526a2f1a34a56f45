"""Stand-ins for the authors' classes: same class and parameter names and structure, written by hand for the tests.

The modules `fully_model` and `weakly_model`, and torch 1.2's `thnn`, exist only while `save_module` runs.
"""
import sys
import types
import warnings
from unittest import mock

import torch
from torch import nn

MODULES = {name: types.ModuleType(name) for name in ("fully_model", "weakly_model", "torch.nn.backends.thnn")}


def _module(file, name, parts):
    """An instance of a fresh nn.Module subclass `file.name` with these parts."""
    kind = type(name, (nn.Module,), {"__module__": file})
    setattr(MODULES[file], name, kind)
    module = kind()
    for part, value in parts.items():
        setattr(module, part, value)
    return module


def linear(inputs, outputs, bias=False):
    return nn.Linear(inputs, outputs, bias=bias)


def released_network(setting, weights):
    """psp_net of the setting with the released parameter names; weights: {released name: tensor}; others are unused."""
    file = f"{setting}_model"
    attention = _module(file, "AVGA", {
        "relu": nn.ReLU(), "affine_audio": linear(128, 512, True), "affine_video": linear(512, 512, True),
        "affine_v": linear(512, 49), "affine_g": linear(512, 49), "affine_h": linear(49, 1)})
    lstm = _module(file, "LSTM_A_V", {
        name: nn.LSTM(128, 128, 1, batch_first=True, bidirectional=True) for name in ("lstm_audio", "lstm_video")})
    outputs = ("v_fc", "a_fc") if setting == "fully" else ()
    psp = _module(file, "PSP", {
        **{name: linear(256, 256) for name in ("v_L1", "v_L2", "a_L1", "a_L2", *outputs)},
        "dropout": nn.Dropout(0.1), "layer_norm": nn.LayerNorm(256, eps=1e-6), "activation": nn.ReLU()})
    only_here = {
        "fully": {
            "fa": nn.Sequential(linear(128, 256), linear(256, 128)),
            "fv": nn.Sequential(linear(512, 256), linear(256, 128)),
            "v_classify": nn.Sequential(linear(256, 29, True)), "a_classify": nn.Sequential(linear(256, 29, True)),
            "L3": linear(256, 64), "L4": linear(64, 29)},
        "weakly": {
            "W1": linear(256, 128), "W2": linear(128, 1), "W3": linear(29, 1),
            "temperature": nn.Parameter(torch.ones(1))},
    }
    network = _module(file, "psp_net", {
        "hidden_dim": 128, "attention": attention, "lstm_a_v": lstm, "psp": psp, "L1": linear(256, 64),
        "L2": linear(64, 29), "relu": nn.functional.relu, "linear_v": linear(512, 128, True), **only_here[setting]})
    network.load_state_dict(weights, strict=False)
    return network


def _get_thnn_function_backend():
    raise AssertionError("must not be called")


class Backend:
    """An attribute `_backend` that torch 1.2 gave to every module: pickled as a call of a function that is gone."""

    def __reduce__(self):
        return _get_thnn_function_backend, ()


_get_thnn_function_backend.__module__ = "torch.nn.backends.thnn"
MODULES["torch.nn.backends.thnn"]._get_thnn_function_backend = _get_thnn_function_backend


def save_module(content, path, legacy):
    """torch.save of whole modules, in the stream of torch 1.2 (with the source of torch's classes) or as a zip."""
    if legacy and isinstance(content, nn.Module):
        for module in content.modules():
            module._backend = Backend()
    with mock.patch.dict(sys.modules, MODULES), warnings.catch_warnings(action="ignore"):
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
