"""Public base checkpoints: networks restated here under their public tensor names predict what ours predicts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from syn4seg.errors import UserError
from syn4seg.segmenter.importers import import_checkpoint
from syn4seg.segmenter.network import load_segmenter, save_segmenter

WIDTH, BASE = 16, 15


class Block(nn.Module):
    def __init__(self, inner, width, stride, dilation, first):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inner, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        shortcut = nn.Conv2d(inner, 4 * width, 1, stride, bias=False)
        self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(4 * width)) if first else None

    def forward(self, x):
        y = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(y)) + (x if self.downsample is None else self.downsample(x)))


def _stem():
    layers = {}
    for i, (inner, outer, stride) in enumerate(((3, 64, 2), (64, 64, 1), (64, 128, 1)), 1):
        layers[f"conv{i}"] = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        layers[f"bn{i}"], layers[f"relu{i}"] = nn.BatchNorm2d(outer), nn.ReLU()
    return layers | {"maxpool": nn.MaxPool2d(3, 2, 1)}


def _stages(third):
    layers, inner = {}, 128
    shapes = ((64, 3, 1, 1), (128, 4, 2, 1), (256, third, 1, 2), (512, 3, 1, 4))
    for number, (width, count, stride, dilation) in enumerate(shapes, 1):
        blocks = [Block(4 * width if i else inner, width, 1 if i else stride, dilation, i == 0) for i in range(count)]
        layers[f"layer{number}"], inner = nn.Sequential(*blocks), 4 * width
    return layers


class Pooling(nn.Module):
    """Pyramid pooling under the names of PPM; `branches` alone is POP's."""

    def __init__(self):
        super().__init__()
        self.features = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(n), nn.Conv2d(2048, 512, 1, bias=False), nn.BatchNorm2d(512), nn.ReLU())
            for n in (1, 2, 3, 6)
        )

    def branches(self, x, align_corners):
        return [F.interpolate(f(x), x.shape[2:], mode="bilinear", align_corners=align_corners) for f in self.features]

    def forward(self, x):
        return torch.cat([x, *self.branches(x, True)], 1)


