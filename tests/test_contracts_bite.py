"""Objectives with one mistake each: the contract that is named for the mistake must fail them. Other rooms: `check/test_rooms_bite.py`."""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import nn

from limbeck.check import check, contracts, models, window
from limbeck.check.suite import bite
from limbeck.component import LOADED
from limbeck.forward.base import Forward
from limbeck.numerics import kl, log_probs, upcast
from limbeck.objective.base import AbstractDivergence, AbstractLayers, Objective, by_chunks
from limbeck.schedule import Share
from limbeck.signals import Loss, TopK, dense

PLANTED: list[tuple[str, str, Callable[[], type[Objective]]]] = []


def planted(contract: str, words: str) -> Callable[[Any], Any]:
    """Notes a mistake: the contract that must fail, and words of its complaint."""
    return lambda make: PLANTED.append((contract, words, make)) or make


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    """Neither the planted kinds, nor models that one of them may have spoilt."""
    yield
    models.pair.cache_clear()
    window.LAST.clear()
    for key in [key for key in LOADED if key[1].startswith("bite:")]:
        del LOADED[key]


class Plain(Objective):
    """Of student and teacher logits; a final class writes `each`."""

    @property
    def needs(self):
        return {"student": ("logits",), "teacher": ("logits",)}

    def values(self, student, teacher):
        return self.each(log_probs(dense(teacher["logits"])), log_probs(dense(student["logits"])))

    def each(self, log_p, log_q):
        return kl(log_p, log_q)


class KL(AbstractDivergence):
    """The right thing; a final class spoils something else."""

    def divergence(self, log_p, log_q):
        return kl(log_p, log_q)


@planted("special_cases", "claimed to equal forward_kl")
def kl_in_the_wrong_direction():
    class Backwards(AbstractDivergence):
        kind: Literal["bite:backwards"] = "bite:backwards"
        special_cases: ClassVar = {"forward_kl": {}}

        def divergence(self, log_p, log_q):
            return kl(log_q, log_p)

    return Backwards


@planted("temperature", "at temperature 4 is 0.0")
def temperature_without_its_square():
    class Softened(KL):
        kind: Literal["bite:softened"] = "bite:softened"
        order: ClassVar[int] = 0

    return Softened


@planted("parts_add_up", "sum of two parts")
def a_mean_of_micro_batch_means():
    class Averaged(Plain):
        kind: Literal["bite:averaged"] = "bite:averaged"

        def each(self, log_p, log_q):
            return kl(log_p, log_q) / max(len(log_q), 1)

    return Averaged


@planted("parts_add_up", "sum of two parts")
def rows_that_look_at_each_other():
    class Centred(Plain):
        kind: Literal["bite:centred"] = "bite:centred"

        def each(self, log_p, log_q):
            return kl(log_p, log_q - log_q.mean(0, keepdim=True))

    return Centred


@planted("teaches", "is zero")
def an_objective_that_returns_zero():
    class Idle(Plain):
        kind: Literal["bite:idle"] = "bite:idle"

        def each(self, log_p, log_q):
            return log_q.sum(-1) * 0

    return Idle


@planted("teaches", "does not depend on what the taught seat says")
def a_student_that_is_detached_in_place_of_the_teacher():
    class Detached(Plain):
        kind: Literal["bite:detached"] = "bite:detached"

        def each(self, log_p, log_q):
            return kl(log_p, log_q.detach())

    return Detached


@planted("fields_read", "never read while it works: sharpness")
def a_field_that_nobody_reads():
    class Blunt(Plain):
        kind: Literal["bite:blunt"] = "bite:blunt"
        sharpness: float = 2.0
        """Said to matter."""

    return Blunt


@planted("yaml", "written and read back, it differs")
def a_tuple_that_comes_back_as_a_list():
    class Listed(Plain):
        kind: Literal["bite:listed"] = "bite:listed"
        edges: Any = (1, 2)
        """Of no declared type."""

    return Listed


@planted("schedules", "at step 0 is Linear(")
def a_schedule_that_is_not_followed():
    class Stubborn(Plain):
        kind: Literal["bite:stubborn"] = "bite:stubborn"
        alpha: Share = 0.1
        """May move, and does not."""

        def at(self, step):
            return self

    return Stubborn


@planted("canonical_form", "revision 0")
def a_revision_that_was_never_begun():
    class Unborn(Plain):
        kind: Literal["bite:unborn"] = "bite:unborn"
        revision: ClassVar[int] = 0

    return Unborn


@planted("exports_nothing", "projector.weight: it would be exported")
def a_projector_in_the_student():
    class Grafted(Forward):
        kind: Literal["bite:grafted"] = "bite:grafted"

        def __call__(self, models, batch, needs):
            models.models["student"].module.projector = nn.Linear(16, 24, dtype=torch.float64)
            return {role: models.says(role, batch, names) for role, names in needs.items()}

    return Grafted


@planted("lazy_logits", "gradient of a lazy head against a dense one")
def a_derivative_that_is_not_that_of_its_value():
    class Halved(KL):
        kind: Literal["bite:halved"] = "bite:halved"

        def slope(self, log_p, log_q):
            return kl(log_p, log_q), -0.5 * log_p.exp()

    return Halved


