"""Stands for fully_model.py, weakly_model.py and models.py of the authors, under whose names the test copies it.

Written for the test of make_golden.py, from the papers: the released names of modules and parameters, and what they
compute. As the authors' files may, it asks for a GPU and returns more than one tensor.
"""
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cosine_similarity, relu, softmax

FULLY = Path(__file__).stem == "fully_model"


def linear(inputs, outputs):
    return nn.Linear(inputs, outputs, bias=False)


def bilstm(inputs):
    return nn.LSTM(inputs, 128, batch_first=True, bidirectional=True)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.affine_audio, self.affine_video = nn.Linear(128, 512), nn.Linear(512, 512)
        self.affine_v, self.affine_g, self.affine_h = linear(512, 49), linear(512, 49), linear(49, 1)

    def forward(self, audio, video):
        V = video.flatten(2, 3)
        row = self.affine_g(relu(self.affine_audio(audio))).unsqueeze(-1)
        z = self.affine_h(torch.tanh(self.affine_v(relu(self.affine_video(V))) + row))
        return (softmax(z, dim=2) * V).sum(dim=2)


class BiLSTMs(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm_audio, self.lstm_video = bilstm(128), bilstm(128)

    def forward(self, audio, video):
        start = torch.zeros(2, len(audio), 128).cuda()
        return self.lstm_audio(audio, (start, start))[0], self.lstm_video(video.float())[0]


class Propagation(nn.Module):
    def __init__(self):
        super().__init__()
        for name in ("v_L1", "v_L2", "a_L1", "a_L2", *(("v_fc", "a_fc") if FULLY else ())):
            setattr(self, name, linear(256, 256))
        self.layer_norm, self.dropout = nn.LayerNorm(256, eps=1e-6), nn.Dropout(0.1)

    def forward(self, a, v, threshold):
        def project(layer, x):
            return self.dropout(relu(layer(x)))

        def gamma(beta):
            beta = beta / (beta.sum(dim=-1, keepdim=True) + 1e-8)
            beta = torch.where(beta > threshold, beta, torch.zeros_like(beta))
            return beta / (beta.sum(dim=-1, keepdim=True) + 1e-8) if FULLY else beta

        beta = relu(project(self.v_L2, v) @ project(self.a_L1, a).transpose(1, 2) / 16)
        new_v = v + gamma(beta) @ project(self.a_L2, a)
        new_a = a + gamma(beta.transpose(1, 2)) @ project(self.v_L1, v)
        if FULLY:
            new_v, new_a = project(self.v_fc, new_v), project(self.a_fc, new_a)
        return self.layer_norm(new_a), self.layer_norm(new_v)


class psp_net(nn.Module):
    def __init__(self, a_dim, v_dim, hidden_dim, category_num):
        super().__init__()
        if FULLY:
            self.fa = nn.Sequential(linear(a_dim, 256), linear(256, 128))
            self.fv = nn.Sequential(linear(v_dim, 256), linear(256, 128))
            self.L3 = linear(256, 64)      # not used
        else:
            self.W3, self.temperature = linear(29, 1), nn.Parameter(torch.tensor(1.0))      # the second is not used
        self.linear_v = nn.Linear(v_dim, 128)
        self.attention, self.lstm_a_v, self.psp = Attention(), BiLSTMs(), Propagation()
        self.L1, self.L2 = linear(256, 64), linear(64, category_num)

    def forward(self, audio, video, threshold):
        audio = self.fa(audio) if FULLY else audio
        video = self.attention(audio, video)
        a, v = self.psp(*self.lstm_a_v(audio, self.fv(video) if FULLY else self.linear_v(video)), threshold)
        fusion = (v + a) / 2
        out = self.L2(relu(self.L1(fusion)))
        if FULLY:
            return fusion, out, cosine_similarity(v, a, dim=-1)
        out = torch.sigmoid(relu(self.W3(out))) * out
        return fusion, out, softmax(out.mean(dim=1), dim=-1)


class att_Net(Attention):
    def __init__(self, embedding_dim, hidden_dim, hidden_size, tagset_size):
        super().__init__()
        self.lstm_audio, self.lstm_video = bilstm(embedding_dim), bilstm(hidden_size)
        self.L1, self.L2 = nn.Linear(512, 64), nn.Linear(64, tagset_size)

    def scores(self, audio, video):
        attended = Attention.forward(self, audio, video)
        both = torch.cat([self.lstm_audio(audio)[0], self.lstm_video(attended)[0]], dim=-1)
        return self.L2(relu(self.L1(relu(both))))

    def forward(self, audio, video):
        return softmax(self.scores(audio, video), dim=-1)


class weak_att_Net(att_Net):
    def forward(self, audio, video):
        scores = self.scores(audio, video)
        return scores, softmax(scores.max(dim=1)[0], dim=-1)
