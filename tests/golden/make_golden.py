"""Makes released.json and avel.json again: runs the authors' own files, which you fetch, on a CPU.

    git clone https://github.com/jasongief/PSP_CVPR_2021
    git clone https://github.com/YapengTian/AVE-ECCV18
    python tests/golden/make_golden.py      # beside these two folders; makes a new one, golden_again

Their networks get the weights and inputs of recipe.py, in float64 and without dropout; seeds, threshold, lambda and
the names of what to write come from the committed files. For each name, it prints the largest difference from the
committed numbers, relative to their norm. The other JSON files here are not made again.

This script was only ever run on stand-ins of these files (stand_in_networks.py), not on the authors' files. NETWORKS
and `outputs_and_loss` hold all it assumes about them; the losses are written out there, not imported.
"""
import json
import runpy
import sys
from collections import defaultdict
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch.nn import functional as F

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]
from golden import recipe  # noqa: E402
from utils import one_line_errors  # noqa: E402

# Numbers: folder, file of each setting, class and arguments of its constructor. forward takes audio [B, T, 128], video
# [B, T, 7, 7, 512] and, of PSP, the threshold. AVEL's weak video prediction is computed below, from L2 of att_Net.
NETWORKS = {
    "released": ("PSP_CVPR_2021", {"fully": "fully_model.py", "weakly": "weakly_model.py"},
                 "psp_net", (128, 512, 128, 29)),
    "avel": ("AVE-ECCV18", {"fully": "models.py", "weakly": "models.py"}, "att_Net", (128, 128, 512, 29)),
}
C, STEPS, CHANNELS = 29, 10, 8      # CHANNELS: of tensors wider than C, only the first are written


def outputs_and_loss(model, setting, calls, outputs, labels, lam):
    """{name: tensor}. calls: {module: [(its inputs, its output)]}; outputs: of the network; labels [B, T]."""
    def returned(*shape):      # found by its shape: the order is not known here
        value, = [value for value in outputs if getattr(value, "shape", None) == shape]
        return value

    B, T = labels.shape
    one_hot = torch.eye(C)[labels]
    scores = calls["L2"][0][1].reshape(B, T, C)      # before any softmax
    if (model, setting) == ("avel", "fully"):
        probability = returned(B, T, C)
        return {"segment_output": probability, "loss": F.multilabel_soft_margin_loss(probability, one_hot)}
    if model == "avel":
        probability = scores.amax(dim=1).softmax(dim=-1)
        category = torch.eye(C)[labels.amin(dim=1)]      # background is the largest label
        return {"segment_output": scores, "video_prob": probability,
                "loss": F.multilabel_soft_margin_loss(probability, category)}

    numbers = {"audio_lstm": calls["lstm_a_v.lstm_audio"][0][1][0],
               "visual_lstm": calls["lstm_a_v.lstm_video"][0][1][0]}
    for name, layer in (("attended_visual", "fv.0" if setting == "fully" else "linear_v"), ("fusion", "L1")):
        numbers[name] = calls[layer][0][0][0].reshape(B, T, -1)      # what goes into the layer
    if setting == "weakly":
        scores, probability = returned(B, T, C), returned(B, C)
        numbers |= {"scores": scores, "video_prob": probability,
                    "loss": F.binary_cross_entropy(probability, one_hot.mean(dim=1))}
    else:
        for name, layer in (("visual_psp", "psp.v_fc"), ("audio_psp", "psp.a_fc")):
            before = F.relu(calls[layer][0][1])      # tells which call of the shared LayerNorm it is
            numbers[name], = [output for inputs, output in calls["psp.layer_norm"] if torch.equal(inputs[0], before)]
        similarity, event = returned(B, T), (labels != C - 1).double()
        s = F.relu(similarity) / (F.relu(similarity).sum(dim=1, keepdim=True) + 1e-8)
        loss_avps = F.mse_loss(s, event / event.sum(dim=1, keepdim=True))
        loss_ce = F.cross_entropy(scores.flatten(0, 1), labels.flatten())
        numbers |= {"logits": scores, "similarity": similarity, "loss_ce": loss_ce, "loss_avps": loss_avps,
                    "loss": loss_ce + lam * loss_avps}
    return numbers | {"accuracy": (scores.argmax(dim=-1) == labels).double().mean()}


def make(model, setting, committed):
    """The numbers of one network under the names of the committed ones. Runs the authors' file."""
    seed, golden = committed["seed"], committed[setting]
    folder, files, kind, arguments = NETWORKS[model]
    with mock.patch.object(sys, "path", [folder, *sys.path]):      # the file may import others of its folder
        network = runpy.run_path(f"{folder}/{files[setting]}")[kind](*arguments).eval()
    calls, parameters = defaultdict(list), dict(network.named_parameters())
    for name, parameter in parameters.items():
        parameter.data = torch.as_tensor(recipe.parameter(seed, name, tuple(parameter.shape)))
    for name, part in network.named_modules():
        part.register_forward_hook(lambda part, inputs, output, name=name: calls[name].append((inputs, output)))

    audio, visual, labels = map(torch.from_numpy, recipe.inputs(seed, committed["batch"]))
    made = {"threshold": golden.get("threshold"), "lam": golden.get("lam"), "adam_losses": [],
            "parameters": {name: list(value.shape) for name, value in parameters.items()}}
    threshold = [golden["threshold"]] if model == "released" else []
    optimizer = torch.optim.Adam(parameters.values(), lr=1e-3)
    for step in range(STEPS):
        calls.clear()
        outputs = network(audio, visual, *threshold)
        outputs = outputs if isinstance(outputs, (tuple, list)) else [outputs]
        numbers = outputs_and_loss(model, setting, calls, outputs, labels, golden.get("lam"))
        made["adam_losses"].append(numbers["loss"].item())
        optimizer.zero_grad()
        numbers["loss"].backward()
        if step == 0:      # parameters that never reach the loss have no gradient
            made["grad_norms"] = {name: value.grad.norm().item() for name, value in parameters.items()
                                  if value.grad is not None}
            for name, value in numbers.items():
                made[name] = (value[..., :CHANNELS] if value.dim() and value.shape[-1] > C else value).tolist()
                made[name + "_norm"] = value.norm().item()
        optimizer.step()
    return {name: made.get(name) for name in golden}


def difference(new, old):
    """The largest of a dict, of arrays relative to their norm; infinite if names or shapes differ."""
    if isinstance(old, dict):
        return max(difference(new.get(name), old.get(name)) for name in new | old)
    if new is None or old is None or np.shape(new) != np.shape(old):
        return 0.0 if new is old else np.inf
    return np.linalg.norm(np.subtract(new, old)) / max(np.linalg.norm(old), 1e-300)


def main():
    torch.set_default_dtype(torch.float64)
    Path("golden_again").mkdir()
    # Their code may ask for a GPU and for float32.
    with mock.patch.multiple(torch.Tensor, cuda=lambda self, *_, **__: self, float=torch.Tensor.double):
        for model in NETWORKS:
            numbers = json.loads((HERE / f"{model}.json").read_text())
            for setting in ("fully", "weakly"):
                made = make(model, setting, numbers)
                for name, old in numbers[setting].items():
                    print(f"{model}.json  {setting:6}  {name:20}  {difference(made[name], old):.1e}")
                numbers[setting] = made
            Path("golden_again", f"{model}.json").write_text(json.dumps(numbers))


if __name__ == "__main__":
    with one_line_errors():
        main()
