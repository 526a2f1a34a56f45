"""Each ablation takes out just what it names, trains in both settings, and is remembered by the checkpoint."""
import json

import pytest
import torch

from conftest import MAIN
from dataset import AVEDataset, find_files, required_files
from model.checkpoint import SETTINGS, build_network, load, rebuild



@pytest.fixture(params=["fully", "weakly"])
def setting(request):
    return request.param


def network(setting, **options):
    torch.manual_seed(1)
    config = dict(audio_dim=12, visual_dim=20, map_size=(3, 3), num_classes=5, threshold=0.15)
    return build_network("PSP", {**config, **SETTINGS[setting], **options}).double().eval()


def features(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(2, 6, 12, generator=generator, dtype=torch.float64),
            torch.rand(2, 6, 3, 3, 20, generator=generator, dtype=torch.float64))


def test_mean_attention_sees_no_place(setting):
    audio, visual = features()
    shuffled = visual.flatten(2, 3)[:, :, torch.randperm(9, generator=torch.Generator().manual_seed(2))].view_as(visual)
    ablated = network(setting, attention="mean")
    torch.testing.assert_close(ablated(audio, visual).logits, ablated(audio, shuffled).logits)
    assert not torch.allclose(network(setting)(audio, visual).logits, network(setting)(audio, shuffled).logits)
    assert torch.allclose(ablated(audio, visual).attention, torch.tensor(1 / 9).double())


@pytest.mark.parametrize("propagation", ["all-pairs", "none"])
def test_propagation_of_all_pairs_and_of_none(setting, propagation, main_in_process, tiny_folder, tmp_path):
    """All that is similar at all is propagated, or nothing; as the checkpoint of such a run says."""
    path = tmp_path / f"PSP_{setting}.pt"
    code, _, error = main_in_process(MAIN[setting], "--train", "--nb_epoch", 1, "--batch_size", 8,
                                     "--propagation", propagation,
                                     "--data_dir", tiny_folder, "--output_dir", tmp_path)
    assert code == 0, error
    psp = rebuild(load(path), path).eval()(*(value.float() for value in features())).psp
    expected = psp.beta_va if propagation == "all-pairs" else torch.zeros_like(psp.beta_va)
    torch.testing.assert_close(psp.gamma_va, expected, rtol=1e-5, atol=1e-6)
    code, _, error = main_in_process(MAIN[setting], "--train", "--propagation", propagation, "--threshold", 0.1,
                                     "--data_dir", tiny_folder)
    assert code == 2 and "give one of them" in error


@pytest.mark.parametrize("modality, used", [("audio", 0), ("visual", 1)])
def test_one_modality_depends_on_that_one_alone(setting, modality, used):
    first, second = features(0), features(1)
    ablated = network(setting, modality=modality)
    logits = ablated(*first).logits
    other_changed = [second[i] if i != used else first[i] for i in (0, 1)]
    own_changed = [second[i] if i == used else first[i] for i in (0, 1)]
    assert torch.equal(ablated(*other_changed).logits, logits)
    assert not torch.allclose(ablated(*own_changed).logits, logits)


RUNS = {
    "fully": [("--attention", "mean"), ("--propagation", "none"), ("--propagation", "all-pairs"),
              ("--modality", "audio"),
              ("--modality", "visual"), ("--second_normalisation", "off"), ("--weighting", "on"), ("--LAMBDA", 0),
              ("--model_name", "AVEL")],
    "weakly": [("--attention", "mean"), ("--propagation", "none"), ("--modality", "audio"),
               ("--second_normalisation", "on"),
               ("--weighting", "off"), ("--weak_labels", "tag"), ("--background_videos", "off"),
               ("--model_name", "AVEL")],
}


@pytest.mark.parametrize("setting, options", [(setting, options) for setting, runs in RUNS.items() for options in runs],
                         ids=lambda value: value if isinstance(value, str) else "=".join(map(str, value)))
def test_every_ablation_trains_and_is_evaluated_from_its_checkpoint(setting, options, main_in_process, tiny_folder,
                                                                    tmp_path):
    data = ("--data_dir", tiny_folder)
    code, _, error = main_in_process(MAIN[setting], "--train", "--nb_epoch", 2, "--batch_size", 8,
                                     "--output_dir", tmp_path, *data,
                                     *options)
    assert code == 0, error
    name = "AVEL" if "AVEL" in options else "PSP"
    log = [json.loads(line) for line in (tmp_path / f"{name}_{setting}.jsonl").read_text().splitlines()]
    assert log[0]["run"]["settings"][options[0].removeprefix("--")] == options[1]
    code, out, error = main_in_process(MAIN[setting], "--trained_model_path", tmp_path / f"{name}_{setting}.pt", *data)
    assert code == 0, error
    assert f"test accuracy: {100 * log[-1]['result']['best_validation']['test_accuracy']:.2f} %" in out


def test_without_background_videos_their_files_are_not_needed(data_folder):
    for name in ("audio_feature_noisy.h5", "visual_feature_noisy.h5", "labels_noisy.h5"):
        (data_folder / name).unlink()
    files = find_files(data_folder, required_files(["train"], weak_training=True, background_videos=False))
    dataset = AVEDataset(files, "train", weak=True)
    assert len(dataset) == len(dataset.values["label_share"]) == len(dataset.values["visual"]) == 24


def test_avel_has_no_ablations(main_in_process, tiny_folder):
    code, _, error = main_in_process(MAIN["fully"], "--train", "--model_name", "AVEL", "--propagation", "none",
                                     "--data_dir", tiny_folder)
    assert code == 2 and "AVEL has no --threshold" in error


def test_evaluation_refuses_what_only_training_uses(main_in_process, tmp_path):
    for option in (("--background_videos", "off"), ("--weak_labels", "tag")):
        code, _, error = main_in_process(MAIN["weakly"], "--trained_model_path", tmp_path / "PSP.pt", *option)
        assert code == 2 and f"{option[0]} goes with --train" in error