def _bottleneck(width, *more):
    return nn.Sequential(
        nn.Conv2d(4096, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout2d(0.1), *more
    )


class Linear(nn.Module):
    """BAM's base learner (`cls` and the repeated `encoder`), or DIaM's (`bottleneck`, `classifier`)."""

    def __init__(self, stem, stages, ppm, name, width=WIDTH, classes=1 + BASE):
        super().__init__()
        self.layer0 = nn.Sequential(*stem.values())
        for k, v in stages.items():
            self.add_module(k, v)
        if name == "BAM":
            self.encoder = nn.Sequential(self.layer0, *stages.values())
        self.ppm = ppm
        if name == "BAM":
            self.cls = _bottleneck(width, nn.Conv2d(width, classes, 1))
        else:
            self.bottleneck, self.classifier = _bottleneck(width), nn.Conv2d(width, classes, 1)
        self.order = [self.layer0, *stages.values(), ppm]
        self.head = [self.cls] if name == "BAM" else [self.bottleneck, self.classifier]

    def forward(self, x):
        for layer in [*self.order, *self.head]:
            x = layer(x)
        return x


class Cosine(nn.Module):
    """CAPL without its refinements: ten times the cosine to `main_proto`, whose last rows are novel."""

    def __init__(self, stem, stages, ppm):
        super().__init__()
        self.layer0 = nn.Sequential(*stem.values())
        for k, v in stages.items():
            self.add_module(k, v)
        self.ppm, self.cls = ppm, _bottleneck(WIDTH, nn.Conv2d(WIDTH, WIDTH, 1))
        self.aux = nn.Sequential(nn.Conv2d(1024, 8, 3, padding=1, bias=False))
        self.main_proto, self.aux_proto = nn.Parameter(torch.randn(21, WIDTH)), nn.Parameter(torch.randn(21, 8))
        self.gamma_conv = nn.Sequential(nn.Linear(2 * WIDTH, WIDTH, bias=False), nn.ReLU(), nn.Linear(WIDTH, 1))
        self.order = [self.layer0, *stages.values(), ppm, self.cls]

    def forward(self, x):
        for layer in self.order:
            x = layer(x)
        x = x / x.norm(dim=1, keepdim=True)
        rows = self.main_proto / self.main_proto.norm(dim=1, keepdim=True)
        return 10 * torch.einsum("nchw,kc->nkhw", x, rows[: 1 + BASE])


class Orthogonal(nn.Module):
    """POP's base model: `features`, their projections on the prototypes and the residual, and one small network for all."""

    def __init__(self, stem, stages, ppm):
        super().__init__()
        self.backbone = nn.Module()
        for k, v in (stem | stages).items():
            self.backbone.add_module(k, v)
        self.decoder = nn.Module()
        self.decoder.stages = ppm.features
        self.decoder.bottleneck = nn.Sequential(
            nn.Conv2d(4096, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 1)
        )
        self.classifier = nn.Sequential(
            nn.Conv2d(WIDTH, WIDTH, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(WIDTH, WIDTH, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(WIDTH, 1, 1, bias=False),
        )
        self.base_emb = nn.Parameter(torch.randn(BASE, WIDTH))
        self.order, self.ends = [*stem.values(), *stages.values()], [ppm, self.decoder.bottleneck]

    def features(self, x):
        for layer in self.order:
            x = layer(x)
        pooling, bottleneck = self.ends
        return bottleneck(torch.cat([*pooling.branches(x, False), x], 1))

    def logits(self, f):
        """Logits, and the similarity of each pixel to each prototype."""
        unit = self.base_emb / self.base_emb.norm(dim=1, keepdim=True)
        similarity = torch.einsum("nchw,kc->nkhw", f, unit)
        parts = [similarity[:, k : k + 1] * unit[k, :, None, None] for k in range(BASE)]
        return torch.cat([self.classifier(part) for part in [f - sum(parts), *parts]], 1), similarity


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    stem, stages, ppm = _stem(), _stages(6), Pooling()
    made = {
        "BAM": Linear(stem, stages, ppm, "BAM"),
        "DIaM": Linear(stem, stages, ppm, "DIaM"),
        "CAPL": Cosine(stem, stages, ppm),
        "POP": Orthogonal(stem, stages, ppm),
    }
    for net in made.values():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                for key, tensor in module.state_dict().items():
                    if key in ("weight", "running_var"):
                        tensor.uniform_(0.5, 1.5)
                    elif key in ("bias", "running_mean"):
                        tensor.uniform_(-0.5, 0.5)
        with torch.no_grad():  # halves are kept in the files
            for tensor in net.state_dict().values():
                tensor.copy_(tensor.half())
    return {k: v.eval() for k, v in made.items()}


def _file(path, state, prefix="", wrap=True):
    """A checkpoint; tensors that are one in the network are one in the file."""
    halves = {v.data_ptr(): v.half() for v in state.values() if v.is_floating_point()}
    tensors = {prefix + k: halves.get(v.data_ptr(), v) for k, v in state.items()}
    torch.save({"epoch": 3, "state_dict": tensors, "optimizer": {"state": {}}} if wrap else tensors, path)
    return path


def _image(side=65):
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))


def _close(a, b):
    return torch.allclose(a, b, rtol=1e-3, atol=1e-4 * b.abs().max().item())


@pytest.mark.parametrize(("name", "prefix"), [("BAM", ""), ("BAM", "module."), ("DIaM", "module."), ("CAPL", "module.")])
@torch.no_grad()
def test_logits_are_those_of_the_public_network(networks, tmp_path, name, prefix):
    net, facts = import_checkpoint(_file(tmp_path / "best.pth", networks[name].state_dict(), prefix))
    assert (facts["family"], facts["backbone"], facts["classes"]) == (name, "resnet50-deep", 1 + BASE)
    assert bool(facts["notes"]) == net.cosine == (name == "CAPL")
    assert not net.training and net.ppm.bins == (1, 2, 3, 6) and net.weight.dtype == torch.float32
    x = _image()
    expected = networks[name](x)
    assert _close(net(x), expected)
    pixels = F.interpolate(expected, (65, 65), mode="bilinear", align_corners=True)
    assert _close(net.predict(x), pixels)


@torch.no_grad()
def test_pops_features_are_exact_and_its_class_logits_where_the_similarity_is_positive(networks, tmp_path):
    pop = networks["POP"]
    file = _file(tmp_path / "best.pth", pop.state_dict(), "module.", wrap=False)
    net, facts = import_checkpoint(file)
    assert (facts["family"], facts["classes"], net.ppm.align_corners, net.align_corners) == ("POP", 1 + BASE, False, True)
    x = _image()
    features = pop.features(x)
    assert _close(net.features(x), features)
    expected, similarity = pop.logits(features)
    ours = net(x)
    agrees = similarity >= 0
    assert agrees.float().mean() > 0.2
    assert torch.allclose(ours[:, 1:][agrees], expected[:, 1:][agrees], rtol=1e-3, atol=1e-4 * expected.abs().max().item())
    again = import_checkpoint(file)[0]
    assert torch.equal(again.weight, net.weight) and torch.equal(again.bias, net.bias)


@torch.no_grad()
def test_pops_background_row_explains_as_much_of_the_residuals_logit_as_its_note_says(networks, tmp_path):
    pop = networks["POP"]
    net, facts = import_checkpoint(_file(tmp_path / "best.pth", pop.state_dict()))
    stated = float(facts["notes"][1].split("(R2 ")[1].split(" ")[0])
    norm, projection = pop.decoder.bottleneck[1], pop.decoder.bottleneck[3]
    normal = torch.randn(1, WIDTH, 100, 100, generator=torch.Generator().manual_seed(5))
    drawn = normal * norm.running_var[:, None, None].sqrt() + norm.running_mean[:, None, None]
    features = projection(F.relu(norm(drawn)))
    target, found = pop.logits(features)[0][0, 0], net.classifier(features)[0, 0]
    share = 1 - (target - found).square().mean() / target.var(correction=0)
    assert abs(share - stated) < 0.1 and share > 0.3


@torch.no_grad()
def test_an_imported_checkpoint_can_be_saved_as_ours(networks, tmp_path):
    x = _image()
    for name in ("POP", "CAPL"):
        net, facts = import_checkpoint(_file(tmp_path / "best.pth", networks[name].state_dict()))
        save_segmenter(net, tmp_path / "ours.safetensors", backbone=facts["backbone"], facts=facts)
        again, kept = load_segmenter(tmp_path / "ours.safetensors")
        assert kept == facts and torch.allclose(again(x), net(x), atol=2e-2 * net(x).abs().max().item())
        assert again.ppm.align_corners == net.ppm.align_corners


def test_resnet101_and_512_channels_at_their_true_shapes(tmp_path):
    with torch.device("meta"):
        public = Linear(_stem(), _stages(23), Pooling(), "DIaM", 512, 61).state_dict()
    state = {k: torch.tensor(0.25).expand(v.shape) for k, v in public.items() if "num_batches" not in k}
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "coco.pth")
    net, facts = import_checkpoint(tmp_path / "coco.pth", 61)
    assert (facts["backbone"], facts["classes"], net.weight.shape) == ("resnet101-deep", 61, (61, 512))
    assert len(public) == len(net.state_dict())
    assert all((v == 0.25).all() for k, v in net.state_dict().items() if "num_batches" not in k)
    with pytest.raises(UserError, match=r"\(DIaM\) has 61 classes.*expected 16"):
        import_checkpoint(tmp_path / "coco.pth", 16)


