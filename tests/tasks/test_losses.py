"""The losses of distillation, against their formulas, torch and other people's code."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.helpers import SMALL, build
from vitlab.tasks.distill import Distill
from vitlab.tasks.losses import hard_distillation, soft_cross_entropy, soft_distillation

K = 7


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    """Logits of a student and of a teacher."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = 3 * torch.randn(2, 5, K, generator=generator)
    return student.requires_grad_(), teacher


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_is_the_formula_written_out(pair: tuple[Tensor, Tensor], temperature: float) -> None:
    student, teacher = pair
    expected = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = (torch.softmax(torch.tensor(row) / temperature, 0).tolist() for row in (t, s))
        expected += sum(
            a * (torch.tensor(a).log() - torch.tensor(b).log()).item() for a, b in zip(p, q, strict=True)
        )
    assert soft_distillation(student, teacher, temperature).item() == pytest.approx(
        temperature**2 * expected / len(student), rel=1e-5
    )
    by_torch = nn.KLDivLoss(reduction="batchmean")(
        (student / temperature).log_softmax(1), (teacher / temperature).softmax(1)
    )
    torch.testing.assert_close(soft_distillation(student, teacher, temperature), temperature**2 * by_torch)
    assert soft_distillation(teacher, teacher, temperature).item() == pytest.approx(0, abs=1e-6)


def test_the_temperature_leaves_the_size_of_the_gradient(pair: tuple[Tensor, Tensor]) -> None:
    # Hinton et al., equation 4: at high temperature the gradient is that of half the squared difference of
    # the centred logits, over K.
    student, teacher = pair
    soft_distillation(student, teacher, 1e3).backward()
    centred = [values - values.mean(1, keepdim=True) for values in (student.detach(), teacher)]
    torch.testing.assert_close(
        student.grad, (centred[0] - centred[1]) / K / len(student), rtol=0.02, atol=1e-4
    )


def test_hard_takes_the_likeliest_class(pair: tuple[Tensor, Tensor]) -> None:
    student, teacher = pair
    rows = [-student[i].log_softmax(0)[teacher[i].argmax()] for i in range(len(student))]
    torch.testing.assert_close(hard_distillation(student, teacher), torch.stack(rows).mean())


def test_bfloat16_logits_are_compared_in_float32(pair: tuple[Tensor, Tensor]) -> None:
    student, teacher = (values.bfloat16() for values in pair)
    for loss in (hard_distillation(student, teacher), soft_distillation(student, teacher, 2.0)):
        assert loss.dtype == torch.float32
    torch.testing.assert_close(
        soft_distillation(student, teacher, 2.0), soft_distillation(student.float(), teacher.float(), 2.0)
    )


@pytest.mark.parametrize("hard", [False, True])
def test_vit_pytorch_computes_the_same(hard: bool) -> None:
    distill = pytest.importorskip("vit_pytorch.distill")
    torch.manual_seed(0)
    student = distill.DistillableViT(
        image_size=8, patch_size=4, num_classes=K, dim=16, depth=1, heads=2, mlp_dim=16
    ).eval()
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(192, K))
    wrapper = distill.DistillWrapper(teacher=teacher, student=student, temperature=3.0, alpha=0.3, hard=hard)
    images, labels = torch.randn(4, 3, 8, 8), torch.randint(K, (4,))
    own, token = student(images, distill_token=wrapper.distillation_token)
    taught, said = wrapper.distill_mlp(token), teacher(images)
    loss = hard_distillation(taught, said) if hard else soft_distillation(taught, said, 3.0)
    torch.testing.assert_close(
        wrapper(images, labels), 0.7 * F.cross_entropy(own, labels) + 0.3 * loss, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("model", ["vit_tiny", "vit_distilled_tiny"])
def test_labels_and_teacher_share_the_loss(kind: str, model: str) -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.rand(32, 10, generator=generator)  # soft, as after mixup
    images = torch.randn(32, 3, 16, 16, generator=generator)
    batch = SimpleNamespace(images=images, targets=targets / targets.sum(1, keepdim=True))
    net = build(f"model={model}", **SMALL)
    said = torch.randn(32, 10, generator=torch.Generator().manual_seed(1))
    seen: list[Tensor] = []
    task = Distill(
        net=net.eval(),
        teacher=lambda images: seen.append(images) or said,
        optimizer=lambda net: torch.optim.SGD(net.parameters()),
        schedule=lambda step, total: 1.0,
        total_steps=1,
        num_classes=10,
        freeze="none",
        seed=0,
        meta={},
        kind=kind,
        temperature=3.0,
        weight=0.3,
        label_smoothing=0.1,
    )
    loss, shown = task.objective(batch)
    if model == "vit_tiny":
        labels = taught = net(batch.images)
    else:
        labels, taught = net(batch.images, per_head=True).unbind(1)
    label_loss = soft_cross_entropy(labels, batch.targets, 0.1)
    teacher_loss = hard_distillation(taught, said) if kind == "hard" else soft_distillation(taught, said, 3.0)
    torch.testing.assert_close(loss, 0.7 * label_loss + 0.3 * teacher_loss)
    truth, answers, guesses = (x.argmax(1) for x in (batch.targets, said, (labels + taught) / 2))
    expected = [
        (guesses == truth).sum(),
        32 * label_loss,
        32 * teacher_loss,
        (guesses == answers).sum(),
        (answers == truth).sum(),
    ]
    assert [v.item() for v in shown] == pytest.approx([v.item() for v in expected])
    assert len(Distill.shown) == 1 + len(shown)
    assert seen[0] is batch.images, "the teacher sees what the student sees"
    assert not any(value.requires_grad for value in shown)
