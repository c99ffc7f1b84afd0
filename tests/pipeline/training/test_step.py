"""One step: the losses of the papers, and a teacher that does not know that it has a student."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.data import default_collate

from hyperfuse.catalogs.errors import QualityRefused, UsageError
from hyperfuse.models import available, losses, method
from hyperfuse.pipeline.training.pairs import open_grounds
from hyperfuse.pipeline.training.patches import Samples, TrainingSample
from hyperfuse.pipeline.training.step import TERMS, Lesson, falling, falling_in_stairs
from tests.pipeline.training.settings import training

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def given():
    """What a network is specified for, and three batches."""
    config = training("unused")
    learnt, _ = open_grounds(config.scenes, config.held_out, config.simulation)
    samples = Samples(learnt, config.samples, config.simulation, seed=0)
    batches = [default_collate([samples[2 * k], samples[2 * k + 1]]) for k in range(3)]
    return learnt[0].pair.observed, batches


def told(lesson: Lesson, batches: list[TrainingSample]) -> list[dict[str, float]]:
    return [lesson.step(batch, number) for number, batch in enumerate(batches)]


@pytest.mark.parametrize(
    ("network", "terms"),
    [
        ("csakd-teacher", {"pixel": 1, "sam": 0.1, "beba": 0.1}),
        ("hyfusion-s", {"pixel": 1, "sam": 0.1, "wavelet": 0.01}),
    ],
)
def test_the_first_loss_is_the_papers(given, network, terms):
    observed, batches = given
    chosen = method(network)
    fused = chosen.build(chosen.specify(observed))(batches[0].hsi, batches[0].msi)
    expected = sum(weight * getattr(losses, name)(fused, batches[0].truth).item() for name, weight in terms.items())
    found = Lesson(training("unused", network=network), observed, CPU).step(batches[0], 0)
    assert found["network.loss"] == pytest.approx(expected, rel=1e-5)
    assert set(found) == {"network.loss", *(f"network.{name}" for name in terms)}


@pytest.mark.parametrize("name", [name for name in available() if "LOSSES" in vars(method(name).module)])
def test_every_network_names_losses_that_exist(name):
    assert set(vars(method(name).module)["LOSSES"]) <= set(TERMS) - {"response", "feature"}


def test_terms_can_be_chosen(given):
    observed, batches = given
    found = Lesson(training("unused", losses={"sam": 2.0}), observed, CPU).step(batches[0], 0)
    assert found["network.loss"] == pytest.approx(2 * found["network.sam"])


def test_a_teacher_learns_as_it_would_alone(given):
    """No gradient of the student's reaches it."""
    observed, batches = given
    alone = told(Lesson(training("unused", network="csakd-teacher"), observed, CPU), batches)
    together = told(Lesson(training("unused", teacher="csakd-teacher"), observed, CPU), batches)
    for one, both in zip(alone, together, strict=True):
        assert {name.replace("network", "teacher"): value for name, value in one.items()}.items() <= both.items()


def test_a_student_learns_from_truth_response_and_feature(given):
    observed, batches = given
    (first, *_) = batches
    lesson = Lesson(training("unused", teacher="csakd-teacher"), observed, CPU)
    student, teacher = (method(name) for name in ("csakd-student", "csakd-teacher"))
    with torch.no_grad():
        fused, own = student.build(student.specify(observed))(first.again, first.msi, return_feature=True)
        taught, shown = teacher.build(teacher.specify(observed))(first.hsi, first.msi, return_feature=True)
    found = lesson.step(first, 0)
    assert found["network.response"] == pytest.approx(losses.response(fused, taught).item(), rel=1e-5)
    assert found["network.feature"] == pytest.approx(losses.feature(own, shown).item(), rel=1e-5)
    parts = {"pixel": 1, "sam": 0.1, "beba": 0.1, "response": 0.1, "feature": 0.1}
    assert found["network.loss"] == pytest.approx(sum(w * found[f"network.{n}"] for n, w in parts.items()), rel=1e-5)


def test_a_student_moves_toward_its_teacher(given):
    """By a small step on the same batch, where the response outweighs all else."""
    observed, (batch, *_) = given
    config = training("unused", teacher="csakd-teacher", distill={"response": 1e6}, rate=1e-5, steps=1000)
    responses = [found["network.response"] for found in told(Lesson(config, observed, CPU), [batch] * 4)]
    assert responses == sorted(responses, reverse=True)
    alone = told(Lesson(config.model_copy(update={"distill": {}}), observed, CPU), [batch] * 4)
    assert "network.response" not in alone[0]


@pytest.mark.parametrize(("teacher", "shares"), [("s3rnet-paper", True), ("hyfusion-s", False)])
def test_other_teachers(given, caplog, teacher, shares):
    observed, batches = given
    lesson = Lesson(training("unused", teacher=teacher), observed, CPU)
    found = lesson.step(batches[0], 0)
    assert ("network.feature" in found) == shares
    assert ("one learns from the response of the other alone" in caplog.text) != shares
    assert math.isfinite(found["teacher.loss"])


def test_bf16_is_close_to_fp32(given):
    observed, batches = given
    fine, half = (
        Lesson(training("unused", teacher="csakd-teacher", precision=precision), observed, CPU).step(batches[0], 0)
        for precision in ("fp32", "bf16")
    )
    assert half != fine
    assert half == pytest.approx(fine, rel=0.05)


def test_rates():
    assert falling(0, 100, 1e-3) == pytest.approx(1e-3)
    assert falling(50, 100, 1e-3) == pytest.approx(5e-4, rel=1e-3)
    assert 0 < falling(100, 100, 1e-3) < 2e-10
    assert [round(falling_in_stairs(step, 800, 1.0), 6) for step in (0, 99, 100, 799)] == [1, 1, 0.9, round(0.9**7, 6)]


@pytest.mark.parametrize(
    ("network", "patch", "told"),
    [("csakd-student", 4, True), ("csakd-student", 8, False), ("universal-csakd-student", 4, False)],
)
def test_a_patch_that_is_all_border_is_told(given, caplog, network, patch, told):
    observed, _ = given
    Lesson.check(training("unused", network=network, samples={"patch": patch}), observed)
    assert ("learns little but the border" in caplog.text) == told


def test_what_cannot_be_trained_is_told(given):
    observed, batches = given
    with pytest.raises(UsageError, match="gsa has no weights to train"):
        Lesson(training("unused", network="gsa"), observed, CPU)
    with pytest.raises(UsageError, match=r"samples.patch: 6 coarse pixels, expected a multiple of 4 for hyfusion-s"):
        Lesson(training("unused", network="hyfusion-s", samples={"patch": 6}), observed, CPU)
    lesson = Lesson(training("unused"), observed, CPU)
    broken = batches[0]._replace(truth=batches[0].truth * math.nan)
    with pytest.raises(QualityRefused, match="the loss is nan at step 7"):
        lesson.step(broken, 7)