class Remembering(nn.Module):
    """Forgets what it saw: a number in an attribute is in no checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = 1.0


@planted("resumes", "loaded against never stopped")
def a_running_mean_that_no_checkpoint_keeps():
    class Running(Plain):
        kind: Literal["bite:running"] = "bite:running"

        def build(self, example):
            return Remembering()

        def values(self, student, teacher, learned):
            found = super().values(student, teacher)
            learned.mean = 0.5 * learned.mean + 0.5 * found.detach().sum().item()
            return found / learned.mean

    return Running


@planted("counts", "summed 17, the batch counts 16")
def a_count_that_is_one_too_many():
    class Miscounted(Plain):
        kind: Literal["bite:miscounted"] = "bite:miscounted"

        def __call__(self, said, learned=None):
            total, count = super().__call__(said, learned)
            return Loss(total, count + 1)

    return Miscounted


@planted("tags", "yet takes a tag")
def a_group_objective_that_takes_a_tag():
    class Parted(Plain):
        kind: Literal["bite:parted"] = "bite:parted"
        unit: ClassVar[str] = "group"

        def groups_stay_whole(self):
            return self

    return Parted


@planted("weights", "with weights of rows")
def weights_of_rows_that_are_left_out():
    class Unweighed(Plain):
        kind: Literal["bite:unweighed"] = "bite:unweighed"

        def __call__(self, said, learned=None):
            found = self.values(**said)
            return Loss(found.sum(), len(found))

    return Unweighed


@planted("no_batch_norm", "a batch norm (0)")
def a_batch_norm_in_what_is_learned():
    class Normed(AbstractLayers):
        kind: Literal["bite:normed"] = "bite:normed"

        def build(self, example):
            return nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 8))

        def values(self, student, teacher, learned):
            return (learned(upcast(student["hidden.-1"])) - upcast(teacher["hidden.-1"])).square().mean(-1)

        def distance(self, a, b):
            raise NotImplementedError

    return Normed


@planted("learned_parts", "gets no finite gradient")
def a_learned_part_outside_of_the_graph():
    class Frozen(Plain):
        kind: Literal["bite:frozen"] = "bite:frozen"

        def build(self, example):
            return nn.Linear(1, 1)

        def values(self, student, teacher, learned):
            return super().values(student, teacher) * learned.weight.detach().square().sum()

    return Frozen


@planted("float32", "bfloat16 signals against the same numbers")
def sums_in_bfloat16():
    class Coarse(Plain):
        kind: Literal["bite:coarse"] = "bite:coarse"

        def values(self, student, teacher):
            return kl(teacher["logits"].log_softmax(-1), student["logits"].log_softmax(-1))

    return Coarse


@planted("float64", "float64 signals is torch.float32")
def double_precision_that_is_lost():
    class Narrow(Plain):
        kind: Literal["bite:narrow"] = "bite:narrow"

        def values(self, student, teacher):
            return super().values(student, teacher).float()

    return Narrow


@planted("finite", "entries at -inf")
def minus_infinity_times_zero():
    class Bottomless(Plain):
        kind: Literal["bite:bottomless"] = "bite:bottomless"

        def values(self, student, teacher):
            return kl(upcast(dense(teacher["logits"])).log_softmax(-1), upcast(dense(student["logits"])).log_softmax(-1))

    return Bottomless


@planted("accumulation", "2 micro-batches against one")
def noise_that_is_drawn_in_each_micro_batch():
    class Noisy(Plain):
        kind: Literal["bite:noisy"] = "bite:noisy"

        def each(self, log_p, log_q):
            return kl(log_p, log_q) * (1 + 0.1 * torch.rand(len(log_q)))

    return Noisy


@planted("inputs_untouched", "logits of teacher is changed in place")
def a_teacher_that_is_softened_in_place():
    class Grabbing(Plain):
        kind: Literal["bite:grabbing"] = "bite:grabbing"

        def values(self, student, teacher):
            teacher["logits"].mul_(0.5)
            return super().values(student, teacher)

    return Grabbing


@planted("zero_at_match", "claimed; but loss")
def a_cross_entropy_to_the_teacher_that_claims_to_vanish():
    class Entropic(Plain):
        kind: Literal["bite:entropic"] = "bite:entropic"
        zero_at_match: ClassVar = ("student", "teacher")

        def each(self, log_p, log_q):
            return -(log_p.exp() * log_q).sum(-1)

    return Entropic


@planted("descends", "against the gradient takes it from")
def a_gradient_with_the_wrong_sign():
    class Uphill(Plain):
        kind: Literal["bite:uphill"] = "bite:uphill"

        def each(self, log_p, log_q):
            found = kl(log_p, log_q)
            return 2 * found.detach() - found

    return Uphill


@planted("empty", "not connected")
def a_zero_that_no_gradient_reaches():
    class Cut(Plain):
        kind: Literal["bite:cut"] = "bite:cut"

        def each(self, log_p, log_q):
            return kl(log_p, log_q) if len(log_q) else torch.zeros(0)

    return Cut


@planted("chunks", "chunks of 1")
def a_value_that_depends_on_the_chunk():
    class Lumpy(KL):
        kind: Literal["bite:lumpy"] = "bite:lumpy"

        def part(self, q, p):
            return super().part(q, p) / len(q) ** 0.5

    return Lumpy


@planted("lazy_logits", "gets a gradient where a dense one gets none, or the other way round")
def a_head_that_is_run_without_gradients():
    class Headless(Plain):
        kind: Literal["bite:headless"] = "bite:headless"

        def values(self, student, teacher):
            logits = student["logits"]
            if not isinstance(logits, torch.Tensor):
                with torch.no_grad():
                    weight = logits.head(torch.eye(logits.hidden.shape[-1], dtype=logits.hidden.dtype))
                logits = logits.hidden @ weight
            return self.each(log_probs(dense(teacher["logits"])), log_probs(logits))

    return Headless


@planted("truncated_teacher", "10 of 11 entries kept")
def a_truncated_teacher_without_its_tail():
    class Tailless(Plain):
        kind: Literal["bite:tailless"] = "bite:tailless"

        @property
        def needs(self):
            return {"student": ("logits",), "teacher": ("logits|top_logits",)}

        def values(self, student, teacher):
            p, log_q = teacher["logits|top_logits"], log_probs(student["logits"])
            return kl(p.log_probs, log_q.gather(-1, p.ids)) if isinstance(p, TopK) else kl(log_probs(p), log_q)

    return Tailless


@planted("compiles", "")
def a_chunk_that_asks_for_a_number():
    class Asking(KL):
        kind: Literal["bite:asking"] = "bite:asking"

        def divergence(self, log_p, log_q):
            return kl(log_p, log_q) if kl(log_p, log_q).max().item() > 0 else log_q.sum(-1)

    return Asking


@planted("shapes_flow", "expected device meta")
def a_mask_that_is_always_on_the_cpu():
    class Rooted(Plain):
        kind: Literal["bite:rooted"] = "bite:rooted"

        def each(self, log_p, log_q):
            return kl(log_p, log_q) * torch.ones(len(log_q))

    return Rooted


@planted("devices", "torch.ones without device=")
def a_tensor_without_a_device():
    return a_mask_that_is_always_on_the_cpu()


@planted("vocabulary", "attention of student is not in the vocabulary")
def a_word_that_no_role_says():
    class Foreign(Plain):
        kind: Literal["bite:foreign"] = "bite:foreign"

        @property
        def needs(self):
            return {"student": ("attention",), "teacher": ("logits",)}

    return Foreign


@planted("named", "expected 'rightly'")
def a_kind_that_is_not_its_class():
    class Rightly(Plain):
        kind: Literal["bite:wrongly"] = "bite:wrongly"

    return Rightly


@planted("documented", "no References:")
def a_docstring_without_references():
    class Unfounded(Plain):
        """KL from the teacher to the student.

        Example:
            >>> 1 + 1
            2
        """

        kind: Literal["bite:unfounded"] = "bite:unfounded"

    return Unfounded


@planted("documented", "names a paper: DistiLLM")
def a_sentence_that_names_a_paper():
    class Branded(Plain):
        """The loss of DistiLLM.

        References:
            Ko et al., DistiLLM, 2024, arXiv:2402.03898.
        """

        kind: Literal["bite:branded"] = "bite:branded"

    return Branded


@planted("documented", "does not run as written")
def an_example_that_does_not_run():
    class Stale(Plain):
        """KL from the teacher to the student.

        Example:
            >>> 1 + 1
            3

        References:
            (none)
        """

        kind: Literal["bite:stale"] = "bite:stale"

    return Stale


@pytest.mark.parametrize("contract, words, make", PLANTED, ids=[make.__name__ for _, _, make in PLANTED])
def test_a_planted_mistake_is_failed_by_the_contract_that_names_it(contract: str, words: str, make: Callable[[], Any]) -> None:
    found = bite(make(), contract)
    assert words in found, f"{contract} fails it, but for another reason: {found}"


def test_at_least_twenty_mistakes_are_planted() -> None:
    assert len(PLANTED) >= 20 and {contract for contract, _, _ in PLANTED} <= set(contracts("objective"))


def test_the_same_objective_without_a_mistake_is_failed_by_none() -> None:
    class Sound(Plain):
        """KL from the teacher to the student, as anybody may write it.

        Example:
            >>> 1 + 1
            2

        References:
            (none)
        """

        kind: Literal["bite:sound"] = "bite:sound"
        zero_at_match: ClassVar = ("student", "teacher")
        special_cases: ClassVar = {"forward_kl": {}}
        chunk: int = 5
        """Targets at the same time."""

        def values(self, student, teacher):
            return by_chunks(self.part, self.chunk, student["logits"], teacher["logits"])

        def part(self, q, p):
            return self.each(log_probs(dense(p)), log_probs(dense(q)))

    report = check(Sound)
    assert report.passed, [row for row in report.rows if row.status == "failed"]