def _refused(tmp_path, state, message, classes=None):
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(UserError, match=message):
        import_checkpoint(tmp_path / "bad.pth", classes)


def test_what_does_not_fit_is_named_by_its_public_name(networks, tmp_path):
    bam = {k: v.new_zeros(()).expand(v.shape) for k, v in networks["BAM"].state_dict().items()}

    def without(*starts):
        return {k: v for k, v in bam.items() if not k.startswith(starts)}

    _refused(tmp_path, without("layer2.1.conv2"), r"\(BAM\) has no tensor 'layer2\.1\.conv2\.weight'")
    _refused(tmp_path, without("layer3.4"), "5 blocks in layer3.*Is the file complete")
    _refused(tmp_path, bam | {"layer3.40.conv1.weight": torch.zeros(1)}, "7 blocks in layer3")
    several = torch.zeros(()).expand(WIDTH, 3072, 3, 3)  # DIaM's m_scale joins other stages
    _refused(tmp_path, bam | {"cls.0.weight": several}, r"is \(16, 3072, 3, 3\); expected \(16, 4096, 3, 3\)")
    _refused(tmp_path, bam | {"layer0.0.weight": torch.zeros(64, 3, 7, 7)}, r"expected the deep stem")
    _refused(tmp_path, bam | {"cls.4.bias": torch.zeros(3)}, r"'cls\.4\.bias' is \(3,\); expected \(16,\)")
    _refused(tmp_path, bam | {"cls.4.weight": torch.zeros(())}, r"'cls\.4\.weight' is a single number")
    broken = torch.full((WIDTH,), torch.nan)
    _refused(tmp_path, bam | {"cls.1.weight": broken}, r"'cls\.1\.weight' holds NaN")
    _refused(tmp_path, bam | {"layer0.0.bias": torch.zeros(64)}, "VGG16")
    _refused(tmp_path, bam, r"has 16 classes.*expected 61", 61)


def test_files_of_another_kind_say_what_they_are(tmp_path):
    one = torch.zeros(1)
    _refused(tmp_path, {"learner_base.1.0.weight": one}, "BAM's whole model; give its base learner")
    _refused(tmp_path, {"conv1.weight": one, "layer1.0.conv1.weight": one}, "a backbone alone; give it as segmenter.weights")
    _refused(tmp_path, {"ppm.branches.0.0.weight": one}, "of ours")
    _refused(tmp_path, {"a": one}, r"of no known family \(CAPL, POP, BAM, DIaM\).*e\.g\. \['a'\]")
    _refused(tmp_path, {"state_dict": {"epoch": 3}}, "without tensors")
    (tmp_path / "text.pth").write_text("hello")
    for name, message in (("text.pth", "cannot be read"), ("none.pth", "does not exist")):
        with pytest.raises(UserError, match=message):
            import_checkpoint(tmp_path / name)


def test_capls_base_rows_are_the_first_of_its_table_and_a_tuned_pop_says_so(networks, tmp_path):
    state = networks["CAPL"].state_dict()
    net, facts = import_checkpoint(_file(tmp_path / "capl.pth", state), 11)
    assert facts["classes"] == 11 and torch.equal(net.weight, state["main_proto"][:11])
    with pytest.raises(UserError, match=r"\(CAPL\) has 16 classes.*expected 61"):
        import_checkpoint(tmp_path / "capl.pth", 61)
    tuned = networks["POP"].state_dict() | {"novel_emb": torch.zeros(5, WIDTH)}
    net, facts = import_checkpoint(_file(tmp_path / "tuned.pth", tuned))
    assert len(net.weight) == 1 + BASE and "novel classes are left out" in facts["notes"][-1]
